from __future__ import annotations

from collections.abc import Iterator

import pytest

from raypref.client import Client, transport
from tests.client.service import State, serving


@pytest.fixture
def service() -> Iterator[State]:
    with serving() as state:
        yield state


@pytest.fixture
def client(service: State) -> Iterator[Client]:
    with Client(service.url, timeout_s=5, attempt_timeout_s=1) as client:
        yield client


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("RAYPREF_API_KEY", raising=False)
    monkeypatch.delenv("RAYPREF_URL", raising=False)
