from __future__ import annotations

import json
import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import deserialize

from raypref.wire.answers import UserScores
from raypref.wire.arrays import Encoded, vector
from raypref.wire.errors import WireError
from raypref.wire.requests import (
    Bulk,
    Comparison,
    DecayRequest,
    LearnRequest,
    RankRequest,
    Request,
    ScoreRequest,
    SuggestRequest,
)
from raypref.wire.tensors import MAX_PAIRS, pack_answer, pack_request, unpack_answer, unpack_request

X_ND = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: Any = (1, 1), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(body: bytes, status: int, model: type[Request] = ScoreRequest) -> str:
    with pytest.raises(WireError) as caught:
        unpack_request(body, model)
    assert caught.value.status == status, caught.value.message
    assert caught.value.body()
    return caught.value.message


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_candidates_baseline_and_vector_come_back_bit_equal(dtype: Any) -> None:
    tensors = {
        "candidates": X_ND.astype(dtype),
        "baseline": X_ND[0].astype(dtype),
        "vector": X_ND[1].astype(dtype),
    }
    request, found = unpack_request(pack_request({"encoding": "base64"}, tensors), ScoreRequest)
    assert request.encoding == "base64"
    assert found.keys() == tensors.keys()
    for name, array in found.items():
        assert array.dtype == dtype
        assert array.tobytes() == tensors[name].tobytes()
        assert array.shape == tensors[name].shape
        assert not array.flags.writeable


def test_other_types_and_orders_are_packed_as_float32_rows() -> None:
    tensors = {"candidates": X_ND.T.astype(np.float64), "baseline": np.arange(6, dtype=np.int64)[::2]}
    _, found = unpack_request(pack_request({}, tensors), ScoreRequest)
    assert found["candidates"].dtype == found["baseline"].dtype == np.float32
    assert np.array_equal(found["candidates"], X_ND.T)
    assert found["baseline"].tolist() == [0, 2, 4]


def test_the_body_is_what_other_readers_of_safetensors_read() -> None:
    body = pack_request({"user": "ann"}, {"candidates": X_ND})
    ((name, read),) = dict(deserialize(body)).items()
    assert (name, read["shape"], read["dtype"]) == ("candidates", [3, 4], "F32")
    assert bytes(read["data"]) == X_ND.tobytes()


@pytest.mark.parametrize("listed", [None, [{}, {"event_id": "e1"}, {"weight": 2.0}]])
def test_pairs_of_tensors_fill_the_comparisons(listed: Any) -> None:
    fields = {} if listed is None else {"comparisons": listed}
    body = pack_request(fields, {"chosen": X_ND, "rejected": -X_ND})
    for model in (LearnRequest, ScoreRequest):
        if model is ScoreRequest:
            body = pack_request(fields, {"chosen": X_ND, "rejected": -X_ND, "candidates": X_ND})
        request, found = unpack_request(body, model)
        assert isinstance(request, LearnRequest | ScoreRequest)
        assert request.comparisons is not None
        assert len(request.comparisons) == 3
        assert request.comparisons[1].event_id == (listed and "e1")
        assert np.array_equal(found["rejected"], -X_ND)


def test_pairs_of_tensors_fill_the_pairs_of_a_suggestion() -> None:
    body = pack_request(
        {"user": "ann", "pairs": [{"prompt": "a"}, {}, {}]}, {"chosen": X_ND, "rejected": X_ND}
    )
    request, _ = unpack_request(body, SuggestRequest)
    assert [pair.prompt for pair in request.pairs] == ["a", "", ""]
    assert request.comparisons is None


def test_no_placeholder_passes_for_an_array() -> None:
    tensors = {"candidates": X_ND, "baseline": X_ND[0], "vector": X_ND[0]}
    request, _ = unpack_request(pack_request({}, tensors), ScoreRequest)
    learn, _ = unpack_request(pack_request({}, {"chosen": X_ND, "rejected": X_ND}), LearnRequest)
    assert isinstance(request.candidates, Bulk)
    assert not request.candidates.embeddings.array().size
    assert request.baseline is not None
    items = [request.baseline, learn.comparisons[0].chosen, learn.comparisons[2].rejected]
    arrays = [request.vector, *(item.embedding for item in items)]
    for array in arrays:
        assert isinstance(array, Encoded)
        with pytest.raises(ValueError, match="must be one vector"):
            vector(array)


