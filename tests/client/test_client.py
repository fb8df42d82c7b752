from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from raypref.client import AsyncClient, Client, ClientError, Comparison, Pair, Unauthorized
from raypref.errors import ConfigError, InputError
from raypref.wire.requests import Item
from raypref.wire.tensors import MEDIA_TYPE
from tests.client.service import MODEL, State, expected

rng = np.random.default_rng(0)
EMB_ND = rng.normal(size=(5, 4)).astype(np.float32)


def pairs(count: int, dim: int = 4) -> list[Comparison]:
    return [Comparison(*rng.normal(size=(2, dim)).astype(np.float32)) for _ in range(count)]


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, raypref.client, raypref.client.adapters.trl, raypref.client.adapters.verl, "
        "raypref.client.adapters.openrlhf; "
        "heavy = {'torch', 'ray', 'pyarrow', 'transformers', 'trl', 'verl', 'openrlhf'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_comparisons_are_learned_once_whatever_is_sent_again(client: Client, service: State) -> None:
    comparisons = pairs(3)
    first = client.learn("ann", comparisons)
    again = client.learn("ann", comparisons)
    assert (first.applied, first.duplicates) == (3, 0)
    assert (again.applied, again.duplicates) == (0, 3)
    assert first.event_ids == [one.event_id for one in comparisons]
    sent = json.loads(service.seen[0].body)["comparisons"]
    assert [one["timestamp"] for one in sent] == [one.timestamp for one in comparisons]
    assert client.user("ann").shots == 3


def test_two_comparisons_never_share_an_id() -> None:
    assert len({Comparison("a", "b").event_id for _ in range(1000)}) == 1000


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embeddings_arrive_as_they_are(client: Client, service: State, dtype: Any) -> None:
    emb_ND = EMB_ND.astype(dtype)
    scores = client.score(emb_ND, user="ann")
    wire = emb_ND if dtype == np.float16 else emb_ND.astype(np.float32)
    np.testing.assert_array_equal(scores.mean, [[np.float32(expected("ann", one)) for one in wire]])
    assert json.loads(service.seen[0].body)["candidates"]["embeddings"].get("dtype", "float32") == str(
        wire.dtype
    )


def test_scores_are_arrays_with_a_row_a_user(client: Client) -> None:
    scores = client.score(["yes", "no"], users=["ann", "bob", "cem"], prompt="Tea?")
    assert scores.users == ("ann", "bob", "cem")
    assert scores.mean.shape == scores.probability.shape == (3, 2)
    assert scores.std is not None
    assert scores.std.shape == (3, 2)
    assert scores.mean.dtype == np.float32
    assert scores.model == MODEL
    assert scores.cold.tolist() == [False] * 3
    assert scores.mean[1, 0] == np.float32(expected("bob", json.dumps("yes")))


def test_a_method_without_uncertainty_has_no_std(client: Client, service: State) -> None:
    service.std = False
    assert client.score(EMB_ND).std is None


@pytest.mark.parametrize(
    ("candidates", "sent"),
    [
        (["a", "b"], [{"text": "a"}, {"text": "b"}]),
        ([3, np.int64(9)], [{"item": 3}, {"item": 9}]),
        (np.array([3, 9]), [{"item": 3}, {"item": 9}]),
        ([[{"role": "user", "content": "hi"}]], [{"text": [{"role": "user", "content": "hi"}]}]),
        (["a", 3], [{"text": "a"}, {"item": 3}]),
        ([Item(item=4), "a"], [{"item": 4}, {"text": "a"}]),
    ],
)
def test_candidates_may_be_text_or_ids(client: Client, service: State, candidates: Any, sent: Any) -> None:
    client.score(candidates)
    assert json.loads(service.seen[0].body)["candidates"] == sent


def test_a_list_of_vectors_and_a_tensor_are_what_their_array_is(client: Client) -> None:
    whole = client.score(EMB_ND).mean
    np.testing.assert_array_equal(client.score(list(EMB_ND)).mean, whole)
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(client.score(torch.from_numpy(EMB_ND)).mean, whole)
    np.testing.assert_array_equal(client.score([Item(embedding=one.tolist()) for one in EMB_ND]).mean, whole)


def test_a_user_may_come_with_the_request(client: Client, service: State) -> None:
    exported = client.export("ann")
    assert exported.vector is not None
    client.score(EMB_ND, vector=exported.vector, baseline=EMB_ND[0])
    sent = json.loads(service.seen[-1].body)
    assert sent["vector"]["base64"] == exported.vector.base64
    assert "embedding" in sent["baseline"]
    client.rank(EMB_ND, weights=(0.5, -1.0))
    assert json.loads(service.seen[-1].body)["weights"] == [0.5, -1.0]
    client.score(EMB_ND, comparisons=pairs(2))
    assert len(json.loads(service.seen[-1].body)["comparisons"]) == 2


