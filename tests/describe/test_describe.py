from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raypref.checkpoint import Bundle
from raypref.cli import main
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import write_items
from raypref.describe import Description, sample
from raypref.describe.run import describe
from raypref.describe.table import WIDTH, text_table
from raypref.errors import InputError, MismatchError
from raypref.schema import content_hash
from tests.describe.world import (
    DIM,
    EMBEDDER,
    PROMPTS,
    RESPONSES,
    USERS,
    World,
    make_bundle,
    write_texts,
)


def changed(config: RunConfig, **sections: object) -> RunConfig:
    return parse_config({**config.model_dump(mode="json", exclude_unset=True), **sections}, [], "test")


@pytest.mark.parametrize("method", ["lore", "vrf"])
def test_axes_are_named_after_what_users_differ_in(
    method: str, world: World, bundles: dict[str, Path]
) -> None:
    found = describe(world.config, bundles[method])
    assert found.personal
    assert (found.users, found.items, found.prompts) == (USERS, PROMPTS * RESPONSES, PROMPTS)
    axes = [basis for basis in found.bases if basis.kind == "axis"]
    length, marks = axes[:2]
    assert length.name in ("longer", "shorter", "more words", "fewer words")
    assert marks.name in ("more exclamation marks", "fewer exclamation marks")
    assert length.share / (length.share + marks.share) == pytest.approx(0.8, abs=0.08)
    assert sum(basis.share for basis in axes[2:]) + found.rest < 0.1
    assert sum(basis.share for basis in found.bases) + found.rest == pytest.approx(1, abs=1e-3)
    assert abs(length.features[0].rho) > 0.8
    assert marks.features[0].name == "exclamations"
    assert abs(marks.features[0].rho) > 0.8
    for basis in (length, marks):
        leaning = basis.leaning
        assert leaning is not None
        assert leaning.positive + leaning.negative + leaning.undecided == USERS
        assert min(leaning.positive, leaning.negative) > USERS / 8


@pytest.mark.parametrize("method", ["lore", "vrf"])
def test_extremes_and_contrasts_show_the_axis(method: str, world: World, bundles: dict[str, Path]) -> None:
    found = describe(world.config, bundles[method], top=5)
    length, marks = [basis for basis in found.bases if basis.kind == "axis"][:2]
    sign = 1 if length.features[0].rho > 0 else -1
    assert [len(part) for part in (length.top, length.bottom, length.contrasts)] == [5, 5, 5]
    for high, low in zip(length.top, length.bottom, strict=True):
        assert high.text is not None
        assert low.text is not None
        assert sign * (len(high.text) - len(low.text)) > 100
    assert length.top[0].score == max(item.score for item in length.top)
    for contrast in length.contrasts:
        higher, lower = contrast.higher, contrast.lower
        assert (
            contrast.prompt
            == f"Question {higher.item // RESPONSES}?"
            == f"Question {lower.item // RESPONSES}?"
        )
        assert contrast.difference == pytest.approx(higher.score - lower.score, abs=2e-3)
        assert higher.text is not None
        assert lower.text is not None
        assert abs(higher.text.count("!") - lower.text.count("!")) <= 2
    for contrast in marks.contrasts:
        assert contrast.difference > 1
    used = [item.item for contrast in length.contrasts for item in (contrast.higher, contrast.lower)]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("method", ["bt", "dpl"])
def test_a_method_without_bases_says_so(method: str, world: World, bundles: dict[str, Path]) -> None:
    found = describe(world.config, bundles[method])
    assert not found.personal
    assert [basis.kind for basis in found.bases] == ["common"]
    assert found.bases[0].share == 1
    assert found.bases[0].leaning is None
    assert f"{method} has no bases" in text_table(found)


def test_a_method_that_is_not_linear_is_described_too(world: World, bundles: dict[str, Path]) -> None:
    found = describe(world.config, bundles["vpl"])
    assert found.personal
    assert any("longer" in basis.name or "shorter" in basis.name for basis in found.bases)


def test_the_same_bundle_gives_the_same_bytes_in_any_order_of_the_input(
    world: World, bundles: dict[str, Path], tmp_path: Path
) -> None:
    first = describe(world.config, bundles["vrf"]).model_dump_json()
    assert describe(world.config, bundles["vrf"]).model_dump_json() == first
    assert world.config.input.path is not None
    lines = world.config.input.path.read_text().splitlines()
    random.Random(0).shuffle(lines)
    (tmp_path / "shuffled.jsonl").write_text("\n".join(lines) + "\n")
    shuffled = changed(world.config, input={"path": str(tmp_path / "shuffled.jsonl")})
    assert describe(shuffled, bundles["vrf"]).model_dump_json() == first


def test_without_an_input_items_have_numbers(world: World, bundles: dict[str, Path]) -> None:
    found = describe(changed(world.config, input={}), bundles["lore"])
    assert found.prompts is None
    assert {basis.name for basis in found.bases} == {"unnamed"}
    basis = found.bases[1]
    assert basis.features == []
    assert basis.top[0].text is None
    assert len(basis.contrasts) == 3
    for contrast in basis.contrasts:
        assert contrast.prompt is None
        assert contrast.higher.item // RESPONSES == contrast.lower.item // RESPONSES
    assert f"item {basis.top[0].item}" in text_table(found)