def test_arrays_are_views_of_the_body_and_cost_one_look() -> None:
    emb_ND = np.random.default_rng(0).standard_normal((1000, 4096), np.float32)
    body = pack_request({"user": "ann"}, {"candidates": emb_ND})
    unpack_request(body, ScoreRequest)
    tracemalloc.start()
    _, found = unpack_request(body, ScoreRequest)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # One byte a number while they are checked, and no copy.
    assert peak < emb_ND.size * 1.1
    assert found["candidates"].base is not None
    spent_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        unpack_request(body, ScoreRequest)
        spent_s.append(time.perf_counter() - start_s)
    assert min(spent_s) < 0.05


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "cut short"),
        (b"1234567", "cut short"),
        (struct.pack("<Q", 100) + b"{}", "cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "cut short"),
        (raw(b"{"), "no safetensors"),
        (raw(b"[" * 100_000), "no safetensors"),
        (raw(b"\xff\xff"), "no safetensors"),
        (raw([1]), "no JSON object"),
        (raw({}), "no `request`"),
        (raw({"__metadata__": {"request": "{"}}), "no safetensors"),
        (raw({"__metadata__": {"request": "[]"}}), "no JSON object"),
        (raw({"__metadata__": {"request": '{"risk": NaN}'}}), "no safetensors"),
        (raw({"__metadata__": {"request": 3}}), "breaks the format"),
        (raw({"__metadata__": []}), "breaks the format"),
        (raw({"candidates": 3}), "breaks the format"),
        (raw({"candidates": {}}), "breaks the format"),
        (raw({"candidates": entry() | {"more": 1}}, bytes(4)), "breaks the format"),
        (raw({"candidates": entry(shape=[-1, -1])}, bytes(4)), "breaks the format"),
        (raw({"candidates": entry(shape=[1.0, 1.0])}, bytes(4)), "breaks the format"),
        (raw({"candidates": entry(shape=["1", 1])}, bytes(4)), "breaks the format"),
        (raw({"candidates": entry(shape=[1] * 9)}, bytes(4)), "breaks the format"),
        (raw({"candidates": entry(offsets=[0])}, bytes(4)), "breaks the format"),
        (raw({"candidates": entry(offsets=[-4, 0])}, bytes(4)), "breaks the format"),
        (raw({f"t{i}": entry() for i in range(17)}, bytes(4)), "breaks the format"),
        (raw({"candidates": entry(offsets=[0, 8])}, bytes(8)), "does not fit"),
        (raw({"candidates": entry(offsets=[4, 8])}, bytes(8)), "does not fit"),
        (raw({"candidates": entry(offsets=[4, 0])}, bytes(4)), "does not fit"),
        (raw({"candidates": entry()}, bytes(3)), "does not fit"),
        (raw({"candidates": entry(shape=[2**31 - 1, 2**31 - 1])}, bytes(4)), "does not fit"),
        (raw({"candidates": entry(), "vector": entry(shape=[1])}, bytes(4)), "does not fit"),
        (raw({"candidates": entry()}, bytes(5)), "belong to no tensor"),
        (raw({"__metadata__": {"request": "{}"}}, b"x"), "belong to no tensor"),
    ],
)
def test_a_malformed_body_is_refused(body: bytes, says: str) -> None:
    assert says in refused(body, 400)


def test_a_huge_header_is_refused_unread() -> None:
    assert "header is larger" in refused(raw(b" " * (16 * 2**20 + 1)), 400)