def test_rank_suggest_decay_forget_erase_models(client: Client, service: State) -> None:
    comparison = pairs(1)[0]
    client.learn("ann", [comparison])
    ranking = client.rank(EMB_ND, user="ann", risk=0.5, top=2).data[0].ranking
    assert [one.index for one in ranking] == np.argsort(-EMB_ND.sum(1))[:2].tolist()
    suggested = client.suggest([Pair("a", "b"), Pair("c", "d")], user="ann", top=2)
    assert [one.index for one in suggested.data] == [0, 1]
    client.decay("ann", 0.5, event_id="spring", timestamp=5.0)
    assert json.loads(service.seen[-1].body) == {"factor": 0.5, "event_id": "spring", "timestamp": 5.0}
    assert client.export("ann").comparisons[0].event_id == comparison.event_id
    assert client.forget("ann", comparison.event_id).deleted
    assert not client.forget("ann", comparison.event_id).deleted
    assert client.erase("ann").deleted
    assert client.models().data[0].id == MODEL


def test_large_batches_travel_as_tensors_both_ways(client: Client, service: State) -> None:
    emb_ND = rng.normal(size=(40_000, 8)).astype(np.float32)
    users = [f"u{n}" for n in range(3)]
    scores = client.score(emb_ND, users=users, baseline=emb_ND[3])
    assert service.seen[0].headers["content-type"] == MEDIA_TYPE
    assert MEDIA_TYPE in service.seen[0].headers["accept"]
    assert len(service.seen[0].body) < emb_ND.nbytes + 2000
    np.testing.assert_allclose(scores.mean, np.tile(emb_ND.sum(1), (3, 1)), atol=1e-5)
    assert scores.users == tuple(users)
    assert scores.cold.dtype == np.bool_
    assert scores.std is not None


def test_many_comparisons_travel_as_tensors(client: Client, service: State) -> None:
    comparisons = pairs(600, dim=512)
    answer = client.learn("ann", comparisons)
    assert service.seen[0].headers["content-type"] == MEDIA_TYPE
    assert answer.event_ids == [one.event_id for one in comparisons]
    kept = service.comparisons["ann"]
    assert all(kept[c.event_id] == c.chosen.tobytes() + c.rejected.tobytes() for c in comparisons)  # pyright: ignore


def test_a_large_answer_to_a_small_request_comes_as_tensors(client: Client, service: State) -> None:
    scores = client.score(EMB_ND, users=[f"u{n}" for n in range(20_000)])
    assert service.seen[0].headers["content-type"] == "application/json"
    assert service.seen[0].headers["accept"].startswith(MEDIA_TYPE)
    assert scores.mean.shape == (20_000, 5)


