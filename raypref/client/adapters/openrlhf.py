"""Personal rewards for OpenRLHF: the path of this file as the reward's remote URL.

A row's label says for whom it is: a user's id, or JSON such as `{"user_id": "ann"}`; an empty one asks what
the population prefers. The environment's RAYPREF_URL says where the service is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raypref.client.adapters.rewards import Row, shared
from raypref.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **kwargs: Any
) -> dict[str, Tensor | dict[str, Tensor]]:
    """Return the mean reward of each query's response, as `rewards` and `scores`, and figures to log.

    Raises:
        InputError: a label is JSON without `user_id`.
        ClientError: the service refused, or did not answer in time. OpenRLHF logs it and goes on without the
            row's reward, so watch its log.
    """
    import torch

    rows = [
        Row(*_split(query, prompt), _user(label))
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]
    rewards = [reward for reward in shared(None).of(rows) if reward is not None]
    means = torch.tensor([reward.mean for reward in rewards], dtype=torch.float32)
    logs = {
        "raypref_cold": torch.tensor([float(reward.cold) for reward in rewards]),
        "raypref_degraded": torch.tensor([float(reward.degraded) for reward in rewards]),
    }
    return {"rewards": means, "scores": means.clone(), "extra_logs": logs}


def _split(query: str, prompt: str) -> tuple[str, str]:
    """Return prompt and response of a query, which holds both."""
    # A tokenizer may put its own beginning before the prompt.
    _, found, response = query.partition(prompt)
    # A prompt that was cut to fit is not found: the query is all that there is.
    return (prompt, response) if found else ("", query)


def _user(label: Any) -> Any:
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError as error:
            raise InputError(f"a label looks like JSON and is none ({error}).") from error
    if not isinstance(label, Mapping):
        return label
    if "user_id" not in label:
        raise InputError("a label is JSON without 'user_id'. Give that, or a user's id alone.")
    return label["user_id"]
