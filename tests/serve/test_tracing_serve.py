"""Traces of the service as Ray Serve runs it: ingress and Scorer are processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from ray import serve

from raypref.serve.app import build
from raypref.serve.config import ServeConfig
from tests.serve.chaos.service import free_ports
from tests.serve.collector import Collector, collecting, trees
from tests.serve.conftest import MakeBundle
from tests.serve.local import candidates, compared
from tests.serve.world import DIM, some

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}

SCORE = {"candidates": candidates(some(3, 5, DIM)), "user": "secret-user"}
SCORED = {
    "room": {},
    "batch": {},
    "Scorer.score": {"score": {"batch": {}, "store read": {}, "scoring": {}}},
}
LEARNED = {
    "room": {},
    "batch": {},
    "Scorer.learn": {
        "learn": {"batch": {}, "encoding": {}, "store write": {}, "store read": {}, "inference": {}}
    },
}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def client(
    ray_cluster: None, collector: Collector, bundle_of: MakeBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a service that traces whoever asks for it."""
    (port,) = free_ports(1)
    folder: Path = tmp_path_factory.mktemp("traced")
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    config = ServeConfig.model_validate(
        {
            "bundle": bundle_of("vrf"),
            "store": f"sqlite:///{folder}/users.db",
            "open": True,
            "tracing": {"endpoint": collector.url, "sample": 0},
        }
    )
    try:
        serve.run(build(config), name="raypref")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        serve.shutdown()


def test_a_trace_goes_from_the_client_through_both_processes(
    client: httpx.Client, collector: Collector
) -> None:
    collector.spans.clear()
    client.post("/v1/score", json=SCORE).raise_for_status()
    client.post("/v1/score", json=SCORE, headers=TRACED).raise_for_status()
    found = collector.await_spans(8, settle_s=2.5)
    assert trees(found) == [{"POST /v1/score": SCORED}]
    assert {span.trace_id.hex() for span in found} == {TRACE}
    (top,) = (span for span in found if span.name == "POST /v1/score")
    assert top.parent_id.hex() == PARENT
    where = {span.name: span.service for span in found}
    assert (where["POST /v1/score"], where["score"]) == ("raypref.ingress", "raypref.scorer")
    assert b"secret" not in collector.raw


def test_requests_at_once_have_a_trace_each(client: httpx.Client, collector: Collector) -> None:
    collector.spans.clear()

    def ask(number: int) -> int:
        headers = {"traceparent": f"00-{number + 1:032x}-{PARENT}-01"}
        if number % 4 == 3:
            learned = {"comparisons": compared(some(1, 1, DIM), some(2, 1, DIM))}
            path = f"/v1/users/secret-{number}/comparisons"
            return client.post(path, json=learned, headers=headers).status_code
        return client.post("/v1/score", json=SCORE, headers=headers).status_code

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(ask, range(32))) == {200}
    by_name: dict[str, list[object]] = {}
    for tree in trees(collector.await_spans(24 * 8 + 8 * 10, settle_s=2.5)):
        ((name, parts),) = tree.items()
        by_name.setdefault(name, []).append(parts)
    assert by_name == {
        "POST /v1/score": [SCORED] * 24,
        "POST /v1/users/{user}/comparisons": [LEARNED] * 8,
    }
    assert b"secret" not in collector.raw
