from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter

from raypref.serve.compat import COMPAT_PATHS, Rewarded, ScoredText, compat_router
from raypref.serve.guard import Guard, Limits
from raypref.serve.meter import Meter
from raypref.serve.refusals import install_refusals
from raypref.wire.answers import ErrorAnswer
from raypref.wire.errors import WireError
from raypref.wire.requests import Message, Text

MODEL = "small@0123456789ab"


def plain(text: Text | None) -> Any:
    return [message.model_dump() for message in text] if isinstance(text, list) else text


def reward(user: str | None, prompt: Any, response: Any) -> float:
    """Return a number that nothing but exactly this user, prompt and response has."""
    digest = hashlib.sha256(json.dumps([user, prompt, response]).encode()).digest()
    return float(np.float32(int.from_bytes(digest[:4], "little") / 2**30 - 2))


def activated(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class Hashed:
    """Rewards that are a function of the text, and a memory of what was asked."""

    def __init__(self) -> None:
        self.asked: list[ScoredText] = []
        self.tenants: set[str] = set()
        self.error: WireError | None = None

    async def rewards(self, tenant: str, items: Sequence[ScoredText]) -> Rewarded:
        if self.error is not None:
            raise self.error
        assert items
        self.tenants.add(tenant)
        self.asked += items
        values = [reward(item.user, plain(item.prompt), plain(item.response)) for item in items]
        return Rewarded(np.array(values, np.float32), MODEL)


@pytest.fixture(scope="module")
def rewards() -> Hashed:
    return Hashed()


@pytest.fixture(scope="module")
def guard(rewards: Hashed) -> Guard:
    app = FastAPI(redirect_slashes=False)
    app.include_router(compat_router(rewards))
    install_refusals(app)
    return Guard(app, Limits(), None, Meter())


@pytest.fixture(autouse=True)
def forget(rewards: Hashed) -> None:
    rewards.asked.clear()
    rewards.error = None


def post(guard: Guard, path: str, body: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test") as http:
            if isinstance(body, bytes):
                return await http.post(path, content=body, headers={"x-request-id": "r1"})
            return await http.post(path, json=body, headers={"x-request-id": "r1"})

    return asyncio.run(ask())


def answer(guard: Guard, path: str, body: Any) -> Any:
    response = post(guard, path, body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(guard: Guard, path: str, body: Any, status: int = 422) -> str:
    response = post(guard, path, body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return ErrorAnswer.model_validate(response.json()).error.message


class Exact(BaseModel):
    """A shape with these keys and no others, all of them there."""

    model_config = ConfigDict(extra="forbid", strict=True)


class VUsage(Exact):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class VListing(Exact):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: VUsage


class VClassified(Exact):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class VClassify(VListing):
    data: list[VClassified]


class VPooled(Exact):
    index: int
    object: Literal["pooling"]
    data: list[float] | str


class VPooling(VListing):
    data: list[VPooled]


class VScored(Exact):
    index: int
    object: Literal["score"]
    score: float


class VScore(VListing):
    data: list[VScored]


class VDocument(Exact):
    text: str | None
    multi_modal: None


class VReranked(Exact):
    index: int
    document: VDocument
    relevance_score: float


class VRerankUsage(Exact):
    prompt_tokens: int
    total_tokens: int


class VRerank(Exact):
    id: str
    model: str
    usage: VRerankUsage
    results: list[VReranked]


class TPrediction(Exact):
    score: float
    label: str


class TRank(Exact):
    index: int
    score: float


class TRankText(TRank):
    text: str


class ORewards(Exact):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


# OpenRLHF


def test_openrlhf_gets_rewards_of_responses_without_their_prompts(guard: Guard, rewards: Hashed) -> None:
    body = {
        "query": ["Q: hi A: hello", "other text", "Q: hi A: no", "x"],
        "prompts": ["Q: hi A:", "Q: hi A:", "Q: hi A:", ""],
        "labels": ["ann", '{"user_id": "bob"}', {"user_id": "cy", "more": 1}, None],
    }
    found = ORewards.model_validate(answer(guard, "/get_reward", body))
    assert rewards.asked == [
        ScoredText("ann", " hello", "Q: hi A:"),
        ScoredText("bob", "other text"),
        ScoredText("cy", " no", "Q: hi A:"),
        ScoredText(None, "x"),
    ]
    assert found.rewards == [reward(i.user, i.prompt, i.response) for i in rewards.asked]
    assert found.scores == pytest.approx([activated(value) for value in found.rewards], abs=1e-12)
    assert found.extra_logs == {}
    assert rewards.tenants == {"default"}


@pytest.mark.parametrize(
    "body",
    [
        {"query": [], "prompts": [], "labels": []},
        {"query": []},
        {"query": [], "prompts": None, "labels": None},
    ],
)
def test_a_surplus_server_of_openrlhf_gets_empty_lists_back(body: Any, guard: Guard, rewards: Hashed) -> None:
    assert answer(guard, "/get_reward", body) == {"rewards": [], "scores": [], "extra_logs": {}}
    assert rewards.asked == []


@pytest.mark.parametrize("label", [None, "", '{"user_id": null}', {"user_id": None}])
def test_a_label_without_a_user_is_the_population(label: Any, guard: Guard, rewards: Hashed) -> None:
    answer(guard, "/get_reward", {"query": ["x"], "prompts": ["y"], "labels": [label]})
    assert rewards.asked == [ScoredText(None, "x")]


@pytest.mark.parametrize(
    "label",
    [
        "the answer is 7",
        "{",
        '{"user": "ann"}',
        {},
        7,
        ["ann"],
        '{"user_id": 7}',
        "../x",
        '{"user_id": "a b"}',
    ],
)
def test_a_label_that_names_nobody_is_refused_and_named(label: Any, guard: Guard) -> None:
    assert "labels.1" in refused(guard, "/get_reward", {"query": ["x", "y"], "labels": ["ann", label]})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": "x"},
        {"query": [1]},
        {"query": ["x"], "prompts": ["a", "b"]},
        {"query": ["x"], "labels": ["a", "b"]},
        {"query": ["x"] * 65_537},
    ],
)
def test_a_malformed_request_of_openrlhf_is_refused(body: Any, guard: Guard) -> None:
    refused(guard, "/get_reward", body)


# vLLM


@pytest.mark.parametrize(
    ("flags", "raw"),
    [
        ({}, False),
        ({"use_activation": None}, False),
        ({"use_activation": True}, False),
        ({"use_activation": False}, True),
        ({"activation": False}, True),
        ({"use_activation": True, "activation": False}, False),
    ],
)
def test_classify_gives_what_verl_reads(flags: Any, raw: bool, guard: Guard, rewards: Hashed) -> None:
    body = {"model": "anything", "input": "a full text", "truncate_prompt_tokens": -1, "priority": 0, **flags}
    found = answer(guard, "/classify", body)
    VClassify.model_validate(found)
    expected = reward(None, None, "a full text")
    value = found["data"][-1]["probs"][-1]
    assert value == (expected if raw else pytest.approx(activated(expected), abs=1e-12))
    assert found["model"] == "anything"
    assert found["id"] == "classify-r1"
    assert found["data"][0] | {"probs": []} == {"index": 0, "label": "LABEL_0", "probs": [], "num_classes": 1}


def test_classify_takes_many_texts_for_one_user(guard: Guard, rewards: Hashed) -> None:
    found = answer(guard, "/classify", {"input": ["a", "b", "c"], "user": "ann", "use_activation": False})
    assert [entry["index"] for entry in found["data"]] == [0, 1, 2]
    assert [entry["probs"] for entry in found["data"]] == [[reward("ann", None, text)] for text in "abc"]
    assert found["model"] == MODEL
    assert answer(guard, "/classify", {"input": []})["data"] == []


def test_a_chat_is_prompt_and_response(guard: Guard, rewards: Hashed) -> None:
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    chat = [*asked, {"role": "assistant", "content": parts, "name": "x"}]
    answer(guard, "/classify", {"messages": chat, "user": "ann"})
    answer(guard, "/classify", {"messages": asked})
    answer(guard, "/pooling", {"messages": [{"role": "assistant", "content": None}]})
    told = [Message.model_validate(message) for message in asked]
    assert rewards.asked == [
        ScoredText("ann", "He\nllo", told),
        ScoredText(None, told),
        ScoredText(None, [Message(role="assistant", content="")]),
    ]


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": [1, 2, 3]}, "token ids are not taken: send text"),
        ({"input": [[1, 2], [3]]}, "token ids are not taken: send text"),
        ({"input": ["a", 1]}, "string"),
        ({}, "give input or messages"),
        ({"input": "a", "messages": [{"role": "user", "content": "b"}]}, "give input or messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "b"}]}, "role"),
        ({"messages": [{"role": 3, "content": "b"}]}, "role"),
        ({"messages": [{"role": "", "content": "b"}]}, "role"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "text"),
        ({"messages": [{"role": "user", "content": 3}]}, "text"),
        ({"input": "a", "user": "a b"}, "user"),
        ({"input": "a", "user": ""}, "user"),
        ({"input": "a", "user": 7}, "user"),
        ({"input": "a", "use_activation": "perhaps"}, "use_activation"),
    ],
)
def test_what_is_no_text_is_refused(path: str, body: Any, says: str, guard: Guard, rewards: Hashed) -> None:
    assert says in refused(guard, path, body)
    assert rewards.asked == []


@pytest.mark.parametrize("task", [None, "classify"])
def test_pooling_gives_vectors_of_one_number(task: str | None, guard: Guard) -> None:
    body = {"input": ["a", "b"], "task": task, "use_activation": False, "user": "ann"}
    found = answer(guard, "/pooling", body)
    VPooling.model_validate(found)
    values = [reward("ann", None, text) for text in "ab"]
    assert [entry["data"] for entry in found["data"]] == [[value] for value in values]
    assert found["id"] == "pooling-r1"
    encoded = answer(guard, "/pooling", {**body, "encoding_format": "base64"})
    VPooling.model_validate(encoded)
    decoded = [np.frombuffer(base64.b64decode(entry["data"]), "<f4").tolist() for entry in encoded["data"]]
    assert decoded == [[value] for value in values]


@pytest.mark.parametrize(
    "more",
    [{"task": "embed"}, {"encoding_format": "bytes"}, {"embed_dtype": "float16"}, {"endianness": "big"}],
)
def test_pooling_refuses_what_it_would_get_wrong(more: Any, guard: Guard) -> None:
    assert next(iter(more)) in refused(guard, "/pooling", {"input": "a", **more})


@pytest.mark.parametrize(
    ("first", "second"),
    [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")],
)
def test_score_takes_prompts_and_responses_under_any_name(
    first: str, second: str, guard: Guard, rewards: Hashed
) -> None:
    one = answer(guard, "/score", {first: "q", second: ["a", "b"], "user": "ann", "use_activation": False})
    VScore.model_validate(one)
    assert [entry["score"] for entry in one["data"]] == [reward("ann", "q", "a"), reward("ann", "q", "b")]
    two = answer(guard, "/score", {first: ["p", "q"], second: ["a", "b"]})
    expected = [activated(reward(None, "p", "a")), activated(reward(None, "q", "b"))]
    assert [entry["score"] for entry in two["data"]] == pytest.approx(expected, abs=1e-12)
    assert answer(guard, "/score", {first: "q", second: []})["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"queries": "q"},
        {"documents": "q"},
        {"queries": ["p", "q"], "documents": ["a"]},
        {"queries": ["p", "q"], "documents": ["a", "b", "c"]},
        {"queries": "q", "documents": [{"content": [{"type": "image_url"}]}]},
        {"queries": [1], "documents": ["a"]},
    ],
)
def test_score_refuses_what_does_not_pair(body: Any, guard: Guard) -> None:
    refused(guard, "/score", body)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_puts_the_best_first(path: str, guard: Guard) -> None:
    texts = list("abcdefgh")
    found = answer(guard, path, {"model": "m", "query": "q", "documents": texts, "user": "ann"})
    VRerank.model_validate(found)
    order = sorted(range(8), key=lambda index: -reward("ann", "q", texts[index]))
    assert [entry["index"] for entry in found["results"]] == order
    assert [entry["document"]["text"] for entry in found["results"]] == [texts[index] for index in order]
    expected = [activated(reward("ann", "q", texts[index])) for index in order]
    assert [entry["relevance_score"] for entry in found["results"]] == pytest.approx(expected, abs=1e-12)
    for top, count in ((3, 3), (0, 8), (None, 8), (100, 8)):
        cut = answer(guard, path, {"query": "q", "documents": texts, "user": "ann", "top_n": top})
        assert cut["results"] == found["results"][:count]


def test_rerank_takes_objects_with_text_one_document_and_none(guard: Guard) -> None:
    plain = answer(guard, "/rerank", {"query": "q", "documents": ["a", "texts"]})
    assert answer(guard, "/rerank", {"query": "q", "documents": [{"text": "a"}, {"text": "texts"}]}) == plain
    assert len(answer(guard, "/rerank", {"query": "q", "documents": "a"})["results"]) == 1
    assert answer(guard, "/rerank", {"query": "q", "documents": []})["results"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"query": "q"},
        {"documents": ["a"]},
        {"query": ["q"], "documents": ["a"]},
        {"query": "q", "documents": ["a"], "top_n": -1},
        {"query": "q", "documents": [{"title": "a"}]},
        {"query": "q", "texts": "a"},
        {"texts": ["a"]},
    ],
)
def test_rerank_refuses_what_it_cannot_order(body: Any, guard: Guard) -> None:
    refused(guard, "/rerank", body)


