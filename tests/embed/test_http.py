from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from raypref.config import HTTPConfig
from raypref.embed import http
from raypref.embed.http import HTTPEngine
from raypref.errors import EngineError
from tests.embed.embedding_server import DIM, Server, serving, vector

TEXTS = [f"text {n}" for n in range(50)]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)


def engine(server: Server, **options: Any) -> HTTPEngine:
    config = HTTPConfig(
        **{
            "model": "m",
            "url": server.url,
            "dim": DIM,
            "batch_size": 8,
            "retries": 2,
            "timeout_s": 5,
            **options,
        }
    )
    return HTTPEngine(config, "m", "secret")


def test_vectors_come_back_in_the_order_of_the_texts(server: Server) -> None:
    emb_ND = engine(server).embed(TEXTS)
    assert emb_ND.dtype == np.float32
    np.testing.assert_allclose(emb_ND, np.stack([vector(text) for text in TEXTS]), atol=1e-6)
    assert server.requests == 7
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_no_more_requests_are_under_way_than_allowed(server: Server) -> None:
    server.pause_s = 0.05
    engine(server, max_in_flight=3, batch_size=2).embed(TEXTS)
    assert server.most_under_way == 3


@pytest.mark.parametrize("fault", ["503", "500", "429", "drop", "hang"])
def test_passing_failures_are_retried(server: Server, fault: str) -> None:
    server.faults = [fault, fault]
    emb_ND = engine(server, max_in_flight=1, timeout_s=0.5).embed(TEXTS)
    np.testing.assert_allclose(emb_ND, np.stack([vector(text) for text in TEXTS]), atol=1e-6)
    assert server.requests == 7 + 2


def test_the_pause_that_the_server_asks_for_is_kept(server: Server) -> None:
    server.faults = ["429"]
    start = time.monotonic()
    engine(server).embed(TEXTS[:1])
    assert time.monotonic() - start >= 0.2


def test_a_server_that_keeps_failing_is_an_error(server: Server) -> None:
    server.faults = ["503"] * 9
    with pytest.raises(EngineError, match=r"failed 3 times, the last time with status 503"):
        engine(server).embed(TEXTS[:1])


@pytest.mark.parametrize("status", ["400", "401", "404", "413"])
def test_a_refused_request_is_not_sent_again(server: Server, status: str) -> None:
    server.faults = [status]
    with pytest.raises(EngineError, match=f"refused a request, status {status}"):
        engine(server).embed(TEXTS[:1])
    assert server.requests == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("count", r"2 vectors with index \[0, 1\]… for 3 texts"),
        ("index", r"3 vectors with index \[0, 0, 1\]"),
        ("dim", r"vectors of shape \(7,\), embed.dim is 8"),
        ("nan", "not finite"),
        ("null", "not finite|no OpenAI"),
        ("json", "no OpenAI embeddings response"),
    ],
)
def test_answers_that_cannot_be_used_are_errors(server: Server, fault: str, message: str) -> None:
    server.faults = [fault]
    with pytest.raises(EngineError, match=message):
        engine(server).embed(TEXTS[:3])
    assert server.requests == 1


def test_no_server_at_all_is_an_error() -> None:
    with serving() as server:
        pass
    with pytest.raises(EngineError, match="Check that the server runs"):
        engine(server, retries=1).embed(TEXTS[:1])
