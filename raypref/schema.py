"""The Parquet contracts: what the two inputs and the two tables must hold, and their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypref.errors import CorruptError, InputError, MismatchError

SCHEMA_VERSION = 1

METADATA_FILE = "metadata.json"
"""Every table directory holds one; it is written last, so a directory without it is unfinished."""

COMPARISON_COLUMNS = ("user_id", "prompt", "chosen", "rejected")
RATING_COLUMNS = ("user_id", "prompt", "response", "rating")
OPTIONAL_COLUMNS = ("timestamp", "weight", "group")

Split = Literal["train", "valid", "warm", "cold"]
"""`train`: what methods learn from, and an unseen user's few shots. `valid`: early stopping, seen users only.
`warm`: held out, its items stand in other users' training comparisons. `cold`: held out, its items (or
prompts, or groups) stand in no training comparison of anybody."""

Cohort = Literal["seen", "unseen"]

HASH_BYTES = 16


M = TypeVar("M", bound=BaseModel)


class Embedder(BaseModel):
    """Which map from text to vectors made an items table; a checkpoint accepts no other.

    The engine that ran it is not part of it: engines agree on the vectors of one model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Model name, or the last part of a local path.")
    revision: str = Field(description="Hub commit, or the sha256 of a local model's files.")
    pooling: str = Field(description="How token vectors become one: last, mean or cls.")
    normalised: bool = Field(description="Whether vectors are scaled to unit length.")
    template: str = Field(description="How prompt and response become text; `chat` is the model's own.")
    max_length: int = Field(description="Tokens after which text is cut.")
    dim: int = Field(gt=0, description="D, the width of an embedding.")


class ItemsPart(BaseModel):
    """One Parquet file of an items table; a file that the metadata does not list is not part of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str


class ItemsMetadata(BaseModel):
    """Metadata of an items table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: Literal["items"] = "items"
    embedder: Embedder
    count: int = Field(ge=0, description="Rows of the table.")
    parts: tuple[ItemsPart, ...] = Field(description="Its files, in row order.")
    prompts: tuple[ItemsPart, ...] = Field(
        default=(), description="Files that say which row is an item's prompt; none: prompts have no rows."
    )


class TablesMetadata(BaseModel):
    """Metadata of a comparisons table and its users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: Literal["tables"] = "tables"
    embedder: Embedder
    items: int = Field(ge=0, description="Rows that the items table had.")
    fingerprint: str = Field(description="sha256 over the comparisons, in table order.")
    buckets: int = Field(gt=0, description="Number of comparison files.")
    seen_users: int = Field(ge=0)
    unseen_users: int = Field(ge=0)
    comparisons: dict[str, int] = Field(description="Comparisons by cohort and split: `seen/train` …")
    bad_rows: dict[str, BadRows] = Field(description="Rows left out, by kind.")
    short_users: int = Field(default=0, ge=0, description="Users left out for having too few comparisons.")
    options: dict[str, Any] = Field(description="The options that made the table, to make it again.")


class BadRows(BaseModel):
    """How many rows were left out for one reason, and where the first of them stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    first_row: int = Field(description="Row number in the input, from 0.")


TablesMetadata.model_rebuild()


def items_schema(dim: int) -> pa.Schema:
    """Return the schema of the items table for D = `dim`; rows are ordered by `item_id`, dense from 0."""
    return pa.schema(
        [
            pa.field("item_id", pa.int64(), nullable=False),
            pa.field("content_hash", pa.binary(HASH_BYTES), nullable=False),
            pa.field("embedding", pa.list_(pa.float16(), dim), nullable=False),
        ]
    )


PROMPTS_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("prompt_item", pa.int64(), nullable=False),
    ]
)
"""Rows of the items table: an item, and the text of its prompt alone. Rows of prompts have no link."""

COMPARISONS_SCHEMA = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("chosen", pa.int64(), nullable=False),
        pa.field("rejected", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("timestamp", pa.float64()),
    ]
)
"""One file a bucket, sorted by user, then `pair_id`; `timestamp` in seconds since 1970."""

USERS_SCHEMA = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cohort", pa.string(), nullable=False),
        pa.field("row", pa.int32()),
        pa.field("train", pa.int32(), nullable=False),
        pa.field("valid", pa.int32(), nullable=False),
        pa.field("warm", pa.int32(), nullable=False),
        pa.field("cold", pa.int32(), nullable=False),
    ]
)
"""One row a user, by `user`; `row` numbers the seen users densely, null for unseen ones; then counts."""


def canonical_text(value: object) -> str:
    """Return the canonical form of a prompt or response: text as it is, chat messages as sorted JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def content_hash(text: str) -> bytes:
    """Return the address of a text: equal texts, and only they, share an item."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


def require_columns(columns: Iterable[str], needed: Iterable[str], where: object) -> None:
    """Raise InputError naming the columns of `needed` that are missing."""
    have = list(columns)
    missing = [name for name in needed if name not in have]
    if missing:
        raise InputError(
            f"{where}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"it has {', '.join(map(str, have)) or 'none'}. Rename yours to {', '.join(needed)}."
        )


def read_metadata(directory: Path, model: type[M]) -> M:
    """Read and check a table's metadata.

    Raises:
        InputError: there is no such table, or it was never finished.
        CorruptError: the metadata is not what this version writes.
        MismatchError: another schema version wrote it.
    """
    path = directory / METADATA_FILE
    if not path.is_file():
        raise InputError(f"{directory}: no finished table here ({METADATA_FILE} is missing).")
    try:
        raw = json.loads(path.read_text())
        version = raw["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path}: not readable as metadata ({error}).") from error
    if version != SCHEMA_VERSION:
        raise MismatchError(
            f"{path}: schema version {version}, this raypref reads {SCHEMA_VERSION}; make the table again."
        )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise CorruptError(f"{path}: {error}") from error


def require_embedder(have: Embedder, expected: Embedder, where: object) -> None:
    """Raise MismatchError naming each field in which two embedders differ."""
    a, b = have.model_dump(), expected.model_dump()
    differences = [f"{key} {a[key]!r} instead of {b[key]!r}" for key in a if a[key] != b[key]]
    if differences:
        raise MismatchError(
            f"{where}: made by another embedder: {'; '.join(differences)}. "
            "Embed with the expected one; vectors of different embedders never mix."
        )
