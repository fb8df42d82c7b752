"""What the compatibility routes share: what they ask of the service, and how they read requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from raypref.wire.errors import WireError
from raypref.wire.ids import Id
from raypref.wire.invalid import refusal_of
from raypref.wire.requests import Message, Text

MAX_TEXTS = 65_536

Texts = Annotated[list[str], Field(max_length=MAX_TEXTS, fail_fast=True)]

LABEL = "LABEL_0"
"""What transformers calls the one output of a reward model."""

_USER = TypeAdapter(Id | None)


@dataclass(frozen=True)
class ScoredText:
    """One text to score, for one user."""

    user: str | None
    """None: the population's reward."""
    response: Text
    prompt: Text | None = None
    """None: `response` is one full text, prompt and response in it, to be embedded as it stands."""


@dataclass(frozen=True)
class Rewarded:
    """Rewards of texts, in their order."""

    mean: np.ndarray
    """(N,), finite."""
    model: str
    """The one bundle behind all of them."""

    @property
    def probability(self) -> np.ndarray:
        """Of being preferred to a response of reward 0: sigmoid(mean), the activation of a reward model."""
        return 0.5 + 0.5 * np.tanh(self.mean.astype(np.float64) / 2)

    @property
    def order(self) -> list[int]:
        """Places of the texts, best first, equal ones as they came."""
        return np.argsort(-self.mean, kind="stable").tolist()


class Rewards(Protocol):
    """What scores texts."""

    async def rewards(self, tenant: str, items: Sequence[ScoredText]) -> Rewarded:
        """Return the rewards of at least one text.

        Raises:
            WireError: the texts cannot be scored; 429 becomes 503 on the way out.
        """
        ...


Answering = Callable[[Rewards, Request], Awaitable[BaseModel | list[Any]]]
"""One route: from what scores and the request to the answer."""


class Lenient(BaseModel):
    """A request of somebody else's clients: fields that mean nothing here are ignored, as there."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnyLenient = TypeVar("AnyLenient", bound=Lenient)


def read(request: Request, model: type[AnyLenient]) -> AnyLenient:
    """Return the body of a request.

    Raises:
        WireError: it is malformed.
    """
    try:
        return model.model_validate_json(request.state.body)
    except ValidationError as error:
        raise refusal_of(error) from error


def user_of(given: str | None, param: str = "user") -> str | None:
    """Return a user's id, None for the population.

    Raises:
        WireError: it is no id that a user can have here.
    """
    try:
        return _USER.validate_python(given)
    except ValidationError as error:
        raise WireError(
            422, f"{param} is no user's id: up to 128 letters, digits and . _ ~ @ : + = -, or null.", param
        ) from error


def labelled_user(label: Any, place: int) -> str | None:
    """Return the user that a label names: an id, `{"user_id": id}` as an object or as text, or nobody."""
    param = f"labels.{place}"
    if label is None or label == "":
        return None
    if isinstance(label, str) and label.startswith("{"):
        try:
            label = from_json(label)
        except ValueError as error:
            raise WireError(422, f"{param} begins like JSON and is none.", param) from error
    if isinstance(label, Mapping):
        if "user_id" not in label:
            raise WireError(422, f"{param} has no user_id.", param)
        label = label["user_id"]
    return user_of(label, param)


def conversation(messages: Sequence[Mapping[str, Any]], user: str | None) -> ScoredText:
    """Return a chat as an item: its last message is the response where the assistant wrote it.

    Raises:
        WireError: a message has no role, or is more than text.
    """
    try:
        told = [Message(role=message.get("role", ""), content=_content(message)) for message in messages]
    except ValidationError as error:
        raise WireError(422, "Every message needs a role, of 1 to 64 characters.", "messages") from error
    if told[-1].role != "assistant" or len(told) == 1:
        return ScoredText(user, told)
    return ScoredText(user, told[-1].content, told[:-1])


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise WireError(422, "Messages are text here: this one has content of another kind.", "messages")
        parts.append(text)
    return "\n".join(parts)


async def score(rewards: Rewards, request: Request, items: Sequence[ScoredText]) -> Rewarded | None:
    """Return the rewards of texts; None where there are none."""
    return await rewards.rewards(request.state.tenant, items) if items else None
