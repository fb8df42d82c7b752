"""The bundle: all that serving and evaluation need of a trained method, in a directory without pickle.

`model.safetensors`, `checkpoint.json`, `users.parquet`, `README.md`, and `manifest.json` with the size and
sha256 of each; a flipped byte in any of them is found before anything is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypref import __version__, files
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.methods import AnyMethod
from raypref.methods.base import MethodConfig, RewardModel
from raypref.schema import Embedder
from raypref.types import Dims

BUNDLE_VERSION = 1
MANIFEST = "manifest.json"

BUNDLE_USERS_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("comparisons", pa.int32(), nullable=False),
        pa.field("vector", pa.list_(pa.float32()), nullable=False),
    ]
)
"""One row a seen user: how many comparisons `infer` saw, 0 where a client did not tell, and the vector it
returned."""


class BundleInfo(BaseModel):
    """What `checkpoint.json` says of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_version: int = BUNDLE_VERSION
    method: AnyMethod
    dim: int = Field(gt=0, description="D, the width of an embedding.")
    users: int = Field(ge=0, description="Seen users that it was trained on.")
    federated: bool = Field(
        default=False,
        description="Whether users were clients that kept their own rows: the model has one row, nobody's.",
    )
    embedder: Embedder
    data_fingerprint: str = Field(description="sha256 of the comparisons it was trained on.")
    steps: int = Field(ge=0, description="Training steps behind the weights.")
    metrics: dict[str, float] = Field(description="Held-out figures of the seen users in training.")
    versions: dict[str, str] = Field(description="Of raypref and the libraries that made it.")


@dataclass(frozen=True)
class Bundle:
    """A trained model and what it belongs to."""

    model: RewardModel
    info: BundleInfo
    users: pa.Table

    @classmethod
    def load(cls, directory: Path) -> Bundle:
        """Read and verify a bundle.

        Raises:
            InputError: there is no bundle here.
            CorruptError: a file is missing or changed, or does not parse.
            MismatchError: another bundle version wrote it.
        """
        verify(directory)
        info = read_info(directory)
        users = _read_users(directory / "users.parquet")
        model = build(info.method, Dims(info.dim, 1 if info.federated else info.users))
        load_tensors(model, directory / "model.safetensors")
        model.eval()
        return cls(model, info, users)

    def save(self, directory: Path) -> None:
        """Write the bundle, whole or not at all; an older one in the same place is replaced."""
        with files.new_directory(directory, MANIFEST) as work:
            save_tensors(self.model.state_dict(), work / "model.safetensors")
            files.write_text(work / "checkpoint.json", self.info.model_dump_json(indent=2) + "\n")
            pq.write_table(self.users.cast(BUNDLE_USERS_SCHEMA), work / "users.parquet", compression="zstd")
            files.write_text(work / "README.md", model_card(self.info))
            write_manifest(work)


def read_info(directory: Path) -> BundleInfo:
    """Read what a bundle says of itself, without its weights.

    Raises:
        InputError: there is no bundle here.
        CorruptError: what it says cannot be read.
        MismatchError: another bundle version wrote it.
    """
    path = directory / "checkpoint.json"
    if not (directory / MANIFEST).is_file():
        raise InputError(f"{directory}: no bundle here ({MANIFEST} is missing).")
    try:
        raw = json.loads(path.read_text())
        bundle_version = raw["bundle_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path}: not readable ({error!r}). Restore it from a copy.") from error
    if bundle_version != BUNDLE_VERSION:
        raise MismatchError(
            f"{path.parent}: bundle version {bundle_version}, this raypref reads {BUNDLE_VERSION}; "
            "train it again or install the raypref that wrote it."
        )
    try:
        return BundleInfo.model_validate(raw)
    except ValidationError as error:
        raise CorruptError(f"{path}: {error}") from error


def name_of(directory: Path, info: BundleInfo) -> str:
    """Return what reports call a bundle: its folder's name, or the method's where that is `bundle`.

    The hub's cache has a folder a commit, OWNER--NAME/snapshots/COMMIT; the name is the repository's.
    """
    directory = directory.resolve()
    if directory.parent.name == "snapshots":
        return directory.parent.parent.name.rpartition("--")[2]
    return info.method.type if directory.name == "bundle" else directory.name


def fingerprint_of(directory: Path) -> str:
    """Return the first 12 digits of the manifest's sha256: equal bundles, and only they, have equal ones."""
    return files.sha256(directory / MANIFEST)[:12]


def _read_users(path: Path) -> pa.Table:
    try:
        users = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path}: not readable as Parquet ({error}). Restore it from a copy.") from error
    if not users.schema.equals(BUNDLE_USERS_SCHEMA):
        raise CorruptError(f"{path}: its columns are not those of a bundle's users.")
    return users


