from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypref.config import HTTPConfig, InputConfig, RunConfig
from raypref.data.items import ItemTable
from raypref.embed.pipeline import embed, embed_texts
from raypref.errors import EngineError, InputError, MismatchError
from raypref.schema import ItemsMetadata, content_hash, read_metadata
from tests.conftest import terminal_signals
from tests.embed.embedding_server import DIM, Server, serving, vector

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
]

TEXTS = [f"text {n}" for n in range(40)]


@pytest.fixture
def server(ray_cluster: None) -> Iterator[Server]:
    with serving() as server:
        yield server


def config(server: Server, **options: Any) -> HTTPConfig:
    defaults = {"model": "m", "dim": DIM, "batch_size": 5, "part_rows": 5, "max_in_flight": 1, "retries": 0}
    return HTTPConfig(**{"url": server.url, **defaults, **options})


def assert_holds(directory: Path, texts: list[str]) -> None:
    """The table has exactly these texts, in this order, each with its own vector."""
    table = ItemTable.open(directory)
    assert len(table) == len(texts)
    assert table.rows_of([content_hash(text) for text in texts]).tolist() == list(range(len(texts)))
    expected_ND = np.stack([vector(text) for text in texts])
    np.testing.assert_allclose(table.gather(np.arange(len(texts))), expected_ND, atol=1e-3)


def left_over(directory: Path) -> list[str]:
    """What a run left beside its table, but for the empty lock file."""
    return [path.name for path in directory.parent.glob(f".{directory.name}.*") if path.suffix != ".lock"]


@pytest.mark.parametrize("concurrency", [(1, 1), (2, 2)])
def test_every_distinct_text_is_embedded_once(
    server: Server, tmp_path: Path, concurrency: tuple[int, int]
) -> None:
    items = tmp_path / "items"
    metadata = embed_texts([*TEXTS, *TEXTS[::-1]], items, config(server, concurrency=concurrency))
    assert metadata == read_metadata(items, ItemsMetadata)
    assert_holds(items, TEXTS)
    assert server.times == dict.fromkeys(TEXTS, 1)
    assert left_over(items) == []


def test_only_new_texts_are_embedded_and_known_ids_stay(server: Server, tmp_path: Path) -> None:
    items = tmp_path / "items"
    embed_texts(TEXTS[:7], items, config(server))
    embed_texts([TEXTS[9], TEXTS[3], TEXTS[8]], items, config(server))
    assert_holds(items, [*TEXTS[:7], TEXTS[9], TEXTS[8]])
    requests = server.requests
    embed_texts(TEXTS[:8], items, config(server))
    assert server.requests == requests + 1
    before = embed_texts(TEXTS[:8], items, config(server))
    assert server.requests == requests + 1
    assert read_metadata(items, ItemsMetadata) == before
    assert max(server.times.values()) == 1


def test_another_embedder_is_refused_before_an_engine_starts(server: Server, tmp_path: Path) -> None:
    items = tmp_path / "items"
    embed_texts(TEXTS[:3], items, config(server))
    requests = server.requests
    for change in ({"model": "other"}, {"normalise": False}, {"max_length": 9}, {"template": "{response}"}):
        with pytest.raises(MismatchError, match=next(iter(change)).removesuffix("ise")):
            embed_texts(TEXTS, items, config(server, **change))
    assert server.requests == requests
    assert_holds(items, TEXTS[:3])


def test_no_texts_are_an_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no texts"):
        embed_texts([], tmp_path / "items", config(server))
    assert not (tmp_path / "items").exists()


def test_a_folder_that_is_no_table_is_left_alone(server: Server, tmp_path: Path) -> None:
    items = tmp_path / "items"
    items.mkdir()
    (items / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="no finished table"):
        embed_texts(TEXTS, items, config(server))
    assert (items / "thesis.txt").read_text() == "precious"


def test_a_bad_vector_fails_by_number_and_keeps_what_was_done(server: Server, tmp_path: Path) -> None:
    items = tmp_path / "items"
    embed_texts(TEXTS[:2], items, config(server))
    server.faults = ["", "", "short"]
    with pytest.raises(EngineError, match=r"row 16: the embedding is zero"):
        embed_texts(TEXTS, items, config(server))
    assert_holds(items, TEXTS[:2])
    embed_texts(TEXTS, items, config(server))
    assert_holds(items, TEXTS)
    assert [server.times[text] for text in TEXTS[:12]] == [1] * 12
    assert left_over(items) == []