def test_rewards_too_large_for_a_sigmoid_keep_their_order(guard: Guard, rewards: Hashed) -> None:
    assert Rewarded(np.array([50, 90, -800, 900], np.float32), "").order == [3, 1, 0, 2]
    assert np.isfinite(Rewarded(np.array([-1e38, 1e38], np.float32), "").probability).all()


# Text Embeddings Inference


def test_predict_answers_one_input_flat_and_a_batch_nested(guard: Guard, rewards: Hashed) -> None:
    for inputs, prompt, response in (("a", None, "a"), (["a"], None, "a"), (["p", "a"], "p", "a")):
        found = answer(guard, "/predict", {"inputs": inputs, "raw_scores": True, "truncate": True})
        TypeAdapter(list[TPrediction]).validate_python(found)
        assert found == [{"score": reward(None, prompt, response), "label": "LABEL_0"}]
    batch = answer(guard, "/predict", {"inputs": [["a"], ["p", "b"]], "user": "ann"})
    TypeAdapter(list[list[TPrediction]]).validate_python(batch)
    expected = [activated(reward("ann", None, "a")), activated(reward("ann", "p", "b"))]
    assert [entry[0]["score"] for entry in batch] == pytest.approx(expected, abs=1e-12)
    assert answer(guard, "/predict", {"inputs": []}) == []


