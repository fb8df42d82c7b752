"""Rewards of many responses at once, in as few requests as the service's API allows."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from raypref.client.async_client import AsyncClient
from raypref.client.background import Background
from raypref.client.errors import Unavailable
from raypref.errors import ConfigError, InputError

OnFailure = Literal["raise", "none"]
"""What becomes of rows that the service could not score in time: an exception, or None as their reward."""

TIMEOUT_S = 120.0
IN_FLIGHT = 64
"""Requests under way at once."""


class Row(NamedTuple):
    """One response to reward."""

    prompt: Any
    """Text or chat messages."""
    response: Any
    user: Any
    """Id of the user, None or empty for what the population prefers."""


class Reward(NamedTuple):
    """What the service says of one response."""

    mean: float
    std: float | None
    cold: bool
    degraded: bool


class Rewards:
    """A source of rewards; it opens its connections at first use, in whichever process that is."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        on_failure: OnFailure = "raise",
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: of the service; default: the environment's RAYPREF_URL, else http://127.0.0.1:8000.
            api_key: default: the environment's RAYPREF_API_KEY.
            timeout_s: deadline of each request, with its retries.
            on_failure: what becomes of rows that the service could not score in time.

        Raises:
            ConfigError: `on_failure` is neither raise nor none.
        """
        if on_failure not in ("raise", "none"):
            raise ConfigError(f"on_failure: {on_failure!r} is neither 'raise' nor 'none'.")
        self._arguments = (url, api_key, timeout_s, on_failure)
        self._on_failure = on_failure
        address = url or os.environ.get("RAYPREF_URL") or "http://127.0.0.1:8000"
        self._background = Background(
            lambda: AsyncClient(address, api_key, timeout_s=timeout_s, max_connections=IN_FLIGHT),
            AsyncClient.close,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy as settings, without connections: trainers send reward functions to other processes."""
        return Rewards, self._arguments

    def of(self, rows: Iterable[Row]) -> list[Reward | None]:
        """Return a reward a row, in order; None where it failed and `on_failure` is none.

        Raises:
            InputError: a row is not sound; nothing was sent for its group.
            RequestRefused: the service will not score a row.
            Unavailable: the service did not answer in time, and `on_failure` is raise.
        """
        groups = _grouped(rows)
        return self._background.run(lambda client: self._score(client, groups))

    async def of_async(self, rows: Iterable[Row]) -> list[Reward | None]:
        """Do what `of` does without blocking the caller's event loop, whichever that is."""
        groups = _grouped(rows)
        return await asyncio.wrap_future(self._background.submit(lambda client: self._score(client, groups)))

    async def _score(self, client: AsyncClient, groups: list[_Group]) -> list[Reward | None]:
        # The deadline of a request must not run while it waits for its turn.
        turn = asyncio.Semaphore(IN_FLIGHT)

        async def score(group: _Group) -> list[Reward | None]:
            async with turn:
                try:
                    scores = await client.score(group.responses, user=group.user, prompt=group.prompt)
                except Unavailable:
                    if self._on_failure == "raise":
                        raise
                    return [None] * len(group.places)
            stds: Sequence[float | None]
            stds = [None] * len(group.places) if scores.std is None else scores.std[0].tolist()
            cold, degraded = bool(scores.cold[0]), bool(scores.degraded[0])
            return [
                Reward(mean, std, cold, degraded)
                for mean, std in zip(scores.mean[0].tolist(), stds, strict=True)
            ]

        try:
            async with asyncio.TaskGroup() as tasks:
                under_way = [tasks.create_task(score(group)) for group in groups]
        except ExceptionGroup as failures:
            # One says it all: mostly the service is gone, for every group.
            raise failures.exceptions[0] from None
        rewards: dict[int, Reward | None] = {}
        for group, task in zip(groups, under_way, strict=True):
            rewards |= zip(group.places, task.result(), strict=True)
        return [rewards[place] for place in range(len(rewards))]


@functools.cache
def shared(url: str | None, timeout_s: float = TIMEOUT_S) -> Rewards:
    """Return this process's source of rewards for an address."""
    return Rewards(url, timeout_s=timeout_s)


def user_id(value: Any) -> str | None:
    """Return a data set's user id as the service knows it; None where it has none."""
    return None if value is None or value == "" else str(value)


class _Group(NamedTuple):
    user: str | None
    prompt: Any
    responses: list[Any]
    places: list[int]


def _grouped(rows: Iterable[Row]) -> list[_Group]:
    """Put together what one request can ask: responses to one prompt, for one user."""
    groups: dict[tuple[str | None, str], _Group] = {}
    for place, row in enumerate(rows):
        user, prompt = user_id(row.user), _text(row.prompt)
        group = groups.setdefault((user, json.dumps(prompt)), _Group(user, prompt, [], []))
        group.responses.append(_text(row.response))
        group.places.append(place)
    return list(groups.values())


def _text(value: Any) -> str | list[dict[str, str]]:
    """Return text as it is, and of chat messages their roles and texts."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise InputError(f"a prompt or response is {type(value).__name__}, neither text nor chat messages.")
    return [{"role": str(message["role"]), "content": _content(message.get("content"))} for message in value]


def _content(value: Any) -> str:
    # A call of a tool has no content; content in blocks may hold images, which no text embedder sees.
    if value is None or isinstance(value, str):
        return value or ""
    return "".join(block["text"] for block in value if block.get("type") == "text")