@pytest.mark.parametrize("fault", ["400", "nan", "dim", "count"])
def test_an_engine_error_reaches_the_caller(server: Server, tmp_path: Path, fault: str) -> None:
    server.faults = ["", "", fault]
    with pytest.raises(EngineError, match="Check"):
        embed_texts(TEXTS, tmp_path / "items", config(server))
    assert not (tmp_path / "items").exists()
    embed_texts(TEXTS, tmp_path / "items", config(server))
    assert_holds(tmp_path / "items", TEXTS)


def test_progress_of_another_embedder_is_refused(server: Server, tmp_path: Path) -> None:
    # A vector that is refused where parts are staged: those before it are staged by then. A request that
    # fails ends the stream at once, with what is still on its way.
    server.faults = ["", "", "short"]
    with pytest.raises(EngineError):
        embed_texts(TEXTS, tmp_path / "items", config(server))
    with pytest.raises(MismatchError, match=r"delete that folder"):
        embed_texts(TEXTS, tmp_path / "items", config(server, model="other"))


def interrupted_run(server: Server, items: Path, how: signal.Signals) -> set[str]:
    """Run in a process of its own, end it in the middle, and return the texts it had staged."""
    import ray

    code = (
        "import json, sys; from pathlib import Path; from raypref.config import HTTPConfig;"
        "from raypref.embed.pipeline import embed_texts;"
        "texts, items, config = json.loads(sys.argv[1]);"
        "embed_texts(texts, Path(items), HTTPConfig.model_validate(config))"
    )
    arguments = json.dumps([TEXTS, str(items), config(server).model_dump()])
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    server.pause_s = 0.3
    process = subprocess.Popen(
        [sys.executable, "-c", code, arguments],
        env=environment,
        stderr=subprocess.DEVNULL,
        preexec_fn=terminal_signals,
    )
    staging = items.with_name(".items.partial")
    end = time.monotonic() + 120
    while len(list(staging.glob("part-*/metadata.json"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(60) != 0
    server.pause_s = 0.0
    hashes = [content_hash(text) for text in TEXTS]
    found_N = np.max([ItemTable.open(part).rows_of(hashes) for part in staging.glob("part-*")], axis=0)
    return {text for text, row in zip(TEXTS, found_N, strict=True) if row >= 0}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_and_embeds_nothing_staged_again(
    server: Server, tmp_path: Path, how: signal.Signals
) -> None:
    items = tmp_path / "items"
    embed_texts(TEXTS[:4], items, config(server))
    staged = interrupted_run(server, items, how)
    assert 11 <= len(staged) < 36
    assert_holds(items, TEXTS[:4])
    embed_texts(TEXTS, items, config(server))
    assert_holds(items, TEXTS)
    assert {server.times[text] for text in staged} == {1}
    assert left_over(items) == []


def test_an_interrupted_run_leaves_no_half_table(server: Server, tmp_path: Path) -> None:
    items = tmp_path / "items"
    staged = interrupted_run(server, items, signal.SIGKILL)
    assert not items.exists()
    # The input may change before the run goes on: ids follow it, and what is staged is found by content.
    changed = [*TEXTS[10:], "another", *TEXTS[:10]]
    embed_texts(changed, items, config(server))
    assert_holds(items, changed)
    assert {server.times[text] for text in staged} == {1}


def test_preferences_become_items(server: Server, tmp_path: Path) -> None:
    rows = [
        {"user_id": "a", "prompt": "p", "chosen": "x", "rejected": "y"},
        {"user_id": "b", "prompt": "p", "chosen": "y", "rejected": "z"},
    ]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunConfig(dir=tmp_path / "run", input=InputConfig(path=path), embed=config(server))
    assert embed(run).count == 3
    assert_holds(tmp_path / "run" / "items", ["p\n\nx", "p\n\ny", "p\n\nz"])


def preferences(path: Path, rows: list[tuple[str, str, str]]) -> InputConfig:
    names = ("prompt", "chosen", "rejected")
    lines = [json.dumps({"user_id": "u", **dict(zip(names, row, strict=True))}) for row in rows]
    path.write_text("\n".join(lines))
    return InputConfig(path=path)


ASKED = [("p", "x", "y"), ("q", "x", "z"), ("p", "y", "z")]
WITHOUT = ["p\n\nx", "p\n\ny", "q\n\nx", "q\n\nz", "p\n\nz"]


def linked(items: Path) -> list[int]:
    return ItemTable.open(items).prompt_N.tolist()


def test_each_prompt_is_embedded_once_and_linked(server: Server, tmp_path: Path) -> None:
    items, source = tmp_path / "items", preferences(tmp_path / "input.jsonl", ASKED)
    with_prompts = config(server, prompts=True)
    run = RunConfig(dir=tmp_path, input=source, embed=with_prompts)
    metadata = embed(run)
    assert_holds(items, [*WITHOUT, "p", "q"])
    assert linked(items) == [5, 5, 6, 6, 5, -1, -1]
    assert embed(run) == metadata
    new = preferences(tmp_path / "new.jsonl", [("q", "v", "w"), ("r", "x", "y")])
    assert embed(run.model_copy(update={"input": new})).embedder == metadata.embedder
    assert_holds(items, [*WITHOUT, "p", "q", "q\n\nv", "q\n\nw", "r\n\nx", "r\n\ny", "r"])
    assert linked(items) == [5, 5, 6, 6, 5, -1, -1, 6, 6, 11, 11, -1]
    view_ND = ItemTable.open(items).with_prompts().gather(np.array([9, 0]))
    expected_ND = np.stack(
        [np.append(vector("r\n\nx"), vector("r")), np.append(vector("p\n\nx"), vector("p"))]
    )
    np.testing.assert_allclose(view_ND, expected_ND, atol=1e-3)
    assert max(server.times.values()) == 1
    assert left_over(items) == []


def test_prompts_may_be_embedded_later(server: Server, tmp_path: Path) -> None:
    items, source = tmp_path / "items", preferences(tmp_path / "input.jsonl", ASKED)
    assert embed(RunConfig(dir=tmp_path, input=source, embed=config(server))).prompts == ()
    embed(RunConfig(dir=tmp_path, input=source, embed=config(server, prompts=True)))
    assert_holds(items, [*WITHOUT, "p", "q"])
    assert linked(items) == [5, 5, 6, 6, 5, -1, -1]
    assert server.times == dict.fromkeys([*WITHOUT, "p", "q"], 1)


def test_a_run_with_prompts_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    rows = [(f"p{n % 7}", f"x{n}", f"y{n}") for n in range(10)]
    source = preferences(tmp_path / "input.jsonl", rows)
    run = RunConfig(dir=tmp_path, input=source, embed=config(server, prompts=True))
    server.faults = ["", "", "", "", "", "400"]
    with pytest.raises(EngineError):
        embed(run)
    assert not (tmp_path / "items").exists()
    hashes = {content_hash(text): text for text in server.times}
    parts = [ItemTable.open(part) for part in tmp_path.glob(".items.partial/part-*")]
    found_N = np.max([part.rows_of([*hashes]) for part in parts], axis=0)
    staged = [text for text, row in zip(hashes.values(), found_N, strict=True) if row >= 0]
    embed(run)
    assert linked(tmp_path / "items")[:20] == [20 + n // 2 % 7 for n in range(20)]
    assert {server.times[text] for text in staged} == {1}
    assert left_over(tmp_path / "items") == []


def test_a_response_without_a_prompt_is_refused_before_an_engine_starts(
    server: Server, tmp_path: Path
) -> None:
    source = preferences(tmp_path / "input.jsonl", [*ASKED, ("", "x", "y")])
    with pytest.raises(InputError, match="responses without a prompt"):
        embed(RunConfig(dir=tmp_path, input=source, embed=config(server, prompts=True)))
    assert server.requests == 0
    assert not (tmp_path / "items").exists()


def test_prompts_need_a_template_that_names_them(server: Server) -> None:
    with pytest.raises(ValueError, match=r"template must contain \{prompt\}"):
        config(server, prompts=True, template="{response}")
