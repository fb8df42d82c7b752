"""What HTTP answers is what the bundle says in Python, user by user as the README shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypref.checkpoint import Bundle
from raypref.methods import LoReConfig, PALConfig, PReFConfig, SPLConfig, VPLConfig
from raypref.methods.base import MethodConfig
from raypref.wire.tensors import MEDIA_TYPE, pack_request, unpack_answer
from tests.serve.conftest import MakeBundle
from tests.serve.local import Local, candidates, compared
from tests.serve.stores.servers import Postgres, Redis
from tests.serve.world import METHOD_NAMES, some

USERS, SHOTS, CANDIDATES = 50, 20, 10
"""1,000 comparisons a method: 10,000 of the ten methods."""

PUBLISHED: dict[str, MethodConfig] = {
    "lore as published": LoReConfig(solver="adam"),
    "pal as published": PALConfig(solver="adamw"),
    "pref as published": PReFConfig(solver="sgd"),
    "vpl as released": VPLConfig(variant="released"),
    "spl as released": SPLConfig(variant="released"),
}

BULK = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}


class World:
    """Users with comparisons, candidates for each, and what the bundle says of them."""

    def __init__(self, bundle: Path) -> None:
        model = Bundle.load(bundle).model
        self.width = model.dims.embedding
        self.chosen_UPD = some(1, USERS, SHOTS, self.width)
        self.rejected_UPD = some(2, USERS, SHOTS, self.width)
        self.items_UND = some(3, USERS, CANDIDATES, self.width)
        self.mean_UN = np.empty((USERS, CANDIDATES), np.float32)
        self.std_UN = np.zeros((USERS, CANDIDATES), np.float32)
        for user in range(USERS):
            chosen_PD, rejected_PD, items_ND = (
                torch.from_numpy(part[user]) for part in (self.chosen_UPD, self.rejected_UPD, self.items_UND)
            )
            with torch.no_grad():
                user_1Z = model.infer(model.evidence(chosen_PD, rejected_PD)[None], torch.ones(1, SHOTS))
                reward = model.reward(model.item(items_ND)[None], user_1Z)
            self.mean_UN[user] = reward.mean_BN[0].numpy()
            if reward.var_BN is not None and model.uncertain:
                self.std_UN[user] = reward.var_BN[0].sqrt().numpy()


def apart(found_UN: np.ndarray, expected_UN: np.ndarray) -> float:
    """Return the largest difference, relative to a user's largest score where that is above 1.

    Not to each score: a small one is the difference of large terms, whose rounding it keeps.
    """
    scale_U1 = np.maximum(1, np.abs(expected_UN).max(1, keepdims=True))
    return float((np.abs(found_UN - expected_UN) / scale_U1).max())


def served(local: Local, world: World, users: int = USERS) -> tuple[np.ndarray, np.ndarray]:
    """Send users' comparisons, some together and some one by one, and return mean and std."""
    mean: list[Any] = []
    std: list[Any] = []
    for user in range(users):
        path, step = f"/v1/users/u{user}/comparisons", (SHOTS, 7, 3)[user % 3]
        events = [f"e{number}" for number in range(SHOTS)]
        body = compared(world.chosen_UPD[user], world.rejected_UPD[user], event_id=events)
        for first in range(0, SHOTS, step):
            local.ask("POST", path, {"comparisons": body[first : first + step]})
    for user in range(users):
        asked = {"user": f"u{user}", "candidates": candidates(world.items_UND[user])}
        (data,) = local.ask("POST", "/v1/score", asked)["data"]
        assert (data["shots"], data["cold"]) == (SHOTS, False)
        mean.append(data["mean"])
        std.append(data["std"] or [0.0] * CANDIDATES)
    return np.array(mean), np.array(std)


ROUNDING = {"pal_b": 2e-6}
"""Where float32 does not reach 1e-6: PAL-B's cosines are scaled up, and offline too its scores differ by as
much between items that are judged together and one by one."""


