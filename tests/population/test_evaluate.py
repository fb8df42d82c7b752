from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raypref.checkpoint import Bundle
from raypref.config import EvaluateConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import InputError
from raypref.evaluate.protocol import evaluate
from raypref.population import evaluate as module
from raypref.population.evaluate import evaluate_population, judge_in_actors
from tests.population.world import USERS, configured, save_bundle

CONFIG = EvaluateConfig(shots=(0, 1, 4), seeds=(0, 1), bootstrap=50, users_per_batch=20)


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Workers have one; products may round otherwise with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.ray
@pytest.mark.slow
def test_the_figures_of_many_workers_are_those_of_one_process(
    ray_cluster: None, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = ItemTable.open(planted / "items")
    bundle = save_bundle(tmp_path / "bundle", items)
    info = Bundle.load(bundle)
    fingerprint = Tables.open(planted / "tables").metadata.fingerprint
    trained = info.info.model_copy(update={"data_fingerprint": fingerprint})
    Bundle(info.model, trained, info.users).save(bundle)
    config = configured(tmp_path, planted).model_copy(update={"evaluate": CONFIG})
    alone = evaluate_population(config, [bundle])
    calls: list[int | None] = []

    def counted(workers: int | None, *given: object) -> object:
        calls.append(workers)
        return judge_in_actors(workers, *given)

    monkeypatch.setattr(module, "ALONE", 10)
    monkeypatch.setattr(module, "judge_in_actors", counted)
    together = evaluate_population(config, [bundle])
    assert calls == [2] * 4
    assert together["vrf"].cells == alone["vrf"].cells
    assert together["vrf"].per_user.equals(alone["vrf"].per_user)
    assert {cell.users for cell in alone["vrf"].cells} == {100, USERS - 100}


@pytest.mark.ray
@pytest.mark.slow
def test_a_score_that_is_not_finite_is_named(ray_cluster: None, planted: Path, tmp_path: Path) -> None:
    items, tables = ItemTable.open(planted / "items"), Tables.open(planted / "tables")
    model = Bundle.load(save_bundle(tmp_path / "bundle", items)).model
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="score is not finite"):
        evaluate(model, items, tables, CONFIG, lambda *given: judge_in_actors(1, *given))
