"""Published datasets, each in a small file of its published form, oddities included."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypref import cli
from raypref.config import InputConfig
from raypref.data.importing import MARKER, Imported, dataset_of, import_dataset, table
from raypref.data.items import ItemTable
from raypref.data.prepare import prepare
from raypref.data.published import DATASETS
from raypref.data.published.personalllm import RESPONSES, SCALES
from raypref.data.sources import Source, render
from raypref.data.tables import Tables
from raypref.errors import ConfigError, InputError
from raypref.schema import content_hash
from tests.data.corpus import TEMPLATE, run_config

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[Imported, Rows]]:
    """Import, and read what came of it; what is written is an input of raypref."""

    def read(name: str, place: Path | str, *settings: str) -> tuple[Imported, Rows]:
        target = tmp_path / "imported"
        imported = import_dataset(dataset_of(name, settings), str(place), target)
        assert Imported.model_validate_json((target / MARKER).read_text()) == imported
        [file] = target.glob("*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        source = Source(InputConfig(path=target))
        assert (
            sum(len(batch.row) for batch in source.batches()) == len(rows) == imported.figures[imported.kind]
        )
        assert source.bad.count == 0
        return imported, rows

    return read


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of repositories of data, laid out as the hub's, which `datasets` loads alike."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "hub"


def utterance(user: str, talk: str, turn: int, said: Any, chosen: bool, **more: Any) -> dict[str, Any]:
    row = {"user_id": user, "conversation_id": talk, "turn": turn, "user_prompt": f"{talk}, {turn}?"}
    return (
        row
        | {"model_response": said, "score": 90 if chosen else 10, "if_chosen": chosen, "model_name": "m"}
        | more
    )


def prism(folder: Path, talks: int = 6) -> Path:
    rows: Rows = []
    for number in range(talks):
        talk = f"c{number}"
        rows += [utterance("ann", talk, 0, f"{talk} best ✓", True)]
        rows += [utterance("ann", talk, 0, f"{talk} other {other}", False) for other in range(3)]
        rows += [utterance("ann", talk, 1, "more", True), utterance("ann", talk, 1, "less", False)]
    rows += [utterance("bob", "d", 0, "yes", True), utterance("bob", "d", 0, "no", False)]
    rows += [utterance("bob", "d", 1, "long" * 700, True), utterance("bob", "d", 1, "no", False)]
    # Two answers alike say nothing; nobody's choice ends what is known of a conversation.
    rows += [utterance("bob", "e", 0, "same", True), utterance("bob", "e", 0, "same", False)]
    rows += [utterance("bob", "f", 0, "a", False), utterance("bob", "f", 0, "b", False)]
    jsonl(folder / "utterances.jsonl", rows)
    jsonl(folder / "survey.jsonl", [{"user_id": "ann", "age": "old"}])
    return folder


def test_prism_makes_a_row_of_each_rejected_answer(read: Any, tmp_path: Path) -> None:
    imported, rows = read("prism", prism(tmp_path / "prism"))
    assert imported.figures == {
        "comparisons": 6 * 4 + 2,
        "users": 2,
        "conversations": 9,
        "utterances": 6 * 6 + 8,
        "models": 1,
    }
    assert {row["group"] for row in rows} == {*(f"c{number}" for number in range(6)), "d"}
    first = [row for row in rows if row["prompt"] == [{"role": "user", "content": "c0, 0?"}]]
    assert [row["rejected"] for row in first] == [f"c0 other {other}" for other in range(3)]
    # A list of answers must never become the text of one: its brackets would give the answer away.
    assert all(isinstance(row[side], str) for row in rows for side in ("chosen", "rejected"))
    assert not any(row["rejected"].startswith("[") for row in rows)
    second = next(row for row in rows if row["chosen"] == "more")
    assert [message["content"] for message in second["prompt"]] == ["c0, 0?", "c0 best ✓", "c0, 1?"]
    assert [message["role"] for message in second["prompt"]] == ["user", "assistant", "user"]
    assert "1396" in table(imported)
    assert "8011" in table(imported)
    assert "68371" in table(imported)


def test_prism_by_lores_protocol_keeps_the_talkative(read: Any, tmp_path: Path) -> None:
    _, rows = read("prism", prism(tmp_path / "prism"), "protocol=lore")
    assert {row["user_id"] for row in rows} == {"ann"}
    long = [utterance("ann", "long", 0, "x" * 1000, True), utterance("ann", "long", 0, "y", False)]
    long += [utterance("ann", "long", 1, "z" * 1000, True), utterance("ann", "long", 1, "v" * 2401, False)]
    long += [utterance("ann", "long", 2, "end", True), utterance("ann", "long", 2, "no end", False)]
    folder = prism(tmp_path / "more", talks=5)
    with (folder / "utterances.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in long)
    _, rows = read("prism", folder, "protocol=lore")
    kept = [row for row in rows if "long" in row["prompt"][-1]["content"]]
    assert [row["chosen"] for row in kept] == ["x" * 1000, "end"]
    assert sum(len(message["content"]) for message in kept[-1]["prompt"]) == 1500
    with pytest.raises(InputError, match="gives no row"):
        read("prism", prism(tmp_path / "few", talks=5), "protocol=lore")


def test_prism_is_read_whatever_stands_beside_a_conversation(read: Any, tmp_path: Path) -> None:
    rows: Rows = []
    for number in range(40):
        rows += [
            utterance("ann", f"c{number}", 0, "good", True),
            utterance("ann", f"c{number}", 0, "bad", False),
        ]
    rows += rows[:2]  # a record that came twice
    rows += [utterance("ann", "a", 0, "good", True), utterance("ann", "a", 0, ["x", "y"], False)]
    rows += [utterance("ann", "b", 0, "good", True), utterance("ann", "b", 0, "['x', 'y']", False)]
    # Two models gave the answer that was chosen, which nobody rated: the conversation goes on.
    rows += [utterance("ann", "d", 0, "same", True, score=None), utterance("ann", "d", 0, "same", True)]
    rows += [utterance("ann", "d", 0, "other", False)]
    rows += [utterance("ann", "d", 1, "next", True), utterance("ann", "d", 1, "not next", False)]
    imported, found = read("prism", jsonl(tmp_path / "utterances.jsonl", rows))
    assert len(found) == 42
    assert not any(row["rejected"].startswith("[") for row in found)
    assert [row["chosen"] for row in found[40:]] == ["same", "next"]
    assert {kind: bad.count for kind, bad in imported.bad_records.items()} == {
        "no_text": 1,
        "list_as_text": 1,
    }


def test_prism_as_ratings(read: Any, tmp_path: Path) -> None:
    _, rows = read("prism", prism(tmp_path / "prism"), "form=ratings")
    assert Counter(row["rating"] for row in rows)[90] == 6 * 2 + 3
    assert {"user_id", "prompt", "response", "rating", "group"} == set(rows[0])


@pytest.mark.parametrize("form", ["comparisons", "ratings"])
def test_prism_conversations_are_held_out_whole(read: Any, tmp_path: Path, form: str) -> None:
    _, rows = read("prism", prism(tmp_path / "prism", talks=60), f"form={form}")
    sides = ("response",) if form == "ratings" else ("chosen", "rejected")
    text = {
        content_hash(render(TEMPLATE, row["prompt"], row[side])): (row["prompt"], row[side], row["group"])
        for row in rows
        for side in sides
    }
    shares = {"unseen_share": 0, "cold_share": 0.5, "warm_share": 0, "valid_share": 0.1, "max_train": 1000}
    splits: dict[str, dict[str, set[str]]] = {}
    for unit in ("prompt", "group"):
        config = run_config(tmp_path / unit, rows, unit=unit, max_heldout=1000, **shares)
        prepare(config)
        names = {row["item_id"]: text[row["content_hash"]] for row in items(config.items_dir)}
        found = splits[unit] = defaultdict[str, set[str]](set)
        tables = Tables.open(config.tables_dir)
        made = [row for file in tables.files() for row in pq.read_table(file).to_pylist()]
        for row in made:
            found[names[row["chosen"]][2]].add(row["split"])
            assert names[row["chosen"]][2] == names[row["rejected"]][2]
        told = {
            message["content"]
            for row in made
            if row["split"] == "train"
            for message in names[row["chosen"]][0]
        }
        held = {names[row["chosen"]][1] for row in made if row["split"] == "cold"}
        # What is to be guessed of one turn stands in the prompt of the next.
        assert bool(held & told - {"more"}) == (unit == "prompt")
    assert any(len(each) > 1 for each in splits["prompt"].values())
    assert all(len(each) == 1 for each in splits["group"].values())
    assert {split for each in splits["group"].values() for split in each} == {"train", "valid", "cold"}


def items(directory: Path) -> Rows:
    ItemTable.open(directory)
    return [row for file in sorted(directory.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def personalllm(path: Path, prompts: int = 30) -> Path:
    draw = np.random.default_rng(0)
    rows: Rows = []
    for prompt in range(prompts):
        row: dict[str, Any] = {"prompt": f"prompt {prompt}", "subset": "s"}
        for number in range(1, RESPONSES + 1):
            row[f"response_{number}"] = f"answer {number} to {prompt}"
            for model, (mean, deviation) in SCALES.items():
                row[f"response_{number}_{model}"] = float(draw.normal(mean, deviation))
        rows.append(row)
    rows[3]["response_2_gemma_2b"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_personalllm_users_weigh_reward_models(read: Any, tmp_path: Path) -> None:
    place = personalllm(tmp_path / "train.parquet")
    imported, rows = read("personalllm", place, "users=50", "prompts_per_user=10", "alpha=0.01")
    assert imported.figures == {"comparisons": 500, "users": 50, "prompts": 29}
    assert imported.bad_records["no_scores"].first_row == 3
    raw = {row["prompt"]: row for row in pq.read_table(place).to_pylist()}
    by_user: dict[str, list[set[str]]] = defaultdict(list)
    for row in rows:
        scores = raw[row["prompt"]]
        number = row["chosen"].split()[1]
        # At this α a user is nearly one reward model: which agree that the chosen answer is the best?
        best = {
            model
            for model in SCALES
            if scores[f"response_{number}_{model}"]
            == max(scores[f"response_{n}_{model}"] for n in range(1, 9))
        }
        by_user[row["user_id"]].append(best)
    agreeing = [max(sum(model in best for best in found) for model in SCALES) for found in by_user.values()]
    assert np.mean(agreeing) > 8
    assert read("personalllm", place, "users=50", "prompts_per_user=10", "alpha=0.01")[1] == rows
    assert read("personalllm", place, "users=50", "prompts_per_user=10", "alpha=0.01", "seed=1")[1] != rows
    # As they are, the models of the largest scores decide.
    assert read("personalllm", place, "users=50", "prompts_per_user=10", "standardise=false")[1] != rows


def summary(
    worker: str, split: str, choice: int, policy: str = "sup4", lengths: tuple[int, int] = (4, 9)
) -> Any:
    texts = [" " + "word " * length for length in lengths]
    summaries = [
        {"text": text, "policy": name, "note": None}
        for text, name in zip(texts, ("sup1", policy), strict=True)
    ]
    return {
        "info": {"id": "t3", "post": f"A post for {worker}", "title": "t", "subreddit": "s"},
        "summaries": summaries,
        "choice": choice,
        "worker": worker,
        "batch": "b",
        "split": split,
    }


def test_tldr_keeps_workers_of_both_splits(read: Any, tmp_path: Path) -> None:
    rows: Rows = []
    for place, worker in enumerate("abcdef"):
        rows += [summary(worker, "train", 1)] * (10 - place)
        if worker != "a":
            rows += [summary(worker, "valid1", 0)] * (10 - place)
    rows += [{**summary("b", "train", 1), "choice": 7}]
    place = jsonl(tmp_path / "comparisons.jsonl", rows)
    _, kept = read("tldr", place)
    # `a` is in one split; `e` and `f` are the least active of each.
    assert {row["user_id"] for row in kept} == {"b", "c", "d"}
    assert {row["chosen"] for row in kept} == {"word word word word", " ".join(["word"] * 9)}
    _, valid = read("tldr", place, "split=valid")
    assert {row["chosen"] for row in valid} == {"word word word word"}
    with pytest.raises(InputError, match="no worker is left"):
        read("tldr", jsonl(tmp_path / "few.jsonl", rows[:12]))


def test_tldr_is_read_as_it_is_published(read: Any, tmp_path: Path) -> None:
    """Files of JSON lines that are called batch3.json and so on, an oddity of theirs."""
    for batch, split in ((3, "train"), (4, "valid1"), (5, "valid2")):
        rows = [summary(worker, split, 1) for worker in "abcdef" for _ in range(ord(worker))]
        jsonl(tmp_path / "comparisons" / f"batch{batch}.json", rows)
    imported, found = read("tldr", tmp_path / "comparisons")
    total = sum(map(ord, "abcdef"))
    assert imported.figures["training_records"] == total
    assert imported.figures["validation_records"] == 2 * total
    assert {row["user_id"] for row in found} == {"c", "d", "e", "f"}
    assert {"92858", "86086"} <= set(table(imported).split())
    _, alone = read("tldr", tmp_path / "comparisons", "split=train")
    assert len(alone) == sum(map(ord, "cdef"))


def test_one_json_list_is_told_how_to_become_lines(tmp_path: Path) -> None:
    place = tmp_path / "batch3.json"
    for indent in (None, 2):
        place.write_text(json.dumps([summary("a", "train", 1)], indent=indent))
        with pytest.raises(InputError, match=r"batch3\.json: is one list of records.*jq -c '\.\[\]'"):
            import_dataset(dataset_of("tldr", []), str(place), tmp_path / "out")


def test_tldr_leaves_out_articles_and_rows_of_nobody(read: Any, tmp_path: Path) -> None:
    rows = [
        summary(worker, split, 1)
        for worker in "abcdef"
        for split in ("train", "valid1")
        for _ in range(ord(worker))
    ]
    articles = [summary("f", "valid2", 0) for _ in range(200)]
    for row in articles:
        row["info"] = {"id": "x", "post": None, "article": "An article"}
    nobody = [{**summary("f", "train", 0), "worker": None} for _ in range(5)]
    imported, found = read("tldr", jsonl(tmp_path / "comparisons.jsonl", [*rows, *articles, *nobody]))
    assert "None" not in {row["prompt"] for row in found} | {row["user_id"] for row in found}
    assert {kind: bad.count for kind, bad in imported.bad_records.items()} == {"article": 200, "malformed": 5}


def test_tldr_by_pals_rule_is_about_length(read: Any, tmp_path: Path) -> None:
    rows: Rows = []
    for place in range(12):
        rows += [summary(f"w{place:02d}", "train", place % 2)] * (30 - place)
        rows += [summary(f"w{place:02d}", "train", 0, policy="sup4_ppo_rm3_kl10")]
        rows += [summary(f"w{place:02d}", "train", 0, lengths=(5, 5))]
    _, kept = read("tldr", jsonl(tmp_path / "comparisons.jsonl", rows), "protocol=length")
    assert len({row["user_id"] for row in kept}) == 10
    for row in kept:
        shorter = row["user_id"] in ("w03", "w04", "w05")
        assert (len(row["chosen"]) < len(row["rejected"])) == shorter
    assert Counter(row["user_id"] for row in kept)["w00"] == 30


def dialogue(*turns: str) -> str:
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[place % 2]}: {turn}" for place, turn in enumerate(turns))


def test_hh_users_are_parts(read: Any, tmp_path: Path) -> None:
    pairs = [(f"{number}: yes", f"{number}: no") for number in range(30)]
    rows = [{"chosen": dialogue("Hi", yes), "rejected": dialogue("Hi", no)} for yes, no in pairs]
    folder = tmp_path / "hh"
    jsonl(
        folder / "harmless-base-train.jsonl",
        [*rows, {"chosen": dialogue("Hi", "a"), "rejected": dialogue("Ho", "b")}],
    )
    (folder / "helpful-base-test.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    )
    imported, found = read("hh", folder)
    assert Counter(row["user_id"] for row in found) == {"harmless-base": 30, "helpful-base": 30}
    assert found[0]["prompt"] == [{"role": "user", "content": "Hi"}]
    assert imported.bad_records["no_common_prompt"].count == 1
    assert {row["user_id"] for row in read("hh", folder, "user=both")[1]} == {"both"}


def test_hh_is_read_part_by_part_from_the_hub(read: Any, hub: Path) -> None:
    for part in ("helpful-base", "harmless-base", "red-team-attempts"):
        rows = [{"chosen": dialogue("Hi", f"{n} yes"), "rejected": dialogue("Hi", part)} for n in range(3)]
        place = hub / "hh-rlhf" / part / "train.jsonl.gz"
        place.parent.mkdir(parents=True)
        place.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    _, found = read("hh", f"hf:{hub / 'hh-rlhf'}")
    assert Counter((row["user_id"], row["rejected"]) for row in found) == {
        (part, part): 3 for part in ("helpful-base", "harmless-base")
    }


def test_hh_folders_name_parts_and_no_file_is_read_twice(read: Any, tmp_path: Path) -> None:
    for part in ("helpful-base", "harmless-base"):
        for split in ("train", "test"):
            rows = [
                {
                    "chosen": dialogue(f"{split} {number}", "yes"),
                    "rejected": dialogue(f"{split} {number}", "no"),
                }
                for number in range(10)
            ]
            jsonl(tmp_path / "hh" / part / f"{split}.jsonl", rows)
            jsonl(tmp_path / "flat" / f"{part}{'-test' if split == 'test' else ''}.jsonl", rows)
    for folder in ("hh", "flat"):
        _, found = read("hh", tmp_path / folder)
        assert Counter(row["user_id"] for row in found) == {"helpful-base": 20, "harmless-base": 20}


def test_hh_as_it_is_published(read: Any, real_data: Path) -> None:
    imported, rows = read("hh", real_data / "hh_harmless_base_test.jsonl.gz", "user=harmless")
    assert imported.figures["comparisons"] > 2250
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)
    assert not any("\n\nHuman:" in row["chosen"] for row in rows)


def ultrafeedback(path: Path, prompts: int = 60) -> Path:
    draw = np.random.default_rng(1)
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    rows: Rows = []
    for prompt in range(prompts):
        completions = [
            {
                "response": f"answer {number} to {prompt}",
                "annotations": {name: {"Rating": str(draw.integers(1, 6))} for name in names},
            }
            for number in range(4)
        ]
        completions[0]["annotations"]["honesty"]["Rating"] = "N/A"
        rows.append({"instruction": f"prompt {prompt}", "completions": completions})
    return jsonl(path, rows)


def test_ultrafeedback_users_care_for_one_attribute(read: Any, tmp_path: Path) -> None:
    place = ultrafeedback(tmp_path / "flan.jsonl")
    raw = {row["instruction"]: row["completions"] for row in map(json.loads, place.read_text().splitlines())}
    _, rows = read("ultrafeedback", place)
    votes: dict[str, dict[str, str]] = defaultdict(dict)
    ties = 0
    for row in rows:
        rated = {one["response"]: one["annotations"][row["user_id"]]["Rating"] for one in raw[row["prompt"]]}
        assert rated[row["chosen"]] >= rated[row["rejected"]]
        ties += rated[row["chosen"]] == rated[row["rejected"]]
        votes[row["prompt"]][row["user_id"]] = row["chosen"]
    assert ties
    # Controversial: the four do not agree; who is left out of UF-P-2 counts all the same.
    assert all(len(set(found.values())) == 2 and len(found) == 4 for found in votes.values())
    _, two = read("ultrafeedback", place, "variant=uf-p-2")
    assert {row["user_id"] for row in two} == {"helpfulness", "honesty"}
    assert {row["prompt"] for row in two} == set(votes)
    _, everything = read("ultrafeedback", place, "controversial=false")
    assert len(everything) == 4 * 60


def test_ultrafeedback_is_judged_on_the_pairs_that_uf_p_is_of(read: Any, tmp_path: Path) -> None:
    place = ultrafeedback(tmp_path / "flan.jsonl", prompts=200)

    def dialogue(prompt: int, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"prompt {prompt}"}, {"role": "assistant", "content": answer}]

    pairs: Rows = [
        {
            "prompt": f"prompt {prompt}",
            "chosen": dialogue(prompt, f"answer 1 to {prompt}"),
            "rejected": dialogue(prompt, f"answer 3 to {prompt}"),
        }
        for prompt in range(0, 200, 2)
    ]
    # An answer without all ratings, one that was changed, a prompt that is not there, a pair of one text.
    pairs[0]["rejected"] = dialogue(0, "answer 0 to 0")
    pairs[1]["chosen"] = dialogue(2, "edited")
    pairs[2] = {**pairs[2], "prompt": "another"}
    pairs[3]["rejected"] = pairs[3]["chosen"]
    other = jsonl(tmp_path / "pairs.jsonl", pairs)
    imported, rows = read("ultrafeedback", place, f"pairs={other}", "controversial=false")
    assert imported.figures["pairs"] == 96
    assert len(rows) == 4 * 96
    for row in rows:
        number = int(row["prompt"].split()[1])
        assert {row["chosen"], row["rejected"]} == {f"answer {side} to {number}" for side in (1, 3)}
        assert number % 2 == 0
    _, fewer = read("ultrafeedback", place, f"pairs={other}")
    assert 0 < len(fewer) < len(rows)
    strange = jsonl(tmp_path / "strange.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(InputError, match="none of its pairs"):
        read("ultrafeedback", place, f"pairs={strange}")


def test_ultrafeedback_users_of_a_type_have_pairs_of_their_own(read: Any, tmp_path: Path) -> None:
    place = ultrafeedback(tmp_path / "flan.jsonl")
    _, rows = read("ultrafeedback", place, "users_per_type=3", "comparisons_per_user=8")
    pairs: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        pairs[row["user_id"]].add(row["prompt"])
    assert len(pairs) == 12
    assert {len(found) for found in pairs.values()} == {8}
    assert not pairs["honesty-0000"] & pairs["honesty-0001"]
    _, rows = read("ultrafeedback", place, "users_per_type=30", "comparisons_per_user=8", "disjoint=false")
    assert len(rows) == 4 * 30 * 8


def test_helpsteer2_attributes_are_users(read: Any, tmp_path: Path) -> None:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    rows = [
        {
            "prompt": "p",
            "response": f"r{number}",
            **{name: (number + place) % 5 for place, name in enumerate(names)},
        }
        for number in range(2)
    ]
    imported, found = read("helpsteer2", jsonl(tmp_path / "train.jsonl", rows))
    assert imported.figures == {"ratings": 10, "users": 5, "prompts": 1, "responses": 2}
    assert ["responses", "2", "21362"] in [line.split() for line in table(imported).splitlines()]
    assert {row["rating"] for row in found if row["user_id"] == "verbosity"} == {4, 0}
    with pytest.raises(InputError, match="no_rating_of_0_to_4"):
        read("helpsteer2", jsonl(tmp_path / "odd.jsonl", [{**rows[0], "verbosity": 9}] * 2))


def test_helpsteer2_prompts_of_several_turns_are_messages(read: Any, tmp_path: Path) -> None:
    talk = "Say \u2713\n \n<extra_id_1>Assistant\nA\n\nB \n<extra_id_1>User\nMore"
    ratings = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 3)
    rows = [{"prompt": prompt, "response": "r", **ratings} for prompt in ("One\nturn", talk)]
    _, found = read("helpsteer2", jsonl(tmp_path / "train.jsonl", rows))
    assert [row["prompt"] for row in found[::5]] == [
        "One\nturn",
        [
            {"role": "user", "content": "Say \u2713"},
            {"role": "assistant", "content": "A\n\nB"},
            {"role": "user", "content": "More"},
        ],
    ]


def test_helpsteer2_as_it_is_published(read: Any, real_data: Path, tmp_path: Path) -> None:
    subset = pq.read_table(real_data / "helpsteer2_train_ratings.parquet").to_pylist()
    answers: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for row in subset:
        answers[row["prompt"], row["response"]][row["user_id"]] = int(row["rating"])
    rows = [{"prompt": prompt, "response": said, **rated} for (prompt, said), rated in answers.items()]
    _, found = read("helpsteer2", jsonl(tmp_path / "train.jsonl", rows))
    assert not any("<extra_id" in json.dumps(row) for row in found)
    talks = [row["prompt"] for row in found if isinstance(row["prompt"], list)]
    assert len(talks) == sum("<extra_id_1>" in row["prompt"] for row in subset) > 500
    assert all(talk[-1]["role"] == "user" and talk[1]["role"] == "assistant" for talk in talks)


def test_personalllm_scores_are_numbers(read: Any, tmp_path: Path) -> None:
    rows = pq.read_table(personalllm(tmp_path / "train.parquet", 40)).to_pylist()
    rows[3]["response_2_gemma_2b"] = 1.0
    for value in ("N/A", float("nan")):
        rows[7]["response_8_gemma_7b"] = value
        imported, found = read("personalllm", jsonl(tmp_path / "odd.jsonl", rows), "users=3")
        assert imported.bad_records["no_scores"].count == 1
        assert not any(row["prompt"] == "prompt 7" for row in found)


@pytest.mark.parametrize("wide", [False, True])
def test_polis_votes(read: Any, tmp_path: Path, wide: bool) -> None:
    folder = tmp_path / "bowling-green"
    folder.mkdir()
    (folder / "comments.csv").write_text(
        'timestamp,comment-id,author-id,agrees,comment-body\n1,0,9,1,"Build a park, soon"\n'
        '2,1,9,0,"No ""taxes"""\n'
    )
    if wide:
        (folder / "participants-votes.csv").write_text(
            "participant,group-id,n-votes,0,1\n7,0,2,1,-1\n8,,1,,0\n"
        )
    else:
        (folder / "votes.csv").write_text(
            "timestamp,datetime,comment-id,voter-id,vote\n"
            + "1,x,0,7,1\n1,x,1,7,-1\n1,x,1,8,0\n" * 10
            + "1,x,5,8,1\n"
        )
    imported, rows = read("polis", folder)
    first = {
        "user_id": "bowling-green/7",
        "prompt": "bowling-green",
        "response": "Build a park, soon",
        "rating": 1.0,
    }
    assert rows[0] == first
    assert {row["rating"] for row in rows if row["user_id"].endswith("8")} == {0.0}
    assert imported.figures["statements"] == 2
    _, rows = read("polis", folder, "passes=false", "topic=Bowling Green")
    assert {row["user_id"] for row in rows} == {"Bowling Green/7"}


