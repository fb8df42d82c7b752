from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from raypref.config import InputConfig, PrepareConfig, RunConfig
from raypref.data import prepare as prepare_module
from raypref.data.items import ItemTable
from raypref.data.prepare import prepare
from raypref.data.splits import SPLITS
from raypref.data.tables import Tables
from raypref.errors import InputError
from raypref.schema import content_hash
from tests.data.corpus import (
    FAKE,
    Row,
    comparison,
    comparisons,
    prepared,
    ratings,
    run_config,
    write_fake_items,
    write_jsonl,
)

INPUTS = {"ratings": ratings, "comparisons": comparisons}


def frame(tables: Tables) -> list[dict[str, Any]]:
    """Return every comparison with its user's name and cohort."""
    users = tables.users.to_pylist()
    rows = [row for path in tables.files() for row in pq.read_table(path).to_pylist()]
    return [{**row, **{key: users[row["user"]][key] for key in ("user_id", "cohort")}} for row in rows]


def sides(row: dict[str, Any]) -> set[int]:
    return {row["chosen"], row["rejected"]}


@pytest.mark.parametrize("kind", INPUTS)
def test_tables_hold_what_their_metadata_says(tmp_path: Path, kind: str) -> None:
    tables = prepared(tmp_path, INPUTS[kind](40))
    rows, users = frame(tables), tables.users.to_pylist()
    counts = Counter((row["user"], row["split"]) for row in rows)
    assert [user["user"] for user in users] == list(range(len(users)))
    assert all(user[split] == counts[user["user"], split] for user in users for split in SPLITS)
    assert [user["row"] for user in users if user["cohort"] == "seen"] == list(
        range(tables.metadata.seen_users)
    )
    assert all(user["row"] is None for user in users if user["cohort"] == "unseen")
    by_cohort = Counter(f"{row['cohort']}/{row['split']}" for row in rows)
    assert by_cohort == Counter(tables.metadata.comparisons)
    assert [row["pair_id"] for row in rows] == list(range(len(rows)))
    assert [row["user"] for row in rows] == sorted(row["user"] for row in rows)
    assert tables.metadata.seen_users > tables.metadata.unseen_users > 0
    assert all(by_cohort[f"seen/{split}"] for split in SPLITS)
    assert not by_cohort["unseen/valid"]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("unit", ["item", "prompt"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), shares=st.tuples(*[st.sampled_from([0.0, 0.2, 0.4])] * 3))
def test_held_out_is_as_cold_or_as_warm_as_it_says(
    kind: str, unit: str, seed: int, shares: tuple[float, ...]
) -> None:
    cold, warm, valid = shares
    options = {"unit": unit, "cold_share": cold, "warm_share": warm, "valid_share": valid, "min_heldout": 0}
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = frame(prepared(Path(folder), INPUTS[kind](12, seed=seed), seed=seed, **options))
        except InputError as error:
            # The input has few prompts; a draw that makes all of them cold leaves nothing to hold to a law.
            if "no user is left" not in str(error):
                raise
            reject()
    trained = [(row, item) for row in rows if row["split"] == "train" for item in sides(row)]
    seen_items = {(row["user"], item) for row, item in trained if row["cohort"] == "seen"}
    for row in rows:
        own = {item for other, item in trained if other["user"] == row["user"]}
        others = {item for user, item in seen_items if user != row["user"]}
        if row["split"] == "cold":
            assert not sides(row) & {item for _, item in trained}
        if row["split"] == "warm":
            assert not sides(row) & own
            assert sides(row) <= others
        if row["split"] == "valid":
            assert row["cohort"] == "seen"
            assert unit == "prompt" or not sides(row) & own


def test_ratings_become_every_pair_with_a_gap_inside_user_prompt_and_split(tmp_path: Path) -> None:
    rows = ratings(6, prompts=4, responses=6)
    options = {"cold_share": 0, "warm_share": 0, "valid_share": 0, "min_heldout": 0, "unseen_share": 0}
    tables = prepared(tmp_path, rows, max_train=10_000, **options)
    item = item_ids(tmp_path, rows)
    expected = {
        (a["user_id"], item[content(a)], item[content(b)])
        for a in rows
        for b in rows
        if (a["user_id"], a["prompt"]) == (b["user_id"], b["prompt"]) and a["rating"] > b["rating"]
    }
    made = [(row["user_id"], row["chosen"], row["rejected"]) for row in frame(tables)]
    assert set(made) == expected
    assert len(made) == len(expected)


def content(row: Row) -> bytes:
    return content_hash(f"{row['prompt']}\n\n{row['response']}")


def item_ids(directory: Path, rows: list[Row]) -> dict[bytes, int]:
    names = sorted({content(row) for row in rows})
    return dict(zip(names, ItemTable.open(directory / "items").rows_of(names).tolist(), strict=True))


