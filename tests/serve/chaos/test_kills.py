"""What was acknowledged outlives every process."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raypref.client import Client
from raypref.serve.stores import open_store
from raypref.serve.stores.base import Key
from tests.serve.chaos.load import Ledger, behind, write
from tests.serve.chaos.service import RealService
from tests.serve.world import make_bundle

LOG = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WRITERS, USERS = 20, 200
KILLS, EVERY_S = 12, 5.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    folder = tmp_path_factory.mktemp("kills")
    service = RealService(folder, make_bundle(folder / "bundle"))
    try:
        service.start()
        yield service
    finally:
        service.stop()


def check_store(database: Path, ledger: Ledger) -> None:
    """Every acknowledged event is stored, each event once, and versions count them."""
    with sqlite3.connect(database) as db:
        count, distinct = db.execute(
            "SELECT count(*), count(DISTINCT owner || '/' || event_id) FROM events"
        ).fetchone()
    assert count == distinct
    store = open_store(f"sqlite:///{database}")
    users = list(ledger.acknowledged)
    keys = [Key("default", user) for user in users]
    found = zip(users, store.read(keys), store.events(keys), strict=True)
    stored = 0
    for user, state, (version, events) in found:
        ids = [event.event_id for event in events]
        assert ledger.acknowledged[user] <= set(ids)
        assert len(ids) == len(set(ids)) == state.shots
        # Only additions happened, and each raised the version by one.
        assert state.version == version == len(ids)
        assert version >= ledger.version[user]
        stored += len(ids)
    store.close()
    assert count >= stored >= ledger.events


@pytest.mark.timeout(300)
def test_a_replica_killed_every_5_s_loses_nothing_and_fails_no_call(service: RealService) -> None:
    ledger, killed = Ledger(), 0
    with behind(lambda stop: write(service.url, stop, ledger, WRITERS, USERS, pause_s=0.05, timeout_s=60)):
        begun_s = time.monotonic()
        for number in range(KILLS):
            time.sleep(max(0.0, begun_s + number * EVERY_S - time.monotonic()))
            # The longest-lived one: the newest would often be one that is still starting.
            replicas = service.replicas(("Scorer", "Ingress")[number % 2])
            if replicas:
                min(replicas, key=lambda process: process.create_time()).kill()
                killed += 1
        time.sleep(max(0.0, begun_s + KILLS * EVERY_S - time.monotonic()))
    LOG.info(f"{killed} kills, {ledger.events} acknowledged, slowest call {ledger.slowest_s:.1f} s")
    assert killed >= KILLS - 1
    assert ledger.failed == []
    assert ledger.events > 20 * KILLS
    check_store(service.database, ledger)
    service.await_answer("/readyz", 200)
    with Client(service.url, timeout_s=60) as client:
        for user, acknowledged in sorted(ledger.acknowledged.items())[:50]:
            export = client.export(user)
            ids = [comparison.event_id for comparison in export.comparisons]
            assert acknowledged <= set(ids)
            assert len(ids) == len(set(ids)) == export.version


@pytest.mark.timeout(300)
def test_all_killed_at_once_loses_nothing(service: RealService) -> None:
    ledger = Ledger()
    with behind(lambda stop: write(service.url, stop, ledger, WRITERS, USERS, pause_s=0.02, timeout_s=2)):
        time.sleep(5)
        service.kill()
    LOG.info(f"{ledger.events} acknowledged, {len(ledger.failed)} calls without an answer")
    assert ledger.events > 0
    assert ledger.failed, "no call was under way"
    check_store(service.database, ledger)
    service.start()
    with Client(service.url, timeout_s=60) as client:
        for user, acknowledged in sorted(ledger.acknowledged.items())[:50]:
            export = client.export(user)
            assert export.version >= ledger.version[user]
            assert acknowledged <= {comparison.event_id for comparison in export.comparisons}
