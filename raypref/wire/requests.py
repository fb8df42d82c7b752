"""Requests of the native API.

An embedding is the map of a prompt with one response that the bundle's embedder makes; where the service runs
an embedder, text may come instead; where it holds an items table, the id of a registered item.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

from raypref.wire.arrays import Encoded, Vector
from raypref.wire.ids import Id

Role = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Request(BaseModel):
    """Base of every request: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Request):
    """One message of a chat."""

    role: Role = Field(description="system, user, assistant …")
    content: str = Field(description="Its text.")


Text = str | Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
"""Plain text, or chat messages."""


class Item(Request):
    """A prompt with one response, in exactly one of three forms."""

    text: Text | None = Field(default=None, description="The response; `prompt` stands beside the item.")
    embedding: Vector | None = Field(default=None, description="Its embedding (D).")
    item: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None, description="Id of a registered item: its row in the service's items table."
    )

    @model_validator(mode="after")
    def _check(self) -> Item:
        if (self.text is not None) + (self.embedding is not None) + (self.item is not None) != 1:
            raise ValueError("give exactly one of text, embedding, item")
        return self


class Pair(Request):
    """Two items that could be compared."""

    prompt: Text = Field(default="", description="Of both items, where they are text.")
    chosen: Item
    rejected: Item


class Comparison(Pair):
    """One judgement of a user: chosen over rejected."""

    event_id: Id | None = Field(
        default=None,
        description="Names the comparison within its user, so that sending it again is harmless; without one "
        "the service draws it, and a retry counts twice.",
    )
    timestamp: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None = Field(
        default=None,
        description="When the user compared, seconds since 1970; default: now. A retry with its first "
        "timestamp can never bring an erased user back.",
    )
    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = Field(
        default=1.0, description="Of the comparison among the user's."
    )


Comparisons = Annotated[list[Comparison], Field(min_length=1, max_length=4096, fail_fast=True)]


class LearnRequest(Request):
    """`POST /v1/users/{user}/comparisons`."""

    comparisons: Comparisons


class Bulk(Request):
    """Many items as one array (N, D)."""

    embeddings: Encoded


class Who(Request):
    """For whom to score: stored users, or, stateless, what comes with the request."""

    model: str | None = Field(default=None, description="Refused where the service serves another model.")
    user: Id | None = Field(default=None, description="One stored user.")
    users: Annotated[list[Id], Field(min_length=1, max_length=100_000, fail_fast=True)] | None = Field(
        default=None, description="Many stored users; each gets every candidate scored."
    )
    comparisons: Comparisons | None = Field(
        default=None, description="A user who is not stored: adapted to these, and forgotten."
    )
    vector: Vector | None = Field(
        default=None, description="A user's vector (Z), as export gives it for this bundle."
    )
    weights: Annotated[list[FiniteFloat], Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="A place among the model's reward bases, in the form of `weights` of "
        "`GET /v1/users/{user}`: what somebody would prefer who is known to stand there.",
    )

    @model_validator(mode="after")
    def _check_who(self) -> Who:
        given = [self.user, self.users, self.comparisons, self.vector, self.weights]
        if sum(value is not None for value in given) > 1:
            raise ValueError("give at most one of user, users, comparisons, vector, weights")
        return self


Candidates = Annotated[list[Item], Field(min_length=1, max_length=65_536, fail_fast=True)]


class ScoreRequest(Who):
    """`POST /v1/score`. Without user, users, comparisons, vector and weights: what the population prefers."""

    prompt: Text = Field(default="", description="Of all candidates that are text.")
    candidates: Candidates | Bulk = Field(description="What to score.")
    baseline: Item | None = Field(
        default=None, description="What `probability` compares each candidate with; default: the first one."
    )
    encoding: Literal["float", "base64"] = Field(default="float", description="Of the arrays in the answer.")


class RankRequest(Who):
    """`POST /v1/rank`: the best of N, most preferred first."""

    prompt: Text = Field(default="", description="Of all candidates that are text.")
    candidates: Candidates | Bulk = Field(description="What to rank.")
    risk: Annotated[FiniteFloat, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="λ: candidates are ordered by mean − λ·std."
    )
    top: Annotated[int, Field(ge=1)] | None = Field(default=None, description="How many to return.")


class SuggestRequest(Who):
    """`POST /v1/suggest`: which of these pairs to ask the user about next."""

    pairs: Annotated[list[Pair], Field(min_length=1, max_length=4096, fail_fast=True)]
    top: Annotated[int, Field(ge=1)] = Field(default=1, description="How many to return.")

    @model_validator(mode="after")
    def _check_one(self) -> SuggestRequest:
        if self.users is not None:
            raise ValueError("suggest asks one user: give user instead of users")
        return self


class DecayRequest(Request):
    """`POST /v1/users/{user}/decay`: older comparisons count less."""

    factor: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        description="What every weight so far is multiplied by."
    )
    event_id: Id | None = Field(default=None, description="Names the decay, so that a retry is harmless.")
    timestamp: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None = Field(
        default=None, description="Comparisons up to then decay, seconds since 1970; default: now."
    )
