"""Text to embeddings as training saw them: same template, tokens, pooling and float16 rounding.

Nothing of a text outlives its request: there is no cache, and no text in a log line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from ray import serve
from ray.serve import Deployment

from raypref import schema
from raypref.checkpoint import BundleInfo
from raypref.config import EmbedConfig, HTTPConfig
from raypref.data import rows
from raypref.data.parts import check_vectors
from raypref.data.prompts import render_prompt
from raypref.data.sources import CHAT_TEMPLATE, render
from raypref.embed.engine import Engine
from raypref.embed.load import load_engine
from raypref.errors import EngineError, InputError, RefusedError
from raypref.serve.batching import Batcher, in_thread
from raypref.wire.errors import WireError
from raypref.wire.requests import Text

BATCH_TEXTS = 256
"""Texts that go to the engine together; a request of more takes turns with the others."""

RETRIES = 1
"""Times at most that an embeddings server is asked again: whoever waits for the answer may ask again too."""

RETRY_AFTER_S = 5

Answer = np.ndarray | WireError

_CONFIG: TypeAdapter[EmbedConfig] = TypeAdapter(EmbedConfig)

log = logging.getLogger("ray.serve.raypref")


def rendered(template: str, prompt: Text | None, response: Text) -> str:
    """Return the text of an item as training rendered it; without a prompt, `response` is all of it.

    A response may be empty, as a policy's now and then is: what counts is that the whole has tokens.
    """
    if prompt is None:
        # A chat template knows messages only: plain text becomes the assistant's.
        return render(template if template == CHAT_TEMPLATE else "{response}", "", _plain(response))
    return render(template, _plain(prompt), _plain(response))


def rendered_prompt(template: str, prompt: Text) -> str:
    """Return the text of a prompt alone, whose embedding some methods read beside the item's.

    Raises:
        WireError: the prompt is blank.
    """
    if _blank(prompt):
        raise WireError(422, "the model that is served needs the prompt of each text.", "prompt")
    return render_prompt(template, _plain(prompt))


def _plain(text: Text) -> rows.Text:
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def _blank(text: Text) -> bool:
    parts = [text] if isinstance(text, str) else [message.content for message in text]
    return not any(part.strip() for part in parts)


def embed_requests(engine: Engine, embedder: schema.Embedder, requests: Sequence[list[str]]) -> list[Answer]:
    """Embed the texts of requests together: float16 (N, D) each, or why a request cannot be answered.

    Vectors are checked and rounded as those of an items table are.

    Raises:
        EngineError: the engine failed, whatever the texts.
        MismatchError: the engine's vectors have another width than the embedder's.
    """
    try:
        emb_ND = engine.embed([text for texts in requests for text in texts])
    except (InputError, RefusedError):
        if len(requests) == 1:
            return [_refusal()]
        # The request that is to blame is found by halves; all others are answered.
        half = len(requests) // 2
        return [
            *embed_requests(engine, embedder, requests[:half]),
            *embed_requests(engine, embedder, requests[half:]),
        ]
    ends = np.cumsum([len(texts) for texts in requests])
    return [_checked(part_ND, embedder) for part_ND in np.split(emb_ND, ends[:-1])]


def _checked(emb_ND: np.ndarray, embedder: schema.Embedder) -> Answer:
    try:
        check_vectors(emb_ND, embedder, np.arange(len(emb_ND)))
    except InputError:
        return _refusal()
    return emb_ND.astype(np.float16)


def _refusal() -> WireError:
    # What an engine says may quote the text, and this may be logged.
    return WireError(
        422,
        "a text cannot be embedded: it has no tokens, the embedder does not take it, or its vector is not "
        "finite.",
        "text",
    )


class Embedder:
    """One engine and the requests that wait for it; the engine has a thread of its own."""

    # Serve awaits a constructor, which need not block the replica's loop while weights are read.
    async def __init__(  # pyright: ignore[reportGeneralTypeIssues]
        self, config: EmbedConfig | dict[str, Any]
    ) -> None:
        """Load the engine.

        Raises:
            ConfigError: the model, the engine's package or the server's API key is missing.
            EngineError: the model hub cannot be reached.
        """
        self._config = _CONFIG.validate_python(config)
        if isinstance(self._config, HTTPConfig):
            retries = min(self._config.retries, RETRIES)
            self._config = self._config.model_copy(update={"retries": retries})
        self._engine, self._model = await asyncio.to_thread(load_engine, self._config)
        work = in_thread("embed", self._embed_batch)
        self._embed: Batcher[list[str], Answer] = Batcher(work, BATCH_TEXTS, len, BATCH_TEXTS)
        self._dead: EngineError | None = None

    async def embed(self, texts: list[str]) -> Answer:
        """Return the embeddings of rendered texts, float16 (N, D), or what to answer instead."""
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            return WireError(422, "a text is not valid Unicode.", "text")
        parts = [np.empty((0, self._model.embedder.dim), np.float16)]
        for start in range(0, len(texts), BATCH_TEXTS):
            answer = await self._embed(texts[start : start + BATCH_TEXTS])
            if isinstance(answer, WireError):
                return answer
            parts.append(answer)
        return np.concatenate(parts)

    async def describe(self) -> schema.Embedder:
        """Return which map from text to vectors this is; bundles are compared with it."""
        return self._model.embedder

    async def check_health(self) -> None:
        """Ask Serve for another replica once an engine of this process has died.

        A server that is down is no reason: another replica would not reach it either.

        Raises:
            EngineError: the engine has died.
        """
        if self._dead is not None:
            raise self._dead

    def _embed_batch(self, requests: list[list[str]]) -> list[Answer]:
        try:
            return embed_requests(self._engine, self._model.embedder, requests)
        except EngineError as error:
            log.error("the embedding engine failed: %s", error)
            if not isinstance(self._config, HTTPConfig):
                self._dead = error
            refusal = WireError(
                503,
                "the embedder does not answer; try again, or send embeddings.",
                retry_after_s=RETRY_AFTER_S,
            )
            return [refusal] * len(requests)


def matching(config: EmbedConfig, info: BundleInfo) -> EmbedConfig:
    """Return `config` with everything it leaves open as a bundle has it.

    So a service names the engine, and need not repeat template, pooling, normalisation and cut.
    """
    embedder = info.embedder
    open_fields = {
        "prompts": info.method.needs_prompts,
        "template": embedder.template,
        "pooling": embedder.pooling,
        "normalise": embedder.normalised,
        "max_length": embedder.max_length,
    }
    given = config.model_dump(exclude_unset=True)
    return _CONFIG.validate_python({**open_fields, "engine": config.engine, **given})


def embedder_deployment(config: EmbedConfig) -> Deployment:
    """Return the deployment of `Embedder`, with the resources of one engine; bind it to the same `config`."""
    if isinstance(config, HTTPConfig):
        resources = {"num_cpus": 0.0}
    else:
        resources = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    deployment = serve.deployment(
        ray_actor_options=resources, max_ongoing_requests=256, max_queued_requests=256
    )
    return deployment(Embedder)
