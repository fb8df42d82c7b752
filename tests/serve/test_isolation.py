from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raypref.serve.guard import OPEN_PATHS
from raypref.serve.keys import create_key
from raypref.serve.stores.base import Key
from tests.serve.conftest import MakeBundle
from tests.serve.local import Local, candidates, compared
from tests.serve.world import DIM, some

CHOSEN, REJECTED, CANDIDATES = some(1, 40, DIM), some(2, 40, DIM), some(3, 4, DIM)

USERS = ("ann", "ben", "cat")


def learned(number: int, event_id: str) -> dict[str, Any]:
    rows = slice(number, number + 1)
    return {"comparisons": compared(CHOSEN[rows], REJECTED[rows], event_id=[event_id])}


class Tenants:
    """One service, two tenants."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        keys = folder / "keys.json"
        self.key = {tenant: create_key(keys, tenant) for tenant in ("acme", "blue")}
        self.local = Local(bundle, keys=keys)

    def ask(self, tenant: str, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self.key[tenant]}"}
        response = self.local.request(method, path, body, headers=headers)
        return response.json()

    def scores(self, tenant: str, user: str) -> Any:
        return self.ask(tenant, "POST", "/v1/score", {"user": user, "candidates": candidates(CANDIDATES)})[
            "data"
        ]


@pytest.fixture(params=["vrf", "lore"])
def tenants(request: pytest.FixtureRequest, tmp_path: Path, bundle_of: MakeBundle) -> Iterator[Tenants]:
    found = Tenants(bundle_of(request.param), tmp_path)
    yield found
    found.local.close()


def seen(tenants: Tenants, tenant: str) -> list[Any]:
    """Return all that a tenant can see of its users."""
    return [
        (
            tenants.scores(tenant, user),
            tenants.ask(tenant, "GET", f"/v1/users/{user}"),
            tenants.ask(tenant, "GET", f"/v1/users/{user}/export"),
        )
        for user in USERS
    ]


def test_what_others_do_changes_no_bit(tenants: Tenants) -> None:
    """A thousand writes and deletions of another tenant's users, who have the same names and event ids."""
    chance = random.Random(7)
    for number, user in enumerate(USERS[:2]):
        for step in range(3):
            tenants.ask(
                "acme", "POST", f"/v1/users/{user}/comparisons", learned(3 * number + step, f"e{step}")
            )
    before = seen(tenants, "acme")
    records = tenants.local.store.records([Key("acme", user) for user in USERS])
    for _ in range(1000):
        path, event = f"/v1/users/{chance.choice(USERS)}", f"e{chance.randrange(6)}"
        action = chance.randrange(8)
        if action < 4:
            tenants.ask("blue", "POST", f"{path}/comparisons", learned(chance.randrange(40), event))
        elif action == 4:
            tenants.ask("blue", "DELETE", f"{path}/comparisons/{event}")
        elif action == 5:
            tenants.ask("blue", "POST", f"{path}/decay", {"factor": 0.5, "event_id": event})
        elif action == 6:
            tenants.ask("blue", "DELETE", path)
        else:
            exported = tenants.ask("blue", "GET", f"{path}/export")
            mine = tenants.local.store.records([Key("blue", path.rpartition("/")[2])])[0]
            assert [kept["event_id"] for kept in exported["comparisons"]] == [e.event_id for e in mine.events]
    assert seen(tenants, "acme") == before
    assert tenants.local.store.records([Key("acme", user) for user in USERS]) == records


def test_other_users_of_the_tenant_change_no_bit(tenants: Tenants) -> None:
    chance = random.Random(8)
    tenants.ask("acme", "POST", "/v1/users/ann/comparisons", learned(0, "e0"))
    before = seen(tenants, "acme")[0]
    for number in range(100):
        path = f"/v1/users/{chance.choice(['ben', 'cat', 'ann.', 'Ann', 'annn', 'an'])}"
        tenants.ask("acme", "POST", f"{path}/comparisons", learned(number % 40, f"e{number}"))
        if number % 10 == 9:
            tenants.ask("acme", "DELETE", path)
        assert tenants.scores("acme", "ann") == before[0]
    assert seen(tenants, "acme")[0] == before


def test_a_user_begins_cold_whatever_other_tenants_know(tenants: Tenants) -> None:
    tenants.ask("acme", "POST", "/v1/users/ann/comparisons", learned(0, "e0"))
    assert tenants.scores("blue", "ann")[0]["cold"]
    assert tenants.ask("blue", "GET", "/v1/users/ann/export")["comparisons"] == []
    assert tenants.ask("blue", "DELETE", "/v1/users/ann")["deleted"] is False
    assert tenants.ask("blue", "DELETE", "/v1/users/ann/comparisons/e0")["deleted"] is False
    assert not tenants.scores("acme", "ann")[0]["cold"]


def test_every_route_asks_for_a_key(tenants: Tenants) -> None:
    """Every route that the application has, but the open ones, whatever key is shown."""
    schema = tenants.local.request("GET", "/openapi.json").json()
    routes = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    assert len(routes) >= 20
    wrong = [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer rp-x-y"},
        {"authorization": tenants.key["acme"]},
        {"authorization": f"Basic {tenants.key['acme']}"},
        {"authorization": f"Bearer {tenants.key['acme'][:-1]}"},
        {"authorization": f"Bearer {tenants.key['acme']}x"},
        {"x-api-key": tenants.key["acme"].upper()},
    ]
    asked = 0
    for method, template in routes:
        path = template.replace("{user}", "ann").replace("{event_id}", "e0")
        for headers in wrong:
            response = tenants.local.request(method, path, content=b"{}", headers=headers)
            if path in OPEN_PATHS:
                assert response.status_code == 200, path
            else:
                asked += 1
                assert response.status_code == 401, (path, headers)
                assert response.json()["error"]["type"] == "authentication_error"
    assert asked >= 8 * 18
    for path in ("/nowhere", "/v1/users", "/v1/users/ann/comparisons/e0/x", "/metrics"):
        assert tenants.local.request("GET", path).status_code == 401
    assert tenants.local.everything() == []