@pytest.mark.parametrize("dtype", ["BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "", "x" * 1000])
def test_another_type_is_refused_with_what_to_send(dtype: str) -> None:
    body = raw({"__metadata__": {"request": "{}"}, "candidates": entry(dtype, [1, 2])}, bytes(4))
    message = refused(body, 422)
    assert "send float16 or float32" in message
    assert len(message) < 200


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["candidates", "baseline", "vector", "chosen", "rejected"])
def test_values_that_are_not_finite_are_refused(value: float, dtype: Any, name: str) -> None:
    emb_ND = X_ND.astype(dtype)
    tensors = {"candidates": emb_ND, "baseline": emb_ND[0], "vector": emb_ND[0]}
    if name in ("chosen", "rejected"):
        tensors = {"candidates": emb_ND, "chosen": emb_ND, "rejected": emb_ND}
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[-1] = value
    assert f"{name} holds values that are not finite" in refused(pack_request({}, tensors), 422)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_largest_and_smallest_numbers_pass(dtype: Any) -> None:
    info = np.finfo(dtype)
    emb_ND = np.array([[info.max, info.min, info.smallest_subnormal, -0.0]], dtype)
    _, found = unpack_request(pack_request({}, {"candidates": emb_ND}), ScoreRequest)
    assert found["candidates"].tobytes() == emb_ND.tobytes()


@pytest.mark.parametrize(
    ("fields", "tensors", "says"),
    [
        ({}, {"candidates": X_ND[0]}, "2 axes"),
        ({}, {"candidates": X_ND[None]}, "2 axes"),
        ({}, {"candidates": X_ND[:0]}, "none empty"),
        ({}, {"candidates": X_ND[:, :0]}, "none empty"),
        ({}, {"candidates": X_ND, "baseline": X_ND}, "1 axes"),
        ({}, {"candidates": X_ND, "baseline": X_ND[0, :3]}, "different widths: [3, 4]"),
        ({}, {"candidates": X_ND, "items": X_ND}, "no tensor of this request"),
        ({}, {"candidates": X_ND, "chosen": X_ND}, "belong together"),
        ({}, {"candidates": X_ND, "chosen": X_ND, "rejected": X_ND[:2]}, "belong together"),
        ({"comparisons": [{}]}, {"candidates": X_ND, "chosen": X_ND, "rejected": X_ND}, "each of the 3 rows"),
        ({"comparisons": 3}, {"candidates": X_ND, "chosen": X_ND, "rejected": X_ND}, "each of the 3 rows"),
        ({"comparisons": [{}, 1, {}]}, {"candidates": X_ND, "chosen": X_ND, "rejected": X_ND}, "tensors"),
        (
            {"comparisons": [{}, {}, {"chosen": {"item": 1}}]},
            {"candidates": X_ND, "chosen": X_ND, "rejected": X_ND},
            "tensors",
        ),
        ({"candidates": [{"item": 1}]}, {"candidates": X_ND}, "send it once"),
        ({"vector": [1.0]}, {"candidates": X_ND, "vector": X_ND[0]}, "send it once"),
        ({"user": "ann"}, {"candidates": X_ND, "vector": X_ND[0]}, "at most one of"),
        ({"user": "a b"}, {"candidates": X_ND}, "user"),
        ({"nobody": 1}, {"candidates": X_ND}, "nobody"),
        ({}, {}, "candidates"),
        ({}, {"candidates": np.zeros((65_537, 1), np.float16)}, "at most 65,536"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(fields: Any, tensors: Any, says: str) -> None:
    assert says in refused(pack_request(fields, tensors), 422)


@pytest.mark.parametrize("model", [LearnRequest, RankRequest, DecayRequest])
def test_each_request_has_its_own_tensors(model: type[Request]) -> None:
    tensors: dict[str, np.ndarray] = {"candidates": X_ND} if model is LearnRequest else {"baseline": X_ND[0]}
    assert "no tensor of this request" in refused(pack_request({"factor": 0.5}, tensors), 422, model)


def test_as_many_pairs_are_taken_as_in_json() -> None:
    comparison = {"chosen": {"item": 1}, "rejected": {"item": 2}}
    LearnRequest.model_validate({"comparisons": [comparison] * MAX_PAIRS})
    with pytest.raises(ValidationError):
        LearnRequest.model_validate({"comparisons": [comparison] * (MAX_PAIRS + 1)})
    most = np.zeros((MAX_PAIRS, 1), np.float32)
    request, _ = unpack_request(pack_request({}, {"chosen": most, "rejected": most}), LearnRequest)
    assert len(request.comparisons) == MAX_PAIRS
    assert isinstance(request.comparisons[0], Comparison)
    more = np.zeros((MAX_PAIRS + 1, 1), np.float32)
    assert "at most 4,096" in refused(pack_request({}, {"chosen": more, "rejected": more}), 422, LearnRequest)


def test_tensors_that_are_not_aligned_are_read() -> None:
    data = X_ND[:1].tobytes()
    for pad in range(8):
        header = json.dumps({"__metadata__": {"request": "{}"}, "candidates": entry("F32", [1, 4], [0, 16])})
        _, found = unpack_request(raw(header.encode() + b" " * pad, data), ScoreRequest)
        assert found["candidates"].flags.aligned
        assert np.array_equal(found["candidates"], X_ND[:1])


GOOD = [
    (
        ScoreRequest,
        pack_request({"user": "ann"}, {"candidates": X_ND, "baseline": X_ND[0].astype(np.float16)}),
    ),
    (ScoreRequest, pack_request({}, {"candidates": X_ND, "vector": X_ND[0]})),
    (LearnRequest, pack_request({"comparisons": [{}] * 3}, {"chosen": X_ND, "rejected": X_ND})),
]


def survives(body: bytes, model: type[Request]) -> None:
    """Check that a body is refused, or gives arrays that are what they claim."""
    refusal: WireError | None = None
    tensors: dict[str, np.ndarray] = {}
    try:
        _, tensors = unpack_request(body, model)
    except WireError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status in (400, 422)
        assert len(refusal.body()) < 2500
    assert sum(array.nbytes for array in tensors.values()) <= len(body)
    assert all(np.isfinite(array).all() and array.size for array in tensors.values())


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_or_harmless(data: st.DataObject) -> None:
    model, body = data.draw(st.sampled_from(GOOD))
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(changed[: data.draw(st.integers(0, len(body)) | st.just(len(body)))]), model)


numbers = st.integers(-2, 20) | st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**30, 1.5, "4", None, True])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "", 3, None]),
        "shape": st.lists(numbers, max_size=3) | st.none(),
        "data_offsets": st.lists(numbers, max_size=3),
        "more": st.none(),
    },
)
names = st.sampled_from(["candidates", "baseline", "vector", "chosen", "rejected", "é", "\ud800", "x" * 500])
metadata = st.dictionaries(
    st.sampled_from(["request", "format"]),
    st.sampled_from(["{}", "[", "null", '{"user":"ann"}', '{"comparisons":[{}]}', "[" * 5000, 3, "\ud800"]),
)