@pytest.mark.parametrize("inputs", [None, 3, ["a", "b", "c"], [[]], [["a", "b", "c"]], [["a"], "b"], [[1]]])
def test_predict_refuses_other_inputs(inputs: Any, guard: Guard) -> None:
    refused(guard, "/predict", {"inputs": inputs})


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
@pytest.mark.parametrize("raw", [False, True])
def test_texts_are_ranked_in_the_form_of_tei(path: str, raw: bool, guard: Guard) -> None:
    texts = list("abcde")
    body = {"query": "q", "texts": texts, "raw_scores": raw, "user": "ann", "truncate": False}
    found = answer(guard, path, body)
    TypeAdapter(list[TRank]).validate_python(found)
    values = [reward("ann", "q", text) for text in texts]
    order = sorted(range(5), key=lambda index: -values[index])
    assert [entry["index"] for entry in found] == order
    expected = [values[index] if raw else activated(values[index]) for index in order]
    assert [entry["score"] for entry in found] == pytest.approx(expected, abs=1e-12)
    told = answer(guard, path, {**body, "return_text": True})
    TypeAdapter(list[TRankText]).validate_python(told)
    assert [entry["text"] for entry in told] == [texts[index] for index in order]
    assert answer(guard, path, {**body, "texts": []}) == []


