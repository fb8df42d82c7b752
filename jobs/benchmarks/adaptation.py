"""How long a user's vector takes, from evidence that is encoded already."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from raypref.data.inference import contexts
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.evaluate.protocol import frozen
from raypref.methods.base import RewardModel

SHOTS = (4, 16)
USERS = (1, 10_000)
REPEATS = 5
BUDGET_S = 0.6
"""What all repeats of one measurement may take; a slower method is timed on a smaller batch."""

ENCODED = 1024
"""Comparisons that are encoded at a time."""


class Adaptation(BaseModel):
    """The median time of inferring users who gave some comparisons, one thread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: int
    users: int = Field(description="Users who are inferred together.")
    batch: int = Field(description="Users that were timed; where fewer, the seconds are scaled up.")
    infer_seconds: float = Field(description="For all `users`.")
    encode_seconds: float = Field(description="Of one comparison's evidence, alone or of a large batch.")


def time_adaptation(model: RewardModel, items: ItemTable, tables: Tables) -> list[Adaptation]:
    """Time one user and 10,000, after 4 and after 16 comparisons, on the unseen users' own comparisons."""
    unseen = tables.comparisons("unseen", ["train"])
    pairs = next(contexts(items, unseen.select(unseen.user_U[:ENCODED]), ENCODED))
    flat_BP = pairs.mask_BP > 0
    chosen_ND, rejected_ND = pairs.chosen_BPD[flat_BP], pairs.rejected_BPD[flat_BP]
    found: list[Adaptation] = []
    with frozen(model):
        evidence_NE = model.evidence(chosen_ND, rejected_ND)
        alone = _median(lambda: model.evidence(chosen_ND[:1], rejected_ND[:1]), BUDGET_S / 4)
        many = min(ENCODED, len(chosen_ND))
        each = _median(lambda: model.evidence(chosen_ND[:many], rejected_ND[:many]), BUDGET_S / 4) / many
        for shots in SHOTS:
            for users in USERS:
                batch, seconds = _time_infer(model, evidence_NE, shots, users)
                found.append(
                    Adaptation(
                        shots=shots,
                        users=users,
                        batch=batch,
                        infer_seconds=seconds * users / batch,
                        encode_seconds=alone if users == 1 else each,
                    )
                )
    return found


def _time_infer(model: RewardModel, evidence_NE: torch.Tensor, shots: int, users: int) -> tuple[int, float]:
    """Return the largest batch of up to `users` that the budget allows, and its seconds."""
    batch, seconds = 0, 0.0
    while batch < users:
        # Ten times the users take at most about ten times as long, so look before growing.
        if batch and 10 * seconds > BUDGET_S:
            break
        batch = min(users, 10 * batch or 1)
        number = np.arange(batch * shots) % len(evidence_NE)
        evidence_BPE = evidence_NE[torch.from_numpy(number)].unflatten(0, (batch, shots))
        mask_BP = torch.ones(batch, shots)
        seconds = _median(lambda e=evidence_BPE, m=mask_BP: model.infer(e, m), BUDGET_S)
    return batch, seconds


def _median(work: Callable[[], object], budget_s: float) -> float:
    """Return the median seconds of a few repeats, of one at least."""
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < REPEATS and (not seconds or time.perf_counter() - began < budget_s):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
