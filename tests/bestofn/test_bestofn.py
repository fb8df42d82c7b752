"""Best of N: planted users, whose truth is known, and ratings that were held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from raypref import cli
from raypref.bestofn import run as bestofn
from raypref.bestofn.questions import Questions, ask
from raypref.bestofn.run import ORACLE, RANDOM, BestOfN, best_of_n
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable, write_items
from raypref.data.planting import write_planted
from raypref.data.prepare import prepare
from raypref.data.tables import Tables
from raypref.errors import ConfigError, InputError
from raypref.schema import content_hash
from raypref.train.session import finish
from raypref.train.shards import Shards
from tests.serve.world import embedder_of
from tests.train.runs import session

PLANTED = {
    "dim": 32,
    "train_prompts": 100,
    "test_prompts": 40,
    "rewards": 3,
    "seen_users": 120,
    "unseen_users": 60,
}


def configured(folder: Path, **more: Any) -> RunConfig:
    return parse_config({"dir": str(folder), "planted": PLANTED, **more}, [], "test")


def trained(config: RunConfig, name: str, steps: int = 150) -> Path:
    """A method trained in this process."""
    kind = {"type": name, "recipe": {"steps": steps}}
    own = configured(config.dir, input=config.input.model_dump(), method=kind, train={"patience": 0})
    training = session(own, Shards())
    for _ in training.steps():
        pass
    items, tables = ItemTable.open(own.items_dir), Tables.open(own.tables_dir)
    finish(own, items, tables, training.state).save(config.dir / name)
    return config.dir / name


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = configured(tmp_path_factory.mktemp("run"), bestofn={"n": [1, 2, 8], "questions": 6, "shots": 16})
    write_planted(config.planted, config.items_dir, config.tables_dir)
    return config


@pytest.fixture(scope="module")
def bundles(config: RunConfig) -> list[Path]:
    return [trained(config, name) for name in ("bt", "vrf", "lore")]


@pytest.fixture(scope="module")
def result(config: RunConfig, bundles: list[Path]) -> BestOfN:
    return best_of_n(config, bundles)


def asked(config: RunConfig) -> Questions:
    return ask(config, ItemTable.open(config.items_dir), Tables.open(config.tables_dir))


def test_personal_picks_win_over_everybodys(result: BestOfN) -> None:
    for name in ("vrf", "lore"):
        last = result.choosers[name][-1]
        assert last.wins is not None
        assert last.wins.low > 0.55, last
        assert last.regret.high < result.choosers["bt"][-1].regret.low
    random = result.choosers[RANDOM][-1]
    assert random.wins is not None
    assert random.wins.high < 0.45


def test_the_truth_loses_to_nobody_and_one_candidate_is_no_choice(result: BestOfN) -> None:
    for place, n in enumerate(result.questions):
        best = result.choosers[ORACLE][place]
        assert best.regret.mean == best.regret.high == 0
        for choices in result.choosers.values():
            assert choices[place].n == n
            assert choices[place].worth.mean <= best.worth.mean + 1e-12
            if choices[place].wins is not None and n == 1:
                assert choices[place].wins.mean == choices[place].wins.low == choices[place].wins.high == 0.5


def test_more_candidates_are_worth_more(result: BestOfN) -> None:
    worths = [choice.worth.mean for choice in result.choosers["vrf"]]
    assert worths == sorted(worths)


def test_the_order_of_candidates_does_not_matter(
    config: RunConfig, bundles: list[Path], result: BestOfN, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = asked(config)
    turned = Questions(
        questions.user_Q,
        questions.item_QN[:, ::-1].copy(),
        questions.worth_QN[:, ::-1].copy(),
        questions.truth,
    )
    monkeypatch.setattr(bestofn, "ask", lambda *_: turned)
    again = best_of_n(config, bundles)
    for name, choices in result.choosers.items():
        assert again.choosers[name][-1].worth.mean == pytest.approx(choices[-1].worth.mean)
        assert again.choosers[name][-1].wins == choices[-1].wins or name == RANDOM


def test_questions_are_about_test_prompts_and_are_drawn_by_the_seed(config: RunConfig) -> None:
    questions = asked(config)
    tables = Tables.open(config.tables_dir)
    assert set(questions.user_Q.tolist()) == set(np.flatnonzero(tables.rows < 0).tolist())
    responses = config.planted.responses
    prompt_QN = questions.item_QN // responses
    assert (prompt_QN == prompt_QN[:, :1]).all()
    assert prompt_QN.min() >= config.planted.train_prompts
    assert all(len(set(row)) == 8 for row in questions.item_QN.tolist())
    again = asked(config)
    assert (again.item_QN == questions.item_QN).all()
    other = config.model_copy(update={"bestofn": config.bestofn.model_copy(update={"seed": 1})})
    assert (asked(other).item_QN != questions.item_QN).any()


def test_what_is_written_is_what_is_printed(
    config: RunConfig,
    bundles: list[Path],
    result: BestOfN,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"dir": str(config.dir), "bestofn": config.bestofn.model_dump(mode="json")}))
    command = ["bestofn", "-c", str(file), *map(str, bundles)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert BestOfN.model_validate_json((config.dir / "bestofn/bestofn.json").read_text()) == result
    wins = result.choosers["vrf"][-1].wins
    assert wins is not None
    assert f"{wins.mean:.3f} [{wins.low:.3f}, {wins.high:.3f}]" in printed
    ElementTree.fromstring((config.dir / "bestofn/bestofn.svg").read_text())
    assert cli.main([*command, "--baseline", "lore"]) == 0
    assert "wins over lore" in capsys.readouterr().out


def test_a_baseline_that_is_not_there_is_said(config: RunConfig, bundles: list[Path]) -> None:
    with pytest.raises(
        ConfigError, match="the baseline bt is none of the bundles vrf; name it with --baseline"
    ):
        best_of_n(config, bundles[1:2])
    with pytest.raises(ConfigError, match="another chooser is called bt"):
        best_of_n(config, [bundles[0], bundles[0]])


TASTES = {"plain": -1.0, "shouting": 1.0}
PROMPTS, RESPONSES, USERS = 12, 6, 24


@pytest.fixture
def rated(tmp_path: Path) -> RunConfig:
    """Users who rate what they read by the one thing that an embedding says."""
    raw = {
        "prepare": {
            "unit": "prompt",
            "cold_share": 0.4,
            "unseen_share": 0.4,
            "min_heldout": 1,
            "max_train": 20,
        }
    }
    config = configured(tmp_path / "run", input={"path": tmp_path / "ratings.jsonl"}, **raw)
    draw = np.random.default_rng(0)
    embedder = embedder_of(8).model_copy(update={"template": "{prompt}\n\n{response}"})
    emb_ND = draw.standard_normal((PROMPTS * RESPONSES, 8)).astype(np.float16)
    texts = [(f"prompt {item // RESPONSES}", f"response {item}") for item in range(PROMPTS * RESPONSES)]
    write_items(config.items_dir, embedder, [([content_hash("\n\n".join(text)) for text in texts], emb_ND)])
    with (tmp_path / "ratings.jsonl").open("w") as file:
        for user in range(USERS):
            taste = list(TASTES.values())[user % 2]
            for (prompt, response), embedding in zip(texts, emb_ND, strict=True):
                rating = round(taste * float(embedding[0]), 3)
                row = {"user_id": f"u{user}", "prompt": prompt, "response": response, "rating": rating}
                file.write(json.dumps(row) + "\n")
    prepare(config)
    return config


def test_ratings_that_were_held_out_are_a_truth_too(rated: RunConfig) -> None:
    questions = asked(rated)
    tables, items = Tables.open(rated.tables_dir), ItemTable.open(rated.items_dir)
    train = tables.comparisons("unseen", ["train"])
    for user, item_N, worth_N in zip(questions.user_Q, questions.item_QN, questions.worth_QN, strict=True):
        at = train.user_U.tolist().index(user)
        part = slice(train.offsets[at], train.offsets[at + 1])
        told = {*train.chosen_M[part].tolist(), *train.rejected_M[part].tolist()}
        there = item_N >= 0
        assert not told & set(item_N[there].tolist())
        name = int(tables.users["user_id"][int(user)].as_py()[1:])
        expected = list(TASTES.values())[name % 2] * items.gather(item_N[there])[:, 0].astype(float)
        np.testing.assert_allclose(worth_N[there], expected, atol=1e-3)
        assert np.isnan(worth_N[~there]).all()
    found = best_of_n(rated, [trained(rated, name, 100) for name in ("bt", "lore")])
    wins = found.choosers["lore"][-1].wins
    assert wins is not None
    assert wins.low > 0.5
    assert found.truth == "the user's own ratings, held out"


def test_comparisons_are_no_truth(rated: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"user_id": "u0", "prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    pairs = rated.model_copy(update={"input": rated.input.model_copy(update={"path": file})})
    with pytest.raises(InputError, match="comparisons do not say what a response is worth"):
        asked(pairs)
    nothing = rated.model_copy(update={"input": rated.input.model_copy(update={"path": None})})
    with pytest.raises(InputError, match="nothing says what a response is worth"):
        asked(nothing)
