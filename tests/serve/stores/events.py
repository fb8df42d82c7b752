"""Events, users and writes for the tests of stores."""

from __future__ import annotations

import math
import struct
from typing import Any

from hypothesis import strategies as st

from raypref.serve.stores.base import Event, Key, Store, Write, Written

ANN, BEN = Key("acme", "ann"), Key("acme", "ben")


def event(name: str, time_s: float = 1.0, weight: float = 1.0, **changes: Any) -> Event:
    fields: dict[str, Any] = {
        "chosen": f"chosen {name}".encode(),
        "rejected": f"rejected {name}\0\xff".encode("latin-1"),
        "encoder": "bundle-1",
        "evidence": struct.pack("<3f", math.pi, -0.0, float(len(name))),
    }
    return Event(name, time_s, weight, **(fields | changes))


def write(store: Store, key: Key, *events: Event, limit: int = 1000) -> Written:
    (written,) = store.append([Write(key, events)], limit)
    return written


IDS = st.text("azAZ09._~@:+=-", min_size=1, max_size=6)
WEIGHTS = st.floats(min_value=0, max_value=1e6, exclude_min=True)
TIMES = st.floats(min_value=0, max_value=1e11)

EVENTS = st.builds(
    Event,
    event_id=IDS,
    time_s=TIMES,
    weight=WEIGHTS,
    chosen=st.binary(min_size=1, max_size=40),
    rejected=st.binary(min_size=1, max_size=40),
    encoder=IDS,
    evidence=st.binary(max_size=40),
)
LOGS = st.lists(EVENTS, min_size=1, max_size=8, unique_by=lambda event: event.event_id)
"""Events of one user, each id once."""
