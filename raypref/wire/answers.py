"""Answers of the native API; every number in them is finite."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raypref.wire.arrays import Encoded

Numbers = list[float] | Encoded
"""One array: numbers, or `Encoded` where the request asked for base64."""


class Answer(BaseModel):
    """Base of every answer; clients ignore fields they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Near(Answer):
    """A reward basis near a user."""

    basis: int = Field(description="Its number, from 0.")
    distance: float | None = Field(
        default=None, description="Of the user's mean from it, where bases are places."
    )
    weight: float | None = Field(default=None, description="The user's weight of it, where bases are axes.")


class UserAnswer(Answer):
    """What is known of a user."""

    object: Literal["raypref.user"] = "raypref.user"
    user: str
    version: int = Field(description="Grows by one with every change of the user's comparisons.")
    shots: int = Field(description="Comparisons that count.")
    cold: bool = Field(description="Nothing is known: the answer is the population's.")
    model: str = Field(description="Bundle behind it: name@fingerprint.")
    weights: list[float] | None = Field(
        default=None, description="Where the user is among the model's reward bases; null where it has none."
    )
    std: list[float] | None = Field(default=None, description="Standard deviation of each weight.")
    nearest: list[Near] = Field(default=[], description="The nearest bases, nearest first.")


class LearnAnswer(UserAnswer):
    """A user after comparisons were added; they are durable."""

    object: Literal["raypref.user"] = "raypref.user"
    applied: int = Field(description="Comparisons that are new.")
    duplicates: int = Field(description="Comparisons that were there already.")
    erased: int = Field(description="Comparisons that came after their erasure, and are not kept.")
    event_ids: list[str] = Field(description="Ids of the comparisons, in their order, given or drawn.")


class UserScores(Answer):
    """One user's scores, an entry for each candidate."""

    user: str | None
    version: int
    shots: int
    cold: bool = Field(description="Nothing is known of the user: these are the population's scores.")
    degraded: bool = Field(default=False, description="The store is down; the user may be known after all.")
    mean: Numbers
    std: Numbers | None = Field(description="Null where the method has no uncertainty.")
    probability: Numbers = Field(description="That the user prefers the candidate to the baseline.")


class ScoreAnswer(Answer):
    """`POST /v1/score`."""

    object: Literal["raypref.score"] = "raypref.score"
    id: str
    model: str = Field(description="The one bundle behind all of it: name@fingerprint.")
    data: list[UserScores]


class Ranked(Answer):
    """One candidate of a ranking."""

    index: int = Field(description="Its place in the request.")
    score: float = Field(description="mean − λ·std, what the order is by.")
    mean: float
    std: float | None
    probability: float = Field(description="That the user prefers it to the first candidate of the request.")


class UserRanking(Answer):
    """One user's ranking, best first."""

    user: str | None
    version: int
    shots: int
    cold: bool
    degraded: bool = False
    ranking: list[Ranked]


class RankAnswer(Answer):
    """`POST /v1/rank`."""

    object: Literal["raypref.rank"] = "raypref.rank"
    id: str
    model: str
    data: list[UserRanking]


class Suggestion(Answer):
    """A pair worth asking about."""

    index: int = Field(description="Its place in the request.")
    gain: float = Field(description="Expected information that the answer gives about the user, nats.")
    probability: float = Field(description="That the user prefers chosen to rejected, as far as is known.")
    std: float = Field(
        description="Standard deviation of the difference of their rewards that more answers can narrow."
    )


class SuggestAnswer(Answer):
    """`POST /v1/suggest`: pairs by expected information gain, best first."""

    object: Literal["raypref.suggest"] = "raypref.suggest"
    id: str
    model: str
    user: str | None
    version: int
    shots: int
    cold: bool
    data: list[Suggestion]


class Deleted(Answer):
    """After an erasure."""

    object: Literal["raypref.deleted"] = "raypref.deleted"
    id: str
    deleted: bool = Field(description="False where there was nothing to delete.")


class StoredComparison(Answer):
    """A comparison as it is kept."""

    event_id: str
    timestamp: float
    weight: float
    chosen: dict[str, Any] = Field(description="The item: its id in the items table, or its embedding.")
    rejected: dict[str, Any]


class ExportAnswer(Answer):
    """`GET /v1/users/{user}/export`: all that is kept of a user."""

    object: Literal["raypref.export"] = "raypref.export"
    user: str
    version: int
    model: str
    vector: Encoded | None = Field(description="(Z), as `vector` of a stateless request takes it.")
    comparisons: list[StoredComparison]


class ModelCard(Answer):
    """The model that is served."""

    object: Literal["model"] = "model"
    id: str = Field(description="name@fingerprint")
    created: int = Field(description="When it was loaded, seconds since 1970.")
    owned_by: Literal["raypref"] = "raypref"
    method: str
    dim: int = Field(description="Width of the embeddings that requests bring.")
    embedder: dict[str, Any]
    accepts: list[str] = Field(description="Of text, embedding, item.")
    uncertain: bool
    seen_users: int


class ModelsAnswer(Answer):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(Answer):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorAnswer(Answer):
    """Every answer that is not 2xx."""

    error: ErrorBody