def test_capped_ratings_are_drawn_evenly_from_all_pairs(tmp_path: Path) -> None:
    """One user in many copies: every possible pair is drawn about as often as any other."""
    votes = [{"prompt": "p", "response": f"r{n}", "rating": n % 3} for n in range(9)]
    rows = [{"user_id": user, **vote} for user in range(600) for vote in votes]
    options = {"cold_share": 0, "warm_share": 0, "valid_share": 0, "min_heldout": 0, "max_train": 5}
    tables = prepared(tmp_path, rows, **options)
    drawn = Counter((row["chosen"], row["rejected"]) for row in frame(tables))
    assert set(tables.users["train"].to_pylist()) == {5}
    assert len(drawn) == 27
    expected = 600 * 5 / 27
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 56  # χ², 26 d.f., p = .0005


def test_min_rating_gap_leaves_near_ties_out(tmp_path: Path) -> None:
    rows = [{"user_id": 1, "prompt": "p", "response": f"r{n}", "rating": n} for n in range(6)]
    config = run_config(
        tmp_path, rows, cold_share=0, warm_share=0, valid_share=0, min_heldout=0, unseen_share=0
    )
    config = config.model_copy(update={"input": config.input.model_copy(update={"min_rating_gap": 4})})
    assert prepare(config).comparisons["seen/train"] == 3


