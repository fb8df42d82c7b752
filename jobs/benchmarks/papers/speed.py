"""How fast a user is known: one forward pass against gradient steps, on one machine in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from papers.claim import Bench, Claim, Figures
from papers.published import PUBLISHED, Method, config_of
from raypref.checkpoint import build
from raypref.methods.base import RewardModel
from raypref.types import Dims

WIDTH, SHOTS = 384, 16
ROWS_PER_PASS = 4096
ORDERS = 1000
"""Times faster that three orders of magnitude are."""
LEAST_SECONDS = 0.05
"""A call that is shorter is repeated until so much time has passed."""

GRADIENT: dict[str, Method] = {f"{name}-published": PUBLISHED[name] for name in ("lore", "pal", "pref")}
POSTERIOR: dict[str, Method] = {name: {"type": name} for name in ("lore", "pal", "pref")}
METHODS: dict[str, Method] = {"vrf": {"type": "vrf"}} | POSTERIOR | GRADIENT


class Adaptation:
    """The way from a batch of users' embeddings to their vectors, in its two parts."""

    def __init__(self, model: RewardModel, users: int, rows_2ND: Tensor) -> None:
        """Give each user `SHOTS` comparisons; all passes read the same rows."""
        self._model = model
        self._chosen_ND, self._rejected_ND = rows_2ND
        self._comparisons = users * SHOTS
        self._evidence_BPE = self._encoded().view(users, SHOTS, -1)
        self._mask_BP = torch.ones(users, SHOTS)

    def _passes(self) -> Iterator[Tensor]:
        for first in range(0, self._comparisons, ROWS_PER_PASS):
            rows = slice(min(ROWS_PER_PASS, self._comparisons - first))
            yield self._model.evidence(self._chosen_ND[rows], self._rejected_ND[rows])

    def _encoded(self) -> Tensor:
        return torch.cat(list(self._passes()))

    def encode(self) -> None:
        """Do the D-wide work: the evidence of every comparison."""
        self._encoded()

    def infer(self) -> None:
        """Infer every user from stored evidence."""
        self._model.infer(self._evidence_BPE, self._mask_BP)


def measure(bench: Bench) -> Figures:
    """Time every method in turn, round after round, alone and in a batch."""
    rounds, many = (3, 1_000) if bench.size == "default" else (2, 200)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return {
                "width": WIDTH,
                "shots": SHOTS,
                "threads": 1,
                "rounds": rounds,
                "batches": {str(users): _compare(users, rounds) for users in (1, many)},
            }
    finally:
        torch.set_num_threads(threads)


def _compare(users: int, rounds: int) -> Figures:
    rows_2ND = torch.randn(2, ROWS_PER_PASS, WIDTH, generator=torch.Generator().manual_seed(0))
    models = {name: build(config_of(method), Dims(WIDTH, 1000)).eval() for name, method in METHODS.items()}
    adaptations = {name: Adaptation(model, users, rows_2ND) for name, model in models.items()}
    found: dict[str, dict[str, list[float]]] = {name: {"encode": [], "infer": []} for name in adaptations}
    for _ in range(rounds):
        for name, adaptation in adaptations.items():
            found[name]["encode"].append(_seconds(adaptation.encode) / users)
            found[name]["infer"].append(_seconds(adaptation.infer) / users)
    return {"methods": {name: _against(each, found["vrf"]) for name, each in found.items()}}


def _seconds(call: Callable[[], None]) -> float:
    """Return the seconds of a call, the mean over as many as take `LEAST_SECONDS`."""
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < LEAST_SECONDS:
        call()
        calls += 1
    return spent / calls


def _against(own: dict[str, list[float]], vrf: dict[str, list[float]]) -> Figures:
    """Return a method's seconds per user, and how many times VRF's they are, each round by itself."""
    total, fast = ([sum(pair) for pair in zip(*each.values(), strict=True)] for each in (own, vrf))
    return {
        "encode_s": median(own["encode"]),
        "infer_s": median(own["infer"]),
        "times_vrf": _ratio(total, fast),
        "times_vrf_infer_only": _ratio(own["infer"], vrf["infer"]),
    }


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> Figures:
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": median(ratios), "range": [min(ratios), max(ratios)]}


def conditions(figures: Figures) -> dict[str, bool]:
    """Return whether each published adaptation takes a thousand times as long, alone and in a batch."""
    return {
        f"{ORDERS} times {name}, {batch} at a time": bool(
            found["methods"][name]["times_vrf"]["median"] >= ORDERS
        )
        for batch, found in figures["batches"].items()
        for name in GRADIENT
    }


def reading(figures: Figures) -> str:
    """Say how many times as long each method takes."""
    said = []
    for batch, found in figures["batches"].items():
        times = {name: each["times_vrf"]["median"] for name, each in found["methods"].items()}
        vrf = found["methods"]["vrf"]
        said.append(
            f"{batch} at a time: VRF {1e6 * (vrf['encode_s'] + vrf['infer_s']):.0f} µs a user; published "
            + ", ".join(f"{name.removesuffix('-published')} ×{times[name]:.0f}" for name in GRADIENT)
            + "; batched posteriors "
            + ", ".join(f"{name} ×{times[name]:.1f}" for name in POSTERIOR)
        )
    return "; ".join(said) + "."


CLAIMS = (
    Claim(
        5,
        "speed",
        "VRF adapts to a new user 1,000 times as fast as the gradient steps of LoRe, PAL and PReF",
        "VRF, arXiv 2604.00997",
        measure,
        conditions,
        reading,
    ),
)
