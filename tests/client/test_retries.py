from __future__ import annotations

import asyncio
import copy
import socket
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypref.client import AsyncClient, Client, ClientError, Comparison, NotFound, RequestRefused, Unavailable
from tests.client.service import State

EMB_ND = np.eye(3, 4, dtype=np.float32)
PASSING = ["408", "429", "500", "502", "503", "504", "half", "reset", "hang", "after:503", "after:half"]

ONE_SERVICE = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ONE_SERVICE
@given(faults=st.lists(st.sampled_from(PASSING), max_size=4), count=st.integers(1, 4))
def test_a_retry_sends_the_same_bytes_and_learns_once(service: State, faults: list[str], count: int) -> None:
    service.seen.clear()
    service.comparisons.clear()
    service.faults = list(faults)
    comparisons = [Comparison(*EMB_ND[:2]) for _ in range(count)]
    with Client(service.url, timeout_s=20, attempt_timeout_s=0.4) as client:
        answer = client.learn("ann", comparisons)
    assert len(service.seen) == len(faults) + 1
    assert {(one.method, one.path, one.body) for one in service.seen} == {
        ("POST", "/v1/users/ann/comparisons", service.seen[0].body)
    }
    assert len({one.headers["x-request-id"] for one in service.seen}) == 1
    assert sorted(service.comparisons["ann"]) == sorted(one.event_id for one in comparisons)
    applied_before = any(fault.startswith("after:") for fault in faults)
    assert (answer.applied, answer.duplicates) == ((0, count) if applied_before else (count, 0))


def test_a_retried_decay_is_one_decay(client: Client, service: State) -> None:
    service.faults = ["after:504", "after:reset"]
    client.decay("ann", 0.5)
    assert len(service.seen) == 3
    assert len(service.decays) == 1


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "409", "413", "415", "422", "501", "302"])
def test_what_is_refused_is_not_sent_again(client: Client, service: State, status: str) -> None:
    service.faults = [status]
    with pytest.raises(RequestRefused, match=f"told to answer {status}") as refused:
        client.score(EMB_ND)
    error = refused.value
    assert len(service.seen) == 1
    assert (error.status, error.param, error.maybe_applied) == (int(status), "candidates", False)
    assert error.request_id == service.seen[0].headers["x-request-id"]
    assert isinstance(error, NotFound) == (status == "404")


def test_the_pause_that_the_service_asks_for_is_kept(client: Client, service: State) -> None:
    service.faults = ["429 0.6"]
    start_s = time.monotonic()
    client.score(EMB_ND)
    assert 0.6 <= time.monotonic() - start_s < 4


def test_a_pause_beyond_the_deadline_is_not_waited_for(client: Client, service: State) -> None:
    service.faults = ["503 60"]
    start_s = time.monotonic()
    with pytest.raises(Unavailable, match="status 503"):
        client.score(EMB_ND)
    assert time.monotonic() - start_s < 2
    assert len(service.seen) == 1


def test_retries_end(service: State) -> None:
    service.always = "503"
    with (
        Client(service.url, retries=2) as client,
        pytest.raises(Unavailable, match="failed 3 times") as failed,
    ):
        client.score(EMB_ND)
    assert len(service.seen) == 3
    assert (failed.value.status, failed.value.maybe_applied) == (503, False)


@settings(ONE_SERVICE, max_examples=6)
@given(
    fault=st.sampled_from(["hang", "drip"]),
    timeout_s=st.floats(0.3, 1.5),
    attempt_timeout_s=st.sampled_from([0.25, 60.0]),
)
def test_the_deadline_holds(service: State, fault: str, timeout_s: float, attempt_timeout_s: float) -> None:
    service.always = fault
    with Client(service.url, timeout_s=timeout_s, attempt_timeout_s=attempt_timeout_s) as client:
        start_s = time.monotonic()
        with pytest.raises(Unavailable, match="no answer in time"):
            client.score(EMB_ND)
        assert abs(time.monotonic() - start_s - timeout_s) < 0.5


def test_the_deadline_holds_for_async_calls(service: State) -> None:
    service.always = "drip"

    async def ask() -> float:
        async with AsyncClient(service.url, timeout_s=0.8) as client:
            start_s = time.monotonic()
            with pytest.raises(Unavailable):
                await client.score(EMB_ND)
            return time.monotonic() - start_s

    assert abs(asyncio.run(ask()) - 0.8) < 0.5


def test_attempts_given_up_do_not_use_up_the_connections(service: State) -> None:
    with Client(service.url, timeout_s=0.2, retries=0, max_connections=2) as client:
        service.always = "hang"
        for _ in range(6):
            with pytest.raises(Unavailable):
                client.score(EMB_ND)
    with Client(service.url, timeout_s=5, attempt_timeout_s=0.2, max_connections=2) as client:
        service.faults, service.always = ["hang"] * 5, None
        assert client.score(EMB_ND).mean.shape == (1, 3)


@pytest.mark.parametrize(
    ("fault", "maybe"), [("503", True), ("504", True), ("hang", True), ("half", True), ("429", False)]
)
def test_an_error_says_whether_it_may_have_worked(service: State, fault: str, maybe: bool) -> None:
    service.always = fault
    with Client(service.url, timeout_s=2, attempt_timeout_s=0.2, retries=1) as client:
        with pytest.raises(Unavailable) as failed:
            client.learn("ann", [Comparison("a", "b")])
        assert failed.value.maybe_applied is maybe
        assert ("may have been applied" in str(failed.value)) is maybe
        with pytest.raises(Unavailable) as failed:
            client.user("ann")
        assert failed.value.maybe_applied is False


def test_nothing_is_applied_where_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url, retries=2) as client:
            assert not client.ready()
            with pytest.raises(Unavailable, match="It was not applied") as failed:
                client.learn("ann", [Comparison("a", "b")])
    assert (failed.value.status, failed.value.maybe_applied) == (None, False)


def test_a_service_that_is_not_ready_says_so_at_once(client: Client, service: State) -> None:
    service.faults = ["503"]
    assert client.ready() is False
    assert client.ready() is True
    assert len(service.seen) == 2


def test_deleting_survives_a_lost_answer(client: Client, service: State) -> None:
    comparisons = [Comparison("a", "b"), Comparison("c", "d")]
    client.learn("ann", comparisons)
    service.faults = ["after:reset"]
    client.forget("ann", comparisons[0].event_id)
    assert list(service.comparisons["ann"]) == [comparisons[1].event_id]
    service.faults = ["after:504"]
    client.erase("ann")
    assert "ann" not in service.comparisons


def test_errors_travel_between_processes_whole() -> None:
    error = Unavailable("gone", 503, "user", "id-1", True)
    # Copying does what sending to another process does.
    other = copy.copy(error)
    assert type(other) is Unavailable
    assert (str(other), other.__dict__) == ("gone", error.__dict__)
    assert isinstance(other, ClientError)