def test_without_comparisons_there_are_no_contrasts(
    world: World, bundles: dict[str, Path], tmp_path: Path
) -> None:
    bare = changed(world.config, input={}, tables=str(tmp_path / "none"))
    found = describe(bare, bundles["lore"])
    assert found.items == PROMPTS * RESPONSES
    assert all(basis.contrasts == [] and basis.leaning is None for basis in found.bases)


def test_texts_that_are_not_in_the_table_are_left_out(
    world: World, bundles: dict[str, Path], tmp_path: Path
) -> None:
    assert world.config.input.path is not None
    more = world.config.input.path.read_text()
    more += '{"user_id": "u0", "prompt": "Question 0?", "chosen": "Not embedded.", "rejected": "Nor this."}\n'
    (tmp_path / "more.jsonl").write_text(more)
    found = describe(changed(world.config, input={"path": str(tmp_path / "more.jsonl")}), bundles["lore"])
    assert found == describe(world.config, bundles["lore"])


def test_a_sample_is_whole_prompts_and_bounded(
    world: World, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "MOST_ITEMS", 100)
    monkeypatch.setattr(sample, "LOOKUP_TEXTS", 50)
    found = describe(world.config, bundles["lore"])
    assert 100 - RESPONSES < found.items <= 100
    assert found.prompts == found.items // RESPONSES


def test_responses_without_prompts_answer_one(world: World, bundles: dict[str, Path], tmp_path: Path) -> None:
    texts = [f"text {'long ' * (at % 7)}{at}" for at in range(60)]
    emb_ND = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float16)
    write_items(tmp_path / "items", EMBEDDER, [([content_hash(f"\n\n{text}") for text in texts], emb_ND)])
    rows = [
        f'{{"user_id": "u", "chosen": "{first}", "rejected": "{second}"}}'
        for first, second in zip(texts[::2], texts[1::2], strict=True)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    config = changed(world.config, dir=str(tmp_path), input={"path": str(tmp_path / "in.jsonl")})
    found = describe(config, bundles["lore"])
    assert (found.items, found.prompts) == (60, 1)
    assert found.bases[0].contrasts[0].prompt == ""


def test_command_prints_a_table_and_writes_json(
    world: World, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(world.config.model_dump_json(exclude_unset=True))
    arguments = ["describe", str(bundles["vrf"]), "-c", str(tmp_path / "run.yaml"), "--top", "2"]
    assert main([*arguments, "-o", str(tmp_path / "vrf.json")]) == 0
    out = capsys.readouterr().out
    found = Description.model_validate_json((tmp_path / "vrf.json").read_text())
    assert found == describe(world.config, bundles["vrf"], top=2)
    assert out == text_table(found) + "\n"
    assert max(map(len, out.splitlines())) <= WIDTH
    assert out.count("contrast  Question") == 2 * len(found.bases)


def test_what_cannot_be_described_is_refused(
    world: World,
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lore = Bundle.load(bundles["lore"])
    replace(lore, users=lore.users.slice(0, 0)).save(tmp_path / "nobody")
    with pytest.raises(InputError, match="keeps no users' vectors"):
        describe(world.config, tmp_path / "nobody")
    with pytest.raises(InputError, match="the same reward; train it first"):
        describe(world.config, make_bundle(world, tmp_path / "untrained", "bt", 0))
    other = lore.info.model_copy(update={"embedder": EMBEDDER.model_copy(update={"revision": "1"})})
    replace(lore, info=other).save(tmp_path / "other")
    with pytest.raises(MismatchError):
        describe(world.config, tmp_path / "other")
    (tmp_path / "foreign.jsonl").write_text(
        '{"user_id": "u", "prompt": "p", "chosen": "a", "rejected": "b"}\n'
    )
    with pytest.raises(MismatchError, match="holds none of the texts"):
        describe(changed(world.config, input={"path": str(tmp_path / "foreign.jsonl")}), bundles["lore"])
    (tmp_path / "lone.jsonl").write_text(
        '{"user_id": "u", "prompt": "p", "response": "a", "rating": 1}\n'
        + json.dumps({"user_id": "u", "prompt": "Question 0?", "response": write_texts()[1][0], "rating": 2})
    )
    with pytest.raises(MismatchError, match="two responses to tell apart"):
        describe(changed(world.config, input={"path": str(tmp_path / "lone.jsonl")}), bundles["lore"])
    (tmp_path / "run.yaml").write_text(world.config.model_dump_json(exclude_unset=True))
    run = ["-c", str(tmp_path / "run.yaml")]
    for arguments, message in (
        ([str(bundles["lore"]), "--top", "0"], "name at least 1"),
        ([], "no bundle here"),
        ([str(bundles["lore"]), "-o", str(tmp_path / "run.yaml" / "x.json")], "cannot be written"),
    ):
        assert main(["describe", *arguments, *run]) == 2
        assert message in capsys.readouterr().err


def test_describing_needs_no_ray() -> None:
    code = "import sys, raypref.describe.run, raypref.describe.table; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
