"""What is said of drift, where what drifted is known."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypref import cli, files
from raypref.checkpoint import MANIFEST, Bundle
from raypref.data.items import ItemTable
from raypref.describe.axes import item_features, rewards, sample_users
from raypref.describe.result import Drift
from raypref.describe.run import describe
from raypref.errors import InputError, MismatchError
from tests.describe.test_describe import changed
from tests.describe.world import PROMPTS, RESPONSES, USERS, World, write_texts

PAIRS = PROMPTS * RESPONSES * (RESPONSES - 1) // 2


def drift(world: World, bundle: Path, against: Path, top: int = 3) -> Drift:
    found = describe(world.config, bundle, top, against).drift
    assert found is not None
    return found


def renamed(bundle: Path, names: Sequence[str], to: Path) -> Path:
    """Copy a bundle and give its users other names, in their order."""
    held = Bundle.load(bundle)
    users = held.users.set_column(0, held.users.schema.field("user_id"), pa.array(names))
    Bundle(held.model, held.info, users).save(to)
    return to


def test_a_bundle_has_not_drifted_from_itself(world: World, bundles: dict[str, Path]) -> None:
    found = drift(world, bundles["vrf"], bundles["vrf"])
    assert (found.users, found.pairs) == (USERS, PAIRS)
    assert found.against == f"vrf@{files.sha256(bundles['vrf'] / MANIFEST)[:12]}"
    assert found.agreement == [1.0] * USERS
    assert found.average == 1
    assert [match.basis for match in found.bases] == [match.earlier for match in found.bases]
    assert [match.correlation for match in found.bases] == [1.0] * len(found.bases)
    assert {move.now.score - move.before for move in (*found.rose, *found.fell)} == {0}
    assert describe(world.config, bundles["vrf"]).drift is None


def test_two_methods_that_know_the_same_people_agree(world: World, bundles: dict[str, Path]) -> None:
    found = drift(world, bundles["lore"], bundles["vrf"])
    assert found.agreement == sorted(found.agreement)
    assert found.agreement[USERS // 2] > 0.85
    axes = {match.basis: match for match in found.bases}
    for title in ("axis 1", "axis 2"):
        assert axes[title].earlier == title
        assert abs(axes[title].correlation) > 0.9


def test_who_changed_is_told_apart_from_what_changed(
    world: World, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Everybody gets another's taste: the bases and the average are as they were, the people are not."""
    names = [f"u{(user + 1) % USERS}" for user in range(USERS)]
    found = drift(world, bundles["lore"], renamed(bundles["lore"], names, tmp_path / "lore"))
    assert found.users == USERS
    assert found.agreement[USERS // 2] < 0.75
    assert found.average == 1
    assert {match.correlation for match in found.bases} == {1.0}
    shuffled = [f"u{user}" for user in range(USERS)]
    same = drift(world, bundles["lore"], renamed(bundles["lore"], shuffled, tmp_path / "same"))
    assert same.agreement == [1.0] * USERS


def test_items_that_rose_are_those_that_people_now_like(
    world: World, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Everybody becomes who likes length most, then who likes it least."""
    held, lengths = Bundle.load(bundles["lore"]), np.array([len(text) for text in write_texts()[1]], float)
    with torch.no_grad():
        item_NF = item_features(held, ItemTable.open(world.config.items_dir), np.arange(len(lengths)))
        reward_UN = rewards(held.model, item_NF, sample_users(held))
    order_U = np.argsort([np.corrcoef(reward_N, lengths)[0, 1] for reward_N in reward_UN])
    for user, sign in ((order_U[-1], 1), (order_U[0], -1)):
        everybody = pa.concat_arrays([held.users["vector"].combine_chunks().slice(user, 1)] * USERS)
        users = held.users.set_column(3, held.users.schema.field("vector"), everybody)
        Bundle(held.model, held.info, users).save(tmp_path / f"{user}")
        moved = drift(world, tmp_path / f"{user}", bundles["lore"], 20)
        rose, fell = ([lengths[move.now.item] for move in moves] for moves in (moved.rose, moved.fell))
        assert sign * (np.mean(rose) - np.mean(fell)) > 50
        assert min(move.now.score - move.before for move in moved.rose) > 0
        assert max(move.now.score - move.before for move in moved.fell) < 0


def test_what_cannot_be_compared_is_refused(world: World, bundles: dict[str, Path], tmp_path: Path) -> None:
    others = renamed(bundles["lore"], [f"v{user}" for user in range(USERS)], tmp_path / "others")
    with pytest.raises(InputError, match="none of the users that the bundle keeps"):
        drift(world, bundles["lore"], others)
    held = Bundle.load(bundles["lore"])
    Bundle(held.model, held.info, held.users.slice(0, 0)).save(tmp_path / "nobody")
    with pytest.raises(InputError, match="nobody: keeps no users' vectors"):
        drift(world, bundles["lore"], tmp_path / "nobody")
    embedder = held.info.embedder.model_copy(update={"revision": "1"})
    info = held.info.model_copy(update={"embedder": embedder})
    Bundle(held.model, info, held.users).save(tmp_path / "embedder")
    with pytest.raises(MismatchError, match="revision"):
        drift(world, bundles["lore"], tmp_path / "embedder")
    alone = changed(world.config, dir=str(tmp_path / "alone"), input={})
    shutil.copytree(world.config.items_dir, tmp_path / "alone/items")
    with pytest.raises(InputError, match=r"name input\.path, or prepare"):
        describe(alone, bundles["lore"], 3, bundles["vrf"])


def test_the_command_prints_it(
    world: World, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    files.write_text(file, changed(world.config).model_dump_json(exclude_unset=True))
    asked = ["describe", str(bundles["lore"]), "-c", str(file), "--against", str(bundles["vrf"])]
    assert cli.main(asked) == 0
    text = capsys.readouterr().out
    assert f"since vrf@{files.sha256(bundles['vrf'] / MANIFEST)[:12]}, for {USERS} users of both" in text
    assert "ordered as before: at least" in text
    assert "  axis 1   was axis 1" in text
    assert "\n  rose " in text
    assert "\n  fell " in text
