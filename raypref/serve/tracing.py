"""Ended spans to a collector: OTLP over HTTP, in a thread of its own. Only this module names OpenTelemetry.

A collector that is down or slow costs spans, never requests: they wait in a queue of fixed size, whose oldest
are dropped where it is full.

Ray Serve has tracing of its own (`tracing_config`), which cannot tell a request's way here: a message to a
Scorer carries many requests, and Serve's context is that of whichever of them happened to send it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from raypref import __version__
from raypref.config import Section
from raypref.errors import ConfigError
from raypref.serve.spans import Span, Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_SPANS = 4096
BATCH_SPANS = 512
EVERY_S = 1.0
TIMEOUT_S = 5.0
"""Of one delivery, its retries included."""


class TracingConfig(Section):
    """Where traces go, and of how many requests."""

    endpoint: str = Field(
        description="OTLP/HTTP collector, such as http://otel-collector:4318; credentials belong in "
        "OTEL_EXPORTER_OTLP_HEADERS."
    )
    sample: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of requests traced; a client that sends `traceparent` decides for its own.",
    )

    @field_validator("endpoint")
    @classmethod
    def _check(cls, endpoint: str) -> str:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError("is http://HOST:PORT or https://HOST:PORT")
        return endpoint.rstrip("/")


def open_tracer(config: TracingConfig | None, component: str) -> Tracer | None:
    """Return what traces the requests of this process; None where nothing is to be traced.

    Args:
        config: None is off: then nothing of OpenTelemetry is imported.
        component: which part of the service this process is.

    Raises:
        ConfigError: the exporter is not installed.
    """
    if config is None:
        return None
    try:
        export = _exporter(config.endpoint, component)
    except ImportError as error:
        raise ConfigError(
            f"tracing: {error.name} is not installed; pip install 'raypref[tracing]'."
        ) from error
    return Tracer(config.sample, export)


def _exporter(endpoint: str, component: str) -> Callable[[Span], None]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    # A processor of our own, not the process's: Ray Serve may have set another.
    processor = BatchSpanProcessor(
        OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=TIMEOUT_S),
        max_queue_size=QUEUE_SPANS,
        schedule_delay_millis=EVERY_S * 1e3,
        max_export_batch_size=BATCH_SPANS,
    )
    resource = Resource.create({"service.name": f"raypref.{component}", "service.version": __version__})
    scope = InstrumentationScope("raypref", __version__)
    sampled = TraceFlags(TraceFlags.SAMPLED)
    kinds = {kind.name.lower(): kind for kind in SpanKind}

    def export(span: Span) -> None:
        attributes = {
            name if "." in name else f"raypref.{name}": value for name, value in span.attributes.items()
        }
        status = Status() if span.failure is None else Status(StatusCode.ERROR, span.failure)
        for place in span.places:
            parent = None
            if place.parent_id:
                parent = SpanContext(place.trace_id, place.parent_id, is_remote=False, trace_flags=sampled)
            processor.on_end(
                ReadableSpan(
                    span.name,
                    SpanContext(place.trace_id, place.span_id, is_remote=False, trace_flags=sampled),
                    parent,
                    resource,
                    attributes,
                    kind=kinds[span.kind],
                    status=status,
                    start_time=place.begun_ns,
                    end_time=span.ended_ns,
                    instrumentation_scope=scope,
                )
            )

    return export
