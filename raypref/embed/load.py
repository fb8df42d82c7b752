"""An engine for this process, exactly as the pipeline's workers run it."""

from __future__ import annotations

from raypref.config import EmbedConfig
from raypref.embed.engine import Engine, Model, resolve


def load_engine(config: EmbedConfig) -> tuple[Engine, Model]:
    """Find the model of a configuration and load its engine, which has the process for itself.

    Threads and environment are set for it; an engine is used by one thread at a time.

    Raises:
        ConfigError: the model, the engine's package or the server's API key is missing.
        EngineError: the model hub cannot be reached.
    """
    from raypref.embed import http, transformers, vllm

    model = resolve(config)
    match config.engine:
        case "transformers":
            return transformers.start(config, model.source), model
        case "vllm":
            return vllm.VLLMEngine(config, model.source), model
        case "http":
            return http.HTTPEngine(config, model.source, http.api_key(config)), model
