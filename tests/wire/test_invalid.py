from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from pydantic import ValidationError

from raypref.wire.errors import WireError
from raypref.wire.invalid import refusal_of
from raypref.wire.requests import LearnRequest, Request, ScoreRequest


def refusal(body: bytes, model: type[Request] = ScoreRequest) -> WireError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(body)
    found = refusal_of(caught.value)
    assert json.loads(found.body())["error"]["code"] == found.status
    return found


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 1000, b'{"user": "\\ud800"}'])
def test_what_is_no_json_is_400(body: bytes) -> None:
    assert refusal(body).status == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"candidates": [{"item": 1}], "user": "a b"}, "user"),
        ({"candidates": [{"item": 1}, {"item": "x"}]}, "candidates.1.item"),
        ({"candidates": [{"item": 1}], "vector": [1, "x"]}, "vector.1"),
        ({"candidates": [{"item": 1}], "nobody": 1}, "nobody"),
        ({}, "candidates"),
        ([], None),
    ],
)
def test_the_place_is_named(body: Any, param: str | None) -> None:
    found = refusal(json.dumps(body).encode())
    assert (found.status, found.param) == (422, param)
    assert (param or "body") in found.message


def test_nothing_that_was_sent_is_repeated_but_keys() -> None:
    secret = "SECRET"
    bodies = [
        {"candidates": secret},
        {"candidates": [{"text": [secret]}]},
        {"candidates": [{"embedding": [secret]}]},
        {"candidates": [{"embedding": {"base64": secret, "shape": [secret]}}]},
        {"candidates": [{"item": 1}], "user": f"{secret} {secret}"},
        {"candidates": [{"item": 1}], "encoding": secret},
        {"candidates": [{"item": 1}], "prompt": [{"role": secret, "content": [secret]}]},
    ]
    assert not [body for body in bodies if secret in refusal(json.dumps(body).encode()).message]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ScoreRequest, {"vector": ["a"] * 500_000}),
        (ScoreRequest, {"candidates": [{"text": "a", "b": 1, "c": 2}] * 60_000}),
        (ScoreRequest, {"users": ["a b"] * 100_000}),
        (ScoreRequest, {"candidates": [{"embedding": ["a"] * 200_000}] * 2}),
        (ScoreRequest, {"prompt": [{"role": 1, "content": 2}] * 60_000}),
        (ScoreRequest, {str(number): 1 for number in range(100_000)}),
        (LearnRequest, {"comparisons": [{"a": 1, "b": 2}] * 4000}),
    ],
    ids=["vector", "candidates", "users", "embedding", "messages", "keys", "comparisons"],
)
def test_a_body_of_nothing_but_errors_costs_little(model: type[Request], body: Any) -> None:
    """The list of its errors alone would hold a hundred megabytes and more."""
    data = json.dumps(body).encode()
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(data)
    tracemalloc.start()
    found = refusal_of(caught.value)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.status == 422
    assert len(found.message) < 1000
    assert peak < 2_000_000
