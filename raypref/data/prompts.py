"""Prompts as rows of the items table, and which of them each item answers.

A method whose users' taste depends on the prompt reads the prompt's own embedding beside that of the
response: `ItemTable.with_prompts`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypref import files
from raypref.data.items import ItemTable
from raypref.data.parts import write_part
from raypref.data.rows import Text
from raypref.data.sources import CHAT_TEMPLATE, render
from raypref.errors import InputError
from raypref.schema import METADATA_FILE, PROMPTS_SCHEMA, ItemsMetadata

_LOOKUP_ROWS = 8192


def render_prompt(template: str, prompt: Text) -> str:
    """Return the text of a prompt alone, whose `content_hash` addresses it in the items table.

    Nothing of the template but its choice of chat messages is in it.

    Raises:
        InputError: the prompt is empty.
    """
    messages = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if not any(text.strip() for text in messages):
        raise InputError(
            "embed.prompts: the input has responses without a prompt. Give each a prompt, or leave "
            "embed.prompts out and use methods that need none."
        )
    return render(template if template == CHAT_TEMPLATE else "{prompt}", prompt, "")


def link_prompts(directory: Path, links: Iterable[tuple[bytes, bytes]]) -> ItemsMetadata:
    """Record which row is the prompt of an item, atomically; a link that stands already stays.

    Args:
        directory: an items table that holds all these texts.
        links: content hashes of an item and of its prompt; if one item comes with two, the first counts.

    Raises:
        InputError: the table lacks a text.
    """
    table = ItemTable.open(directory)
    found: list[np.ndarray] = [np.empty((2, 0), np.int64)]
    remaining = iter(links)
    while chunk := list(islice(remaining, _LOOKUP_ROWS)):
        found.append(np.stack([table.rows_of([*hashes]) for hashes in zip(*chunk, strict=True)]))
    item_M, prompt_M = rows_2M = np.concatenate(found, 1)
    if np.any(rows_2M < 0):
        raise InputError(f"{directory}: lacks a text of the input, which has changed since; embed again.")
    item_M, first_M = np.unique(item_M, return_index=True)
    new_M = table.prompt_N[item_M] < 0
    if not new_M.any():
        return table.metadata
    rows = pa.table([item_M[new_M], prompt_M[first_M][new_M]], schema=PROMPTS_SCHEMA)
    listed = table.metadata.prompts
    part = write_part(table.directory / f"prompts-{len(listed):06d}.parquet", rows)
    metadata = table.metadata.model_copy(update={"prompts": (*listed, part)})
    files.write_text(table.directory / METADATA_FILE, metadata.model_dump_json(indent=1) + "\n")
    return metadata
