"""Spans: where the time of a traced request went. Pure; what exports them is `raypref.serve.tracing`.

A request that is not traced has no span at all, and a child of nothing is nothing, for a look at a context
variable. What is done for several requests together is one `Span` with a place in the trace of each of them,
and is told once in each: a trace is whole by itself, and `raypref.requests` says how many shared the work.

Names and figures say what was done and how much of it; never for whom, nor what was asked.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["internal", "server", "client"]

_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_LOW_64 = (1 << 64) - 1

_CURRENT: ContextVar[Span | None] = ContextVar("raypref_span", default=None)
_NOTHING = nullcontext()


@dataclass(frozen=True)
class Origin:
    """Where in a trace what follows belongs; goes with a call to another process."""

    trace_id: int
    span_id: int
    since_ns: int
    """When it began to wait, by the clock of the process that it is in."""

    def now(self) -> Origin:
        """Return the same place, where the waiting begins now."""
        return replace(self, since_ns=time.time_ns())


@dataclass(frozen=True)
class Place:
    """A span's place in one trace."""

    trace_id: int
    span_id: int
    parent_id: int
    """0 where the trace begins."""
    begun_ns: int


class Span:
    """Work under way, for one request or several."""

    __slots__ = ("_export", "attributes", "ended_ns", "failure", "kind", "name", "places")

    def __init__(
        self,
        name: str,
        kind: Kind,
        places: tuple[Place, ...],
        export: Callable[[Span], None],
        attributes: dict[str, str | int] | None = None,
    ) -> None:
        """Begin; `end` hands the span to `export`."""
        self.name = name
        self.kind: Kind = kind
        self.places = places
        self.attributes: dict[str, str | int] = attributes or {}
        self.failure: str | None = None
        """What went wrong, by its type; its message may hold what a user wrote."""
        self.ended_ns = 0
        self._export = export

    def end(self) -> None:
        """End now."""
        self.ended_ns = time.time_ns()
        self._export(self)

    @property
    def trace_id(self) -> str:
        """The trace that it is in, as logs and viewers write it; the first, of several."""
        return f"{self.places[0].trace_id:032x}"

    def answered(self, method: str, route: str, status: int) -> None:
        """Tell what request this is, and what became of it, in OpenTelemetry's words.

        Args:
            method: one of HTTP's.
            route: its template; a path holds the id of a user.
            status: what was answered.
        """
        self.name = f"{method} {route}"
        self.attributes["http.request.method"] = method
        self.attributes["http.route"] = route
        self.attributes["http.response.status_code"] = status
        if status >= 500:
            self.failure = str(status)

    def child(self, name: str, kind: Kind = "internal", **figures: str | int) -> Span:
        """Begin a part of this span."""
        now_ns = time.time_ns()
        places = tuple(Place(place.trace_id, _new(64), place.span_id, now_ns) for place in self.places)
        return Span(name, kind, places, self._export, figures)

    def waited(self, name: str) -> None:
        """Tell that all of this span so far was spent waiting."""
        places = tuple(
            Place(place.trace_id, _new(64), place.span_id, place.begun_ns) for place in self.places
        )
        Span(name, "internal", places, self._export).end()

    def origins(self) -> list[Origin]:
        """Return where what this span asks of others belongs, one for each trace."""
        now_ns = time.time_ns()
        return [Origin(place.trace_id, place.span_id, now_ns) for place in self.places]


class Tracer:
    """Decides which requests are traced, and hands ended spans on."""

    def __init__(self, sample: float, export: Callable[[Span], None]) -> None:
        """Trace a share of the requests.

        Args:
            sample: from 0 to 1, of requests whose client did not decide; a client's decision holds.
            export: takes ended spans; neither blocks nor raises.
        """
        self._below = round(sample * (_LOW_64 + 1))
        self._export = export

    def request(self, traceparent: bytes | None) -> Span | None:
        """Begin the span of a request that came in, None where it is not traced.

        Args:
            traceparent: the header of W3C's Trace Context; one that is malformed is as good as none.
        """
        parent_id = 0
        given = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        if given is not None and int(given[2], 16) and int(given[3], 16):
            if not int(given[4], 16) & 1:
                return None
            trace_id, parent_id = int(given[2], 16), int(given[3], 16)
        else:
            trace_id = _new(128)
            # As OpenTelemetry samples, so that all who go by the trace's id agree.
            if trace_id & _LOW_64 >= self._below:
                return None
        place = Place(trace_id, _new(64), parent_id, time.time_ns())
        return Span("request", "server", (place,), self._export)

    def join(self, name: str, kind: Kind, origins: Iterable[Origin | None]) -> Span | None:
        """Begin work for requests together, None where none of them is traced.

        It begins, in each trace, when its request began to wait for it.
        """
        places = tuple(
            Place(origin.trace_id, _new(64), origin.span_id, origin.since_ns)
            for origin in origins
            if origin is not None
        )
        return Span(name, kind, places, self._export) if places else None


def under(span: Span | None) -> AbstractContextManager[Span | None]:
    """Run a block as a span, or as nothing; the spans within are its children, and it ends with the block."""
    return _NOTHING if span is None else _under(span)


@contextmanager
def _under(span: Span) -> Generator[Span]:
    token = _CURRENT.set(span)
    try:
        yield span
    except BaseException as error:
        span.failure = type(error).__name__
        raise
    finally:
        _CURRENT.reset(token)
        span.end()


def within(name: str, kind: Kind = "internal", **figures: str | int) -> AbstractContextManager[Span | None]:
    """Run a block as a child of the span that this code runs under, or as nothing where there is none."""
    span = _CURRENT.get()
    return _NOTHING if span is None else _under(span.child(name, kind, **figures))


def origin() -> Origin | None:
    """Return where a call that this code makes belongs; None where nothing is traced."""
    span = _CURRENT.get()
    return None if span is None else span.origins()[0]


def _new(bits: int) -> int:
    """Return an id; 0 is none."""
    return random.getrandbits(bits) or 1
