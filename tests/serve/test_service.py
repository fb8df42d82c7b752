from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypref.checkpoint import Bundle
from raypref.data.items import write_items
from raypref.errors import ConfigError
from raypref.methods.fewshot import expected_gain, unpack
from raypref.methods.pref import PReF
from raypref.schema import HASH_BYTES, Embedder
from raypref.serve.calls import Score
from raypref.serve.config import ServeConfig
from raypref.serve.meter import Meter
from raypref.serve.scorer import Scorer
from raypref.serve.service import LANES
from raypref.serve.stores.base import StoreDown
from raypref.wire.arrays import Encoded
from raypref.wire.requests import Text
from raypref.wire.tensors import MEDIA_TYPE, pack_request, unpack_answer
from tests.serve.conftest import MakeBundle
from tests.serve.local import ANN, Local, candidates, compared, embedded
from tests.serve.world import DIM, embedder_of, make_bundle, some

CHOSEN, REJECTED, CANDIDATES = some(1, 8, DIM), some(2, 8, DIM), some(3, 5, DIM)

LEARN, ANN_PATH = "/v1/users/ann/comparisons", "/v1/users/ann"


@pytest.fixture
def service(bundle_of: MakeBundle) -> Iterator[Local]:
    local = Local(bundle_of("vrf"))
    yield local
    local.close()


@pytest.fixture
def factors(bundle_of: MakeBundle) -> Iterator[Local]:
    local = Local(bundle_of("pref"))
    yield local
    local.close()


def given(*numbers: int, **fields: Any) -> dict[str, Any]:
    rows = list(numbers)
    fields.setdefault("event_id", [f"e{row}" for row in rows])
    return {"comparisons": compared(CHOSEN[rows], REJECTED[rows], **fields)}


def scores(local: Local, **who: Any) -> dict[str, Any]:
    (data,) = local.ask("POST", "/v1/score", {"candidates": candidates(CANDIDATES), **who})["data"]
    return data


def test_a_user_from_first_comparison_to_last(service: Local) -> None:
    cold = service.ask("GET", ANN_PATH)
    assert (cold["cold"], cold["shots"], cold["version"]) == (True, 0, 0)
    population = scores(service)
    assert (population["user"], population["cold"], population["degraded"]) == (None, True, False)
    unknown = scores(service, user="ann")
    assert (unknown["user"], unknown["cold"], unknown["mean"]) == ("ann", True, population["mean"])

    learned = service.ask("POST", LEARN, given(0, 1))
    assert (learned["applied"], learned["duplicates"], learned["event_ids"]) == (2, 0, ["e0", "e1"])
    assert (learned["cold"], learned["shots"], learned["version"]) == (False, 2, 2)
    assert service.ask("GET", ANN_PATH)["weights"] == learned["weights"]
    assert [near["distance"] for near in learned["nearest"]] == sorted(
        near["distance"] for near in learned["nearest"]
    )
    known = scores(service, user="ann")
    assert (known["cold"], known["shots"], known["version"]) == (False, 2, 2)
    assert known["mean"] != population["mean"]
    assert known["probability"][0] == 0.5

    again = service.ask("POST", LEARN, given(0, 1))
    assert (again["applied"], again["duplicates"], again["version"]) == (0, 2, 2)
    assert scores(service, user="ann") == known

    gone = service.ask("DELETE", f"{LEARN}/e0")
    assert (gone["id"], gone["deleted"]) == ("e0", True)
    assert not service.ask("DELETE", f"{LEARN}/e0")["deleted"]
    assert service.ask("DELETE", ANN_PATH) == {"object": "raypref.deleted", "id": "ann", "deleted": True}
    assert not service.ask("DELETE", ANN_PATH)["deleted"]
    assert scores(service, user="ann")["mean"] == population["mean"]
    late = service.ask("POST", LEARN, given(0, 1))
    assert (late["applied"], late["erased"], late["cold"], late["version"]) == (0, 2, True, 4)
    early = service.ask("POST", LEARN, given(2, timestamp=[1.0]))
    assert (early["applied"], early["erased"], early["cold"]) == (0, 1, True)
    anew = service.ask("POST", LEARN, given(3))
    assert (anew["applied"], anew["shots"], anew["version"], anew["cold"]) == (1, 1, 5, False)


