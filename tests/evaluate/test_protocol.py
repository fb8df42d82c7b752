from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raypref.config import EvaluateConfig
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.evaluate.landscape import map_users
from raypref.evaluate.protocol import evaluate
from raypref.evaluate.result import PER_USER_FILE, Evaluation, compare
from raypref.schema import Cohort
from raypref.types import Dims, Reward
from tests.evaluate.world import BASES, DIM, Tastes, World, grow

CONFIG = EvaluateConfig(shots=(0, 1, 4, 64), seeds=(0, 1, 2), bootstrap=200, users_per_batch=7)
KEYS = {
    f"{cohort}/{setting}/{shots}"
    for setting in ("warm", "cold")
    for cohort, shots in [("seen", "all"), *(("unseen", s) for s in CONFIG.shots)]
}


@pytest.fixture(scope="module")
def found(world: World) -> Evaluation:
    return evaluate(Tastes(), world.items, world.tables, CONFIG)


def embeddings(world: World, ids_N: np.ndarray) -> Tensor:
    return torch.from_numpy(world.items.gather(ids_N))


def judge(world: World, model: Tastes, cohort: Cohort, setting: str) -> dict[int, list[tuple[float, float]]]:
    """Each user's logits and margin deviations from all the context, one comparison at a time."""
    targets = world.tables.comparisons(cohort, [setting])  # type: ignore[list-item]
    judged: dict[int, list[tuple[float, float]]] = {}
    for user in targets.user_U:
        context = world.tables.comparisons(cohort, ["train"]).select(np.array([user]))
        chosen_PD, rejected_PD = embeddings(world, context.chosen_M), embeddings(world, context.rejected_M)
        evidence_PE = model.evidence(chosen_PD, rejected_PD)
        user_BZ = model.infer(evidence_PE[None], torch.from_numpy(context.weight_M)[None])
        mine = targets.select(np.array([user]))
        for chosen, rejected in zip(mine.chosen_M, mine.rejected_M, strict=True):
            sides = [model.item(embeddings(world, np.array([i])))[None] for i in (chosen, rejected)]
            margin = model.margin(*sides, user_BZ)
            assert margin.var_BN is not None
            judged.setdefault(int(user), []).append((float(margin.logit_BN()), float(margin.var_BN.sqrt())))
    return judged


@pytest.mark.parametrize("setting", ["warm", "cold"])
@pytest.mark.parametrize(("cohort", "shots"), [("seen", None), ("unseen", 64)])
def test_it_equals_judging_one_comparison_at_a_time(
    world: World, found: Evaluation, cohort: Cohort, shots: int | None, setting: str
) -> None:
    judged = judge(world, Tastes(), cohort, setting)
    cell = found.cell(cohort, setting, shots)  # type: ignore[arg-type]
    assert cell is not None
    per_user = {user: np.mean([logit > 0 for logit, _ in pairs]) for user, pairs in judged.items()}
    table = found.users(cell.key)
    assert table["user"].to_pylist() == sorted(per_user)
    np.testing.assert_allclose(table["accuracy"], [per_user[user] for user in sorted(per_user)])
    flat = [pair for pairs in judged.values() for pair in pairs]
    assert cell.users == len(judged)
    assert cell.comparisons == len(flat)
    assert cell.accuracy_per_user.mean == pytest.approx(np.mean(list(per_user.values())))
    assert cell.accuracy_per_pair == pytest.approx(np.mean([logit > 0 for logit, _ in flat]))
    losses = [np.mean([math.log1p(math.exp(-logit)) for logit, _ in pairs]) for pairs in judged.values()]
    assert cell.nll == pytest.approx(np.mean(losses), rel=1e-5)
    assert cell.uncertainty.source == "margin_std"
    spread = sum(b.uncertainty * b.count for b in cell.uncertainty.by_quantile) / len(flat) / cell.draws
    assert spread == pytest.approx(np.mean([std for _, std in flat]), rel=1e-3)
    assert cell.uncertainty.selective[-1].accuracy == pytest.approx(cell.accuracy_per_pair)


