"""OpenRLHF's remote reward model: `POST /get_reward`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.requests import Request

from raypref.serve.compat_base import (
    MAX_TEXTS,
    Lenient,
    Rewards,
    ScoredText,
    Texts,
    labelled_user,
    read,
    score,
)
from raypref.wire.errors import WireError


class RewardRequest(Lenient):
    """What OpenRLHF's workers send; to surplus servers they send empty lists."""

    query: Texts = Field(description="Prompt and response as one text, each.")
    prompts: Texts | None = Field(
        default=None, description="The prompts; what follows its prompt in a query is the response."
    )
    labels: Annotated[list[Any], Field(max_length=MAX_TEXTS)] | None = Field(
        default=None,
        description="Whose reward each is: a user's id, an object with `user_id`, also as text; null or an "
        "empty text for the population's.",
    )


class RewardAnswer(BaseModel):
    """Rewards in the order of the queries."""

    rewards: list[float] = Field(description="The rewards, for advantages.")
    scores: list[float] = Field(description="sigmoid(reward), 0 to 1, which dynamic filtering takes.")
    extra_logs: dict[str, list[float]] = {}


async def get_reward(rewards: Rewards, request: Request) -> RewardAnswer:
    """Answer with the rewards of texts, each for the user whom its label names."""
    asked = read(request, RewardRequest)
    prompts: list[str] = asked.prompts or [""] * len(asked.query)
    labels = asked.labels or [None] * len(asked.query)
    if not len(prompts) == len(labels) == len(asked.query):
        raise WireError(422, "query, prompts and labels are to be equally long.", "query")
    items = [
        _item(query, prompt, labelled_user(label, place))
        for place, (query, prompt, label) in enumerate(zip(asked.query, prompts, labels, strict=True))
    ]
    found = await score(rewards, request, items)
    if found is None:
        return RewardAnswer(rewards=[], scores=[])
    return RewardAnswer(rewards=found.mean.tolist(), scores=found.probability.tolist())


def _item(query: str, prompt: str, user: str | None) -> ScoredText:
    if prompt and query.startswith(prompt):
        return ScoredText(user, query[len(prompt) :], prompt)
    return ScoredText(user, query)
