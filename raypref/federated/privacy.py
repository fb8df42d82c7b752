"""Client-level differential privacy of federated averaging (McMahan et al. 2018, arXiv 1710.06963).

Every client of the run is in a round with the same probability, on its own. Its whole update is clipped, the
clipped updates are added, Gaussian noise is added to the sum, and the noisy sum is divided by a number that
does not depend on who came: the expected number of clients. `accountant` says what that is worth.

The server adds the noise, so it protects a client from everybody who sees a model, not from the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypref.errors import DivergedError
from raypref.federated.keys import derive, words

SECRET_BYTES = 32


def clip(update: Mapping[str, Tensor], norm: float) -> tuple[dict[str, Tensor], float]:
    """Return a client's update, scaled to an L2 norm of at most `norm`, and the norm that it had.

    All tensors together count as one vector. After rounding, too, the norm is at most `norm`: what is scaled
    becomes shorter by one relative step of its coarsest type.

    Args:
        update: floats, by name.
        norm: above 0.

    Raises:
        DivergedError: the update has numbers that are not finite.
        ValueError: `norm` is not above 0.
    """
    if not norm > 0:
        raise ValueError(f"An update cannot be clipped to the norm {norm}: it must be above 0.")
    parts = [float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in update.values()]
    had = math.hypot(*parts)
    if not math.isfinite(had):
        raise DivergedError("A client's update is not finite. Train its clients with a lower rate.")
    if had <= norm:
        return dict(update), had
    scale = norm / had * (1 - max(torch.finfo(part.dtype).eps for part in update.values()))
    return {name: (part.double() * scale).to(part.dtype) for name, part in update.items()}, had


def noise(like: Mapping[str, Tensor], std: float, secret: bytes, round: int) -> dict[str, Tensor]:
    """Return the Gaussian noise of a round, float64 on the CPU, to be added to the sum before it is rounded.

    It is drawn from a stream that only who has the secret can compute. So a round that is computed again has
    the same noise, whatever the order of the names. For the same reason a round must never be published
    twice with different clients: the difference of the two would have no noise at all.

    The accountant's ε is that of real numbers. Floating-point noise takes only some of the values near a sum,
    and which ones depends on the sum; the lowest bits of a published sum can so tell sums apart that real
    noise would hide (Mironov 2012, "On significance of the least significant bits for differential
    privacy", shown for Laplace noise; Gaussian noise has the same flaw). Rounding the noisy sum to float32
    drops most of those bits, but that is no proof. Nor is noise ever larger than 8.7 · std, which real noise
    exceeds with a probability below 2^-54 per number.

    Args:
        like: tensors of the shapes wanted, by name.
        std: standard deviation, `noise_multiplier · norm` for a sum of updates clipped to `norm`.
        secret: 32 random bytes of the run, which the server keeps to itself.
        round: its number in the run.

    Raises:
        ValueError: the secret has another length, or `std` is below 0 or not finite.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"The secret of the noise has {SECRET_BYTES} bytes, not {len(secret)}.")
    if not 0 <= std < math.inf:
        raise ValueError(f"Noise cannot have the standard deviation {std}.")
    drawn: dict[str, Tensor] = {}
    for name, tensor in like.items():
        key = derive(secret, b"noise", str(round).encode(), name.encode())
        drawn[name] = torch.from_numpy(std * _gaussian(key, tensor.numel())).view(tensor.shape)
    return drawn


def _gaussian(key: bytes, count: int) -> NDArray[np.float64]:
    """Return standard Gaussian numbers (Box and Muller 1958)."""
    pairs = -(-count // 2)
    uniform_2G = ((words(key, 2 * pairs) >> np.uint64(11)) + 0.5).reshape(2, pairs) * 2.0**-53
    radius_G, angle_G = np.sqrt(-2 * np.log(uniform_2G[0])), 2 * np.pi * uniform_2G[1]
    return np.concatenate([radius_G * np.cos(angle_G), radius_G * np.sin(angle_G)])[:count]