def test_polis_conversations_do_not_mix(read: Any, tmp_path: Path) -> None:
    for talk in ("first", "second"):
        folder = tmp_path / "talks" / talk
        folder.mkdir(parents=True)
        (folder / "comments.csv").write_text(f"comment-id,comment-body\n0,{talk} statement\n")
        # Who votes again means the last vote.
        (folder / "votes.csv").write_text("timestamp,comment-id,voter-id,vote\n1,0,7,1\n2,0,7,-1\n")
    imported, rows = read("polis", tmp_path / "talks")
    assert [(row["user_id"], row["response"], row["rating"]) for row in rows] == [
        ("first/7", "first statement", -1.0),
        ("second/7", "second statement", -1.0),
    ]
    assert imported.figures["statements"] == 2
    with pytest.raises(InputError, match="holds 2 conversations"):
        read("polis", tmp_path / "talks", "topic=one")


CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "?"},
]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "p"),
        ({"chosen": "p a", "rejected": "p b"}, ""),
        ({"prompt": CHAT, "chosen": [CHAT[1]], "rejected": [{"role": "assistant", "content": "No"}]}, CHAT),
        ({"chosen": [*CHAT, CHAT[1]], "rejected": [*CHAT, {"role": "assistant", "content": "No"}]}, CHAT),
        # One answer is the beginning of the other: the turn that both have is still an answer.
        ({"chosen": [CHAT[0], CHAT[1]], "rejected": CHAT}, CHAT[:1]),
    ],
)
def test_trl_forms(read: Any, tmp_path: Path, row: dict[str, Any], prompt: Any) -> None:
    _, [found] = read("trl", jsonl(tmp_path / "p.jsonl", [{"annotator": 3.0, **row}]), "user=annotator")
    assert found["user_id"] == "3"
    assert found["prompt"] == prompt
    assert found["chosen"] != found["rejected"]