def test_every_cell_is_there_and_scores_in_bounds(found: Evaluation) -> None:
    assert {cell.key for cell in found.cells} == KEYS
    assert found.absent == []
    for cell in found.cells:
        e = cell.accuracy_per_user
        assert 0 <= e.low <= e.mean <= e.high <= 1
        assert 0 <= cell.ece <= 1
        assert sum(b.count for b in cell.reliability) == cell.comparisons * cell.draws


def test_no_shots_is_the_population(world: World, found: Evaluation) -> None:
    population = evaluate(Tastes(personal=False), world.items, world.tables, CONFIG)
    for setting in ("warm", "cold"):
        ours, theirs = (part.cell("unseen", setting, 0) for part in (found, population))
        assert ours is not None
        assert ours == theirs
        assert (ours.draws, ours.mean_shots, ours.full_share) == (1, 0.0, 1.0)


def test_shots_change_nothing_without_a_personal_part(world: World) -> None:
    population = evaluate(Tastes(personal=False), world.items, world.tables, CONFIG)
    estimates = {cell.accuracy_per_user for cell in population.cells if cell.key.startswith("unseen/warm")}
    assert len(estimates) == 1


def test_users_with_few_comparisons_use_what_they_have(world: World, found: Evaluation) -> None:
    trained = world.tables.users.filter(np.arange(55) >= 30)["train"].to_numpy()
    cell = found.cell("unseen", "warm", 4)
    assert cell is not None
    assert cell.draws == 3
    assert cell.mean_shots == pytest.approx(np.minimum(trained, 4).mean())
    assert cell.full_share == pytest.approx((trained >= 4).mean())
    assert 0 < cell.full_share < 1


def test_the_size_of_batches_changes_nothing(world: World, found: Evaluation) -> None:
    whole = evaluate(Tastes(), world.items, world.tables, CONFIG.model_copy(update={"users_per_batch": 999}))
    np.testing.assert_allclose(whole.per_user["accuracy"], found.per_user["accuracy"])
    np.testing.assert_allclose(whole.per_user["nll"], found.per_user["nll"], rtol=1e-5)


def test_shots_are_prefixes_of_one_order_and_differ_by_seed(world: World) -> None:
    class Recorder(Tastes):
        def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
            seen.append(evidence_BPE.clone())
            return super().infer(evidence_BPE, mask_BP)

    seen: list[Tensor] = []
    config = CONFIG.model_copy(update={"shots": (1, 4), "seeds": (0, 1), "users_per_batch": 999})
    evaluate(Recorder(), world.items, world.tables, config)
    one, four, other_one, other_four = seen[-4:]
    torch.testing.assert_close(one, four[:, :1], rtol=0, atol=0)
    torch.testing.assert_close(other_one, other_four[:, :1], rtol=0, atol=0)
    assert not torch.equal(four, other_four)


def test_wide_work_is_done_once(world: World) -> None:
    model = Tastes()
    evaluate(model, world.items, world.tables, CONFIG)
    targets = world.tables.comparisons(None, ["warm", "cold"])
    judged = np.unique(targets.user_U)
    assert model.item_passes == len(np.union1d(targets.chosen_M, targets.rejected_M))
    assert model.evidence_passes == len(world.tables.comparisons(None, ["train"]).select(judged))


def test_a_repeated_evaluation_is_equal(world: World, found: Evaluation) -> None:
    again = evaluate(Tastes(), world.items, world.tables, CONFIG)
    assert again.model_dump_json() == found.model_dump_json()
    assert again.per_user.equals(found.per_user)


def test_an_absent_setting_is_absent_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "cache"))
    world = grow(tmp_path, settings=("warm",))
    found = evaluate(Tastes(), world.items, world.tables, CONFIG)
    assert {cell.setting for cell in found.cells} == {"warm"}
    assert [(part.cohort, part.setting) for part in found.absent] == [("seen", "cold"), ("unseen", "cold")]