def build(method: MethodConfig, dims: Dims, seed: int = 0) -> RewardModel:
    """Return the untrained model that a seed names, without disturbing torch's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.build(dims)


def library_versions() -> dict[str, str]:
    """Return the versions that a checkpoint records."""
    return {"raypref": __version__, "torch": version("torch"), "safetensors": version("safetensors")}


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors; CorruptError when the file is not safetensors."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path}: not readable as safetensors ({error}).") from error


def load_tensors(model: RewardModel, path: Path) -> None:
    """Load a model's parameters and buffers; CorruptError when names or shapes do not fit."""
    tensors = read_tensors(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CorruptError(f"{path}: does not fit the method it claims ({error}).") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CorruptError(f"{path}: {name} holds values that are not finite.")


def write_manifest(directory: Path) -> None:
    """Write the size and sha256 of every file of a directory, last."""
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    files.write_text(directory / MANIFEST, _manifest_text(entries))


def _manifest_text(entries: Mapping[str, Any]) -> str:
    return json.dumps({"files": entries}, indent=2, sort_keys=True) + "\n"


def verify(directory: Path) -> None:
    """Check every file of a directory against its manifest.

    Raises:
        InputError: there is no manifest, so this is no bundle or checkpoint.
        CorruptError: a file is missing, changed or cut short, or the manifest itself is.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"{directory}: no bundle here ({MANIFEST} is missing).")
    try:
        data = path.read_bytes()
        entries = json.loads(data)["files"]
        intact = data == _manifest_text(entries).encode()
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{path}: not readable ({error}). Restore it from a copy.") from error
    if not intact:
        raise CorruptError(f"{path}: has been changed since it was written. Restore it from a copy.")
    for name, (size, digest) in expected.items():
        file = directory / name
        if not file.is_file():
            raise CorruptError(f"{file}: missing, though {MANIFEST} lists it. Restore it from a copy.")
        if file.stat().st_size != size or files.sha256(file) != digest:
            raise CorruptError(f"{file}: differs from {MANIFEST}. Restore it from a copy.")


@dataclass(frozen=True)
class Result:
    """A measured accuracy of a bundle, for its card."""

    users: str
    """Which users, after how many of their comparisons."""
    items: str
    """warm or cold."""
    accuracy: float


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    info: BundleInfo, licence: str | None = None, results: Sequence[Result] = (), with_users: bool = True
) -> str:
    """Return the bundle's README: a Hugging Face model card.

    Args:
        info: of the bundle.
        licence: as the hub names it, such as apache-2.0; None: not said.
        results: measured accuracies, which the card's `model-index` holds too.
        with_users: whether the bundle keeps the vectors of the users that it was trained on.
    """
    from huggingface_hub import EvalResult, ModelCardData

    name = f"{info.method.type} personal reward model"
    # The hub looks for a base model by its name there; a local one has none.
    base = info.embedder.model if HUB_ID.fullmatch(info.embedder.model) else None
    measured = [
        *((f"seen users, in training: {key}", key, value) for key, value in sorted(info.metrics.items())),
        *((f"{one.users}, {one.items} items", "accuracy", one.accuracy) for one in results),
    ]
    data = ModelCardData(
        library_name="raypref",
        license=licence,
        base_model=base,
        pipeline_tag="text-ranking",
        tags=["reward-model", "personalization", "preference-learning", info.method.type],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="preference-prediction",
                dataset_type="preferences",
                dataset_name="preferences",
                dataset_config=what,
                metric_type=metric,
                metric_value=round(value, 6),
            )
            for what, metric, value in measured
        ],
    )
    figures = "\n".join(f"| {what} | {metric} | {value:.4f} |" for what, metric, value in measured)
    table = f"| where | metric | value |\n|---|---|---|\n{figures}\n" if measured else "Nothing.\n"
    length = "unit length" if info.embedder.normalised else "as they come"
    users = (
        "`users.parquet` has a vector of every user that it was trained on, by name: personal data. Push it "
        "to others only if those people agreed."
        if with_users and info.users
        else "It keeps no user by name."
    )
    return f"""---
{data.to_yaml()}
---

# {name}

Scores responses for one user at a time: a user is inferred from a handful of their comparisons, with
uncertainty where the method has it. {info.method.citation}. Trained on {info.users} users for {info.steps}
steps with raypref {info.versions["raypref"]}, on comparisons whose fingerprint is
`{info.data_fingerprint[:16]}`.

## Use

Items are embeddings of dimension {info.embedder.dim} made by `{info.embedder.model}` (revision
`{info.embedder.revision}`, {info.embedder.pooling} pooling, {length}) of `{info.embedder.template!r}`.
Other embeddings give numbers without meaning.

```python
from pathlib import Path
from raypref.checkpoint import Bundle

model = Bundle.load(Path(".")).model
user = model.infer(model.evidence(chosen, rejected)[None], mask)   # (1, P, D) comparisons of one user
reward = model.reward(model.item(candidates)[None], user)          # mean and variance
```

`raypref pull OWNER/NAME -o bundle` fetches and verifies it; `raypref serve` serves it.

## Measured

{table}
## Meant for

Ranking responses for a person who has agreed to be learned from, in assistants and in research on pluralistic
alignment. Not for: judging people, inferring traits that they did not give, or decisions about them.

## Limits

- A preference is personal data. {users}
- Derived weights, such as a prior, may hold vectors of people that it was trained on, without their names.
- It knows what the embedding holds and what its comparisons were about; elsewhere it is guessing.
- Whoever gives few comparisons gets nearly the population's answer, which is the majority's.
"""
