"""The operations of the service as calls: what is sent, however often, and how its answer is read."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from raypref.client.body import BULK_BYTES, JSON, Body, Draft
from raypref.client.errors import ClientError
from raypref.client.items import Candidates, Comparison, ItemLike, Pair, Text, VectorLike, made
from raypref.client.scores import Scores
from raypref.wire.answers import (
    Deleted,
    ExportAnswer,
    LearnAnswer,
    ModelsAnswer,
    RankAnswer,
    ScoreAnswer,
    SuggestAnswer,
    UserAnswer,
)
from raypref.wire.errors import WireError
from raypref.wire.ids import Id
from raypref.wire.requests import (
    DecayRequest,
    LearnRequest,
    RankRequest,
    Request,
    ScoreRequest,
    SuggestRequest,
)
from raypref.wire.tensors import MEDIA_TYPE

Answered = TypeVar("Answered")
Model = TypeVar("Model", bound=BaseModel)


class Who(NamedTuple):
    """For whom: at most one of these."""

    user: str | None
    users: Sequence[str] | None
    comparisons: Sequence[Comparison] | None
    vector: VectorLike | None
    weights: Sequence[float] | None


@dataclass(frozen=True)
class Call(Generic[Answered]):
    """One operation, made once: all attempts send the same bytes."""

    method: str
    path: str
    read: Callable[[httpx.Response], Answered]
    """Turns a 2xx answer into what the caller gets; ValueError where it is not such an answer."""
    body: Body | None = None
    accept: str = JSON
    writes: bool = False
    """Something changes; every one of these can be sent twice, because ids in it make the second harmless."""

    def answer(self, response: httpx.Response) -> Answered:
        """Read an answer.

        Raises:
            ClientError: it is not what the service answers.
        """
        try:
            return self.read(response)
        except (ValueError, WireError) as error:
            detail = f"{error.error_count()} errors" if isinstance(error, ValidationError) else str(error)
            raise ClientError(
                f"{self.method} {self.path}: the answer is none of raypref's ({detail}). Check base_url, "
                "and that client and service have the same version.",
                response.status_code,
                request_id=response.headers.get("x-request-id", ""),
            ) from error


def learn(user: str, comparisons: Sequence[Comparison]) -> Call[LearnAnswer]:
    """Add comparisons to a user."""
    draft = Draft()
    draft.pairs("comparisons", comparisons, Comparison)
    return _post(f"{_user(user)}/comparisons", draft.body(LearnRequest), LearnAnswer, writes=True)


def score(candidates: Candidates, who: Who, prompt: Text, baseline: ItemLike | None) -> Call[Scores]:
    """Score candidates."""
    draft = _draft(who, prompt=prompt, encoding="base64")
    count = draft.candidates(candidates)
    if baseline is not None:
        draft.item("baseline", baseline)
    # Mean, std and probability, float32.
    large = 12 * count * len(who.users or [None]) > BULK_BYTES
    # Either form is read, whichever comes.
    accept = f"{MEDIA_TYPE}, {JSON}" if large else JSON
    return Call("POST", "/v1/score", _scores, draft.body(ScoreRequest), accept)


def rank(candidates: Candidates, who: Who, prompt: Text, risk: float, top: int | None) -> Call[RankAnswer]:
    """Rank candidates."""
    draft = _draft(who, prompt=prompt, risk=risk, top=top)
    draft.candidates(candidates)
    return _post("/v1/rank", draft.body(RankRequest), RankAnswer)


def suggest(pairs: Sequence[Pair], who: Who, top: int) -> Call[SuggestAnswer]:
    """Choose the pairs to ask about."""
    draft = _draft(who, top=top)
    draft.pairs("pairs", pairs, Pair)
    return _post("/v1/suggest", draft.body(SuggestRequest), SuggestAnswer)


def decay(user: str, factor: float, event_id: str | None, timestamp: float | None) -> Call[UserAnswer]:
    """Let a user's comparisons so far count less."""
    draft = Draft(
        factor=factor,
        event_id=uuid.uuid4().hex if event_id is None else event_id,
        timestamp=time.time() if timestamp is None else timestamp,
    )
    return _post(f"{_user(user)}/decay", draft.body(DecayRequest), UserAnswer, writes=True)


def user(user: str) -> Call[UserAnswer]:
    """Read what is known of a user."""
    return Call("GET", _user(user), _reader(UserAnswer))


def export(user: str) -> Call[ExportAnswer]:
    """Read all that is kept of a user."""
    return Call("GET", f"{_user(user)}/export", _reader(ExportAnswer))


def erase(user: str) -> Call[Deleted]:
    """Erase a user."""
    return Call("DELETE", _user(user), _reader(Deleted), writes=True)


def forget(user: str, event_id: str) -> Call[Deleted]:
    """Remove one comparison."""
    event_id = made(_Named, "event_id", id=event_id).id
    return Call("DELETE", f"{_user(user)}/comparisons/{event_id}", _reader(Deleted), writes=True)


def models() -> Call[ModelsAnswer]:
    """Read what is served."""
    return Call("GET", "/v1/models", _reader(ModelsAnswer))


def ready() -> Call[bool]:
    """Ask whether the service can answer."""
    return Call("GET", "/readyz", lambda response: True)


class _Named(Request):
    id: Id


def _user(user: str) -> str:
    return f"/v1/users/{made(_Named, 'user', id=user).id}"


def _draft(who: Who, **fields: Any) -> Draft:
    weights = None if who.weights is None else list(who.weights)
    draft = Draft(user=who.user, users=who.users, weights=weights, **fields)
    if who.comparisons is not None:
        draft.pairs("comparisons", who.comparisons, Comparison)
    if who.vector is not None:
        draft.vector(who.vector)
    return draft


def _post(path: str, body: Body, kind: type[Model], writes: bool = False) -> Call[Model]:
    return Call("POST", path, _reader(kind), body, writes=writes)


def _reader(kind: type[Model]) -> Callable[[httpx.Response], Model]:
    return lambda response: kind.model_validate_json(response.content)


def _scores(response: httpx.Response) -> Scores:
    if response.headers.get("content-type", "").startswith(MEDIA_TYPE):
        return Scores.unpack(response.content)
    return Scores.of(ScoreAnswer.model_validate_json(response.content))
