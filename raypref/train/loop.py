"""The training loop: an iterable of episodes in, one line of metrics a step out. Pure torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raypref.errors import DivergedError
from raypref.methods.base import Recipe, RewardModel
from raypref.train.gradients import Gradients
from raypref.train.shards import Shards, own_rows, shared_state
from raypref.types import Episodes, Loss


@dataclass
class TrainState:
    """All that training changes: resume from a saved one and nothing else is needed."""

    models: list[RewardModel]
    """One for each shard of this worker, with the same parameters but for the rows of its own users."""
    optimiser: torch.optim.AdamW
    shards: Shards
    """Which of the run's shards `models` are of."""
    step: int = 0
    """Steps taken."""
    looks: int = 0
    """Validations since the best one."""
    best_nll: float = math.inf
    best_accuracy: float = math.nan
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the best validation so far, without rows of users; empty before the first."""
    best_rows: list[dict[str, Tensor]] = field(default_factory=list)
    """The rows of users that go with them, of each of `models`."""
    stopped: bool = False
    """Whether early stopping has ended the training."""

    @property
    def model(self) -> RewardModel:
        """The model of the first shard; where there is one shard in all, it has the rows of all users."""
        return self.models[0]

    def consider(self, found: Validation, patience: int) -> None:
        """Take note of a validation: keep the weights if it is the best, stop after `patience` worse ones."""
        if found.nll < self.best_nll:
            (self.best_nll, self.best_accuracy), self.best_step, self.looks = found, self.step, 0
            self.best = {name: tensor.clone() for name, tensor in shared_state(self.model).items()}
            self.best_rows = [own_rows(model) for model in self.models]
        else:
            self.looks += 1
            self.stopped = patience > 0 and self.looks >= patience

    def restore_best(self) -> None:
        """Put the best weights back into the model, if there was any validation."""
        for model, rows in zip(self.models, self.best_rows, strict=False):
            model.load_state_dict({**self.best, **rows})


class Validation(NamedTuple):
    """Figures of held-out comparisons of seen users, averaged over comparisons."""

    nll: float
    """Nats."""
    accuracy: float


@dataclass(frozen=True)
class Looks:
    """When to look at held-out comparisons, at which, and when to give up."""

    episodes: Sequence[Iterable[Episodes]]
    """Of each shard, training comparisons as context, held-out ones as target; iterated twice a look."""
    every: int
    """Steps between looks; the last step is always looked at."""
    patience: int
    """Looks without improvement after which training stops; 0 never stops."""


@dataclass(frozen=True)
class StepMetrics:
    """What one step did."""

    step: int
    loss: float
    """Mean over the shards of this worker."""
    parts: dict[str, float]
    """Loss parts by name, likewise."""
    grad_norm: float
    """Before clipping."""
    lr: float
    comparisons: int
    """Target comparisons of this worker."""
    valid: Validation | None
    """What a look at held-out comparisons after the step found, where there was one."""


def start(
    model: RewardModel | Sequence[RewardModel], recipe: Recipe, shards: Shards | None = None
) -> TrainState:
    """Return the state before the first step.

    Args:
        model: whole; or one for each of this worker's shards, as `cut` returns them.
        recipe: the method's training settings.
        shards: which of the run's shards these are; None where there is one.
    """
    models = [model] if isinstance(model, RewardModel) else list(model)
    first, *others = [list(model.parameter_groups(recipe)) for model in models]
    taken = {id(parameter) for group in first for parameter in group["params"]}
    for groups in others:
        for group, more in zip(first, groups, strict=True):
            group["params"] += [parameter for parameter in more["params"] if id(parameter) not in taken]
    for group in first:
        group["peak_lr"] = group["lr"]
    return TrainState(models, torch.optim.AdamW(first, lr=recipe.lr, foreach=True), shards or Shards())


def rate(step: int, recipe: Recipe) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then constant or a cosine to zero."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup)))


def step_seed(seed: int, shard: int, step: int) -> int:
    """Return the seed of one shard's random draws in one step, so that a resumed step draws the same."""
    mixed = 0
    for part in (seed, shard, step):
        mixed = (mixed * 1_000_003 + part + 0x9E3779B9) % (1 << 63)
    return mixed


