from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raypref.config import EvaluateConfig
from raypref.data.tables import Tables
from raypref.evaluate import collapse
from raypref.evaluate.collapse import Sample
from raypref.evaluate.protocol import evaluate
from raypref.evaluate.result import Collapse, Evaluation
from raypref.metrics import Estimate, mutual_information
from raypref.types import Latent
from tests.evaluate.world import BASES, Tastes, World, grow

CONFIG = EvaluateConfig(shots=(0, 1, 64), seeds=(0, 1), bootstrap=100, users_per_batch=7)
DEEPEST = {"seen/warm/all", "seen/cold/all", "unseen/warm/64", "unseen/cold/64"}


@pytest.fixture(scope="module")
def found(world: World) -> Evaluation:
    return evaluate(Tastes(), world.items, world.tables, CONFIG)


def gains(found: Evaluation) -> dict[str, Estimate]:
    return {cell.key: cell.latent_gain for cell in found.cells if cell.latent_gain is not None}


def collapses(found: Evaluation) -> dict[str, Collapse]:
    return {cell.key: cell.collapse for cell in found.cells if cell.collapse is not None}


def latents(world: World, seen: bool, model: Tastes) -> Latent:
    """The posteriors of a cohort, one user at a time."""
    context = world.tables.comparisons("seen" if seen else "unseen", ["train"])
    parts: list[Latent] = []
    for user in context.user_U:
        mine = context.select(np.array([user]))
        chosen_PD, rejected_PD = (
            torch.from_numpy(world.items.gather(ids)) for ids in (mine.chosen_M, mine.rejected_M)
        )
        weight_BP = torch.from_numpy(mine.weight_M)[None]
        latent = model.latent(model.evidence(chosen_PD, rejected_PD)[None], weight_BP)
        assert latent is not None
        parts.append(latent)
    return Latent(*(torch.cat([vars(part)[name] for part in parts]).double() for name in vars(parts[0])))


def test_vectors_are_given_away_where_most_is_known(found: Evaluation) -> None:
    assert set(gains(found)) == set(collapses(found)) == DEEPEST
    assert gains(found)["seen/warm/all"].low > 0


def test_of_two_users_each_is_judged_by_the_others_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "cache"))
    world, model = grow(tmp_path, seen=2, unseen=2), Tastes()
    targets = world.tables.comparisons("seen", ["warm"])
    posterior = latents(world, True, model)
    vectors_UZ = torch.cat([posterior.mean_BL, posterior.var_BL], 1)
    gain = []
    for user in (0, 1):
        mine = targets.select(np.array([user]))
        sides = [
            model.item(torch.from_numpy(world.items.gather(ids)))[None]
            for ids in (mine.chosen_M, mine.rejected_M)
        ]
        own, other = (model.margin(*sides, vectors_UZ[[row]]).mean_BN > 0 for row in (user, 1 - user))
        gain.append(float(own.double().mean() - other.double().mean()))
    assert any(gain)
    evaluation = evaluate(model, world.items, world.tables, CONFIG)
    assert gains(evaluation)["seen/warm/all"].mean == pytest.approx(np.mean(gain))


def test_without_a_personal_part_others_vectors_are_as_good(world: World) -> None:
    population = evaluate(Tastes(personal=False), world.items, world.tables, CONFIG)
    assert set(gains(population)) == DEEPEST
    assert set(gains(population).values()) == {Estimate(0.0, 0.0, 0.0)}
    for collapsed in collapses(population).values():
        assert (collapsed.active_units, collapsed.units) == (0, BASES)
        assert collapsed.mutual_information == pytest.approx(0, abs=1e-12)
        assert collapsed.kl == pytest.approx(BASES * 0.3**2 / 2)


@pytest.mark.parametrize("cohort", ["seen", "unseen"])
def test_collapse_equals_looking_at_one_user_at_a_time(world: World, found: Evaluation, cohort: str) -> None:
    latent = latents(world, cohort == "seen", Tastes())
    warm, cold = (value for key, value in collapses(found).items() if key.startswith(f"{cohort}/"))
    assert warm == cold
    assert warm.active_units == int((latent.code_BL.var(0, correction=0) > 0.005).sum()) == BASES
    assert warm.kl == pytest.approx(float(latent.kl_B.mean()), rel=1e-5)
    estimate = mutual_information(latent.mean_BL.numpy(), latent.var_BL.numpy(), 200)
    assert warm.mutual_information == pytest.approx(estimate, abs=0.1)
    assert 0.1 < warm.mutual_information < math.log(len(latent.kl_B))


def test_active_is_what_the_configuration_says(world: World) -> None:
    config = CONFIG.model_copy(update={"active_threshold": 1e4})
    strict = evaluate(Tastes(), world.items, world.tables, config)
    assert {part.active_units for part in collapses(strict).values()} == {0}


@pytest.mark.parametrize("users", [1, 999])
def test_the_size_of_batches_changes_nothing(world: World, found: Evaluation, users: int) -> None:
    config = CONFIG.model_copy(update={"users_per_batch": users})
    again = evaluate(Tastes(), world.items, world.tables, config)
    assert gains(again) == gains(found)
    for key, one in collapses(again).items():
        assert one.model_dump() == pytest.approx(collapses(found)[key].model_dump(), rel=1e-5)


def test_a_method_without_posteriors_has_gains_only(world: World) -> None:
    blunt = evaluate(Tastes(uncertain=False), world.items, world.tables, CONFIG)
    assert set(gains(blunt)) == DEEPEST
    assert collapses(blunt) == {}


def test_one_user_has_nobody_elses_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "cache"))
    world = grow(tmp_path, seen=3, unseen=1)
    alone = evaluate(Tastes(), world.items, world.tables, CONFIG)
    assert {key.split("/")[0] for key in gains(alone)} == {"seen"}
    assert {part.mutual_information for key, part in collapses(alone).items() if key[0] == "u"} == {0.0}


def given(tables: Tables, batches: int) -> dict[int, int]:
    """Whose vector each seen user is given, when they come in so many batches."""
    users = np.flatnonzero(tables.users["cohort"].to_numpy() == "seen")
    sample = Sample(tables, "seen", ["warm", "cold"])
    for user_B in np.array_split(users, batches):
        sample.keep(user_B, [Tensor(user_B[:, None])])
    parts = [sample.others(user_B)[0].flatten().int().tolist() for user_B in np.array_split(users, batches)]
    return dict(zip(users.tolist(), [user for part in parts for user in part], strict=True))


def test_everybody_is_given_somebody_elses_vector(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = given(world.tables, 1)
    assert given(world.tables, 9) == everybody
    assert sorted(everybody.values()) == sorted(everybody)
    assert all(user != other for user, other in everybody.items())
    monkeypatch.setattr(collapse, "SAMPLED_USERS", 4)
    few = given(world.tables, 3)
    assert given(world.tables, 1) == few
    assert len(set(few.values())) == 4
    assert all(user != other for user, other in few.items())


def test_a_sample_of_many_users_is_enough(
    world: World, found: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "SAMPLED_USERS", 10)
    sampled = evaluate(Tastes(), world.items, world.tables, CONFIG)
    for key, part in collapses(sampled).items():
        whole = collapses(found)[key]
        assert (part.active_units, part.kl) == (whole.active_units, pytest.approx(whole.kl))
        assert part.mutual_information < math.log(10) + 1e-9
    assert set(gains(sampled)) == DEEPEST
