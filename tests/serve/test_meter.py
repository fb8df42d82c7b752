from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray.serve.metrics import Counter

from raypref.serve.calls import Score, Scored
from raypref.serve.compat_base import ScoredText
from raypref.serve.meter import MODELS, Meter, RewardMeter
from raypref.serve.rewards import TextRewards
from raypref.wire.errors import WireError
from tests.serve.conftest import MakeBundle
from tests.serve.local import Local, candidates, compared
from tests.serve.world import DIM, some

Figures = dict[tuple[str, ...], float]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Figures:
    """What is counted, by the name of the figure and the values of its labels."""
    found: Figures = defaultdict(float)

    def inc(counter: Counter, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        assert value > 0
        found[(counter.info["name"], *(tags or {}).values())] += value

    monkeypatch.setattr(Counter, "inc", inc)
    return found


def scored(model: str, mean_UN: list[list[float]], std: float | None = None) -> Scored:
    mean = np.array(mean_UN, np.float32)
    count = np.zeros(len(mean), np.int64)
    stds = None if std is None else np.full_like(mean, std)
    return Scored(model, (), count, count, False, mean, stds, mean)


def test_means_and_spreads_can_be_had_from_what_is_counted(counted: Figures) -> None:
    meter = RewardMeter()
    meter.given(
        [
            scored("new", [[1.0, -2.0], [4.0, 0.0]], std=0.5),
            WireError(422, "no"),
            scored("new", [[-3.0]], std=1.5),
            scored("old", [[1.0]]),
        ]
    )
    assert counted == {
        ("raypref_rewards", "new"): 5,
        ("raypref_reward_sum", "new", "positive"): 5,
        ("raypref_reward_sum", "new", "negative"): 5,
        ("raypref_reward_squares", "new"): 30,
        ("raypref_uncertain_rewards", "new"): 5,
        ("raypref_uncertainty_sum", "new"): 3.5,
        ("raypref_rewards", "old"): 1,
        ("raypref_reward_sum", "old", "positive"): 1,
        ("raypref_reward_squares", "old"): 1,
    }


def test_small_rewards_among_many_are_not_lost(counted: Figures) -> None:
    RewardMeter().given([scored("m", [[0.1] * 1_000_000])])
    assert counted["raypref_reward_sum", "m", "positive"] == pytest.approx(1e5, rel=1e-6)


def test_bundles_without_end_are_no_series_without_end(counted: Figures) -> None:
    meter = RewardMeter()
    for number in range(3 * MODELS):
        meter.given([scored(f"m{number}", [[1.0]])])
    meter.given([scored("m0", [[1.0]])])
    models = {model for name, model in (key[:2] for key in counted) if name == "raypref_rewards"}
    assert len(models) == MODELS + 1
    assert counted["raypref_rewards", "other"] == 2 * MODELS
    assert counted["raypref_rewards", "m0"] == 2


def test_a_service_counts_users_and_rewards(counted: Figures, bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("vrf"))
    learned = {"comparisons": compared(some(1, 2, DIM), some(2, 2, DIM))}
    local.ask("POST", "/v1/users/ann/comparisons", learned)
    asked = {"candidates": candidates(some(3, 5, DIM))}
    data = []
    for who in ({"users": ["ann", "ben", "eve"]}, {"user": "ann"}, {}):
        data += local.ask("POST", "/v1/score", asked | who)["data"]
    model = local.ask("GET", "/v1/models")["data"][0]["id"]
    local.close()
    mean = np.array([row["mean"] for row in data])
    std = np.array([row["std"] for row in data])
    assert counted["raypref_users_scored",] == 4
    assert counted["raypref_cold_users_scored",] == 2
    assert counted["raypref_candidates_scored",] == counted["raypref_rewards", model] == mean.size == 25
    positive, negative = (counted["raypref_reward_sum", model, sign] for sign in ("positive", "negative"))
    assert positive - negative == pytest.approx(mean.sum(), rel=1e-5)
    assert counted["raypref_uncertainty_sum", model] == pytest.approx(std.sum(), rel=1e-5)


class Texts:
    """An embedder, and a Scorer that knows nobody but ann."""

    async def embed(self, items: Sequence[Any]) -> tuple[np.ndarray, None]:
        return np.zeros((len(items), DIM), np.float32), None

    async def call(self, method: str, calls: list[Score]) -> list[Scored]:
        shots = [np.array([int("ann" in call.who.users)]) for call in calls]
        return [
            replace(scored("m", [[1.0] * len(call.candidates)]), users=call.who.users, shots_U=shot)
            for call, shot in zip(calls, shots, strict=True)
        ]


def test_users_of_texts_are_counted(counted: Figures) -> None:
    texts: Any = Texts()
    items = [ScoredText(user, "text") for user in ("ann", "ben", "ann", None)]
    asyncio.run(TextRewards(texts, texts, Meter()).rewards("default", items))
    assert counted == {
        ("raypref_candidates_scored",): 4,
        ("raypref_users_scored",): 2,
        ("raypref_cold_users_scored",): 1,
    }
