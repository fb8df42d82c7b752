"""Traces of the service in this process, as a collector gets them."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from raypref.serve import spans, tracing
from raypref.serve.config import ServeSettings
from raypref.serve.keys import create_key
from raypref.serve.spans import Span, Tracer
from raypref.serve.stores.base import StoreDown
from raypref.serve.tracing import QUEUE_SPANS, TracingConfig, open_tracer
from tests.serve.collector import Collector, collecting, trees
from tests.serve.conftest import MakeBundle
from tests.serve.local import Local, candidates, compared
from tests.serve.world import DIM, some

CHOSEN, REJECTED, CANDIDATES = some(1, 8, DIM), some(2, 8, DIM), some(3, 5, DIM)
SERVER, CLIENT = 2, 3
ERROR = 2

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

SCORED_COLD = {
    "POST /v1/score": {
        "room": {},
        "batch": {},
        "Scorer.score": {"score": {"batch": {}, "store read": {}, "scoring": {}}},
    }
}
SCORED_STALE = {
    "POST /v1/score": {
        "room": {},
        "batch": {},
        "Scorer.score": {
            "score": {"batch": {}, "store read": {}, "inference": {}, "store write": {}, "scoring": {}}
        },
    }
}
LEARNED = {
    "POST /v1/users/{user}/comparisons": {
        "room": {},
        "batch": {},
        "Scorer.learn": {
            "learn": {"batch": {}, "encoding": {}, "store write": {}, "store read": {}, "inference": {}}
        },
    }
}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "EVERY_S", 0.05)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def service(collector: Collector, bundle_of: MakeBundle) -> Iterator[Local]:
    local = Local(bundle_of("vrf"), tracing={"endpoint": collector.url, "sample": 1})
    yield local
    local.close()


def learning(*numbers: int) -> dict[str, Any]:
    rows = list(numbers)
    return {
        "comparisons": compared(
            CHOSEN[rows], REJECTED[rows], event_id=[f"secret-event-{row}" for row in rows]
        )
    }


def scoring(**who: Any) -> dict[str, Any]:
    return {"candidates": candidates(CANDIDATES), **who}


def test_a_request_is_one_whole_trace(service: Local, collector: Collector) -> None:
    service.ask("POST", "/v1/score", scoring(user="ann"))
    assert trees(collector.await_spans(8)) == [SCORED_COLD]
    found = {span.name: span for span in collector.spans}
    top = found["POST /v1/score"]
    assert top.attributes == {
        "http.request.method": "POST", "http.route": "/v1/score", "http.response.status_code": 200,
    }  # fmt: skip
    assert (top.kind, found["Scorer.score"].kind, found["score"].kind) == (SERVER, CLIENT, SERVER)
    assert found["store read"].attributes == {"raypref.store": "memory", "raypref.users": 1}
    assert found["score"].attributes == {"raypref.requests": 1}
    assert {top.service, found["Scorer.score"].service} == {"raypref.ingress"}
    assert {found["score"].service, found["scoring"].service} == {"raypref.scorer"}
    assert not any(span.status for span in collector.spans)


def test_what_learning_and_a_stale_vector_take_is_told(service: Local, collector: Collector) -> None:
    service.ask("POST", "/v1/users/ann/comparisons", learning(0, 1))
    assert trees(collector.await_spans(10)) == [LEARNED]
    collector.spans.clear()
    service.store.remember([])
    state = service.store.read([service.store.keys()[0]])[0]
    service.store.remember([(service.store.keys()[0], state.version, "another bundle", state.vector)])
    service.ask("POST", "/v1/score", scoring(user="ann"))
    assert trees(collector.await_spans(11)) == [SCORED_STALE]


@pytest.mark.parametrize(
    ("method", "path", "body", "name", "inner"),
    [
        ("GET", "/v1/users/ann", None, "user", {"store read": {}}),
        ("DELETE", "/v1/users/ann", None, "erase", {"store write": {}}),
        ("GET", "/v1/users/ann/export", None, "export", {"store read": {}}),
        ("POST", "/v1/users/ann/decay", {"factor": 0.5}, "decay", {"store write": {}}),
        ("DELETE", "/v1/users/ann/comparisons/e", None, "forget", {"store write": {}}),
        ("GET", "/v1/models", None, "describe", {}),
    ],
)
def test_what_goes_alone_is_whole_too(
    method: str, path: str, body: Any, name: str, inner: Any, service: Local, collector: Collector
) -> None:
    service.request(method, path, body)
    (tree,) = trees(collector.await_spans(4))
    ((top, parts),) = tree.items()
    assert top == f"{method} {path.replace('ann', '{user}').removesuffix('/e')}" + (
        "/{event_id}" if path.endswith("/e") else ""
    )
    assert parts == {"room": {}, f"Scorer.{name}": {name: inner}}


def test_requests_of_one_batch_have_a_whole_trace_each(service: Local, collector: Collector) -> None:
    """However they were grouped: shared work is told in each, and says with how many it was shared."""
    asked = [("POST", "/v1/score", scoring(user=f"u{number}")) for number in range(40)]
    assert {answer.status_code for answer in service.together(asked)} == {200}
    found = collector.await_spans(40 * 8)
    assert trees(found) == [SCORED_COLD] * 40
    sizes = [span.attributes["raypref.requests"] for span in found if span.name == "score"]
    assert max(sizes) > 1
    reads = {(span.begun_ns, span.ended_ns) for span in found if span.name == "store read"}
    assert len(reads) < 40
    for span in found:
        if span.name == "store read" and span.attributes["raypref.users"] > 1:
            break
    else:
        raise AssertionError("no batch read several users")


def test_a_traced_request_tells_nothing_in_the_traces_of_others(
    collector: Collector, bundle_of: MakeBundle
) -> None:
    local = Local(bundle_of("vrf"), tracing={"endpoint": collector.url, "sample": 0})
    traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}

    async def send() -> list[Any]:
        return await asyncio.gather(
            *(
                local.http.post(
                    "/v1/score", json=scoring(user=f"u{number}"), headers=traced if number == 7 else None
                )
                for number in range(20)
            )
        )

    assert {answer.status_code for answer in local._runner.run(send())} == {200}
    assert trees(collector.await_spans(8)) == [SCORED_COLD]
    local.close()


def test_a_clients_trace_goes_on(service: Local, collector: Collector) -> None:
    service.ask("POST", "/v1/score", scoring(), headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    found = collector.await_spans(7)
    assert {span.trace_id.hex() for span in found} == {TRACE}
    (top,) = (span for span in found if span.name == "POST /v1/score")
    assert top.parent_id.hex() == PARENT


@pytest.mark.parametrize(
    ("sample", "traceparent", "expected"),
    [
        (0, f"00-{TRACE}-{PARENT}-01", TRACE),
        (0, f"cc-{TRACE}-{PARENT}-03-what-later-versions-add", TRACE),
        (1, f"00-{TRACE}-{PARENT}-00", None),
        (0, None, None),
        (0, f"ff-{TRACE}-{PARENT}-01", None),
        (0, f"00-{'0' * 32}-{PARENT}-01", None),
        (0, f"00-{TRACE}-{'0' * 16}-01", None),
        (0, f"00-{TRACE.upper()}-{PARENT}-01", None),
        (0, f"00-{TRACE}-{PARENT}-01\n", None),
        (0, "rubbish", None),
    ],
)
def test_whom_the_client_lets_be_traced(sample: float, traceparent: str | None, expected: str | None) -> None:
    ended: list[Span] = []
    found = Tracer(sample, ended.append).request(None if traceparent is None else traceparent.encode())
    assert (found and found.trace_id) == expected


def test_the_share_that_is_traced() -> None:
    tracer = Tracer(0.2, lambda _: None)
    traced = sum(tracer.request(None) is not None for _ in range(20_000))
    assert 3600 < traced < 4400
    assert all(Tracer(1, lambda _: None).request(None) for _ in range(1000))
    assert not any(Tracer(0, lambda _: None).request(None) for _ in range(1000))


def test_nothing_of_users_tenants_keys_or_texts_is_in_a_trace(
    collector: Collector, bundle_of: MakeBundle, tmp_path: Any
) -> None:
    key = create_key(tmp_path / "keys.json", "secret-tenant")
    local = Local(
        bundle_of("vrf"),
        keys=tmp_path / "keys.json",
        tracing={"endpoint": collector.url, "sample": 1},
    )
    headers = {"authorization": f"Bearer {key}", "x-request-id": "secret-request"}
    asked = [
        ("POST", "/v1/users/secret-user/comparisons", learning(0)),
        ("POST", "/v1/score", scoring(user="secret-user")),
        ("POST", "/v1/score", scoring(user="secret-user", model="secret-model")),
        ("POST", "/v1/score", {"candidates": [{"text": "secret text"}]}),
        ("GET", "/v1/users/secret-user", None),
        ("GET", "/v1/users/secret-user/export", None),
        ("GET", "/v1/users/.secret-user", None),
        ("GET", "/secret-path/secret-user?secret-query", None),
        ("SECRET", "/v1/score", None),
        ("POST", "/get_reward", {"query": ["secret text"], "labels": ["secret-user"]}),
        ("DELETE", "/v1/users/secret-user/comparisons/secret-event-0", None),
    ]
    for method, path, body in asked:
        local.request(method, path, body, headers=headers)
    local.request("GET", "/v1/models", headers={"authorization": "Bearer secret-key"})
    collector.await_spans(54)
    assert b"secret" not in collector.raw.lower()
    assert key.encode() not in collector.raw
    routes = {span.attributes.get("http.route") for span in collector.spans} - {None}
    assert routes >= {"/v1/users/{user}", "/v1/score", "unrouted"}
    local.close()


def test_what_goes_wrong_is_told_without_its_message(
    service: Local, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> Any:
        raise StoreDown("secret")

    monkeypatch.setattr(service.store, "append", down)
    service.refused(503, "POST", "/v1/users/ann/comparisons", learning(0))
    found = {span.name: span for span in collector.await_spans(8)}
    assert found["store write"].status == ERROR
    assert found["POST /v1/users/{user}/comparisons"].status == ERROR
    assert found["POST /v1/users/{user}/comparisons"].attributes["http.response.status_code"] == 503
    assert b"secret" not in collector.raw


def test_a_log_line_names_its_trace(service: Local, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ray.serve.raypref"):
        service.request("GET", "/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        service.request("GET", "/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    lines = [record.message for record in caplog.records if '"route"' in record.message]
    assert [TRACE in line for line in lines] == [True, False]


def test_probes_are_not_traced(service: Local, collector: Collector) -> None:
    for path in ("/healthz", "/readyz"):
        service.request("GET", path)
    service.request("GET", "/v1/models")
    assert {tuple(tree) for tree in trees(collector.await_spans(4))} == {("GET /v1/models",)}


def test_off_is_the_default_and_sends_nothing(bundle_of: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServeSettings(open=True).tracing is None
    begun: list[object] = []
    monkeypatch.setattr(spans.Span, "__init__", lambda span, *args: begun.append(args))
    local = Local(bundle_of("vrf"))
    local.ask("POST", "/v1/users/ann/comparisons", learning(0))
    local.ask("POST", "/v1/score", scoring(user="ann"), headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    local.close()
    assert begun == []


def test_off_imports_nothing_of_opentelemetry() -> None:
    """Ray Serve does so by itself, so this looks at what is ours."""
    program = """
