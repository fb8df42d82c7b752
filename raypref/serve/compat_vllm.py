"""vLLM's pooling routes of single texts, `/classify` and `/pooling`, and what its other routes share.

A reward model in vLLM is a classifier with one class. Its scores are sigmoid(reward), and the reward itself
where the request says `use_activation: false` (`activation`, as verl and older versions call it). Counts of
tokens are required by these clients and unknown here, where texts are embedded elsewhere: they are always 0.
"""

from __future__ import annotations

import base64
import time
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator, model_validator
from starlette.requests import Request

from raypref.serve.compat_base import (
    LABEL,
    MAX_TEXTS,
    Lenient,
    Rewarded,
    Rewards,
    ScoredText,
    conversation,
    read,
    score,
    user_of,
)


class VLLMRequest(Lenient):
    """What all of them have."""

    model: str | None = Field(default=None, description="Repeated in the answer.")
    user: str | None = Field(default=None, description="Whose rewards; null: the population's.")
    use_activation: bool | None = Field(
        default=None, description="false: rewards as they are; otherwise sigmoid(reward)."
    )
    activation: bool | None = Field(default=None, description="An older name of `use_activation`.")

    def values(self, found: Rewarded | None) -> list[float]:
        """Return the numbers to answer with."""
        if found is None:
            return []
        given = self.use_activation if self.use_activation is not None else self.activation
        return (found.mean if given is False else found.probability).tolist()


class InputRequest(VLLMRequest):
    """Texts, or one chat."""

    input: str | Annotated[list[str], Field(max_length=MAX_TEXTS, fail_fast=True)] | None = Field(
        default=None, description="Full texts, scored as they stand."
    )
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="A chat; its last message is the response where the assistant wrote it."
    )

    @field_validator("input", mode="before")
    @classmethod
    def _check_input(cls, given: Any) -> Any:
        if isinstance(given, list) and given and isinstance(given[0], (int, list)):
            raise ValueError("token ids are not taken: send text")
        return given

    @model_validator(mode="after")
    def _check(self) -> InputRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give input or messages")
        return self

    def items(self) -> list[ScoredText]:
        """Return what to score."""
        user = user_of(self.user)
        if self.messages is not None:
            return [conversation(self.messages, user)]
        texts = [self.input] if isinstance(self.input, str) else self.input or []
        return [ScoredText(user, text) for text in texts]


class PoolingRequest(InputRequest):
    """`/pooling`."""

    task: Literal["classify"] | None = Field(default=None, description="There is no other.")
    encoding_format: Literal["float", "base64"] = Field(default="float", description="Of the numbers.")
    embed_dtype: Literal["float32"] = Field(default="float32", description="Of the numbers in base64.")
    endianness: Literal["native", "little"] = Field(default="native", description="Little, both.")


class Usage(BaseModel):
    """Tokens, which are not counted here."""

    prompt_tokens: int = Field(default=0, description="Not counted: 0.")
    total_tokens: int = Field(default=0, description="Not counted: 0.")


class OpenAIUsage(Usage):
    """Tokens, which are not counted here."""

    completion_tokens: int = Field(default=0, description="Always 0.")


class Listing(BaseModel):
    """A list in OpenAI's form."""

    id: str
    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()), description="Seconds since 1970.")
    model: str
    usage: OpenAIUsage = OpenAIUsage()


class Classified(BaseModel):
    """One text's reward, as the one class."""

    index: int
    label: str | None = LABEL
    probs: list[float]
    num_classes: int = 1


class ClassifyAnswer(Listing):
    """`/classify`."""

    data: list[Classified]


class Pooled(BaseModel):
    """One text's reward, as a vector of one number."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str


class PoolingAnswer(Listing):
    """`/pooling`."""

    data: list[Pooled]


async def classify(rewards: Rewards, request: Request) -> ClassifyAnswer:
    """Answer with the rewards of full texts, or of a chat."""
    asked = read(request, InputRequest)
    found = await score(rewards, request, asked.items())
    data = [Classified(index=index, probs=[value]) for index, value in enumerate(asked.values(found))]
    return ClassifyAnswer(id=id_of("classify", request), model=model_of(asked, found), data=data)


async def pooling(rewards: Rewards, request: Request) -> PoolingAnswer:
    """Answer with the rewards of full texts, or of a chat, as vectors of one number."""
    asked = read(request, PoolingRequest)
    found = await score(rewards, request, asked.items())
    encoded = asked.encoding_format == "base64"
    data = [
        Pooled(index=index, data=_base64(value) if encoded else [value])
        for index, value in enumerate(asked.values(found))
    ]
    return PoolingAnswer(id=id_of("pooling", request), model=model_of(asked, found), data=data)


def id_of(kind: str, request: Request) -> str:
    """Return the id of an answer: that of its request, with vLLM's word for the kind."""
    return f"{kind}-{request.state.request_id}"


def model_of(asked: VLLMRequest, found: Rewarded | None) -> str:
    """Return the model that an answer names: the one that was asked for, otherwise the bundle."""
    return asked.model or (found.model if found is not None else "")


def _base64(value: float) -> str:
    return base64.b64encode(np.array([value], "<f4").tobytes()).decode()
