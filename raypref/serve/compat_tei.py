"""Text Embeddings Inference: `POST /predict`, and `POST /rerank` where the body has `texts`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.requests import Request

from raypref.serve.compat_base import (
    LABEL,
    MAX_TEXTS,
    Lenient,
    Rewarded,
    Rewards,
    ScoredText,
    Texts,
    read,
    score,
    user_of,
)

OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2)]


class PredictRequest(Lenient):
    """Classification: the reward is the one class."""

    inputs: str | OneOrTwo | Annotated[list[OneOrTwo], Field(max_length=MAX_TEXTS, fail_fast=True)] = Field(
        description="A text, `[text]`, a pair `[prompt, response]`, or a batch of such lists."
    )
    raw_scores: bool = Field(default=False, description="Rewards as they are, instead of sigmoid(reward).")
    user: str | None = Field(default=None, description="Whose rewards; null: the population's.")


class Prediction(BaseModel):
    """The score of one class."""

    score: float
    label: str


class TextsRequest(Lenient):
    """Texts to order."""

    query: str = Field(description="The prompt.")
    texts: Texts = Field(description="The responses.")
    raw_scores: bool = Field(default=False, description="Rewards as they are, instead of sigmoid(reward).")
    return_text: bool = Field(default=False, description="Repeat the texts in the answer.")
    user: str | None = Field(default=None, description="Whose rewards; null: the population's.")


class Rank(BaseModel):
    """One text's place; best first."""

    index: int
    text: str | None = None
    score: float


async def predict(rewards: Rewards, request: Request) -> list[Any]:
    """Answer with predictions: of one input a list, of a batch a list of lists."""
    asked = read(request, PredictRequest)
    user = user_of(asked.user)
    given = asked.inputs
    single = isinstance(given, str) or (bool(given) and isinstance(given[0], str))
    items = [_item(sequence, user) for sequence in ([given] if single else given)]
    found = await score(rewards, request, items)
    scores = [] if found is None else _scores(found, asked.raw_scores)
    predictions = [[Prediction(score=score, label=LABEL)] for score in scores]
    return predictions[0] if single else predictions


async def rank(rewards: Rewards, request: Request) -> list[Any]:
    """Answer with places and scores of texts, best first; without their texts, no key for them."""
    asked = read(request, TextsRequest)
    user = user_of(asked.user)
    found = await score(rewards, request, [ScoredText(user, text, asked.query) for text in asked.texts])
    if found is None:
        return []
    scores = _scores(found, asked.raw_scores)
    ranks = [
        Rank(index=index, text=asked.texts[index] if asked.return_text else None, score=scores[index])
        for index in found.order
    ]
    return [rank.model_dump(exclude_none=True) for rank in ranks]


def _item(sequence: Any, user: str | None) -> ScoredText:
    texts = [sequence] if isinstance(sequence, str) else sequence
    return ScoredText(user, texts[-1], texts[0] if len(texts) == 2 else None)


def _scores(found: Rewarded, raw: bool) -> list[float]:
    return (found.mean if raw else found.probability).tolist()
