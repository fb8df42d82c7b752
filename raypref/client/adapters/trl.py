"""Personal rewards for TRL's GRPO: `GRPOTrainer(reward_funcs=RayprefReward(url), ...)`.

TRL hands every column of the data set to its reward functions; the column `user_id` says for whom a prompt is
answered.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from raypref.client.adapters.rewards import TIMEOUT_S, OnFailure, Reward, Rewards, Row

LogExtra = Callable[[str, list[Any]], None]
LogMetric = Callable[[str, float], None]


class RayprefReward:
    """A reward function: the mean reward of each completion for its row's user.

    It logs, through TRL, the shares of rows that were scored for the population (`raypref/cold`), while the
    service's store was down (`raypref/degraded`), and not at all (`raypref/failed`).
    """

    __name__ = "raypref"

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        on_failure: OnFailure = "raise",
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: of the service; default: the environment's RAYPREF_URL, else http://127.0.0.1:8000.
            api_key: default: the environment's RAYPREF_API_KEY.
            timeout_s: deadline of each request, with its retries.
            on_failure: what becomes of rows that the service could not score in time: `raise` stops the
                training, `none` gives None, which TRL leaves out of the reward.
        """
        self._rewards = Rewards(url, api_key, timeout_s, on_failure)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        user_id: Sequence[Any] | None = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Return a reward a completion; rows without a user get what the population prefers."""
        return _logged(self._rewards.of(_rows(prompts, completions, user_id)), log_extra, log_metric)


def make_async_reward(
    url: str | None = None,
    api_key: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    on_failure: OnFailure = "raise",
) -> Callable[..., Coroutine[Any, Any, list[float | None]]]:
    """Return what `RayprefReward` is as a coroutine function, which TRL runs beside others of its kind."""
    rewards = Rewards(url, api_key, timeout_s, on_failure)

    async def raypref(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        user_id: Sequence[Any] | None = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        return _logged(await rewards.of_async(_rows(prompts, completions, user_id)), log_extra, log_metric)

    return raypref


def _rows(prompts: Sequence[Any], completions: Sequence[Any], users: Sequence[Any] | None) -> list[Row]:
    users = [None] * len(prompts) if users is None else users
    return [Row(*row) for row in zip(prompts, completions, users, strict=True)]


def _logged(
    rewards: list[Reward | None], log_extra: LogExtra | None, log_metric: LogMetric | None
) -> list[float | None]:
    scored = [reward for reward in rewards if reward is not None]
    if log_extra is not None and any(reward.std is not None for reward in scored):
        log_extra("raypref_std", [None if reward is None else reward.std for reward in rewards])
    if log_metric is not None and rewards:
        log_metric("raypref/cold", sum(reward.cold for reward in scored) / len(rewards))
        log_metric("raypref/degraded", sum(reward.degraded for reward in scored) / len(rewards))
        log_metric("raypref/failed", 1 - len(scored) / len(rewards))
    return [None if reward is None else reward.mean for reward in rewards]