@pytest.mark.parametrize("seed", range(6))
def test_order_and_grouping_and_retries_do_not_matter(seed: int, bundle_of: MakeBundle) -> None:
    shuffle = random.Random(seed)
    method = shuffle.choice(["vrf", "lore", "pref", "spl", "fedvpa"])
    one, many = Local(bundle_of(method)), Local(bundle_of(method))
    one.ask("POST", LEARN, given(*range(8)))
    left = set(range(8))
    while left:
        request = shuffle.choices(range(8), k=shuffle.randint(1, 4))
        left -= set(request)
        many.ask("POST", LEARN, given(*dict.fromkeys(request)))
    assert scores(one, user="ann") == scores(many, user="ann")
    first, second = (local.ask("GET", f"{ANN_PATH}/export") for local in (one, many))
    assert first["vector"] == second["vector"]
    for local in (one, many):
        local.ask("DELETE", f"{LEARN}/e3")
        local.close()


def test_the_writes_of_a_batch_are_those_of_single_requests(bundle_of: MakeBundle) -> None:
    together, single = Local(bundle_of("vrf")), Local(bundle_of("vrf"))
    requests = [("POST", f"/v1/users/u{number % 5}/comparisons", given(number % 8)) for number in range(40)]
    assert [answer.status_code for answer in together.together(requests)] == [200] * 40
    for request in requests:
        single.ask(*request)
    exports = [
        [local.ask("GET", f"/v1/users/u{number}/export")["vector"] for number in range(5)]
        for local in (together, single)
    ]
    assert exports[0] == exports[1]
    together.close()
    single.close()


def test_comparisons_and_vectors_of_a_request_equal_a_stored_user(service: Local) -> None:
    body = given(0, 1, 2, weight=[1.0, 0.25, 3.0])
    service.ask("POST", LEARN, body)
    stored, passing = scores(service, user="ann"), scores(service, **body)
    for name in ("mean", "std", "probability"):
        np.testing.assert_allclose(passing[name], stored[name], rtol=0, atol=1e-6)
    assert (passing["user"], passing["shots"], passing["version"], passing["cold"]) == (None, 3, 0, False)
    exported = service.ask("GET", f"{ANN_PATH}/export")
    carried = scores(service, vector=exported["vector"])
    for name in ("mean", "std", "probability"):
        assert carried[name] == stored[name]
    replayed = [{**kept, "timestamp": kept["timestamp"]} for kept in exported["comparisons"]]
    assert [kept["weight"] for kept in replayed] == [1.0, 0.25, 3.0]
    service.ask("POST", "/v1/users/twin/comparisons", {"comparisons": replayed})
    assert service.ask("GET", "/v1/users/twin/export")["vector"] == exported["vector"]
    assert len(service.everything()) == 2


