"""The training loop: an iterable of episodes in, one line of metrics a step out. Pure torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from raypref.errors import DivergedError
from raypref.methods.base import Recipe, RewardModel
from raypref.types import Episodes


@dataclass
class TrainState:
    """All that training changes: resume from a saved one and nothing else is needed."""

    model: RewardModel
    optimiser: torch.optim.AdamW
    step: int = 0
    """Steps taken."""
    looks: int = 0
    """Validations since the best one."""
    best_nll: float = math.inf
    best_accuracy: float = math.nan
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the best validation so far; empty before the first."""
    stopped: bool = False
    """Whether early stopping has ended the training."""

    def consider(self, found: Validation, patience: int) -> None:
        """Take note of a validation: keep the weights if it is the best, stop after `patience` worse ones."""
        if found.nll < self.best_nll:
            (self.best_nll, self.best_accuracy), self.best_step, self.looks = found, self.step, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        else:
            self.looks += 1
            self.stopped = patience > 0 and self.looks >= patience

    def restore_best(self) -> None:
        """Put the best weights back into the model, if there was any validation."""
        if self.best:
            self.model.load_state_dict(self.best)


class Validation(NamedTuple):
    """Figures of held-out comparisons of seen users, averaged over comparisons."""

    nll: float
    """Nats."""
    accuracy: float


@dataclass(frozen=True)
class Looks:
    """When to look at held-out comparisons, at which, and when to give up."""

    episodes: Iterable[Episodes]
    """Training comparisons as context, held-out ones as target; iterated twice a look."""
    every: int
    """Steps between looks; the last step is always looked at."""
    patience: int
    """Looks without improvement after which training stops; 0 never stops."""


@dataclass(frozen=True)
class StepMetrics:
    """What one step did."""

    step: int
    loss: float
    parts: dict[str, float]
    """Loss parts by name."""
    grad_norm: float
    """Before clipping."""
    lr: float
    comparisons: int
    """Target comparisons of this worker."""
    valid: Validation | None
    """What a look at held-out comparisons after the step found, where there was one."""


def start(model: RewardModel, recipe: Recipe) -> TrainState:
    """Return the state before the first step."""
    groups = list(model.parameter_groups(recipe))
    for group in groups:
        group["peak_lr"] = group["lr"]
    return TrainState(model, torch.optim.AdamW(groups, lr=recipe.lr, foreach=True))


def rate(step: int, recipe: Recipe) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then constant or a cosine to zero."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup)))


def step_seed(seed: int, rank: int, step: int) -> int:
    """Return the seed of one worker's random draws in one step, so that a resumed step draws the same."""
    mixed = 0
    for part in (seed, rank, step):
        mixed = (mixed * 1_000_003 + part + 0x9E3779B9) % (1 << 63)
    return mixed


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over the workers, in one fixed order so that a resumed run adds up the same.

    A parameter without a gradient on this worker counts as zero: workers may meet different users.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def train(
    state: TrainState,
    episodes: Iterable[Episodes],
    recipe: Recipe,
    *,
    seed: int,
    rank: int = 0,
    bfloat16: bool = False,
    looks: Looks | None = None,
) -> Iterator[StepMetrics]:
    """Take one optimiser step per batch of episodes, up to `recipe.steps`, and yield what each did.

    All workers must feed equally many batches. The state is consistent whenever the generator is paused:
    the caller may log, save or stop there.

    Args:
        state: changed in place; training goes on from `state.step`.
        episodes: the batches from `state.step` on.
        recipe: the method's training settings.
        seed: of the random draws of the loss.
        rank: of this worker.
        bfloat16: run matrix products in bfloat16; parameters and reductions stay float32.
        looks: early stopping; None trains all steps.

    Raises:
        DivergedError: the gradient is not finite.
    """
    model = state.model
    device = model.center_D.device
    parameters = [parameter for group in state.optimiser.param_groups for parameter in group["params"]]
    precision = torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
    model.train()
    for batch in episodes:
        if state.step >= recipe.steps or state.stopped:
            return
        torch.manual_seed(step_seed(seed, rank, state.step))
        factor = rate(state.step, recipe)
        for group in state.optimiser.param_groups:
            group["lr"] = group["peak_lr"] * factor
        state.optimiser.zero_grad(set_to_none=True)
        with precision:
            loss = model.loss(batch.to(device), state.step / recipe.steps)
        loss.total.backward()
        average_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        if not math.isfinite(float(norm)):
            # The averaged gradient is the same on all workers, so all stop here together.
            raise DivergedError(
                f"training diverged at step {state.step}: the gradient is not finite. Lower "
                "method.recipe.lr, or look for embeddings of extreme size."
            )
        state.optimiser.step()
        state.step += 1
        valid = None
        if looks and (state.step % looks.every == 0 or state.step == recipe.steps):
            valid = validate(model, looks.episodes)
            state.consider(valid, looks.patience)
            model.train()
        yield StepMetrics(
            step=state.step,
            loss=float(loss.total.detach()),
            parts={name: float(part) for name, part in loss.parts.items()},
            grad_norm=float(norm),
            lr=recipe.lr * factor,
            comparisons=batch.target.comparisons,
            valid=valid,
        )


@torch.no_grad()
def validate(model: RewardModel, batches: Iterable[Episodes]) -> Validation:
    """Return how well target comparisons are predicted from the context.

    All workers must call it together; the figures are of all their comparisons. Each worker settles its
    model on its own users.

    Args:
        model: changed only in what `settle` derives.
        batches: training comparisons as context, held-out ones as target; iterated twice.
    """
    device = model.center_D.device
    model.eval()
    model.settle(batch.context.to(device) for batch in batches)
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        batch = batch.to(device)
        user_BZ = model.infer(model.encode(batch.context), batch.context.mask_BP)
        margin = model(batch.target, user_BZ)
        mask_BP = batch.target.mask_BP
        logit_BP = margin.logit_BN().float()
        nll_BP, right_BP = -F.logsigmoid(logit_BP), (logit_BP > 0).float()
        totals += torch.stack([(nll_BP * mask_BP).sum(), (right_BP * mask_BP).sum(), mask_BP.sum()]).double()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(totals)
    nll, right, count = totals.tolist()
    return Validation(nll / count, right / count)
