"""The store of users freezes, dies and comes back under requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raypref.serve.stores.base import Key
from tests.serve.conftest import MakeBundle
from tests.serve.local import Local, candidates, compared
from tests.serve.stores.conftest import running
from tests.serve.stores.servers import Postgres, Redis, Server
from tests.serve.world import DIM, some

pytestmark = pytest.mark.server

TIMEOUT_S = 1.0
CANDIDATES = some(3, 4, DIM)


@pytest.fixture(params=[Postgres, Redis], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that the tests may freeze and kill."""
    with running(request.param) as found:
        yield found


@pytest.fixture(params=["freeze", "kill"])
def outage(
    request: pytest.FixtureRequest, server: Server
) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """How the server goes away, and how it comes back."""
    if request.param == "freeze":
        yield server.freeze, server.thaw
        server.thaw()
    else:
        yield server.kill, server.start
        if server.process is None or server.process.poll() is not None:
            server.start()


def learned(number: int) -> dict[str, Any]:
    rows = [number % 30]
    chosen_PD, rejected_PD = some(1, 30, DIM), some(2, 30, DIM)
    return {"comparisons": compared(chosen_PD[rows], rejected_PD[rows], event_id=[f"e{number}"])}


def scored(local: Local, user: str | None = "ann") -> Any:
    body = {"candidates": candidates(CANDIDATES)}
    return local.request("POST", "/v1/score", body if user is None else {**body, "user": user})


class Ledger:
    """Which comparisons were acknowledged."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self.acknowledged: set[str] = set()
        self.sent = 0

    def learn(self) -> int:
        number = self.sent
        self.sent += 1
        response = self.local.request("POST", "/v1/users/ann/comparisons", learned(number))
        if response.status_code == 200:
            assert response.json()["applied"] == 1
            self.acknowledged.add(f"e{number}")
        else:
            assert response.status_code == 503, response.text
            assert int(response.headers["retry-after"]) >= 0
            assert response.json()["error"]["type"] == "overloaded_error"
        return response.status_code


@pytest.mark.parametrize("on_store_failure", ["prior", "refuse"])
def test_an_outage(
    on_store_failure: str,
    outage: tuple[Callable[[], None], Callable[[], None]],
    server: Server,
    bundle_of: MakeBundle,
) -> None:
    go, come_back = outage
    assert isinstance(server, Postgres | Redis)
    url = server.new_url()
    local = Local(bundle_of("vrf"), url, store_timeout_s=TIMEOUT_S, on_store_failure=on_store_failure)
    ledger = Ledger(local)
    assert [ledger.learn() for _ in range(5)] == [200] * 5
    known = scored(local).json()["data"][0]
    population = scored(local, None).json()["data"][0]
    assert (known["cold"], known["degraded"]) == (False, False)

    go()
    for _ in range(3):
        started = time.monotonic()
        response = scored(local)
        # A timeout for each question that a request asks, and one to notice a dead connection.
        assert time.monotonic() - started < 4 * TIMEOUT_S
        if on_store_failure == "prior":
            (data,) = response.json()["data"]
            assert (data["degraded"], data["cold"], data["shots"], data["version"]) == (True, True, 0, 0)
            assert data["mean"] == population["mean"]
        else:
            assert response.status_code == 503
            assert "retry-after" in response.headers
        # Whom nobody stored, the outage does not concern.
        (stateless,) = scored(local, None).json()["data"]
        assert (stateless["degraded"], stateless["mean"]) == (False, population["mean"])
        assert ledger.learn() == 503
        assert local.request("GET", "/v1/users/ann").status_code == 503
        assert local.request("DELETE", "/v1/users/ann").status_code == 503
        assert local.request("GET", "/healthz").status_code == 200
        assert local.refused(503, "GET", "/readyz")["message"].startswith("the store of users is down")
        time.sleep(0.3)

    come_back()
    back_s = time.monotonic()
    while ledger.learn() != 200:
        assert time.monotonic() - back_s < 5
        time.sleep(0.1)
    recovered_s = time.monotonic() - back_s
    assert recovered_s <= 5
    assert local.ask("GET", "/readyz") == {"status": "ready"}
    again = scored(local).json()["data"][0]
    assert (again["cold"], again["degraded"]) == (False, False)

    (record,) = local.store.records([Key("default", "ann")])
    kept = {event.event_id for event in record.events}
    assert ledger.acknowledged <= kept
    assert record.version == len(kept) == again["version"]
    # A retry of everything, acknowledged or not, ends in each exactly once.
    for number in range(ledger.sent):
        local.ask("POST", "/v1/users/ann/comparisons", learned(number))
    (record,) = local.store.records([Key("default", "ann")])
    assert {event.event_id for event in record.events} == {f"e{number}" for number in range(ledger.sent)}
    assert record.version == ledger.sent
    local.close()