BAD: list[tuple[Any, str]] = [
    (lambda c: c.score(np.array([[1.0, np.nan]])), "not finite"),
    (lambda c: c.score(np.array([[1e300, 1.0]])), "not finite"),
    (lambda c: c.score(np.ones(4)), r"shape \[4\]"),
    (lambda c: c.score(np.ones((2, 2, 2))), "shape"),
    (lambda c: c.score(np.ones((0, 4))), "shape"),
    (lambda c: c.score([np.ones(3), np.ones(4)]), "widths"),
    (lambda c: c.score([]), "at least one"),
    (lambda c: c.score("text"), "list"),
    (lambda c: c.score([True]), "bool"),
    (lambda c: c.score([-1]), "item"),
    (lambda c: c.score([None]), "text"),
    (lambda c: c.score(np.array(["a"])), "not numbers"),
    (lambda c: c.score(EMB_ND, baseline=np.ones(3)), "widths"),
    (lambda c: c.score(EMB_ND, comparisons=pairs(1, dim=3)), "widths"),
    (lambda c: c.score(EMB_ND, user="a", users=["b"]), "at most one"),
    (lambda c: c.score(EMB_ND, user="../etc"), "user"),
    (lambda c: c.score(EMB_ND, vector=np.array([np.inf])), "vector"),
    (lambda c: c.score(EMB_ND, weights=[float("nan")]), "weights"),
    (lambda c: c.score(EMB_ND, weights=[1.0], user="ann"), "at most one"),
    (lambda c: c.rank(EMB_ND, risk=float("nan")), "risk"),
    (lambda c: c.rank(EMB_ND, top=0), "top"),
    (lambda c: c.learn("ann", []), "at least one Comparison"),
    (lambda c: c.learn("ann", [("a", "b")]), "Comparison"),
    (lambda c: c.learn("a/b", [Comparison("a", "b")]), "user"),
    (lambda c: c.learn("ann", [Comparison("a", "b", event_id="x y")]), "event_id"),
    (lambda c: c.learn("ann", [Comparison("a", "b", weight=0)]), "weight"),
    (lambda c: c.learn("ann", [Comparison(np.ones(3), np.ones(4))]), "widths"),
    (
        lambda c: c.learn("ann", [Comparison(np.ones(3), np.array([1, 2, np.inf]))]),
        r"comparisons\[0\].rejected",
    ),
    (lambda c: c.decay("ann", 1.5), "factor"),
    (lambda c: c.forget("ann", ".."), "event_id"),
    (lambda c: c.suggest([], user="ann"), "at least one Pair"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_what_is_not_sound_is_never_sent(client: Client, service: State, case: int) -> None:
    ask, message = BAD[case]
    with pytest.raises(InputError, match=message):
        ask(client)
    assert service.seen == []


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "localhost:8000"},
        {"timeout_s": 0},
        {"retries": -1},
        {"api_key": "a\nb"},
        {"max_connections": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Client(**settings)


def test_the_key_comes_from_the_environment_and_is_never_shown(
    service: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.api_key = "sesame"
    with Client(service.url) as client, pytest.raises(Unauthorized) as refused:
        client.models()
    assert refused.value.status == 401
    monkeypatch.setenv("RAYPREF_API_KEY", "sesame")
    with Client(service.url) as client:
        assert client.models().data
    assert service.seen[-1].headers["authorization"] == "Bearer sesame"
    with Client(service.url, "wrong") as client, pytest.raises(Unauthorized) as refused:
        client.models()
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize("fault", ["html", "json", 'nan {"id": "s", "model": "m", "data": []}'])
def test_answers_of_another_service_are_errors(client: Client, service: State, fault: str) -> None:
    service.faults = [fault]
    with pytest.raises(ClientError, match="Check base_url"):
        client.score(EMB_ND)
    assert len(service.seen) == 1


def test_scores_that_are_not_finite_never_reach_the_caller(client: Client, service: State) -> None:
    row = {"user": None, "version": 0, "shots": 0, "cold": True, "std": None, "probability": [0.5]}
    answer = json.dumps({"id": "s", "model": "m", "data": [{**row, "mean": [float("nan")]}]})
    service.faults = [f"nan {answer}"]
    with pytest.raises(ClientError, match="not finite"):
        client.score(EMB_ND[:1])


def test_threads_share_a_client_and_its_connections(service: State) -> None:
    service.always = "slow 0.05"
    with Client(service.url, max_connections=4) as client, ThreadPoolExecutor(16) as threads:
        asked = [rng.normal(size=(2, 4)).astype(np.float32) for _ in range(40)]
        answers = list(threads.map(client.score, asked))
    for emb_ND, scores in zip(asked, answers, strict=True):
        np.testing.assert_allclose(scores.mean[0], emb_ND.sum(1), rtol=1e-6, atol=1e-6)
    assert service.most_under_way == 4


def test_a_closed_client_says_so(service: State) -> None:
    client = Client(service.url)
    assert client.ready()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.ready()


def test_a_forked_process_has_connections_of_its_own(client: Client, service: State) -> None:
    import multiprocessing

    assert client.ready()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(client.score(EMB_ND).mean.tolist()))
    child.start()
    assert receiver.poll(10)
    assert receiver.recv() == client.score(EMB_ND).mean.tolist()
    child.join()
    assert child.exitcode == 0


SAME: list[Any] = [
    lambda c, made: c.learn("ann", made),
    lambda c, made: c.score(EMB_ND, user="ann"),
    lambda c, made: c.score(["a", 3], users=["ann", "bob"], prompt="Tea?", baseline="b"),
    lambda c, made: c.score(np.tile(EMB_ND, (12_000, 20)), vector=EMB_ND[0]),
    lambda c, made: c.rank(EMB_ND, vector=EMB_ND[0], risk=0.1),
    lambda c, made: c.suggest(made, comparisons=made),
    lambda c, made: c.user("ann"),
    lambda c, made: c.decay("ann", 0.9, event_id="d", timestamp=1.0),
    lambda c, made: c.export("ann"),
    lambda c, made: c.forget("ann", made[0].event_id),
    lambda c, made: c.erase("ann"),
    lambda c, made: c.models(),
    lambda c, made: c.ready(),
]


def test_blocking_and_async_send_the_same_bytes_and_return_the_same(client: Client, service: State) -> None:
    made = pairs(2)
    blocking = [ask(client, made) for ask in SAME]
    sent = list(service.seen)
    service.seen.clear()
    service.comparisons.clear()

    async def ask_all() -> list[Any]:
        async with AsyncClient(service.url) as other:
            return [await ask(other, made) for ask in SAME]

    awaited = asyncio.run(ask_all())
    assert len(sent) == len(SAME) == len(service.seen)
    for one, other in zip(sent, service.seen, strict=True):
        own = ("x-request-id",)
        assert (one.method, one.path, one.body) == (other.method, other.path, other.body)
        assert {k: v for k, v in one.headers.items() if k not in own} == {
            k: v for k, v in other.headers.items() if k not in own
        }
    for one, other in zip(blocking, awaited, strict=True):
        np.testing.assert_equal(getattr(one, "__dict__", one), getattr(other, "__dict__", other))


def test_tasks_share_an_async_client(service: State) -> None:
    async def ask_all() -> list[float]:
        async with AsyncClient(service.url) as client:
            answers = await asyncio.gather(*(client.score(EMB_ND[n : n + 1]) for n in range(5)))
            return [float(answer.mean[0, 0]) for answer in answers]

    np.testing.assert_allclose(asyncio.run(ask_all()), EMB_ND.sum(1), rtol=1e-6)
