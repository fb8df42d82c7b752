from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from raypref.data.items import ItemTable, append_items, write_items
from raypref.data.prompts import link_prompts, render_prompt
from raypref.data.sources import CHAT_TEMPLATE, render
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.schema import METADATA_FILE, ItemsMetadata, content_hash
from tests.data.corpus import FAKE

ITEMS = {f"{prompt}\n\nanswer {n}": prompt for n, prompt in enumerate(["why?", "how?", "why?", "when?"])}
"""Rendered items and their prompts, in order."""

Links = list[tuple[bytes, bytes]]


def part(texts: list[str]) -> tuple[list[bytes], np.ndarray]:
    seeds = [int.from_bytes(content_hash(text)[:4], "little") for text in texts]
    emb_ND = np.stack([np.random.default_rng(seed).normal(size=4) for seed in seeds]).astype(np.float16)
    return [content_hash(text) for text in texts], emb_ND


def links(items: dict[str, str]) -> Links:
    return [(content_hash(item), content_hash(prompt)) for item, prompt in items.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of four items, then their three prompts."""
    write_items(tmp_path / "items", FAKE, [part([*ITEMS, *dict.fromkeys(ITEMS.values())])])
    link_prompts(tmp_path / "items", links(ITEMS))
    return tmp_path / "items"


def test_the_view_puts_the_prompt_after_the_item(folder: Path) -> None:
    plain = ItemTable.open(folder)
    assert plain.prompt_N.tolist() == [4, 5, 4, 6, -1, -1, -1]
    view = plain.with_prompts()
    assert (plain.width, view.width, len(view)) == (4, 8, 7)
    found_ND = view.gather(np.array([3, 0, 0]))
    expected_ND = np.concatenate([part([*ITEMS])[1], part(list(ITEMS.values()))[1]], 1)
    np.testing.assert_array_equal(found_ND, expected_ND[[3, 0, 0]])
    assert view.gather(np.empty(0, np.int64)).shape == (0, 8)
    assert plain.with_prompts(wanted=False) is plain
    assert plain.gather(np.arange(7)).shape == (7, 4)


def test_the_view_travels_as_its_path(folder: Path) -> None:
    view = pickle.loads(pickle.dumps(ItemTable.open(folder).with_prompts()))
    assert view.width == 8
    again = pickle.loads(pickle.dumps(ItemTable.open(folder)))
    assert again.width == 4


def test_a_sample_has_no_rows_of_prompts(folder: Path, tmp_path: Path) -> None:
    table = ItemTable.open(folder)
    write_items(tmp_path / "without", FAKE, [part([*ITEMS])])
    without = ItemTable.open(tmp_path / "without")
    for n in (3, 99):
        np.testing.assert_array_equal(table.sample(n, seed=1), without.sample(n, seed=1))
    np.testing.assert_array_equal(
        table.with_prompts().sample(99, 0), table.with_prompts().gather(np.arange(4))
    )
    assert len(table.with_prompts().sample(2, 0)) == 2


def test_links_may_come_later_and_stay(folder: Path) -> None:
    before = ItemTable.open(folder)
    more = {"how?\n\nlater": "how?", "who?\n\nlater": "who?"}
    appended = append_items(folder, FAKE, [part([*more, "who?"])])
    assert appended.prompts == before.metadata.prompts
    with pytest.raises(MismatchError, match="item 7 came from an input whose prompts are not embedded"):
        ItemTable.open(folder).with_prompts().gather(np.array([0, 7]))
    linked = link_prompts(folder, links({**ITEMS, **more}))
    table = ItemTable.open(folder)
    assert table.metadata == linked
    assert table.prompt_N.tolist() == [4, 5, 4, 6, -1, -1, -1, 5, 9, -1]
    assert link_prompts(folder, links({**ITEMS, **more})) == linked
    assert [(file.name, file.rows) for file in linked.prompts] == [
        ("prompts-000000.parquet", 4),
        ("prompts-000001.parquet", 2),
    ]


def test_the_first_prompt_of_an_item_counts(folder: Path) -> None:
    item = next(iter(ITEMS))
    assert link_prompts(folder, links({item: "when?"})) == ItemTable.open(folder).metadata
    append_items(folder, FAKE, [part(["ambiguous"])])
    link_prompts(folder, [*links({"ambiguous": "how?"}), *links({"ambiguous": "when?"})])
    assert ItemTable.open(folder).prompt_N[7] == 5


def test_a_table_without_prompts_says_what_to_do(tmp_path: Path) -> None:
    write_items(tmp_path / "items", FAKE, [part([*ITEMS])])
    table = ItemTable.open(tmp_path / "items")
    with pytest.raises(MismatchError, match=r"Set `embed.prompts: true` and embed again"):
        table.with_prompts()
    assert table.prompt_N.tolist() == [-1] * 4
    with pytest.raises(InputError, match="lacks a text"):
        link_prompts(tmp_path / "items", links(ITEMS))
    assert ItemTable.open(tmp_path / "items").metadata == table.metadata


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "rows"])
def test_damaged_links_are_named(folder: Path, damage: str) -> None:
    path = folder / "prompts-000000.parquet"
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        metadata = ItemTable.open(folder).metadata
        short = metadata.prompts[0].model_copy(update={"rows": 3})
        text = ItemsMetadata.model_dump_json(metadata.model_copy(update={"prompts": (short,)}))
        (folder / METADATA_FILE).write_text(text)
    with pytest.raises(CorruptError, match=path.name):
        ItemTable.open(folder).with_prompts().gather(np.arange(2))


@pytest.mark.parametrize("prompt", ["Why {response}?", [{"role": "user", "content": "Why {response}?"}]])
def test_a_prompt_alone_is_its_text(prompt: str | list[dict[str, str]]) -> None:
    assert render_prompt("Q: {prompt} A: {response}", prompt) == "Why {response}?"
    assert render_prompt(CHAT_TEMPLATE, prompt) == '[{"content":"Why {response}?","role":"user"}]'
    assert render(CHAT_TEMPLATE, prompt, "x").startswith(render_prompt(CHAT_TEMPLATE, prompt)[:-1])


@pytest.mark.parametrize("prompt", ["", " \n", [], [{"role": "user", "content": " "}]])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, "{prompt}{response}"])
def test_an_empty_prompt_is_refused(prompt: str | list[dict[str, str]], template: str) -> None:
    with pytest.raises(InputError, match=r"embed.prompts: the input has responses without a prompt"):
        render_prompt(template, prompt)
