"""An update as one vector of numbers, so that updates add up exactly, in the open or under masks.

Each number is a multiple of one fixed step (`fixed_point`): the sum is the same to the last bit in whatever
order it is added, and whether or not anybody saw the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypref.errors import CorruptError

BOUND = 2.0**12
"""Largest absolute value of a number in an update. A hundred clients' add up in steps of 2^-32."""


@dataclass(frozen=True)
class Sum:
    """What the updates of a round come to."""

    total: Mapping[str, Tensor]
    """Σ weight · delta of each parameter, float64."""
    weight: Mapping[str, float]
    """Σ weight of the clients that moved it."""


class Layout:
    """Where the numbers of each parameter stand: weight · delta of one after the other, then each weight."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Lay out the shared parameters of a model."""
        self._shapes = {name: part.shape for name, part in sorted(parameters.items())}
        self.size = sum(shape.numel() for shape in self._shapes.values()) + len(self._shapes)

    def pack(self, delta: Mapping[str, Tensor], weight: float) -> NDArray[np.float64]:
        """Return the numbers of an update; a parameter that it leaves out has weight 0.

        Raises:
            CorruptError: it has other parameters, or others' shapes.
        """
        if any(self._shapes.get(name) != part.shape for name, part in delta.items()):
            raise CorruptError("an update does not fit the model.")
        parts = [
            delta[name].double().reshape(-1) * weight if name in delta else torch.zeros(shape.numel())
            for name, shape in self._shapes.items()
        ]
        weights = torch.tensor([weight if name in delta else 0.0 for name in self._shapes])
        return torch.cat([*parts, weights.double()]).numpy()

    def unpack(self, total_G: NDArray[np.float64]) -> Sum:
        """Return what the sum of such vectors stands for."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        *parts, weights = torch.from_numpy(total_G).split([*sizes, len(sizes)])
        return Sum(
            {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)},
            dict(zip(self._shapes, weights.tolist(), strict=True)),
        )
