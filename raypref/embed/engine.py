"""What every embedding engine is, and which model it runs."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import numpy as np

from raypref import files
from raypref.config import EmbedConfig, HTTPConfig
from raypref.data.sources import CHAT_TEMPLATE
from raypref.embed.tokens import Tokens
from raypref.errors import ConfigError, EngineError
from raypref.schema import Embedder

PACKAGE_PREFIX = "package:"

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What decides a model's vectors: weights, configuration, tokenizer. Pickled weights are never loaded."""


class Engine(Protocol):
    """Turns rendered texts into vectors; lives in a Ray actor or in any process."""

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of `texts` in their order, float32 (N, D)."""
        ...


class EngineActor:
    """An engine as a Ray Data callable: columns `number` and `text` in, `number` and `embedding` out."""

    def __init__(self, engine: Callable[..., Engine], *args: object) -> None:
        """Start the engine `engine(*args)`."""
        self._engine = engine(*args)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed a block of texts."""
        return {"number": batch["number"], "embedding": self._engine.embed(batch["text"].tolist())}


@dataclass(frozen=True)
class Model:
    """The model that a configuration names, found."""

    source: str
    """Local folder; for an HTTP engine the name that the server knows."""
    embedder: Embedder


def resolve(config: EmbedConfig) -> Model:
    """Find the model of a configuration, and read its revision and width. No weights are loaded.

    Raises:
        ConfigError: there is no such package, folder or model, its files are incomplete, or it lacks the
            chat template that is asked for.
        EngineError: the model hub cannot be reached.
    """
    if isinstance(config, HTTPConfig):
        if config.template == CHAT_TEMPLATE:
            raise ConfigError(
                "embed.template: a chat template needs the model's tokenizer, which the http engine has not; "
                "use the transformers or vllm engine, or write the template out."
            )
        return Model(config.model, _embedder(config, config.model, config.revision or "served", config.dim))
    name, folder = _locate(config)
    revision = _hash_model(folder) if folder else None
    if folder is None:
        folder = _download(config.model, config.revision)
        revision = folder.name
    elif config.revision not in (None, revision):
        raise ConfigError(f"embed.revision: {folder} is {revision}, not {config.revision}.")
    if config.template == CHAT_TEMPLATE:
        Tokens(str(folder), config.template, config.max_length)
    return Model(str(folder), _embedder(config, name, str(revision), _width(folder)))


def normalise(emb_ND: np.ndarray) -> np.ndarray:
    """Return vectors of unit length; a zero vector stays zero, and is refused later by number."""
    norm_N1 = np.linalg.norm(emb_ND, axis=1, keepdims=True)
    return emb_ND / np.maximum(norm_N1, np.finfo(np.float32).tiny)


def _embedder(config: EmbedConfig, name: str, revision: str, dim: int) -> Embedder:
    return Embedder(
        model=name,
        revision=revision,
        pooling=config.pooling,
        normalised=config.normalise,
        template=config.template,
        max_length=config.max_length,
        dim=dim,
    )


def _locate(config: EmbedConfig) -> tuple[str, Path | None]:
    """Return the model's name and its local folder, None for a name of the hub."""
    if config.model.startswith(PACKAGE_PREFIX):
        name = config.model.removeprefix(PACKAGE_PREFIX)
        package, _, inside = name.partition("/")
        try:
            folder = Path(str(importlib.resources.files(package))) / inside
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"embed.model: the package {package} is not installed; install it, or name another model."
            ) from error
        if not folder.is_dir():
            raise ConfigError(f"embed.model: the package {package} has no folder {inside}.")
        return name, folder
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return folder.resolve().name, folder.resolve()
    if config.model.startswith((".", "/", "~")) or config.model.count("/") > 1:
        raise ConfigError(f"embed.model: there is no folder {folder}.")
    return config.model, None


def _hash_model(folder: Path) -> str:
    digest = hashlib.sha256()
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in MODEL_FILES)
    )
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"embed.model: {folder} has no .safetensors weights.")
    for name in names:
        digest.update(f"{name} {files.sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        # The folder of a snapshot is named after its commit.
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
    except RepositoryNotFoundError as error:
        raise ConfigError(f"embed.model: there is no folder and no hub model {name}.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EngineError(
            f"embed.model: {name} is neither cached nor can it be fetched from the hub ({error}). "
            "Download it where there is a network, and name its folder."
        ) from error


def _width(folder: Path) -> int:
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().hidden_size)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"embed.model: {folder} has no usable config.json ({error}).") from error