def test_weights_of_a_request_are_a_place_among_the_bases(bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("lore"))
    local.ask("POST", LEARN, given(0, 1, 2))
    known = local.ask("GET", ANN_PATH)
    there = scores(local, weights=known["weights"])
    assert (there["user"], there["cold"]) == (None, False)
    np.testing.assert_allclose(there["mean"], scores(local, user="ann")["mean"], atol=1e-5)
    np.testing.assert_allclose(there["std"], 0, atol=1e-6)
    # A linear method's rewards are linear in its weights.
    along = [[step * (place == 2) for place in range(len(known["weights"]))] for step in (0.0, 1.0, 2.0)]
    none, once, twice = (np.array(scores(local, weights=weights)["mean"]) for weights in along)
    np.testing.assert_allclose(twice - once, once - none, atol=1e-5)
    assert np.abs(once - none).max() > 1e-3
    body = {"candidates": candidates(CANDIDATES)}
    short = local.refused(422, "POST", "/v1/score", {**body, "weights": known["weights"][1:]})
    assert f"takes {len(known['weights'])}, these are" in short["message"]
    assert short["param"] == "weights"
    local.refused(422, "POST", "/v1/score", {**body, "weights": known["weights"], "user": "ann"})
    local.use(bundle_of("bt"))
    assert "no reward bases" in local.refused(422, "POST", "/v1/score", {**body, "weights": [1.0]})["message"]
    local.use(bundle_of("pal"))
    far = local.refused(422, "POST", "/v1/rank", {**body, "weights": [2.0] * len(known_of(local))})
    assert "sum to 1" in far["message"]
    local.close()


def known_of(local: Local) -> list[float]:
    return local.ask("GET", "/v1/users/new")["weights"]


def test_decay_is_harmless_twice_and_needs_a_user(service: Local) -> None:
    service.refused(404, "POST", f"{ANN_PATH}/decay", {"factor": 0.5})
    service.ask("POST", LEARN, given(0, 1))
    first = service.ask("POST", f"{ANN_PATH}/decay", {"factor": 0.5, "event_id": "d1"})
    second = service.ask("POST", f"{ANN_PATH}/decay", {"factor": 0.5, "event_id": "d1"})
    assert first == second
    kept = service.ask("GET", f"{ANN_PATH}/export")["comparisons"]
    assert [comparison["weight"] for comparison in kept] == [0.5, 0.5]
    service.ask("POST", f"{ANN_PATH}/decay", {"factor": 0.5, "timestamp": 1.0})
    assert service.ask("GET", f"{ANN_PATH}/export")["comparisons"] == kept


def test_many_users_and_single_ones_have_the_same_scores(service: Local) -> None:
    for number in range(5):
        service.ask("POST", f"/v1/users/u{number}/comparisons", given(*range(number + 1)))
    users = [f"u{number}" for number in range(5)] + ["stranger", "u0"]
    body = {"candidates": candidates(CANDIDATES), "users": users}
    answer = service.ask("POST", "/v1/score", body)
    assert [row["user"] for row in answer["data"]] == users
    assert [row["cold"] for row in answer["data"]] == [False] * 5 + [True, False]
    for row, user in zip(answer["data"], users, strict=True):
        alone = scores(service, user=user)
        np.testing.assert_allclose(row["mean"], alone["mean"], rtol=0, atol=1e-6)
        assert (row["version"], row["shots"]) == (alone["version"], alone["shots"])


def test_rank_orders_by_mean_less_risk(service: Local) -> None:
    service.ask("POST", LEARN, given(0, 1, 2))
    found = scores(service, user="ann")
    body = {"candidates": candidates(CANDIDATES), "user": "ann"}
    for risk in (0.0, 0.7, 50.0):
        (data,) = service.ask("POST", "/v1/rank", {**body, "risk": risk})["data"]
        expected = np.array(found["mean"]) - risk * np.array(found["std"])
        order = [place["index"] for place in data["ranking"]]
        assert order == np.argsort(-expected, kind="stable").tolist()
        for place in data["ranking"]:
            index = place["index"]
            assert place["score"] == pytest.approx(expected[index], abs=1e-4)
            assert place["mean"] == pytest.approx(found["mean"][index], abs=1e-6)
            assert place["probability"] == pytest.approx(found["probability"][index], abs=1e-6)
    (top,) = service.ask("POST", "/v1/rank", {**body, "risk": 50.0, "top": 2})["data"]
    assert top["ranking"] == data["ranking"][:2]
    assert [place["index"] for place in data["ranking"]] != np.argsort(-np.array(found["mean"])).tolist()