def test_large_ratings_beat_no_equal_ones(tmp_path: Path) -> None:
    rows = [{"user_id": 1, "prompt": "p", "response": f"r{n}", "rating": 1e12 + n // 2} for n in range(6)]
    options = {"cold_share": 0, "warm_share": 0, "valid_share": 0, "min_heldout": 0, "unseen_share": 0}
    assert prepared(tmp_path, rows, **options).metadata.comparisons["seen/train"] == 12


def test_the_last_of_two_ratings_counts(tmp_path: Path) -> None:
    rows = [{"user_id": 1, "prompt": "p", "response": f"r{n}", "rating": n} for n in range(6)]
    reverse = [{**row, "rating": -row["rating"]} for row in rows]
    options = {"cold_share": 0, "warm_share": 0, "valid_share": 0, "min_heldout": 0, "unseen_share": 0}
    once, twice = (
        prepared(tmp_path / "a", rows, **options),
        prepared(tmp_path / "b", reverse + rows, **options),
    )
    assert once.metadata.fingerprint == twice.metadata.fingerprint
    assert twice.metadata.bad_rows["duplicate_rating"].model_dump() == {"count": 6, "first_row": 0}
    stamped = [{**row, "timestamp": 2} for row in rows] + [{**row, "timestamp": 1} for row in reverse]
    dated = prepared(tmp_path / "c", stamped, **options)
    assert [sides(row) for row in frame(dated)] == [sides(row) for row in frame(once)]
    assert all(row["timestamp"] == 2 and row["chosen"] > row["rejected"] for row in frame(dated))


def test_repeated_comparisons_are_evidence_and_stay(tmp_path: Path) -> None:
    rows = [comparison(1, weight=weight, timestamp=9) for weight in (1, 2, 1)]
    options = {"cold_share": 0, "warm_share": 0, "valid_share": 0, "min_heldout": 0, "unseen_share": 0}
    made = frame(prepared(tmp_path, rows, **options))
    assert Counter(row["weight"] for row in made) == {1: 2, 2: 1}
    assert {row["timestamp"] for row in made} == {9}


def test_caps_and_straddling_comparisons_are_counted(tmp_path: Path) -> None:
    rows = comparisons(10, each=200)
    tables = prepared(tmp_path, rows, max_train=7, max_heldout=3, min_heldout=0)
    users = tables.users.to_pylist()
    assert max(user["train"] for user in users) == 7
    assert max(user[split] for user in users for split in ("valid", "warm", "cold")) == 3
    bad = tables.metadata.bad_rows
    counted = sum(bad[kind].count for kind in bad) + sum(tables.metadata.comparisons.values())
    assert tables.metadata.short_users == 0
    assert counted == len(rows)
    assert bad["straddling"].count > bad["over_cap"].count > 0


@pytest.mark.parametrize("kind", INPUTS)
def test_the_order_of_rows_changes_nothing(tmp_path: Path, kind: str) -> None:
    rows = INPUTS[kind](15)
    shuffled = random.Random(1).sample(rows, len(rows))
    first, second = prepared(tmp_path / "a", rows), prepared(tmp_path / "b", shuffled)
    assert first.metadata.fingerprint == second.metadata.fingerprint
    assert first.users.equals(second.users)
    assert frame(first) == frame(second)
    assert prepared(tmp_path / "c", rows, seed=1).metadata.fingerprint != first.metadata.fingerprint


@pytest.mark.parametrize("kind", INPUTS)
def test_other_users_change_no_split(tmp_path: Path, kind: str) -> None:
    rows = INPUTS[kind](20)
    few = [row for row in rows if str(row["user_id"]).endswith(("1", "2", "3"))]
    directories = tmp_path / "a", tmp_path / "b"
    splits = []
    for directory, some in zip(directories, (rows, few), strict=True):
        config = run_config(directory, some, max_train=1000, max_heldout=1000)
        write_fake_items(config.items_dir, InputConfig(path=write_jsonl(tmp_path / "all.jsonl", rows)))
        prepare(config)
        made = frame(Tables.open(config.tables_dir))
        splits.append(
            {(row["user_id"], row["cohort"], row["chosen"], row["rejected"]): row["split"] for row in made}
        )
    shared = splits[0].keys() & splits[1].keys()
    assert len(shared) > 40
    assert all(splits[0][key] == splits[1][key] for key in shared)
    # What is absent without the others is only what they made warm.
    assert {splits[0][key] for key in splits[0].keys() - shared if key[0] in {k[0] for k in shared}} <= {
        "warm"
    }


def grouped(kind: str, users: int = 30, groups: int = 12) -> list[Row]:
    """Return rows of groups that several users have; texts and prompts are a group's own."""
    rows = []
    for user in range(users):
        for group in range(user % 3, groups, 2):
            for row in INPUTS[kind](1, seed=100 * user + group)[:24]:
                texts = {name: f"{row[name]} of {group}" for name in row if name not in ("user_id", "rating")}
                more = {"user_id": f"user {user}", "group": f"group {group}"}
                rows.append({**row, **texts, **more})
    return rows


@pytest.mark.parametrize("kind", INPUTS)
def test_groups_are_held_out_whole(tmp_path: Path, kind: str) -> None:
    rows = grouped(kind)
    options = {"cold_share": 0.3, "warm_share": 0.2, "valid_share": 0.2, "max_train": 5000}
    found: dict[str, dict[tuple[str, str], set[str]]] = {}
    for unit in ("prompt", "group"):
        tables = prepared(tmp_path / unit, rows, unit=unit, max_heldout=5000, **options)
        sides = ("response",) if kind == "ratings" else ("chosen", "rejected")
        texts = {
            content_hash(f"{row['prompt']}\n\n{row[side]}"): row["group"] for row in rows for side in sides
        }
        ids = ItemTable.open(tmp_path / unit / "items").rows_of(list(texts)).tolist()
        group = dict(zip(ids, texts.values(), strict=True))
        made = frame(tables)
        found[unit] = {}
        for row in made:
            found[unit].setdefault((row["user_id"], group[row["chosen"]]), set()).add(row["split"])
        assert {row["split"] for row in made} == set(SPLITS)
    assert any(len(each) > 1 for each in found["prompt"].values())
    assert all(len(each) == 1 for each in found["group"].values())
    cold = {group for (_, group), each in found["group"].items() if each == {"cold"}}
    assert 0 < len(cold) < 12
    assert all(each == {"cold"} for (_, group), each in found["group"].items() if group in cold)


def test_alike_rows_of_several_groups_are_prepared_in_no_order(tmp_path: Path) -> None:
    rows = [
        comparison(user, f"text {n}", f"text {n + 1}", group=group)
        for user in range(20)
        for n in range(10)
        for group in range(6)
    ]
    options = {"unit": "group", "cold_share": 0, "warm_share": 0, "valid_share": 0.4, "max_train": 15}
    first = prepared(tmp_path / "a", rows, min_heldout=0, **options)
    second = prepared(tmp_path / "b", random.Random(1).sample(rows, len(rows)), min_heldout=0, **options)
    assert frame(first) == frame(second)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("group", [None, "", {"age": 30}, 0.5])
def test_rows_without_a_group_are_refused_by_who_splits_by_it_alone(
    tmp_path: Path, kind: str, group: object
) -> None:
    rows = INPUTS[kind](10)
    plain = prepared(tmp_path / "plain", rows)
    rows = [{**row, "group": group if place == 7 else place} for place, row in enumerate(rows)]
    assert prepared(tmp_path / "ignored", rows).metadata.fingerprint == plain.metadata.fingerprint
    config = run_config(tmp_path / "split", rows, unit="group")
    with pytest.raises(InputError, match=r"row 7 has no group.*conversation's id.*prepare\.unit to item"):
        prepare(config)
    assert not config.tables_dir.exists()


def test_an_input_without_groups_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 0 has no group.*column `group` of every row"):
        prepared(tmp_path, comparisons(10), unit="group")


def test_users_with_too_few_comparisons_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = comparisons(10) + [
        comparison(f"once {n}", "text 1", "text 2", prompt="prompt 1") for n in range(5)
    ]
    tables = prepared(tmp_path, rows)
    assert tables.metadata.short_users == 5
    assert not any(name.startswith("once") for name in tables.users["user_id"].to_pylist())
    with pytest.raises(InputError, match=r"5 of 15 users .*max_short_user_share=0.1"):
        prepared(tmp_path, rows, max_short_user_share=0.1)
    with pytest.raises(InputError, match="no user is left"):
        prepared(tmp_path, rows[-5:])


def test_texts_without_embedding_name_the_remedy(tmp_path: Path) -> None:
    config = run_config(tmp_path, comparisons(10))
    write_jsonl(tmp_path / "input.jsonl", [*comparisons(10), comparison(1, "new"), comparison(2, "new")])
    with pytest.raises(InputError, match=r"2 rows \(first row 600\) .* run `raypref embed`"):
        prepare(config)
    assert not config.tables_dir.exists()


def test_texts_that_one_template_makes_equal_are_no_comparison(tmp_path: Path) -> None:
    message = [{"role": "assistant", "content": "good"}]
    tables = prepared(tmp_path, [*comparisons(10), comparison(1, "good", message)])
    assert tables.metadata.bad_rows["same_item"].model_dump() == {"count": 1, "first_row": 600}


def test_bad_rows_reach_the_metadata(tmp_path: Path) -> None:
    tables = prepared(tmp_path, [comparison(1, "a", "a"), *comparisons(10)])
    assert tables.metadata.bad_rows["same_text"].model_dump() == {"count": 1, "first_row": 0}


def test_a_template_without_prompt_keeps_prompts_apart_but_shares_items(tmp_path: Path) -> None:
    rows = [{**row, "response": row["response"][:8]} for row in ratings(30, prompts=10)]
    config = run_config(tmp_path, rows, unit="prompt", cold_share=0.3, min_heldout=0)
    write_fake_items(config.items_dir, config.input, FAKE.model_copy(update={"template": "{response}"}))
    metadata = prepare(config)
    assert metadata.items == 8
    assert metadata.bad_rows["cold_trained_items"].count > 0


@pytest.mark.parametrize("stage", ["_read", "_form", "_finish"])
def test_an_interrupted_run_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    config = run_config(tmp_path / "run", comparisons(10))
    before = sorted(config.dir.iterdir())
    real = getattr(prepare_module._Preparation, stage)

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module._Preparation, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    assert sorted(config.dir.iterdir()) == before


def test_a_failed_run_keeps_the_old_tables(tmp_path: Path) -> None:
    config = run_config(tmp_path, comparisons(10))
    metadata = prepare(config)
    write_jsonl(tmp_path / "input.jsonl", [])
    with pytest.raises(InputError):
        prepare(config)
    assert Tables.open(config.tables_dir).metadata == metadata


def test_polis_splits_honestly(tmp_path: Path, real_data: Path) -> None:
    source = InputConfig(path=real_data / "polis_ratings.parquet")
    write_fake_items(tmp_path / "items", source)
    metadata = prepare(RunConfig(dir=tmp_path, input=source, prepare=PrepareConfig()))
    tables = Tables.open(tmp_path / "tables")
    assert metadata.seen_users + metadata.unseen_users + metadata.short_users == 5422
    assert metadata.seen_users + metadata.unseen_users > 2500
    assert 0.65 < metadata.seen_users / (metadata.seen_users + metadata.unseen_users) < 0.75
    train = tables.comparisons(None, ["train"])
    cold = tables.comparisons(None, ["cold"])
    warm = tables.comparisons(None, ["warm"])
    trained = np.union1d(train.chosen_M, train.rejected_M)
    assert not np.isin(trained, np.union1d(cold.chosen_M, cold.rejected_M)).any()
    assert np.isin(np.union1d(warm.chosen_M, warm.rejected_M), trained).all()
    assert len(train) == sum(metadata.comparisons[f"{cohort}/train"] for cohort in ("seen", "unseen"))
    votes = pq.read_table(source.path).filter(pc.field("user_id") == "scoop-hivemind.ubi/154")
    rating = {
        content_hash(f"{vote['prompt']}\n\n{vote['response']}"): vote["rating"] for vote in votes.to_pylist()
    }
    ids = dict(zip(ItemTable.open(tmp_path / "items").rows_of(list(rating)).tolist(), rating, strict=True))
    user = tables.users["user_id"].to_pylist().index("scoop-hivemind.ubi/154")
    own = train.select(np.array([user]))
    assert len(own) > 10
    for better, worse in zip(own.chosen_M.tolist(), own.rejected_M.tolist(), strict=True):
        assert rating[ids[better]] > rating[ids[worse]]