def test_trl_dataset_on_disk(read: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"user_id": ["a", "b"], "chosen": ["x", "y"], "rejected": ["u", "v"], "weight": [1.0, 2.0]}
    datasets.Dataset.from_dict(rows | {"group": [7, None]}).save_to_disk(str(tmp_path / "disk"))
    found = read("trl", tmp_path / "disk")[1]
    assert [row["weight"] for row in found] == [1.0, 2.0]
    assert [row.get("group") for row in found] == ["7", None]


def test_trl_times_may_be_dates(read: Any, tmp_path: Path) -> None:
    row = {
        "user_id": "a",
        "prompt": "p",
        "chosen": "x",
        "rejected": "y",
        "timestamp": datetime(2025, 1, 1, tzinfo=UTC),
    }
    pq.write_table(pa.Table.from_pylist([row, {**row, "timestamp": None}]), tmp_path / "dated.parquet")
    _, rows = read("trl", tmp_path / "dated.parquet")
    assert [row.get("timestamp") for row in rows] == [1735689600.0, None]


def test_rewardbench_users_are_subsets(read: Any, tmp_path: Path) -> None:
    rows = [
        {"id": 1, "subset": "math", "prompt": "p", "chosen": "a", "chosen_model": "m", "rejected": "b"},
        {
            "id": 2,
            "subset": "safety",
            "prompt": "q",
            "chosen": ["a"],
            "rejected": ["b", "c"],
            "num_correct": 1,
        },
    ]
    _, found = read("rewardbench", jsonl(tmp_path / "bench.jsonl", rows))
    assert [(row["user_id"], row["chosen"], row["rejected"]) for row in found] == [
        ("math", "a", "b"),
        ("safety", "a", "b"),
        ("safety", "a", "c"),
    ]