def test_probability_is_against_the_baseline(service: Local, bundle_of: MakeBundle) -> None:
    service.ask("POST", LEARN, given(0, 1, 2))
    against_last = scores(service, user="ann", baseline=embedded(CANDIDATES[-1]))
    assert against_last["mean"] == scores(service, user="ann")["mean"]
    assert against_last["probability"][-1] == 0.5
    body = {"candidates": candidates(CANDIDATES[[-1, 0]]), "user": "ann"}
    (turned,) = service.ask("POST", "/v1/score", body)["data"]
    assert turned["probability"][1] == pytest.approx(against_last["probability"][0], abs=1e-6)
    best = int(np.argmax(against_last["mean"]))
    assert against_last["probability"][best] >= 0.5


def test_suggest_asks_what_tells_most(factors: Local) -> None:
    """Nearly certain and small questions last; where answers are open, in the order of PReF's own gain."""
    factors.ask("POST", LEARN, given(0, 1, 2))
    bundle = Bundle.load(factors_bundle(factors))
    assert isinstance(bundle.model, PReF)
    export = factors.ask("GET", f"{ANN_PATH}/export")
    user_Z = Encoded(**export["vector"]).array()
    bases = bundle.model.config.bases
    # One direction, longer and longer, about where the user is undecided.
    import torch

    feature_K5 = bundle.model.evidence(torch.from_numpy(CANDIDATES), torch.zeros(5, DIM)).detach()
    mean_K = torch.from_numpy(user_Z[:bases].copy())
    open_K = feature_K5[0] - (feature_K5[0] @ mean_K) / (mean_K @ mean_K) * mean_K
    emb_D = torch.linalg.lstsq(bundle.model.bases_DK.detach().T, open_K.unsqueeze(1)).solution[:, 0]
    scale = float(bundle.model.scale)
    lengths = [0.3, 0.05, 1.0, 0.0, 0.6]
    pairs = [
        {
            "chosen": embedded((scale * length * emb_D).numpy()),
            "rejected": embedded(np.zeros(DIM, np.float32)),
        }
        for length in lengths
    ]
    answer = factors.ask("POST", "/v1/suggest", {"pairs": pairs, "user": "ann", "top": 5})
    order = [suggestion["index"] for suggestion in answer["data"]]
    gains = [suggestion["gain"] for suggestion in answer["data"]]
    assert gains == sorted(gains, reverse=True)
    assert order == [2, 4, 0, 1, 3]
    assert gains[-1] == pytest.approx(0.0, abs=1e-7)
    for suggestion in answer["data"]:
        assert suggestion["probability"] == pytest.approx(0.5, abs=1e-3)
    asked_15K = torch.stack([length * open_K for length in lengths]).unsqueeze(0)
    cov_KK = unpack(torch.from_numpy(user_Z[bases:].copy()), bases)
    for suggestion in answer["data"]:
        asked_K = asked_15K[0, suggestion["index"]]
        assert suggestion["std"] == pytest.approx(
            float(asked_K @ cov_KK @ asked_K) ** 0.5, rel=1e-3, abs=1e-6
        )
    gain_15 = expected_gain(asked_15K, mean_K.unsqueeze(0), cov_KK.unsqueeze(0))
    assert gain_15[0].argsort(descending=True).tolist() == order
    assert (answer["user"], answer["shots"], answer["version"], answer["cold"]) == ("ann", 3, 3, False)
    assert len(factors.ask("POST", "/v1/suggest", {"pairs": pairs})["data"]) == 1


def factors_bundle(local: Local) -> Path:
    return local.bundle


def test_suggest_needs_a_posterior(bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("bt"))
    pairs = [{"chosen": embedded(CHOSEN[0]), "rejected": embedded(REJECTED[0])}]
    assert "posterior" in local.refused(422, "POST", "/v1/suggest", {"pairs": pairs})["message"]
    local.close()


