from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raypref.checkpoint import save_tensors
from raypref.errors import CorruptError, DivergedError
from raypref.methods import BTConfig, LoReConfig
from raypref.methods.base import Recipe
from raypref.train.log import METRICS_FILE, MetricsLog, read_lines
from raypref.train.loop import TrainState, Validation, rate, start, step_seed, train, validate
from raypref.train.state import load_state, save_state
from raypref.types import Dims, Episodes
from tests.methods.contract import DIM, episodes, pairs

CONFIG = LoReConfig(bases=3, recipe=Recipe(steps=20, lr=1e-2, targets=8))


def fresh() -> TrainState:
    torch.manual_seed(0)
    return start(CONFIG.build(Dims(DIM, 4)), CONFIG.recipe)


def batches(first: int = 0) -> Iterator[Episodes]:
    return (episodes(step, CONFIG) for step in range(first, 1000))


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def test_takes_the_steps_of_the_recipe_and_lowers_the_loss() -> None:
    state = fresh()
    same = episodes(0, CONFIG)
    losses = [metrics.loss for metrics in train(state, iter([same] * 1000), CONFIG.recipe, seed=0)]
    assert len(losses) == state.step == 20
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("stop_at", [1, 7, 19])
def test_saved_and_resumed_equals_uninterrupted_bit_for_bit(stop_at: int, tmp_path: Path) -> None:
    whole = fresh()
    for metrics in train(whole, batches(), CONFIG.recipe, seed=5):
        if metrics.step == 6:
            whole.consider(Validation(0.5, 0.6), patience=3)
    part = fresh()
    for metrics in train(part, batches(), CONFIG.recipe, seed=5):
        if metrics.step == 6:
            part.consider(Validation(0.5, 0.6), patience=3)
        if metrics.step == stop_at:
            break
    save_state(part, tmp_path)
    resumed = fresh()
    load_state(resumed, tmp_path)
    for metrics in train(resumed, batches(stop_at), CONFIG.recipe, seed=5):
        if metrics.step == 6:
            resumed.consider(Validation(0.5, 0.6), patience=3)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
        assert torch.equal(whole.best[name], resumed.best[name]), name
    assert resumed.best_nll == 0.5


def test_a_state_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    save_state(fresh(), tmp_path)
    path = tmp_path / "optimiser.safetensors"
    data = bytearray(path.read_bytes() + b"x")
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptError, match=r"optimiser\.safetensors"):
        load_state(fresh(), tmp_path)


def test_a_diverging_loss_stops_with_advice() -> None:
    state = fresh()
    broken = episodes(0, CONFIG)
    broken.target.chosen_BPD[0, 0, 0] = math.nan
    with pytest.raises(DivergedError, match=r"step 0.*recipe\.lr"):
        list(train(state, iter([broken]), CONFIG.recipe, seed=0))


def test_early_stopping_keeps_the_best_weights() -> None:
    state = fresh()
    best = None
    for metrics in train(state, batches(), CONFIG.recipe, seed=0):
        if metrics.step == 4:
            state.consider(Validation(0.1, 0.9), patience=2)
            best = weights(state)
        elif metrics.step > 4:
            state.consider(Validation(0.2, 0.8), patience=2)
    assert state.step == 6
    assert state.stopped
    state.restore_best()
    assert best is not None
    for name, value in best.items():
        assert torch.equal(value, weights(state)[name])


def test_patience_zero_never_stops() -> None:
    state = fresh()
    for _ in train(state, batches(), CONFIG.recipe, seed=0):
        state.consider(Validation(1.0, 0.5), patience=0)
    assert state.step == 20


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup=0.1)
    rates = [rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.01
    assert rate(50, recipe.model_copy(update={"schedule": "constant"})) == 1.0


def test_every_worker_and_step_has_its_own_seed() -> None:
    seeds = {step_seed(a, b, c) for a in range(3) for b in range(8) for c in range(500)}
    assert len(seeds) == 3 * 8 * 500


def test_bfloat16_trains_close_to_float32() -> None:
    def run(bfloat16: bool) -> float:
        state = fresh()
        same = episodes(0, CONFIG)
        return list(train(state, iter([same] * 50), CONFIG.recipe, seed=0, bfloat16=bfloat16))[-1].loss

    assert run(True) == pytest.approx(run(False), abs=0.02)


def test_validation_is_the_mean_over_all_comparisons() -> None:
    torch.manual_seed(0)
    model = BTConfig().build(Dims(DIM, 4))
    with torch.no_grad():
        model.get_parameter("head_D").normal_()
    looks = [
        Episodes(pairs(i, users=i + 1), pairs(10 + i, users=i + 1), torch.arange(i + 1)) for i in range(3)
    ]
    nll, accuracy = validate([model], [looks])
    with torch.no_grad():
        users = [torch.zeros(i + 1, 0) for i in range(3)]
        margins = torch.cat(
            [model(look.target, user).mean_BN.flatten() for look, user in zip(looks, users, strict=True)]
        )
    assert nll == pytest.approx(float(torch.nn.functional.softplus(-margins).mean()), rel=1e-5)
    assert accuracy == pytest.approx(float((margins > 0).float().mean()))


def test_resuming_rewinds_the_metrics(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": 1.0 / step})
    log.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "train", "st')
    log = MetricsLog(tmp_path, 20)
    log.write("train", 30, {"loss": 9.0})
    log.close()
    lines = read_lines(tmp_path / METRICS_FILE)
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["loss"] == 9.0
    assert all(json.dumps(line) for line in lines)


def test_tensors_are_never_pickled(tmp_path: Path) -> None:
    save_tensors({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    assert b"torch" not in (tmp_path / "t.safetensors").read_bytes()
