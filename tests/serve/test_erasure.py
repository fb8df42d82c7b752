"""An erased user is gone: from the store's files, from the logs, and from memory."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raypref.serve.judge import Judge
from raypref.serve.stores import open_store
from raypref.serve.users import Users
from tests.serve.conftest import MakeBundle
from tests.serve.local import ANN, Local, candidates, compared
from tests.serve.test_hostile import Hashing
from tests.serve.world import DIM, some

USER, EVENTS = "erika-mustermann-7391", ["first-event-4f1c", "second-event-9b2d", "third-event-0e8a"]
TEXTS = ["I would rather die than eat broccoli", "my doctor says 1312", "chosen by erika"]


@pytest.fixture
def lines(bundle_of: MakeBundle) -> Iterator[list[str]]:
    """All that is logged, at every level."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # The client of the test tells of its requests too.
            if not record.name.startswith(("httpx", "httpcore")):
                found.append(f"{record.getMessage()} {record.__dict__}")

    handler = Keep(logging.DEBUG)
    loggers = [logging.getLogger(), logging.getLogger("ray.serve.raypref"), logging.getLogger("ray.serve")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield found
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def live(local: Local) -> None:
    """Let a user come, compare, be scored on every route, and make mistakes."""
    path = f"/v1/users/{USER}"
    body = compared(some(1, 2, DIM), some(2, 2, DIM), event_id=EVENTS[:2])
    local.ask("POST", f"{path}/comparisons", {"comparisons": body})
    told = {
        "event_id": EVENTS[2],
        "prompt": TEXTS[1],
        "chosen": {"text": TEXTS[0]},
        "rejected": {"text": TEXTS[2]},
    }
    local.ask("POST", f"{path}/comparisons", {"comparisons": [told]})
    local.ask("POST", "/v1/score", {"user": USER, "candidates": candidates(some(3, 3, DIM))})
    local.ask("POST", "/v1/score", {"user": USER, "candidates": [{"text": TEXTS[0]}]})
    local.ask("POST", "/classify", {"user": USER, "input": TEXTS})
    local.ask("POST", "/get_reward", {"query": TEXTS, "labels": [USER] * 3})
    local.ask("GET", path)
    local.ask("GET", f"{path}/export")
    local.ask("POST", f"{path}/decay", {"factor": 0.5, "event_id": EVENTS[0]})
    pair = {key: told[key] for key in ("chosen", "rejected")}
    local.ask("POST", "/v1/suggest", {"user": USER, "pairs": [pair]})
    conflict = compared(some(5, 1, DIM), some(6, 1, DIM), event_id=EVENTS[:1])
    local.refused(409, "POST", f"{path}/comparisons", {"comparisons": conflict})
    local.refused(422, "POST", f"{path}/comparisons", {"comparisons": [{**told, "weight": TEXTS[1]}]})
    local.refused(400, "POST", f"{path}/comparisons", content=json.dumps(told).encode()[:-5])
    local.refused(404, "GET", f"{path}/{TEXTS[0]}")
    local.ask("DELETE", f"{path}/comparisons/{EVENTS[1]}")


def traces(vectors: np.ndarray) -> list[bytes]:
    """Return what may be left of vectors: any eight floats of them."""
    return [row.tobytes()[start : start + 32] for row in vectors for start in range(0, 4 * DIM - 32, 16)]


def test_no_byte_of_an_erased_user_is_left(tmp_path: Path, bundle_of: MakeBundle, lines: list[str]) -> None:
    database = tmp_path / "users.db"
    local = Local(bundle_of("vrf"), f"sqlite:///{database}", embedder=Hashing())
    bystander = compared(some(8, 1, DIM), some(9, 1, DIM), event_id=["stays"])
    local.ask("POST", "/v1/users/ben/comparisons", {"comparisons": bystander})
    live(local)
    key = ANN._replace(user=USER)
    ((_, events),) = local.store.events([key], raw=True)
    vector_Z = local.users.stored(local.scorer._judging(), key).vector_Z
    secrets = [USER.encode(), *(event.encode() for event in EVENTS), *(text.encode() for text in TEXTS)]
    secrets += [part for event in events for part in (event.chosen[1:], event.rejected[1:], event.evidence)]
    secrets += [vector_Z.tobytes(), *traces(some(1, 2, DIM)), *traces(some(2, 2, DIM))]

    def held() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))

    before = held()
    assert USER.encode() in before
    assert events[0].chosen[1:] in before
    assert local.ask("DELETE", f"/v1/users/{USER}")["deleted"]
    other = open_store(f"sqlite:///{database}")
    other.compact()
    other.close()
    after = held()
    assert [secret[:20] for secret in secrets if secret in after] == []
    assert b"stays" in after
    # The service goes on: a late retry brings nothing back.
    late = compared(some(1, 2, DIM), some(2, 2, DIM), event_id=EVENTS[:2])
    answer = local.ask("POST", f"/v1/users/{USER}/comparisons", {"comparisons": late})
    assert (answer["applied"], answer["erased"], answer["cold"]) == (0, 2, True)
    assert local.ask("GET", "/v1/users/ben")["shots"] == 1
    local.store.compact()
    late_after = held()
    assert [secret[:20] for secret in secrets if secret in late_after] == []
    local.close()

    said = "\n".join(lines)
    assert '"route"' in said
    assert [secret for secret in [USER, *EVENTS, *TEXTS] if secret in said] == []
    for row in some(1, 2, DIM):
        assert str(float(row[0]))[:8] not in said


def test_no_object_of_the_service_keeps_an_erased_user(bundle_of: MakeBundle) -> None:
    local = Local(bundle_of("vrf"), embedder=Hashing())
    live(local)
    ((_, events),) = local.store.events([ANN._replace(user=USER)], raw=True)
    secrets: list[object] = [USER, *EVENTS, *TEXTS, *(event.chosen for event in events)]
    del events
    local.ask("DELETE", f"/v1/users/{USER}")
    reached, found = reach([local.scorer, local.app]), []
    for thing in reached:
        if isinstance(thing, str | bytes) and any(type(s) is type(thing) and s in thing for s in secrets):  # type: ignore[operator]
            found.append(thing)
    assert found == []
    kinds = {type(thing) for thing in reached}
    assert {Users, Judge} <= kinds
    assert any(isinstance(thing, np.ndarray) for thing in reached)
    local.close()


def reach(roots: list[object]) -> list[object]:
    """Return every object that these hold, however far, but for modules, classes and code."""
    import types

    beyond = (types.ModuleType, type, types.FunctionType, types.CodeType, types.FrameType, logging.Logger)
    gc.collect()
    found: dict[int, object] = {}
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or isinstance(thing, beyond):
            continue
        found[id(thing)] = thing
        waiting += gc.get_referents(thing)
    return list(found.values())
