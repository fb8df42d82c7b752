"""Embed with any server that answers OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from raypref.config import HTTPConfig
from raypref.embed.engine import EngineActor, Model, normalise
from raypref.errors import ConfigError, EngineError, RefusedError

if TYPE_CHECKING:
    from ray.data import Dataset

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0

ABOUT_THE_TEXTS = {400, 413, 422}
"""Statuses of a server that would take other texts."""


class HTTPEngine:
    """A client of an embeddings server; several requests are under way at once.

    The server cuts texts itself: start it with the `max_length` that the configuration names.
    """

    def __init__(self, config: HTTPConfig, model: str, api_key: str | None) -> None:
        """Open the connections; nothing is sent yet."""
        self._config = config
        self._model = model
        self._client = httpx.Client(
            base_url=config.url,
            timeout=config.timeout_s,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(max_connections=config.max_in_flight),
        )
        self._threads = ThreadPoolExecutor(config.max_in_flight)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of `texts` in their order, float32 (N, D).

        Raises:
            RefusedError: the server refused the texts, or has a vector for one that is not finite.
            EngineError: the server refused the request, kept failing, or gave another unusable answer.
        """
        size = self._config.batch_size
        requests = [texts[start : start + size] for start in range(0, len(texts), size)]
        emb_ND = np.concatenate(list(self._threads.map(self._request, requests)))
        return normalise(emb_ND) if self._config.normalise else emb_ND

    def _request(self, texts: list[str]) -> np.ndarray:
        for pause_s in self._pauses():
            try:
                response = self._client.post("embeddings", json={"model": self._model, "input": texts})
            except httpx.TransportError as error:
                problem, asked_s = f"{type(error).__name__}: {error}", 0.0
            else:
                if response.is_success:
                    return self._parse(response, len(texts))
                problem = f"status {response.status_code}: {response.text[:200]}"
                if response.status_code != 429 and response.status_code < 500:
                    kind = RefusedError if response.status_code in ABOUT_THE_TEXTS else EngineError
                    raise kind(
                        f"{response.url} refused a request, {problem}. "
                        "Check embed.url, embed.model, embed.batch_size and the API key."
                    )
                asked_s = _retry_after(response)
            if pause_s is None:
                raise EngineError(
                    f"{self._config.url} failed {self._config.retries + 1} times, the last time with "
                    f"{problem}. Check that the server runs; run again to go on from there."
                )
            time.sleep(max(pause_s, asked_s))
        raise AssertionError("the last pause is None")

    def _pauses(self) -> Iterator[float | None]:
        """Yield the pause after each failed attempt, in seconds; None after the last."""
        for attempt in range(self._config.retries):
            longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            # Jitter, so that many clients do not come back together.
            yield random.uniform(longest_s / 2, longest_s)
        yield None

    def _parse(self, response: httpx.Response, count: int) -> np.ndarray:
        try:
            rows: list[dict[str, Any]] = sorted(response.json()["data"], key=lambda row: row["index"])
            index = [row["index"] for row in rows]
            vectors = [np.asarray(row["embedding"], np.float32) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"no OpenAI embeddings response ({error!r})") from error
        if index != list(range(count)):
            raise self._unusable(f"{len(rows)} vectors with index {index[:8]}… for {count} texts")
        for vector in vectors:
            if vector.shape != (self._config.dim,):
                raise self._unusable(f"vectors of shape {vector.shape}, embed.dim is {self._config.dim}")
            if not np.isfinite(vector).all():
                raise self._unusable("a vector that is not finite", RefusedError)
        return np.stack(vectors)

    def _unusable(self, what: str, kind: type[EngineError] = EngineError) -> EngineError:
        return kind(f"{self._config.url} answered with {what}. Check the server and embed.model.")


def api_key(config: HTTPConfig) -> str | None:
    """Return the key that the server wants, None where it wants none.

    Raises:
        ConfigError: the environment lacks it.
    """
    if config.api_key_env is None:
        return None
    if not (key := os.environ.get(config.api_key_env)):
        raise ConfigError(f"embed.api_key_env: the variable {config.api_key_env} is not set.")
    return key


class _Actor(EngineActor):
    def __init__(self, config: HTTPConfig, model: str, api_key: str | None) -> None:
        super().__init__(HTTPEngine, config, model, api_key)


def apply(dataset: Dataset, config: HTTPConfig, model: Model) -> Dataset:
    """Return `dataset` (columns `number`, `text`) embedded by a pool of clients (`number`, `embedding`)."""
    from ray.data import ActorPoolStrategy

    fewest, most = config.concurrency
    return dataset.map_batches(
        _Actor,
        fn_constructor_args=(config, model.source, api_key(config)),
        batch_size=config.part_rows,
        batch_format="numpy",
        compute=ActorPoolStrategy(min_size=fewest, max_size=most),
        num_cpus=0,
    )


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the server asks to wait, at most `LONGEST_PAUSE_S`; 0 if it asks nothing."""
    value = response.headers.get("retry-after", "")
    try:
        asked_s = float(value)
    except ValueError:
        try:
            asked_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(asked_s, 0.0), LONGEST_PAUSE_S)
