"""A trial, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptation import Adaptation
from judged import Size
from pydantic import BaseModel, ConfigDict, Field

from raypref.evaluate.result import Collapse, Evaluation, UserBin
from raypref.methods.base import MethodConfig
from raypref.metrics import Estimate
from raypref.types import Dims


@dataclass(frozen=True)
class Trial:
    """One method, fitted to one draw of one population."""

    population: str
    """One of `populations.NAMES`."""
    seed: int
    """Of the world or the split, the initialisation and the draws of the shots."""
    label: str
    """What tables call the method."""
    method: Mapping[str, Any]
    """A method's raw configuration, such as `{"type": "vrf", "bases": 8}`."""
    size: Size = "default"
    planted: Mapping[str, Any] = field(default_factory=dict)
    """Options of a planted population that differ from its own."""


class Part(BaseModel):
    """Base of every part of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameters(Part):
    """How many numbers are trained."""

    shared: int
    per_user: int = Field(description="More for every further seen user.")


class CellRecord(Part):
    """What the evaluation says of one cell."""

    accuracy: float = Field(description="Mean over users of each user's share.")
    accuracy_per_pair: float
    nll: float = Field(description="Nats.")
    ece: float
    users: int
    comparisons: int
    uncertainty_source: str
    by_user: list[UserBin] = Field(description="Equal shares of the users, certain first.")
    latent_gain: Estimate | None = Field(
        description="Accuracy with the user's own vector less that with another user's, where most is known."
    )
    collapse: Collapse | None = Field(
        description="Whether the users' posteriors say anything there; null for methods without posteriors."
    )
    user: list[int] = Field(description="Numbers of the users.")
    user_accuracy: list[float] = Field(description="Of each user, four digits.")


class Record(Part):
    """A finished trial."""

    trial: Trial
    error: str | None = Field(default=None, description="Why the trial failed; the rest is empty then.")
    method: dict[str, Any] = Field(default={}, description="Resolved configuration.")
    parameters: Parameters | None = None
    seen_users: int = 0
    fit_seconds: float = Field(default=0.0, description="Training and settling, one thread.")
    evaluate_seconds: float = 0.0
    steps: int = Field(default=0, description="Training steps behind the weights.")
    cells: dict[str, CellRecord] = Field(default={}, description="By name, such as `unseen/warm/4`.")
    adaptation: list[Adaptation] = Field(default=[], description="Times; empty on all seeds but one.")


def parameters(method: MethodConfig, dims: Dims) -> Parameters:
    """Count what a method trains, built for so many seen users; changes torch's random state."""

    def count(users: int) -> int:
        model = method.build(Dims(dims.embedding, users))
        return sum(parameter.numel() for parameter in model.parameters())

    per_user = count(dims.users + 1) - count(dims.users)
    return Parameters(shared=count(dims.users) - per_user * dims.users, per_user=per_user)


def cells(evaluation: Evaluation) -> dict[str, CellRecord]:
    """Return what an evaluation says of every cell."""
    found: dict[str, CellRecord] = {}
    for cell in evaluation.cells:
        users = evaluation.users(cell.key)
        found[cell.key] = CellRecord(
            accuracy=cell.accuracy_per_user.mean,
            accuracy_per_pair=cell.accuracy_per_pair,
            nll=cell.nll,
            ece=cell.ece,
            users=cell.users,
            comparisons=cell.comparisons,
            uncertainty_source=cell.uncertainty.source,
            by_user=cell.uncertainty.by_user,
            user=users["user"].to_pylist(),
            user_accuracy=users["accuracy"].to_numpy().round(4).tolist(),
            latent_gain=cell.latent_gain,
            collapse=cell.collapse,
        )
    return found
