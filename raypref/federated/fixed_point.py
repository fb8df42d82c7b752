"""Numbers as integers modulo 2^64, so that their sum is exact, in any order and under masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypref.errors import AggregationError


@dataclass(frozen=True)
class FixedPoint:
    """Multiples of 2^-bits, as fine as a sum over all clients allows without more than 53 bits.

    So no sum wraps, and float64 holds every sum exactly: adding the rounded numbers as floats, in any order,
    gives the same bits.
    """

    clients: int
    """At most this many are added."""
    bound: float
    """Largest absolute value of a client's number."""

    def __post_init__(self) -> None:
        if not (0 < self.bound < math.inf and 1 <= self.clients < 2**32):
            raise ValueError(f"No fixed point for {self.clients} clients with numbers up to {self.bound}.")

    @property
    def bits(self) -> int:
        """Binary places after the point; below 0 where the bound is very large."""
        # One bit is left for rounding: clients · (bound · 2^bits + 1/2) <= 2^52 + 2^31.
        return 52 - math.frexp(self.bound)[1] - (self.clients - 1).bit_length()

    def encode(self, values_G: NDArray[np.float64]) -> NDArray[np.uint64]:
        """Return the nearest multiples, as integers modulo 2^64.

        Raises:
            AggregationError: a number is beyond the bound, or none.
        """
        beyond_G = ~(np.abs(values_G) <= self.bound)
        if beyond_G.any():
            first = int(beyond_G.argmax())
            raise AggregationError(
                f"Number {first} of a client's vector is too large, or none: only up to ±{self.bound} can be "
                "added. Clip updates to a smaller norm, or raise the bound for all."
            )
        return np.rint(np.ldexp(values_G, self.bits)).astype(np.int64).view(np.uint64)

    def decode(self, total_G: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return what a sum of encoded vectors stands for, exactly.

        Raises:
            AggregationError: it is no such sum: more than all clients together can have.
        """
        signed_G = total_G.view(np.int64)
        most = self.clients * round(math.ldexp(self.bound, self.bits))
        if ((signed_G > most) | (signed_G < -most)).any():
            raise AggregationError("The sum is larger than it can be: a mask was left on it.")
        return np.ldexp(signed_G.astype(np.float64), -self.bits)