# All of them

BODIES: dict[str, Any] = {
    "/get_reward": {"query": ["a"], "prompts": [""], "labels": ["ann"]},
    "/classify": {"input": "a", "user": "ann"},
    "/pooling": {"input": "a", "user": "ann"},
    "/score": {"queries": "a", "documents": ["b"], "user": "ann"},
    "/rerank": {"query": "a", "documents": ["b"], "user": "ann"},
    "/v1/rerank": {"query": "a", "texts": ["b"], "user": "ann"},
    "/v2/rerank": {"query": "a", "documents": ["b"], "user": "ann"},
    "/predict": {"inputs": "a", "user": "ann"},
}


def test_these_are_all_the_routes(guard: Guard, rewards: Hashed) -> None:
    assert set(BODIES) == COMPAT_PATHS
    paths = {route.path for route in compat_router(rewards).routes}
    assert paths == COMPAT_PATHS


@pytest.mark.parametrize("path", BODIES)
def test_a_full_or_broken_service_is_a_503_and_other_refusals_stay(
    path: str, guard: Guard, rewards: Hashed
) -> None:
    for status, told in ((429, 503), (503, 503), (422, 422), (413, 413)):
        rewards.error = WireError(status, "Why.", retry_after_s=4 if status != 422 else None)
        response = post(guard, path, BODIES[path])
        assert response.status_code == told
        assert response.json()["error"]["message"] == "Why."
        assert response.headers.get("retry-after") == ("4" if status != 422 else None)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"user": "\\ud800"}'])