def test_rewardbench_scores_make_users_of_models(read: Any, tmp_path: Path) -> None:
    """As run_rm.py writes them: an object of columns a model, texts by that model's own template."""
    pairs = [{"id": n, "subset": "math", "prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    bench = jsonl(tmp_path / "bench.jsonl", pairs)
    scores: dict[str, tuple[list[Any], list[Any]]] = {}
    scores["org/wise"] = [2.0, 1.5, 3.0, 0.0, 9.0], [1.0, 1.0, 1.0, 1.0, 8.0]
    scores["org/odd"] = [[1.0], [-1.0], [0.5], [0.0], [9.0]], [[1.0], [1.0], [0.0], [1.0], [8.0]]
    for model, (chosen, rejected) in scores.items():
        columns = {
            "text_chosen": ["<s>a"] * 5,
            "text_rejected": ["<s>b"] * 5,
            "results": [1] * 5,
            "subset": ["math"] * 5,
            "id": [*range(4), 77],
            "scores_chosen": chosen,
            "scores_rejected": rejected,
            "model": model,
            "model_type": "Seq. Classifier",
        }
        place = tmp_path / "eval-set-scores" / f"{model}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(columns, indent=4, sort_keys=True))
    imported, found = read("rewardbench", bench, f"scores={tmp_path / 'eval-set-scores'}")
    prefers = {(row["user_id"], row["prompt"]): row["chosen"] for row in found}
    assert prefers == {
        ("org/wise", "p0"): "a",
        ("org/wise", "p1"): "a",
        ("org/wise", "p2"): "a",
        ("org/wise", "p3"): "b",
        ("org/odd", "p1"): "b",
        ("org/odd", "p2"): "a",
        ("org/odd", "p3"): "b",
    }
    assert {kind: bad.count for kind, bad in imported.bad_records.items()} == {
        "same_score": 1,
        "no_such_pair": 2,
    }
    assert ["pairs", "4", "2985"] in [line.split() for line in table(imported).splitlines()]
    place = tmp_path / "eval-set-scores" / "org" / "odd.json"
    for text in ("{", "[]", json.dumps({"model": "m", "subset": ["math"]})):
        place.write_text(text)
        with pytest.raises(InputError, match=r"odd\.json: not scores as run_rm\.py writes them"):
            read("rewardbench", bench, f"scores={place}")
    with pytest.raises(InputError, match="no file of scores here"):
        read("rewardbench", bench, f"scores={tmp_path / 'hub'}")


def test_rewardbench_reads_what_was_filtered_alone(read: Any, tmp_path: Path, hub: Path) -> None:
    row = {"subset": "math", "prompt": "p", "chosen": "a", "rejected": "b"}
    repository = hub / "reward-bench"
    for split, ids in (("raw", range(5)), ("filtered", range(1, 3))):
        rows = [{**row, "id": number} for number in ids]
        place = repository / "data" / f"{split}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), place)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("raw", "filtered"))
    (repository / "README.md").write_text(card + "---\n")
    datasets = pytest.importorskip("datasets")
    datasets.load_dataset(str(repository)).save_to_disk(str(tmp_path / "disk"))
    for place in (repository / "data", f"hf:{repository}", tmp_path / "disk"):
        assert read("rewardbench", place)[0].figures["pairs"] == 2


def test_prism_is_read_from_the_hub(read: Any, tmp_path: Path, hub: Path) -> None:
    """The repository has a configuration a file; that of the utterances is the one that is read."""
    expected = read("prism", prism(tmp_path / "prism"))
    repository = prism(hub / "prism-alignment")
    names = ("survey", "utterances")
    card = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in names)
    (repository / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    assert read("prism", f"hf:{repository}") == expected


def test_what_the_hub_has_is_held_to_the_dataset(hub: Path, tmp_path: Path) -> None:
    jsonl(hub / "other" / "train.jsonl", [{"a": 1}])
    with pytest.raises(InputError, match=r"has no column user_id, chosen, rejected; it has a\."):
        import_dataset(dataset_of("trl", []), f"hf:{hub / 'other'}", tmp_path / "out")


@pytest.mark.parametrize("kind", DATASETS, ids=lambda kind: kind.name)
def test_what_is_no_such_dataset_is_refused(kind: Any, tmp_path: Path) -> None:
    dataset = dataset_of(kind.name, [])
    target = tmp_path / "out"
    places = [tmp_path / "nowhere", jsonl(tmp_path / "other" / "comments.jsonl", [{"a": 1}]).parent]
    (tmp_path / "other" / "utterances.jsonl").write_text("{\n")
    for place in places:
        with pytest.raises(InputError, match=str(place)):
            import_dataset(dataset, str(place), target)
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_hub_out_of_reach_is_said(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"hf:nobody/nothing: cannot be loaded from the hub .*download it"):
        import_dataset(dataset_of("trl", []), "hf:nobody/nothing", tmp_path / "out")


def test_mostly_rubbish_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = [{"user_id": "a", "chosen": "x", "rejected": f"y{number}"} for number in range(40)]
    target = tmp_path / "out"
    import_dataset(dataset_of("trl", []), str(jsonl(tmp_path / "good.jsonl", rows)), target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    rows += [{"user_id": "a", "chosen": "x", "rejected": "x"}] * 5
    with pytest.raises(InputError, match=r"11% of it is of no use.*same_text: 5 \(first in row 40\)"):
        import_dataset(dataset_of("trl", []), str(jsonl(tmp_path / "bad.jsonl", rows)), target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{kind.name}:" in listed for kind in DATASETS)
    target = tmp_path / "out"
    command = ["import", "prism", "--from", str(prism(tmp_path / "prism")), "-o", str(target)]
    assert cli.main([*command, "--set", "form=ratings"]) == 0
    printed = capsys.readouterr().out
    assert f"raypref embed --set input.path={target}" in printed
    assert [line.split() for line in printed.splitlines() if line.startswith("conversations")] == [
        ["conversations", "9", "8011"]
    ]
    for arguments, message in (
        (["import", "prims"], "prims is none of trl, prism"),
        (["import", "prism"], "--from names its files"),
        ([*command, "--set", "forms=ratings"], "import prism: forms: unknown key"),
        ([*command, "--set", "form=essay"], "import prism: form: "),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="users: Input should be greater than 0"):
        dataset_of("personalllm", ["users=0"])
