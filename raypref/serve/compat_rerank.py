"""vLLM's routes of pairs: `/score`, and `/rerank`, which is Jina's and Cohere's too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request

from raypref.serve.compat_base import MAX_TEXTS, Rewards, ScoredText, read, score, user_of
from raypref.serve.compat_vllm import Listing, Usage, VLLMRequest, id_of, model_of
from raypref.wire.errors import WireError

OneOrMany = str | Annotated[list[str | dict[str, Any]], Field(max_length=MAX_TEXTS, fail_fast=True)]


class ScoreRequest(VLLMRequest):
    """`/score`: one prompt for all responses, or a prompt for each; under any of vLLM's names for them."""

    queries: OneOrMany | None = Field(default=None, description="Prompts.")
    documents: OneOrMany | None = Field(default=None, description="Responses.")
    items: OneOrMany | None = Field(default=None, description="Responses, beside queries.")
    text_1: OneOrMany | None = Field(default=None, description="Prompts.")
    text_2: OneOrMany | None = Field(default=None, description="Responses.")
    data_1: OneOrMany | None = Field(default=None, description="Prompts.")
    data_2: OneOrMany | None = Field(default=None, description="Responses.")

    def pairs(self) -> tuple[list[str], list[str]]:
        """Return prompts and responses, one of each for a score."""
        ways = (
            (self.queries, self.documents),
            (self.queries, self.items),
            (self.data_1, self.data_2),
            (self.text_1, self.text_2),
        )
        for prompts, responses in ways:
            if prompts is not None and responses is not None:
                break
        else:
            raise WireError(422, "Give queries and documents.", "queries")
        first, second = _texts(prompts), _texts(responses)
        if len(first) == 1:
            first *= len(second)
        if len(first) != len(second):
            raise WireError(422, "Give one query, or as many as documents.", "queries")
        return first, second


class RerankRequest(VLLMRequest):
    """`/rerank`."""

    query: str = Field(description="The prompt.")
    documents: OneOrMany = Field(description='The responses: texts, or objects with the key "text".')
    top_n: Annotated[int, Field(ge=0)] | None = Field(default=None, description="How many; 0 or null: all.")


class Scored(BaseModel):
    """One pair's reward."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreAnswer(Listing):
    """`/score`."""

    data: list[Scored]


class Document(BaseModel):
    """A document as it came."""

    text: str | None
    multi_modal: None = None


class Reranked(BaseModel):
    """One document's place."""

    index: int
    document: Document
    relevance_score: float


class RerankAnswer(BaseModel):
    """`/rerank`: best first."""

    id: str
    model: str
    usage: Usage = Usage()
    results: list[Reranked]


async def score_pairs(rewards: Rewards, request: Request) -> ScoreAnswer:
    """Answer with the rewards of responses to their prompts."""
    asked = read(request, ScoreRequest)
    user = user_of(asked.user)
    items = [ScoredText(user, response, prompt) for prompt, response in zip(*asked.pairs(), strict=True)]
    found = await score(rewards, request, items)
    data = [Scored(index=index, score=value) for index, value in enumerate(asked.values(found))]
    return ScoreAnswer(id=id_of("score", request), model=model_of(asked, found), data=data)


async def rerank(rewards: Rewards, request: Request) -> RerankAnswer:
    """Answer with responses to one prompt, best first."""
    asked = read(request, RerankRequest)
    user, texts = user_of(asked.user), _texts(asked.documents)
    found = await score(rewards, request, [ScoredText(user, text, asked.query) for text in texts])
    values = asked.values(found)
    order = found.order[: asked.top_n or None] if found is not None else []
    results = [
        Reranked(index=index, document=Document(text=texts[index]), relevance_score=values[index])
        for index in order
    ]
    return RerankAnswer(id=id_of("score", request), model=model_of(asked, found), results=results)


def _texts(given: str | list[str | dict[str, Any]]) -> list[str]:
    texts: list[str] = []
    for part in [given] if isinstance(given, str) else given:
        text = part if isinstance(part, str) else part.get("text")
        if not isinstance(text, str):
            raise WireError(422, "Only text is scored here: images and other parts are not taken.")
        texts.append(text)
    return texts