def test_what_is_no_json_is_400(path: str, body: bytes, guard: Guard) -> None:
    refused(guard, path, body, 400)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null", b"NaN"])
def test_what_is_no_object_is_refused(path: str, body: bytes, guard: Guard) -> None:
    refused(guard, path, body)


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_are_ignored(path: str, guard: Guard) -> None:
    def timeless(found: Any) -> Any:
        return {**found, "created": 0} if isinstance(found, dict) else found

    more = {**BODIES[path], "request_id": "x", "mm_processor_kwargs": {}, "truncate": 3, "nobody": [1]}
    assert timeless(answer(guard, path, more)) == timeless(answer(guard, path, BODIES[path]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_field_is_answered_or_refused(
    path: str, guard: Guard, data: st.DataObject
) -> None:
    body = dict(BODIES[path])
    body[data.draw(st.sampled_from([*body, "messages", "texts", "items", "top_n", "activation"]))] = (
        data.draw(json_values)
    )
    response = post(guard, path, body)
    assert response.status_code in (200, 422), (body, response.text)
    if response.status_code == 422:
        ErrorAnswer.model_validate(response.json())


def test_the_routes_are_documented(rewards: Hashed) -> None:
    app = FastAPI()
    app.include_router(compat_router(rewards))
    paths = app.openapi()["paths"]
    for path in COMPAT_PATHS:
        operation = paths[path]["post"]
        assert operation["tags"] == ["compatibility"]
        assert len(operation["description"]) > 20
        assert {"200", "400", "422", "503"} <= operation["responses"].keys()
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for model in schema.get("anyOf", [schema]):
            assert all(len(part["description"]) > 5 for part in model["properties"].values())
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]


@pytest.mark.engine
@pytest.mark.slow
def test_vllm_reads_its_answers(guard: Guard) -> None:
    from vllm.entrypoints.pooling.classify.protocol import ClassificationResponse
    from vllm.entrypoints.pooling.pooling.protocol import PoolingResponse
    from vllm.entrypoints.pooling.scoring.protocol import RerankResponse, ScoreResponse

    for path, model in (
        ("/classify", ClassificationResponse),
        ("/pooling", PoolingResponse),
        ("/score", ScoreResponse),
        ("/rerank", RerankResponse),
    ):
        found = answer(guard, path, BODIES[path])
        read = model.model_validate(found, extra="forbid")
        assert {name: found[name] for name in read.model_dump(exclude_none=True)}.keys() == found.keys()
        assert read.model_dump() | {"usage": None} == found | {"usage": None}


@pytest.mark.engine
@pytest.mark.slow
def test_what_vllm_takes_is_taken(guard: Guard) -> None:
    """Requests as vLLM's own models write them, with every field at its default."""
    from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
    from vllm.entrypoints.pooling.pooling.protocol import PoolingCompletionRequest
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreQueriesDocumentsRequest

    for path, model in (
        ("/classify", ClassificationCompletionRequest),
        ("/pooling", PoolingCompletionRequest),
        ("/score", ScoreQueriesDocumentsRequest),
        ("/rerank", RerankRequest),
    ):
        full = model.model_validate(BODIES[path]).model_dump(mode="json")
        assert len(full) > len(BODIES[path]) + 3
        assert answer(guard, path, full)