@settings(max_examples=600, deadline=None)
@given(
    header=st.dictionaries(names, entries | numbers, max_size=4),
    meta=metadata | numbers,
    data=st.binary(max_size=64),
    model=st.sampled_from([ScoreRequest, LearnRequest, SuggestRequest, DecayRequest]),
)
def test_any_header_is_refused_or_harmless(header: Any, meta: Any, data: bytes, model: type[Request]) -> None:
    survives(raw({"__metadata__": meta, **header}, data), model)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(body: bytes) -> None:
    assert refused(body, 400)


def test_answers_come_back() -> None:
    mean_UN = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    tensors = {
        "mean": mean_UN,
        "probability": mean_UN.T.copy().T,
        "version": np.array([3, 2**40]),
        "cold": np.array([0, 1], np.uint8),
    }
    fields = {"object": "raypref.score", "id": "s", "model": "m@1", "users": ["ann", "bob"]}
    answer, found = unpack_answer(pack_answer(fields, tensors))
    assert answer == fields
    assert found.keys() == tensors.keys()
    for name, array in found.items():
        assert array.dtype == tensors[name].dtype
        assert np.array_equal(array, tensors[name])
    assert found.keys() <= UserScores.model_fields.keys()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        raw({}),
        raw({"__metadata__": {"answer": "[]"}}),
        raw({"__metadata__": {"answer": "{}"}, "mean": entry("BF16", [1, 2])}, bytes(4)),
        raw(b"{"),
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_answer(body)
