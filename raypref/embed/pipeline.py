"""From preferences to an items table: new texts only, through Ray Data, killable at any time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref import errors, files
from raypref.config import EmbedConfig, RunConfig
from raypref.data.items import ItemTable, append_items, write_items
from raypref.data.parts import check_vectors
from raypref.data.prompts import link_prompts, render_prompt
from raypref.data.sources import iter_texts, render
from raypref.data.unpack import keys_of
from raypref.embed.engine import Model, resolve
from raypref.embed.staging import Staging
from raypref.errors import EngineError, InputError, MismatchError, RayprefError
from raypref.schema import ItemsMetadata, content_hash, read_metadata, require_embedder

if TYPE_CHECKING:
    from ray.data import Dataset

_LOOKUP_ROWS = 8192

Batch = dict[str, np.ndarray]

PENDING_SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.large_string())])


def embed(config: RunConfig) -> ItemsMetadata:
    """Embed every distinct text of the run's input that its items table does not hold yet.

    With `embed.prompts` each distinct prompt is a text too. Prompts come after all responses, so these have
    the ids that they have without.

    Raises:
        InputError: there are no texts, too many bad rows, or a prompt that is wanted is empty.
        MismatchError: another embedder made the table or an interrupted run's progress.
        EngineError: the engine is unavailable, failed, or gave an unusable vector.
    """
    template = config.embed.template
    texts = (render(template, *item) for item in iter_texts(config.input))
    if not config.embed.prompts:
        return embed_texts(texts, config.items_dir, config.embed)
    # The input is read once for each of the three: its texts may be more than memory holds.
    prompts = (render_prompt(template, prompt) for prompt, _ in iter_texts(config.input))
    links = (
        (content_hash(render(template, prompt, response)), content_hash(render_prompt(template, prompt)))
        for prompt, response in iter_texts(config.input)
    )
    return embed_texts(chain(texts, prompts), config.items_dir, config.embed, links)


def embed_texts(
    texts: Iterable[str],
    directory: Path,
    config: EmbedConfig,
    links: Iterable[tuple[bytes, bytes]] | None = None,
) -> ItemsMetadata:
    """Embed rendered texts into the items table `directory`, as `embed` does.

    Known texts keep their ids; new ones follow in order of first appearance, however often the run was
    interrupted. Until the end the table is as it was.

    Args:
        texts: rendered texts.
        directory: the items table, which is made if there is none.
        config: the engine and its model.
        links: content hashes of items and of their prompts, all of them among `texts`.
    """
    model = resolve(config)
    with files.lock(directory.with_name(f".{directory.name}.lock")):
        table = _existing(directory, model)
        staging = Staging(directory.with_name(f".{directory.name}.partial"), model.embedder)
        try:
            plan = _plan(texts, table, staging, config.part_rows)
            if plan.todo:
                _run(plan, staging, config, model)
            if len(plan.keys_N):
                write = append_items if table else write_items
                write(directory, model.embedder, staging.ordered(plan.keys_N))
        except BaseException:
            staging.leave()
            raise
        staging.remove()
        if links is not None:
            link_prompts(directory, links)
    return read_metadata(directory, ItemsMetadata)


@dataclass(frozen=True)
class _Todo:
    """A part that is still to be embedded: texts that are staged together."""

    path: Path
    hashes: list[bytes]
    number_N: np.ndarray
    """Number of each text among the distinct texts of the input, for messages."""


@dataclass(frozen=True)
class _Plan:
    keys_N: np.ndarray
    """All texts that the table does not hold, in order of first appearance."""
    todo: list[_Todo]
    """Those of them that are not staged either, part by part."""


def _existing(directory: Path, model: Model) -> ItemTable | None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    table = ItemTable.open(directory)
    require_embedder(table.metadata.embedder, model.embedder, directory)
    return table


def _plan(texts: Iterable[str], table: ItemTable | None, staging: Staging, part_rows: int) -> _Plan:
    """Find the new texts, and write those to be embedded where engines read them."""
    staged = staging.hashes()
    new: list[np.ndarray] = [keys_of([])]
    todo: list[_Todo] = []
    held: list[tuple[int, bytes, str]] = []
    distinct = _distinct(texts)
    count = 0
    while chunk := list(islice(distinct, _LOOKUP_ROWS)):
        hashes = [hash_ for hash_, _ in chunk]
        known_N = table.rows_of(hashes) >= 0 if table else np.zeros(len(chunk), bool)
        new.append(keys_of(hashes)[~known_N])
        held += [
            (number, hash_, text)
            for number, ((hash_, text), known) in enumerate(zip(chunk, known_N, strict=True), start=count)
            if not known and hash_ not in staged
        ]
        count += len(chunk)
        while len(held) >= part_rows:
            todo.append(_write_todo(staging.texts, len(todo), held[:part_rows]))
            del held[:part_rows]
    if held:
        todo.append(_write_todo(staging.texts, len(todo), held))
    if not count:
        raise InputError("the input has no texts to embed.")
    return _Plan(np.concatenate(new), todo)


def _distinct(texts: Iterable[str]) -> Iterator[tuple[bytes, str]]:
    """Yield each text once: different items may be rendered to the same text."""
    seen: set[bytes] = set()
    for text in texts:
        hash_ = content_hash(text)
        if hash_ not in seen:
            seen.add(hash_)
            yield hash_, text


def _write_todo(directory: Path, part: int, rows: list[tuple[int, bytes, str]]) -> _Todo:
    path = directory / f"{part:08d}.parquet"
    numbers, hashes, texts = (list(column) for column in zip(*rows, strict=True))
    pq.write_table(pa.table([numbers, texts], schema=PENDING_SCHEMA), path)
    return _Todo(path, hashes, np.array(numbers))


def _run(plan: _Plan, staging: Staging, config: EmbedConfig, model: Model) -> None:
    """Embed what is to be done, staging each part as soon as all its vectors are there."""
    from raypref.cluster import connected

    with connected():
        _stream(plan, staging, config, model)


def _stream(plan: _Plan, staging: Staging, config: EmbedConfig, model: Model) -> None:
    import ray
    from ray.exceptions import RayError

    # One block a part, which reading Parquet does not promise. Engines may hold every CPU of a small
    # cluster; reading must not wait for one of them to end.
    parts = ray.data.from_items(
        [{"path": str(todo.path)} for todo in plan.todo], override_num_blocks=len(plan.todo)
    )
    dataset = parts.flat_map(_read, num_cpus=0)
    batches = _apply(dataset, config, model).iter_batches(batch_size=None, batch_format="numpy")
    try:
        _collect(cast(Iterable[Batch], batches), plan.todo, staging, model)
    except RayprefError:
        raise
    except RayError as error:
        raise _explain(error) from error


def _read(row: dict[str, Any]) -> list[dict[str, Any]]:
    return pq.read_table(row["path"], schema=PENDING_SCHEMA).to_pylist()


def _apply(dataset: Dataset, config: EmbedConfig, model: Model) -> Dataset:
    from raypref.embed import http, transformers, vllm

    match config.engine:
        case "transformers":
            return transformers.apply(dataset, config, model)
        case "vllm":
            return vllm.apply(dataset, config, model)
        case "http":
            return http.apply(dataset, config, model)


def _collect(batches: Iterable[Batch], todo: list[_Todo], staging: Staging, model: Model) -> None:
    """Stage each part once all its vectors are there; engines side by side finish them in any order."""
    first_P = np.array([one.number_N[0] for one in todo])
    waiting: dict[int, dict[int, np.ndarray]] = {part: {} for part in range(len(todo))}
    for batch in batches:
        emb_ND, number_N = batch["embedding"], batch["number"]
        try:
            check_vectors(emb_ND, model.embedder, number_N)
        except (InputError, MismatchError) as error:
            raise EngineError(
                f"the engine gave an unusable vector: {error} Rows count the distinct texts of the input "
                "from 0. What was embedded before is kept; the next run goes on from there."
            ) from error
        part_N = np.searchsorted(first_P, number_N, side="right") - 1
        for part, number, emb_D in zip(
            part_N.tolist(), number_N.tolist(), emb_ND.astype(np.float16), strict=True
        ):
            waiting[part][number] = emb_D
        for part in np.unique(part_N).tolist():
            if len(waiting[part]) == len(todo[part].number_N):
                rows = waiting.pop(part)
                emb = np.stack([rows[number] for number in todo[part].number_N.tolist()])
                staging.add(todo[part].hashes, emb)
    if waiting:
        part, rows = next(iter(waiting.items()))
        missing = next(number for number in todo[part].number_N.tolist() if number not in rows)
        raise EngineError(f"the engine returned no vector for text {missing}; run again to go on.")


def _explain(error: BaseException) -> RayprefError:
    """Return the error that an engine raised in its worker, of which Ray passes on only the text."""
    raised = re.findall(r"^([\w.]+(?:Error|Exception)): (.+)$", str(error), re.MULTILINE)
    ours = [(name.rpartition("."), text) for name, text in raised if name.startswith("raypref.")]
    if ours:
        (_, _, kind), text = ours[-1]
        return getattr(errors, kind)(text)
    others = [f"{name}: {text}" for name, text in raised if not name.startswith("ray.")]
    return EngineError(
        f"the engine failed with {others[-1] if others else repr(error)}. "
        "What was embedded before is kept; the next run goes on from there."
    )