def train(
    state: TrainState,
    episodes: Iterable[Episodes],
    recipe: Recipe,
    *,
    seed: int,
    bfloat16: bool = False,
    looks: Looks | None = None,
) -> Iterator[StepMetrics]:
    """Take one optimiser step per batch of each shard, up to `recipe.steps`, and yield what each did.

    All workers must feed equally many steps. The state is consistent whenever the generator is paused:
    the caller may log, save or stop there.

    Args:
        state: changed in place; training goes on from `state.step`.
        episodes: the batches from `state.step` on; of several shards in turn.
        recipe: the method's training settings.
        seed: of the random draws of the loss.
        bfloat16: run matrix products in bfloat16; parameters and reductions stay float32.
        looks: early stopping; None trains all steps.

    Raises:
        DivergedError: the gradient is not finite.
    """
    device = state.model.center_D.device
    parameters = [parameter for group in state.optimiser.param_groups for parameter in group["params"]]
    gradients = Gradients(parameters, state.models, state.shards)
    precision = torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
    numbered = list(zip(state.shards.numbers, state.models, strict=True))
    for model in state.models:
        model.train()
    for batches in zip(*[iter(episodes)] * len(numbered), strict=False):
        if state.step >= recipe.steps or state.stopped:
            return
        factor = rate(state.step, recipe)
        for group in state.optimiser.param_groups:
            group["lr"] = group["peak_lr"] * factor
        state.optimiser.zero_grad(set_to_none=True)
        losses: list[Loss] = []
        for (number, model), batch in zip(numbered, batches, strict=True):
            _seed(device, step_seed(seed, number, state.step))
            with precision:
                loss = model.loss(batch.to(device), state.step / recipe.steps)
            loss.total.backward()
            gradients.collect()
            losses.append(Loss(loss.total.detach(), loss.parts))
        norm = gradients.average(recipe.clip)
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
            valid = validate(state.models, looks.episodes, state.shards)
            state.consider(valid, looks.patience)
            for model in state.models:
                model.train()
        yield StepMetrics(
            step=state.step,
            loss=_mean(loss.total for loss in losses),
            parts={name: _mean(loss.parts[name] for loss in losses) for name in losses[0].parts},
            grad_norm=float(norm),
            lr=recipe.lr * factor,
            comparisons=sum(batch.target.comparisons for batch in batches),
            valid=valid,
        )


def _seed(device: torch.device, seed: int) -> None:
    """Seed what a step draws from; `torch.manual_seed` would ask every kind of accelerator first."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _mean(values: Iterable[Tensor]) -> float:
    return statistics.fmean(float(value) for value in values)


@torch.no_grad()
def validate(
    models: Sequence[RewardModel], episodes: Sequence[Iterable[Episodes]], shards: Shards | None = None
) -> Validation:
    """Return how well target comparisons are predicted from the context.

    All workers must call it together; the figures are of all their comparisons. Each shard's model is
    settled on the shard's own users.

    Args:
        models: of this worker's shards; changed only in what `settle` derives.
        episodes: of each shard, training comparisons as context, held-out ones as target; iterated twice.
        shards: which of the run's shards these are; None where there is one.
    """
    totals_S3 = torch.stack([_tally(*shard) for shard in zip(models, episodes, strict=True)])
    nll, right, count = (shards or Shards()).add_up(totals_S3).tolist()
    return Validation(nll / count, right / count)


def _tally(model: RewardModel, batches: Iterable[Episodes]) -> Tensor:
    """Return the sums of NLL, right predictions and weight over a shard's target comparisons."""
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
    return totals