import sys
from raypref.serve import config, desk, guard, users
from raypref.serve.tracing import open_tracer
assert open_tracer(None, "ingress") is None
found = [name for name in sys.modules if name.startswith("opentelemetry")]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("trouble", ["down", "hangs", "fails"])
def test_a_collector_in_trouble_costs_requests_nothing(
    trouble: str, collector: Collector, bundle_of: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    url = collector.url
    if trouble == "down":
        url = "http://127.0.0.1:9"
    elif trouble == "hangs":
        collector.answer = lambda: 200 if release.wait(60) else 500
    else:
        collector.answer = lambda: 503
    bundle = bundle_of("vrf")
    plain, local = Local(bundle), Local(bundle, tracing={"endpoint": url, "sample": 1})
    for service in (plain, local):
        service.ask("POST", "/v1/score", scoring(user="ann"))
    # More spans than the queue holds.
    requests, seconds = QUEUE_SPANS // 4 // 8 * 5, {plain: [0.0], local: [0.0]}
    for _ in range(requests):
        for service, spent in seconds.items():
            begun_s = time.perf_counter()
            service.ask("POST", "/v1/score", scoring(user="ann"))
            spent.append(time.perf_counter() - begun_s)
    # Whoever waits for a collector waits with every request once the queue is full, not with one in 100.
    halves, slow = ([statistics.quantiles(spent, n=20)[at] for spent in seconds.values()] for at in (9, 18))
    assert halves[1] < 2 * halves[0] + 1e-3
    assert slow[1] < 2 * slow[0] + 0.1
    release.set()
    plain.close()
    local.close()


def test_a_full_queue_drops_spans_and_waits_for_nobody(collector: Collector) -> None:
    release = threading.Event()
    collector.answer = lambda: 200 if release.wait(30) else 500
    tracer = open_tracer(TracingConfig(endpoint=collector.url, sample=1), "ingress")
    assert tracer is not None
    begun_s = time.perf_counter()
    for _ in range(5 * QUEUE_SPANS):
        span = tracer.request(None)
        assert span is not None
        span.end()
    assert time.perf_counter() - begun_s < 5
    release.set()
    found = collector.await_spans(QUEUE_SPANS)
    assert QUEUE_SPANS <= len(found) < 2 * QUEUE_SPANS


@pytest.mark.parametrize(
    "given",
    [
        {"endpoint": "otel-collector:4318"},
        {"endpoint": "http://c:4318", "sample": 1.5},
        {"endpoint": "http://c:4318", "ratio": 0.1},
        {},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServeSettings(open=True, tracing=given)
