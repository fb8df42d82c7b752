"""What `gpu.py` measures on: methods, planted comparisons on a device, precisions, and what limits a work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from clock import medians
from recording import spread
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from raypref.methods import (
    BTConfig,
    FedVPAConfig,
    LoReConfig,
    PALConfig,
    PReFConfig,
    SPLConfig,
    VPLConfig,
    VRFConfig,
)
from raypref.methods.base import MethodConfig, RewardModel
from raypref.types import Episodes, Pairs

LORE, VRF, PAL, PREF = LoReConfig(), VRFConfig(), PALConfig(), PReFConfig()
VPL, SPL, FEDVPA = VPLConfig(), SPLConfig(), FedVPAConfig()

METHODS: dict[str, tuple[MethodConfig, int, int]] = {
    "lore": (LORE, 1 + LORE.bases, 1 + LORE.bases),
    "vrf": (VRF, VRF.bases, VRF.features + VRF.bases),
    "bt": (BTConfig(), 1, 1),
    "pal": (PAL, 1 + PAL.width, 2 * (1 + PAL.width)),
    "pref": (PREF, PREF.bases, PREF.bases),
    "vpl": (VPL, 1 + VPL.latent, 1 + VPL.latent),
    "spl": (SPL, 1 + SPL.latent // 2, 2 * (1 + SPL.latent // 2)),
    "fedvpa": (FEDVPA, 1 + FEDVPA.rank, 1 + FEDVPA.rank + FEDVPA.features),
}
"""Configuration, and the D-wide heads that an item and that a comparison must be multiplied with: one product
of the difference where that says all, else one of each answer."""

PRECISIONS = ("float32", "tf32", "bfloat16")
"""Of products: as the code runs unless told; torch's flag; autocast, as `train.precision: bfloat16` does."""

TASTES = 4


def planted(
    dim: int, users: int, comparisons: int, device: torch.device, seed: int, first: int = 0
) -> Episodes:
    """Return noisy comparisons of users who weigh a few rewards, one of which most of them like.

    Args:
        dim: D.
        users: B.
        comparisons: P of each of them, all targets.
        device: where they are.
        seed: of the users and what they compare; the rewards are always the same.
        first: row of the first user in the table of seen users.
    """
    random = torch.Generator(device).manual_seed(seed)
    tastes_DK = _normal(dim, TASTES, random=torch.Generator(device).manual_seed(0)) / dim**0.5
    weights_BK = 2.0 * _normal(users, TASTES, random=random)
    weights_BK[:, 0] += 3.0
    one_BPD, other_BPD = (_normal(users, comparisons, dim, random=random) for _ in range(2))
    margin_BP1 = (one_BPD @ tastes_DK - other_BPD @ tastes_DK) @ weights_BK.unsqueeze(-1)
    forth_BP1 = torch.rand(margin_BP1.shape, generator=random, device=device) < margin_BP1.sigmoid()
    chosen_BPD = torch.where(forth_BP1, one_BPD, other_BPD)
    rejected_BPD = torch.where(forth_BP1, other_BPD, one_BPD)
    nothing = Pairs(*(torch.empty(users, 0, *width, device=device) for width in ((dim,), (dim,), ())))
    target = Pairs(chosen_BPD, rejected_BPD, torch.ones(users, comparisons, device=device))
    return Episodes(nothing, target, torch.arange(first, first + users, device=device))


def _normal(*shape: int, random: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=random, device=random.device)


@contextmanager
def matmuls(precision: str) -> Generator[None]:
    """Let float32 products be rounded to TF32 inside, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast of a precision, if it is one."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def in_float64(model: RewardModel, what: Callable[[RewardModel], Tensor]) -> Tensor:
    """Return what a model says with all its arithmetic in float64, where it says `float()` too."""
    exact = copy.deepcopy(model).double()
    with mock.patch.object(Tensor, "float", Tensor.double):
        return what(exact)


def apart(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖; 0 of nothing."""
    expected = expected.double()
    away = torch.linalg.vector_norm(found.to(expected) - expected)
    return float(away / torch.linalg.vector_norm(expected)) if expected.numel() else 0.0


@dataclass(frozen=True)
class Need:
    """What a work must do at the least, however it is written."""

    bytes: float
    """Inputs read once, results written once."""
    flops: float = 0.0
    """Of its matrix products."""


def limit(need: Need, precision: str, able: Mapping[str, float]) -> tuple[float, str]:
    """Return the fewest seconds that a device which is `able` takes, and which of the two takes them."""
    times = {"bytes": need.bytes / able["copy_bytes"], "flops": need.flops / able[f"{precision}_flops"]}
    bound = max(times, key=lambda name: times[name])
    return times[bound], bound


def rated(
    unit: str, count: int, taken: list[float], need: Need, precision: str, able: Mapping[str, float]
) -> dict[str, Any]:
    """Return how many of a unit are done in a second, beside how many could be.

    Args:
        unit: what is counted.
        count: of units in one call.
        taken: seconds of each call.
        need: of one call.
        precision: of the products.
        able: what the device can do.
    """
    least_s, bound = limit(need, precision, able)
    rate = spread([count / s for s in taken])
    return {
        "precision": precision,
        unit: count,
        f"{unit}_s": rate,
        "limit": count / least_s,
        "bound": bound,
        "share": rate["median"] * least_s / count,
    }


def busy(work: Callable[[], object], device: torch.device) -> dict[str, float] | None:
    """Return how many kernels and copies a work starts and how long they run; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        work()
        torch.cuda.synchronize(device)
    ran = [event for event in watched.events() or () if event.device_type == DeviceType.CUDA]
    return {"kernels": len(ran), "busy_s": sum(event.time_range.elapsed_us() for event in ran) / 1e6}


class Memory:
    """The most device memory that a work takes beyond what is there before; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """Begin to watch."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def peak(self) -> int | None:
        """Return bytes."""
        if self._device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self._device) - self._before


def abilities(device: torch.device, side: int, numbers: int) -> dict[str, float]:
    """Return flops of square products in each precision, and bytes copied on the device and to it, a second.

    Args:
        device: that can do it.
        side: of the matrices.
        numbers: float32, that are copied; a copy is counted twice, read and written, one to the device once,
            from page-locked memory, which is the fastest there is.
    """
    found: dict[str, float] = {}
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        square = torch.randn(side, side, device=device).to(dtype)
        with matmuls(precision):
            taken = medians({"": lambda s=square: s @ s}, device, 7, 0.0)[""]
        found[f"{precision}_flops"] = 2 * side**3 / spread(taken)["median"]
    block = torch.randn(numbers, device=device)
    room = torch.empty_like(block)
    taken = medians({"": lambda: room.copy_(block)}, device, 7, 0.0)[""]
    found["copy_bytes"] = 8 * numbers / spread(taken)["median"]
    outside = torch.ones(numbers // 16, pin_memory=device.type == "cuda")
    taken = medians({"": lambda: room[: numbers // 16].copy_(outside)}, device, 5, 0.0)[""]
    found["host_bytes"] = 4 * (numbers // 16) / spread(taken)["median"]
    return found