@pytest.mark.parametrize("method", [*METHOD_NAMES, *PUBLISHED])
def test_every_method_scores_alike_over_http(
    method: str, bundle_of: MakeBundle, record_property: pytest.RecordProperty
) -> None:
    bundle = bundle_of(PUBLISHED.get(method, method))
    world, local = World(bundle), Local(bundle)
    # Hundreds of steps for every vector: a few users say as much.
    users = 4 if method.endswith("as published") or method.endswith("as released") else USERS
    mean_UN, std_UN = served(local, world, users)
    local.close()
    record_property("largest_difference", float(np.abs(mean_UN - world.mean_UN[:users]).max()))
    record_property("largest_score", float(np.abs(world.mean_UN).max()))
    bound = ROUNDING.get(method, 1e-6)
    assert apart(mean_UN, world.mean_UN[:users]) <= bound
    assert apart(std_UN, world.std_UN[:users]) <= bound


@pytest.fixture(
    params=["memory", "sqlite", *(pytest.param(n, marks=pytest.mark.server) for n in ("postgres", "redis"))]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory:"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/users.db"
    server = request.getfixturevalue("postgres" if request.param == "postgres" else "redis_server")
    assert isinstance(server, Postgres | Redis)
    return server.new_url()


def test_every_store_scores_alike(url: str, bundle_of: MakeBundle) -> None:
    bundle = bundle_of("vrf")
    world, reference = World(bundle), Local(bundle)
    expected = served(reference, world, 12)
    reference.close()
    local = Local(bundle, url, store_timeout_s=20.0)
    found = served(local, world, 12)
    local.close()
    assert apart(found[0], world.mean_UN[:12]) <= 1e-6
    for part, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, other)
    if not url.startswith("memory"):
        # Another process finds the same users there.
        again = Local(bundle, url, store_timeout_s=20.0)
        asked = {"user": "u0", "candidates": candidates(world.items_UND[0])}
        (data,) = again.ask("POST", "/v1/score", asked)["data"]
        np.testing.assert_array_equal(data["mean"], expected[0][0])
        again.close()


@pytest.fixture
def local(bundle_of: MakeBundle) -> Iterator[Local]:
    local = Local(bundle_of("vrf"))
    yield local
    local.close()


def test_every_form_of_numbers_gives_the_same_bits(local: Local, bundle_of: MakeBundle) -> None:
    world = World(bundle_of("vrf"))
    chosen_PD, rejected_PD, items_ND = world.chosen_UPD[0], world.rejected_UPD[0], world.items_UND[0]
    plain = [
        {"chosen": {"embedding": chosen.tolist()}, "rejected": {"embedding": rejected.tolist()}}
        for chosen, rejected in zip(chosen_PD, rejected_PD, strict=True)
    ]
    events = [{"event_id": f"e{number}"} for number in range(SHOTS)]
    floats = [comparison | event for comparison, event in zip(plain, events, strict=True)]
    coded = compared(chosen_PD, rejected_PD, event_id=[event["event_id"] for event in events])
    local.ask("POST", "/v1/users/floats/comparisons", {"comparisons": floats})
    local.ask("POST", "/v1/users/coded/comparisons", {"comparisons": coded})
    bulk = pack_request({"comparisons": events}, {"chosen": chosen_PD, "rejected": rejected_PD})
    local.ask("POST", "/v1/users/bulk/comparisons", content=bulk, headers={"content-type": MEDIA_TYPE})
    records = local.everything()
    assert len({tuple((e.chosen, e.rejected, e.evidence) for e in record.events) for record in records}) == 1

    answers: list[np.ndarray] = []
    for user in ("floats", "coded", "bulk"):
        asked = {"user": user, "candidates": [{"embedding": item.tolist()} for item in items_ND]}
        answers.append(np.array(local.ask("POST", "/v1/score", asked)["data"][0]["mean"], np.float32))
        asked = {"user": user, "candidates": candidates(items_ND)}
        answers.append(np.array(local.ask("POST", "/v1/score", asked)["data"][0]["mean"], np.float32))
        body = pack_request({"user": user}, {"candidates": items_ND})
        response = local.request("POST", "/v1/score", content=body, headers=BULK)
        answers.append(unpack_answer(response.content)[1]["mean"][0])
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