def test_suggest_in_bulk_keeps_pairs_and_own_comparisons_apart(service: Local) -> None:
    """The tensors are the pairs that are asked about, not the comparisons that came with the request."""
    own = given(0, 1)
    pairs = [
        {"chosen": embedded(chosen), "rejected": embedded(rejected)}
        for chosen, rejected in zip(CHOSEN[3:8], REJECTED[3:8], strict=True)
    ]
    asked = service.ask("POST", "/v1/suggest", {"pairs": pairs, "top": 5, **own})
    body = pack_request({"top": 5, **own}, {"chosen": CHOSEN[3:8], "rejected": REJECTED[3:8]})
    bulk = service.ask("POST", "/v1/suggest", content=body, headers={"content-type": MEDIA_TYPE})
    assert bulk["data"] == asked["data"]
    assert bulk["shots"] == asked["shots"] == 2


def test_bulk_answers_are_the_same_numbers(service: Local) -> None:
    service.ask("POST", LEARN, given(0, 1))
    body = pack_request({"users": ["ann", "ben"]}, {"candidates": CANDIDATES})
    headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
    response = service.request("POST", "/v1/score", content=body, headers=headers)
    assert response.status_code == 200
    head, tensors = unpack_answer(response.content)
    assert head["users"] == ["ann", "ben"]
    assert tensors["cold"].tolist() == [0, 1]
    assert tensors["shots"].tolist() == [2, 0]
    rows = service.ask("POST", "/v1/score", {"candidates": candidates(CANDIDATES), "users": ["ann", "ben"]})[
        "data"
    ]
    for name in ("mean", "std", "probability"):
        np.testing.assert_array_equal(tensors[name], np.array([row[name] for row in rows], np.float32))


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Items whose content hashes include one that ends in zeros."""
    keys = b"".join(bytes([name + 1]) * (HASH_BYTES - name) + bytes(name) for name in range(8))
    write_items(
        tmp_path / "items",
        embedder_of(),
        [(np.frombuffer(keys, f"V{HASH_BYTES}"), some(5, 8, DIM).astype(np.float16))],
    )
    return tmp_path / "items"


def named(*numbers: int) -> list[dict[str, Any]]:
    return [{"item": number} for number in numbers]


def test_items_by_id_are_items_by_embedding(items: Path, bundle_of: MakeBundle) -> None:
    emb_ND = some(5, 8, DIM).astype(np.float16)
    local = Local(bundle_of("vrf"), items=items)
    assert "item" in local.ask("GET", "/v1/models")["data"][0]["accepts"]
    comparison = {"event_id": "a", "chosen": {"item": 4}, "rejected": {"item": 7}}
    local.ask("POST", LEARN, {"comparisons": [comparison]})
    mixed = {"event_id": "a", "chosen": embedded(emb_ND[4]), "rejected": embedded(emb_ND[7])}
    local.ask("POST", "/v1/users/ben/comparisons", {"comparisons": [mixed]})
    by_id = local.ask("POST", "/v1/score", {"user": "ann", "candidates": named(0, 3, 7)})["data"][0]
    by_embedding = local.ask(
        "POST", "/v1/score", {"user": "ben", "candidates": candidates(emb_ND[[0, 3, 7]])}
    )["data"][0]
    both = [{"item": 0}, embedded(emb_ND[3]), {"item": 7}]
    together = local.ask("POST", "/v1/score", {"user": "ann", "candidates": both})["data"][0]
    assert by_id["mean"] == by_embedding["mean"] == together["mean"]
    assert local.ask("GET", f"{ANN_PATH}/export")["comparisons"][0]["chosen"] == {"item": 4}
    before = local.everything()
    for body in (
        {"candidates": named(8)},
        {"candidates": named(0, 2**62)},
        {"candidates": named(0), "baseline": {"item": 99}},
    ):
        assert local.refused(422, "POST", "/v1/score", body)["param"] == "item"
    local.refused(422, "POST", LEARN, {"comparisons": [{"chosen": {"item": 0}, "rejected": {"item": 8}}]})
    assert local.everything() == before
    local.use(bundle_of("vrf", seed=1))
    assert local.ask("GET", ANN_PATH)["shots"] == 1
    local.close()


def test_ids_only_means_that(items: Path, bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("vrf"), items=items, keep="ids")
    local.refused(422, "POST", LEARN, given(0))
    bulk = pack_request({}, {"chosen": CHOSEN[:1], "rejected": REJECTED[:1]})
    local.refused(422, "POST", LEARN, content=bulk, headers={"content-type": MEDIA_TYPE})
    assert local.everything() == []
    local.ask("POST", LEARN, {"comparisons": [{"chosen": {"item": 0}, "rejected": {"item": 1}}]})
    assert scores(local, user="ann")["shots"] == 1
    ((_, (event,)),) = local.store.events([ANN], raw=True)
    assert len(event.chosen) == len(event.rejected) == 1 + HASH_BYTES
    local.close()


def test_requests_that_do_not_fit_are_refused_and_change_nothing(service: Local) -> None:
    service.ask("POST", LEARN, given(0))
    before = service.everything()
    twice = given(1, 2, event_id=["x", "x"])
    assert "same event_id" in service.refused(422, "POST", LEARN, twice)["message"]
    taken = {"comparisons": compared(CHOSEN[5:6], REJECTED[5:6], event_id=["e0"])}
    assert "e0" in service.refused(409, "POST", LEARN, taken)["message"]
    wide = {"comparisons": compared(some(1, 1, DIM + 1), some(2, 1, DIM + 1))}
    assert str(DIM) in service.refused(422, "POST", LEARN, wide)["message"]
    service.refused(422, "POST", LEARN, given(1, timestamp=[9e10]))
    service.refused(
        422, "POST", LEARN, {"comparisons": [{"chosen": {"text": "a"}, "rejected": {"text": "b"}}]}
    )
    body = {"candidates": candidates(CANDIDATES)}
    assert service.refused(404, "POST", "/v1/score", {**body, "model": "other"})["param"] == "model"
    service.refused(422, "POST", "/v1/score", {**body, "vector": [1.0]})
    service.refused(422, "POST", "/v1/score", {**body, "user": "ann", "users": ["ann"]})
    name = service.ask("GET", "/v1/models")["data"][0]["id"]
    for model in (name, name.partition("@")[0]):
        assert scores(service, model=model)["cold"]
    assert service.everything() == before


def test_limits_of_comparisons_candidates_and_scores(bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("vrf"), max_comparisons=3, max_candidates=4, max_scores=6)
    local.ask("POST", LEARN, given(0, 1))
    before = local.everything()
    assert "3 comparisons" in local.refused(422, "POST", LEARN, given(2, 3))["message"]
    assert local.everything() == before
    assert local.ask("POST", LEARN, given(0, 1, 2))["applied"] == 1
    for rows, users, fine in ((4, 1, True), (5, 1, False), (3, 2, True), (4, 2, False)):
        body = {"candidates": candidates(some(1, rows, DIM)), "users": [f"u{user}" for user in range(users)]}
        (local.ask if fine else lambda *asked: local.refused(422, *asked))("POST", "/v1/score", body)
    local.close()


def test_a_new_bundle_keeps_users(bundle_of: MakeBundle) -> None:
    local, fresh = Local(bundle_of("vrf")), Local(bundle_of("lore", seed=1))
    for service in (local, fresh):
        service.ask("POST", LEARN, given(0, 1, 2))
    before = local.ask("GET", "/v1/models")["data"][0]["id"]
    local.use(bundle_of("lore", seed=1))
    assert local.ask("GET", "/v1/models")["data"][0]["id"] != before
    assert scores(local, user="ann") == scores(fresh, user="ann")
    local.refused(422, "POST", "/v1/score", {"candidates": candidates(CANDIDATES), "vector": [0.0]})
    local.use(bundle_of("vrf"))
    assert local.ask("GET", "/v1/models")["data"][0]["id"] == before
    local.close()
    fresh.close()


def test_a_damaged_bundle_is_refused_and_the_old_one_serves_on(tmp_path: Path, bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("vrf"))
    before = local.ask("GET", "/v1/models")["data"][0]["id"]
    local.use(tmp_path)
    assert "refused" in local.refused(503, "GET", "/readyz")["message"]
    assert local.ask("GET", "/v1/models")["data"][0]["id"] == before
    assert scores(local)["cold"]
    local.use(bundle_of("vrf"))
    assert local.ask("GET", "/readyz") == {"status": "ready"}
    local.close()


class OtherEmbedder:
    """Makes vectors of another model than the bundle's."""

    async def embed(self, items: Sequence[tuple[Text | None, Text]]) -> tuple[np.ndarray, Embedder]:
        return np.zeros((len(items), DIM), np.float16), await self.describe()

    async def describe(self) -> Embedder:
        return embedder_of().model_copy(update={"model": "another"})


