"""A collector of traces: takes OTLP over HTTP, as any does, and keeps what came."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Tree = dict[str, Any]
"""Spans by name, each with its children; those of one name under one parent are one."""


@dataclass(frozen=True)
class Got:
    """A span that was delivered."""

    name: str
    kind: int
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    begun_ns: int
    ended_ns: int
    service: str
    status: int
    attributes: dict[str, Any]


class Collector:
    """What was delivered to an address."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Got] = []
        self.raw = b""
        self.deliveries = 0
        self.answer: Callable[[], int] = lambda: 200
        """Called for each delivery; its status."""

    def take(self, body: bytes) -> int:
        self.deliveries += 1
        status = self.answer()
        if status != 200:
            return status
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Got(
                            span.name,
                            span.kind,
                            span.trace_id,
                            span.span_id,
                            span.parent_span_id,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            service,
                            span.status.code,
                            _attributes(span.attributes),
                        )
                    )
        return 200

    def await_spans(self, count: int, within_s: float = 15.0, settle_s: float = 0.3) -> list[Got]:
        """Return what came, once there are `count` spans and time for more of them."""
        deadline_s = time.monotonic() + within_s
        while len(self.spans) < count:
            assert time.monotonic() < deadline_s, f"{len(self.spans)} of {count}"
            time.sleep(0.05)
        time.sleep(settle_s)
        return list(self.spans)


def trees(spans: list[Got]) -> list[Tree]:
    """Return each trace as a tree; every span hangs on one that came too, or on none of its trace's."""
    found: list[Tree] = []
    for trace_id in dict.fromkeys(span.trace_id for span in spans):
        own = [span for span in spans if span.trace_id == trace_id]
        ids = {span.span_id for span in own}
        assert len(ids) == len(own)
        tops = [span for span in own if span.parent_id not in ids]
        assert len(tops) == 1, tops
        found.append({tops[0].name: _below(tops[0], own)})
    return found


def _below(parent: Got, spans: list[Got]) -> Tree:
    tree: Tree = {}
    for span in sorted(spans, key=lambda span: (span.begun_ns, span.ended_ns)):
        if span.parent_id == parent.span_id:
            assert parent.begun_ns <= span.begun_ns <= span.ended_ns <= parent.ended_ns, (parent, span)
            tree.setdefault(span.name, {}).update(_below(span, spans))
    return tree


@contextmanager
def collecting() -> Generator[Collector]:
    """Run a block with a collector up."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(collector.take(body))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
