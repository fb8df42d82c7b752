"""What `gpu.py` measures of one method: that it is right on the device, and how fast its parts are."""

from __future__ import annotations

import copy
import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from clock import medians, seconds
from gpu_case import METHODS, PRECISIONS, Memory, Need, apart, busy, cast, in_float64, matmuls, planted, rated
from recording import spread
from torch import Tensor

from raypref.checkpoint import build
from raypref.methods.base import RewardModel
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs

SAME = 1e-4
"""Relative distance of a GPU's float32 from a CPU's that is rounding."""

BATCHES = 4
"""Of a training, which come again and again."""

FORMS = (
    ("float32", "float32"),
    ("float32", "tf32"),
    ("float16", "float32"),
    ("float16", "tf32"),
    ("bfloat16", "bfloat16"),
)
"""Types of embeddings and precisions that `item` and `evidence` are measured in; tables hold float16."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    dim: int = 4096
    steps: int = 40
    users_per_step: int | None = None
    """None takes the recipe's."""
    larger: int = 8
    """Times as many users are in a large step."""
    rows: int = 2**17
    """Of embeddings in a call: far more than a cache holds."""
    users: int = 10_000
    shots: int = 16
    candidates: int = 1000
    rounds: int = 15
    side: int = 8192
    """Of the square matrices whose product is the peak."""
    numbers: int = 2**30
    """That are copied to learn the bandwidth."""


QUICK = Plan(64, 12, 8, 2, 512, 50, 4, 10, 2, 256, 2**16)


def attempted(work: Callable[..., Any], *arguments: object) -> Any:
    """Return what a work returns, or the error that it ends with."""
    try:
        return work(*arguments)
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