def test_text_of_another_embedder_is_never_scored(bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("vrf"), embedder=OtherEmbedder())
    asked = {"candidates": [{"text": "a"}, {"text": "b"}]}
    for method, path, body in (("POST", "/v1/score", asked), ("GET", "/readyz", None)):
        error = local.refused(503, method, path, body)
        assert "model 'another' instead of 'test'" in error["message"]
    local.close()


@pytest.mark.parametrize("on_store_failure", ["prior", "refuse"])
def test_what_the_store_failed_is_counted_and_nothing_else(
    on_store_failure: str, bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Meter] = []
    monkeypatch.setattr(Meter, "store_failed", lambda meter: failures.append(meter))
    local = Local(bundle_of("vrf"), on_store_failure=on_store_failure)
    local.refused(404, "POST", "/v1/score", {"candidates": candidates(CANDIDATES), "model": "another"})
    scores(local, user="ann")
    assert not failures

    def down(*_: object) -> None:
        raise StoreDown("down")

    monkeypatch.setattr(local.store, "read", down)
    scores(local)
    assert not failures
    local.request("POST", "/v1/score", {"candidates": candidates(CANDIDATES), "user": "ann"})
    local.refused(503, "GET", ANN_PATH)
    local.refused(503, "POST", LEARN, given(0))
    assert len(failures) == 3
    local.close()


