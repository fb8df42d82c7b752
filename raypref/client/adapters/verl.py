"""Personal rewards for verl: `custom_reward_function` with this file as `path` and a function here as `name`.

`extra_info` of the data set brings `prompt` (text or chat messages) and `user_id` (missing: what the
population prefers). The environment's RAYPREF_URL says where the service is, or `reward_kwargs.url`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raypref.client.adapters.rewards import TIMEOUT_S, Reward, Row, shared
from raypref.errors import InputError


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    timeout_s: float = TIMEOUT_S,
    **kwargs: Any,
) -> dict[str, float]:
    """Return the mean reward of a response for its user as `score`, and how sure the service is of it.

    Raises:
        InputError: `extra_info` brings no prompt.
        ClientError: the service refused, or did not answer within `timeout_s`; verl stops.
    """
    return _figures(shared(url, timeout_s).of([_row(solution_str, extra_info)]))


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    timeout_s: float = TIMEOUT_S,
    **kwargs: Any,
) -> dict[str, float]:
    """Do what `compute_score` does without holding a thread: many responses are scored at once."""
    return _figures(await shared(url, timeout_s).of_async([_row(solution_str, extra_info)]))


def _row(response: str, extra_info: Mapping[str, Any] | None) -> Row:
    info = extra_info or {}
    if info.get("prompt") is None:
        raise InputError("extra_info brings no 'prompt': no response is scored without. Add it.")
    return Row(info["prompt"], response, info.get("user_id"))


def _figures(rewards: list[Reward | None]) -> dict[str, float]:
    (reward,) = rewards
    assert reward is not None
    figures = {
        "score": reward.mean,
        "raypref_cold": float(reward.cold),
        "raypref_degraded": float(reward.degraded),
    }
    return figures if reward.std is None else {**figures, "raypref_std": reward.std}