class Measuring:
    """One method on one device."""

    def __init__(self, name: str, plan: Plan, device: torch.device, able: Mapping[str, float]) -> None:
        """Take what is measured, how much of it, and what the device can do."""
        self.config, self.item_heads, self.pair_heads = METHODS[name]
        self.plan, self.device, self.able = plan, device, able
        self.per_step = plan.users_per_step or self.config.recipe.users_per_step
        # Rows for the users of all batches, and of a large step.
        self.dims = Dims(plan.dim, max(plan.larger, BATCHES) * self.per_step)

    def all(self) -> dict[str, Any]:
        """Return all figures of the method."""
        batches = [self._episodes(self.per_step, seed) for seed in range(BATCHES)]
        found: dict[str, Any] = {"method": self.config.model_dump(mode="json")}
        found["training"] = [attempted(self.training, batches, precision) for precision in PRECISIONS]
        # Drawn there: what a GPU hands over without waiting lies in page-locked memory, which no table does.
        hosted = [self._episodes(self.per_step, seed, CPU) for seed in range(2)]
        found["from_host"] = attempted(self.training, hosted, "float32")
        model, *_ = self._trained(batches, "float32")
        model.settle(batch.target for batch in batches)
        model.eval()
        del batches, hosted
        large = [self._episodes(self.plan.larger * self.per_step, BATCHES)]
        found["training"] += [attempted(self.training, large, precision) for precision in PRECISIONS]
        del large
        with torch.no_grad():
            for name in ("correct", "rows", "infer", "reward"):
                found[name] = attempted(getattr(self, name), model)
        return found

    def training(self, batches: Sequence[Episodes], precision: str) -> dict[str, Any]:
        """Return the rate of steps, and what they did to the loss."""
        memory = Memory(self.device)
        model, taken, losses, kernels = self._trained(batches, precision)
        peak = memory.peak()
        target = batches[0].target
        count, weights = target.comparisons, sum(part.numel() for part in model.parameters())
        embeddings = target.chosen_BPD.nbytes + target.rejected_BPD.nbytes
        need = Need(embeddings + 32 * weights, 4 * count * self.plan.dim * self.pair_heads)
        able = dict(self.able)
        if target.mask_BP.device.type != self.device.type:
            need, able["copy_bytes"] = Need(embeddings), self.able["host_bytes"]
        return {
            "users": len(target.mask_BP),
            **rated("comparisons", count, taken[BATCHES:], need, precision, able),
            "step_s": spread(taken[BATCHES:]),
            "kernels": kernels,
            "loss": [sum(some) / BATCHES for some in (losses[:BATCHES], losses[-BATCHES:])],
            "peak_bytes": peak,
        }

    def _trained(
        self, batches: Sequence[Episodes], precision: str
    ) -> tuple[RewardModel, list[float], list[float], dict[str, float] | None]:
        """Return a model after all steps, the seconds of all but the last, losses, and the last's kernels."""
        steps = self.plan.steps
        recipe = self.config.recipe.model_copy(update={"steps": steps})
        model = build(self.config, self.dims, 0)
        model.fit_scale(batches[0].target.chosen_BPD.flatten(0, 1)[:1000].cpu())
        state = start(model.to(self.device), recipe)
        episodes = itertools.islice(itertools.cycle(batches), steps)
        taking = train(state, episodes, recipe, seed=0, bfloat16=precision == "bfloat16")
        losses: list[float] = []

        def step() -> None:
            losses.append(next(taking).loss)

        with matmuls(precision):
            taken = [seconds(step, self.device) for _ in range(steps - 1)]
            kernels = busy(step, self.device)
        return model, taken, losses, kernels

    def correct(self, model: RewardModel) -> dict[str, Any]:
        """Return how far the device's answers are from a CPU's; each is of the CPU's inputs."""
        here, device = copy.deepcopy(model).cpu(), self.device
        pairs = self._pairs(32, self.plan.shots, 100).to(CPU)
        item_BNF, evidence_BPE = here.item(pairs.chosen_BPD), here.encode(pairs)
        user_BZ = here.infer(evidence_BPE, pairs.mask_BP)
        expected = here.reward(item_BNF, user_BZ)
        there = pairs.to(device)
        found = model.reward(item_BNF.to(device), user_BZ.to(device))
        away = {
            "item": apart(model.item(there.chosen_BPD), item_BNF.to(device)),
            "evidence": apart(model.encode(there), evidence_BPE.to(device)),
            "infer": apart(model.infer(evidence_BPE.to(device), there.mask_BP), user_BZ.to(device)),
            "reward": apart(found.mean_BN, expected.mean_BN.to(device)),
        }
        if expected.var_BN is not None and found.var_BN is not None:
            away["variance"] = apart(found.var_BN, expected.var_BN.to(device))
        return {"apart": away, "same": all(value <= SAME for value in away.values())}

    def rows(self, model: RewardModel) -> list[dict[str, Any]]:
        """Return the figures of items and, where a comparison says anything, of evidence."""
        pairs = self._pairs(1, self.plan.rows, 200)
        both = [pairs.chosen_BPD[0], pairs.rejected_BPD[0]]
        del pairs
        found: list[dict[str, Any]] = []
        for dtype, precision in FORMS:
            blocks = [block_ND.to(getattr(torch, dtype)) for block_ND in both]
            found.append({"what": "item", **self._row(model, blocks[:1], precision, self.item_heads)})
            if model.evidence(both[0][:1], both[1][:1]).shape[-1]:
                found.append({"what": "evidence", **self._row(model, blocks, precision, self.pair_heads)})
        return found

    def _row(
        self, model: RewardModel, blocks: Sequence[Tensor], precision: str, heads: int
    ) -> dict[str, Any]:
        """Return the figures of items of one block, or of evidence of two."""
        plan = self.plan

        def say(model: RewardModel, blocks: Sequence[Tensor]) -> Tensor:
            return model.item(*blocks) if len(blocks) == 1 else model.evidence(*blocks)

        def work(blocks: Sequence[Tensor] = blocks) -> Tensor:
            with matmuls(precision), cast(precision, self.device):
                return say(model, blocks)

        memory = Memory(self.device)
        taken = medians({"": work}, self.device, plan.rounds, 0.0)[""]
        peak = memory.peak()
        few = [block_ND[:1024] for block_ND in blocks]
        answer_NF = work(few)
        exact_NF = in_float64(model, lambda exact: say(exact, [block_ND.double() for block_ND in few]))
        read = sum(block_ND.nbytes for block_ND in blocks)
        need = Need(read + 4 * plan.rows * answer_NF.shape[-1], 2 * plan.rows * plan.dim * heads)
        return {
            "dtype": str(blocks[0].dtype).removeprefix("torch."),
            **rated("rows", plan.rows, taken, need, precision, self.able),
            "error": apart(answer_NF, exact_NF),
            "peak_bytes": peak,
        }

    def infer(self, model: RewardModel) -> list[dict[str, Any]]:
        """Return the figures of inferring all users; none where there is nothing to infer."""
        pairs = self._pairs(self.plan.users, self.plan.shots, 300)
        evidence_BPE, mask_BP = model.encode(pairs), pairs.mask_BP
        del pairs
        if not evidence_BPE.shape[-1]:
            return []
        user_BZ = model.infer(evidence_BPE, mask_BP)
        need = Need(evidence_BPE.nbytes + mask_BP.nbytes + user_BZ.nbytes)
        return self._judged(lambda: model.infer(evidence_BPE, mask_BP), "users", self.plan.users, need)

    def reward(self, model: RewardModel) -> list[dict[str, Any]]:
        """Return the figures of the rewards of the same candidates for every user."""
        pairs = self._pairs(self.plan.users, self.plan.shots, 300)
        user_BZ = model.infer(model.encode(pairs), pairs.mask_BP)
        item_NF = model.item(self._pairs(1, self.plan.candidates, 301).chosen_BPD[0])
        item_BNF = item_NF.expand(len(user_BZ), -1, -1)
        del pairs
        results, count = 2 if model.uncertain else 1, self.plan.users * self.plan.candidates
        need = Need(
            item_NF.nbytes + user_BZ.nbytes + 4 * count * results, 2 * count * item_NF.shape[-1] * results
        )
        return self._judged(lambda: model.reward(item_BNF, user_BZ), "scores", count, need)

    def _judged(self, work: Callable[[], object], unit: str, count: int, need: Need) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for precision in ("float32", "tf32"):
            memory = Memory(self.device)
            with matmuls(precision):
                taken = medians({"": work}, self.device, self.plan.rounds, 0.0)[""]
            rate = rated(unit, count, taken, need, precision, self.able)
            found.append({**rate, "peak_bytes": memory.peak()})
        return found

    def _episodes(self, users: int, seed: int, device: torch.device | None = None) -> Episodes:
        first = 0 if users > self.per_step else seed * users
        return planted(self.plan.dim, users, self.config.recipe.targets, device or self.device, seed, first)

    def _pairs(self, users: int, comparisons: int, seed: int) -> Pairs:
        return planted(self.plan.dim, users, comparisons, self.device, seed).target