def test_a_replica_that_comes_after_a_refusal_serves_what_it_can(
    bundle_of: MakeBundle, tmp_path: Path
) -> None:
    foreign = make_bundle(tmp_path / "foreign", dim=DIM + 1)
    store = f"sqlite:///{tmp_path}/users.db"
    Local(bundle_of("vrf"), store).close()
    config = ServeConfig(bundle=bundle_of("vrf"), store=store, open=True)
    late = Scorer(config.settings, config.bundle)
    asyncio.run(late.reconfigure({"bundle": str(foreign)}))
    found = asyncio.run(late.describe())
    assert found.width == DIM
    assert found.refused is not None
    assert "foreign" in found.refused
    hopeless = Scorer(config.settings, str(foreign))
    with pytest.raises(ConfigError, match="foreign"):
        asyncio.run(hopeless.reconfigure({"bundle": str(foreign)}))


def test_a_request_waits_for_others_no_longer_than_it_may(
    bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Local(bundle_of("vrf"), timeout_s=0.2, batch=1)
    under_way: list[list[Score]] = []

    async def stuck(calls: list[Score]) -> Any:
        under_way.append(calls)
        await asyncio.Event().wait()

    monkeypatch.setattr(local.scorer, "score", stuck)
    body = {"candidates": candidates(CANDIDATES), "user": "ann"}
    answers = local.together([("POST", "/v1/score", body)] * 20)
    assert {answer.status_code for answer in answers} == {503}
    assert all(answer.headers["retry-after"] == "1" for answer in answers)
    assert len(under_way) == LANES
    local.close()