def test_nothing_held_out_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "cache"))
    world = grow(tmp_path, settings=())
    with pytest.raises(InputError, match="no held-out comparisons"):
        evaluate(Tastes(), world.items, world.tables, CONFIG)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_an_error(world: World, value: float) -> None:
    class Broken(Tastes):
        def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
            margin = super().margin(chosen_BNF, rejected_BNF, user_BZ)
            margin.mean_BN[-1, 0] = value
            return margin

    with pytest.raises(InputError, match="not finite"):
        evaluate(Broken(), world.items, world.tables, CONFIG)


def test_another_width_is_refused(world: World) -> None:
    model = Tastes()
    model.dims = Dims(embedding=DIM + 1, users=0)
    with pytest.raises(MismatchError, match="D = 6"):
        evaluate(model, world.items, world.tables, CONFIG)


def test_a_method_without_variance_is_ranked_by_its_doubt(world: World) -> None:
    found = evaluate(Tastes(uncertain=False), world.items, world.tables, CONFIG)
    for cell in found.cells:
        assert cell.uncertainty.source == "doubt"
        assert all(0 <= b.uncertainty <= 0.5 for b in cell.uncertainty.by_quantile)


def test_the_model_comes_back_in_its_mode(world: World) -> None:
    model = Tastes().train()
    evaluate(model, world.items, world.tables, CONFIG)
    assert model.training


def test_saved_and_loaded_is_equal(found: Evaluation, tmp_path: Path) -> None:
    found.save(tmp_path / "bt")
    loaded = Evaluation.load(tmp_path / "bt")
    assert loaded.model_dump_json() == found.model_dump_json()
    assert loaded.users("unseen/warm/4").equals(found.users("unseen/warm/4"))
    (tmp_path / "bt" / PER_USER_FILE).write_bytes(b"no table")
    with pytest.raises(CorruptError):
        Evaluation.load(tmp_path / "bt")
    with pytest.raises(InputError):
        Evaluation.load(tmp_path / "nothing")


def test_differences_are_paired_by_user(world: World, found: Evaluation) -> None:
    base = evaluate(Tastes(personal=False), world.items, world.tables, CONFIG)
    differences = {d.cell: d for d in compare({"base": base, "tastes": found}, "base")}
    assert set(differences) == KEYS
    for key, difference in differences.items():
        delta_U = found.users(key)["accuracy"].to_numpy() - base.users(key)["accuracy"].to_numpy()
        assert difference.accuracy.mean == pytest.approx(delta_U.mean())
    assert differences["unseen/warm/0"].accuracy.high == 0
    assert differences["unseen/warm/64"].accuracy.low < differences["unseen/warm/64"].accuracy.high
    itself = compare({"base": base, "again": base}, "base")
    assert {d.accuracy.high - d.accuracy.low for d in itself} == {0.0}


def test_what_does_not_belong_together_is_not_compared(found: Evaluation) -> None:
    other = found.model_copy(update={"fingerprint": "1" * 64})
    with pytest.raises(MismatchError, match="different tables"):
        compare({"a": found, "b": other}, "a")
    other = found.model_copy(update={"config": CONFIG.model_copy(update={"seeds": (5,)})})
    with pytest.raises(MismatchError, match="seeds"):
        compare({"a": found, "b": other}, "a")
    with pytest.raises(InputError, match="baseline"):
        compare({"a": found}, "b")


def test_a_map_places_users_and_bases(world: World) -> None:
    place = map_users(Tastes(), world.items, world.tables, users=20)
    assert place is not None
    assert place.ellipses is not None
    assert place.bases is not None
    assert len(place.users) == len(place.positions) == len(place.cohorts) == len(place.ellipses) == 20
    assert len(place.bases) == BASES
    assert set(place.cohorts) == {"seen", "unseen"}
    assert all(0 <= e.minor <= e.major <= 1 for e in place.ellipses)
    assert place == map_users(Tastes(), world.items, world.tables, users=20)


def test_a_method_without_a_space_has_no_map(world: World) -> None:
    class Flat(Tastes):
        landscape = Tastes.__mro__[1].landscape  # type: ignore[assignment]

    assert map_users(Flat(), world.items, world.tables) is None
