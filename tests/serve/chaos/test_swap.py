"""A bundle is swapped, and Scorers come and go, under traffic that retries nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from raypref.client import Client, Comparison
from raypref.serve.config import ServeConfig
from tests.serve.chaos.load import Answer, behind, score, score_body, statuses
from tests.serve.chaos.service import RealService
from tests.serve.world import DIM, local_client, make_bundle, some

LOG = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

USERS = 20


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / f"{seed}" / "taste", seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, bundles: list[Path]) -> Iterator[RealService]:
    service = RealService(tmp_path_factory.mktemp("swap"), bundles[0])
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module", autouse=True)
def users(service: RealService) -> None:
    """Users with comparisons."""
    with Client(service.url) as client:
        for number in range(USERS):
            pairs = some(number, 4, 2, DIM)
            client.learn(f"user-{number}", [Comparison(chosen, rejected) for chosen, rejected in pairs])


def pids(service: RealService) -> set[int]:
    return {process.pid for name in ("Scorer", "Ingress") for process in service.replicas(name)}


def model(service: RealService) -> str:
    return httpx.get(f"{service.url}/v1/models", timeout=10).json()["data"][0]["id"]


def await_model(service: RealService, before: str, replicas: int) -> str:
    """Return the new model, once many answers in a row are its."""
    deadline_s, row, last = time.monotonic() + 60, 0, ""
    while row < 10 * replicas:
        found = model(service)
        row = row + 1 if found == last and found != before else 0
        last = found
        assert time.monotonic() < deadline_s, f"still {found}"
    return last


def steady(service: RealService, answers: list[Answer], clients: int = 10):
    """Five requests a second of each client, more or less, which retries nothing."""
    return behind(
        lambda stop: score(service.url, stop.is_set, answers, clients=clients, users=USERS, pause_s=0.2)
    )


def check_all_answered(answers: list[Answer]) -> None:
    assert set(statuses(answers)) == {200}, [answer for answer in answers if answer.status != 200][:3]
    for answer in answers:
        numbers = [row[name] for row in json.loads(answer.body)["data"] for name in row if name != "user"]
        flat = np.concatenate([np.ravel(number) for number in numbers if isinstance(number, list)])
        assert flat.size
        assert np.isfinite(flat).all()


@pytest.mark.timeout(240)
def test_a_bundle_is_swapped_in_place_and_no_request_fails(
    service: RealService, bundles: list[Path], tmp_path: Path
) -> None:
    before, running = model(service), pids(service)
    answers: list[Answer] = []
    with steady(service, answers):
        time.sleep(3)
        service.bundle(bundles[1])
        service.reload()
        after = await_model(service, before, 3)
        swapped_s = time.monotonic()
        time.sleep(3)
    check_all_answered(answers)
    # No replica was started anew.
    assert pids(service) == running
    models = [answer.model() for answer in answers]
    assert set(models) == {before, after}
    assert {answer.model() for answer in answers if answer.at_s > swapped_s + 1} == {after}
    LOG.info(
        f"{len(answers)} answers, {models.count(before)} of the old bundle, {models.count(after)} of the new"
    )
    # Users are as a service sees them that never had another bundle.
    copy = tmp_path / "users.db"
    shutil.copy(service.database, copy)
    for suffix in ("-wal", "-shm"):
        if (beside := service.database.with_name(service.database.name + suffix)).exists():
            shutil.copy(beside, copy.with_name(copy.name + suffix))

    async def fresh() -> list[dict[str, object]]:
        client = await local_client(ServeConfig(bundle=bundles[1], store=f"sqlite:///{copy}", open=True))
        return [
            (
                await client.post("/v1/score", content=score_body(number, f"user-{number}"), headers=JSON)
            ).json()
            for number in range(USERS)
        ]

    for number, expected in enumerate(asyncio.run(fresh())):
        body = score_body(number, f"user-{number}")
        found = httpx.post(f"{service.url}/v1/score", content=body, headers=JSON).json()
        assert found["data"] == expected["data"]
        assert found["model"] == expected["model"] == after


JSON = {"content-type": "application/json"}


@pytest.mark.timeout(240)
def test_a_broken_bundle_is_refused_and_the_old_one_serves_on(
    service: RealService, bundles: list[Path], tmp_path: Path
) -> None:
    before, running = model(service), pids(service)
    flipped = tmp_path / "flipped"
    shutil.copytree(bundles[0], flipped)
    weights = bytearray((flipped / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (flipped / "model.safetensors").write_bytes(weights)
    foreign = make_bundle(tmp_path / "foreign", dim=DIM + 1)
    answers: list[Answer] = []
    with steady(service, answers):
        # Found before any replica hears of it.
        service.bundle(flipped)
        service.reload()
        await_output(service, "is not taken over")
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        # Sound in itself; only the Scorers know that it takes other embeddings.
        service.bundle(foreign)
        service.reload()
        refusal = service.await_answer("/readyz", 503)
        assert "foreign" in refusal.text
        time.sleep(1)
        assert model(service) == before
        service.bundle(bundles[0])
        service.reload()
        after = await_model(service, before, 3)
        service.await_answer("/readyz", 200)
    check_all_answered(answers)
    assert {answer.model() for answer in answers} == {before, after}
    assert pids(service) == running


def await_output(service: RealService, words: str) -> None:
    deadline_s = time.monotonic() + 20
    while words not in service.output():
        assert time.monotonic() < deadline_s, service.output()
        time.sleep(0.1)


@pytest.mark.timeout(300)
def test_scorers_come_and_go_without_a_failed_request(service: RealService) -> None:
    assert len(service.replicas("Scorer")) == 3
    answers: list[Answer] = []
    with steady(service, answers):
        for most in (1, 3, 1):
            service.scorers(most)
            service.reload()
            deadline_s = time.monotonic() + 60
            while len(service.replicas("Scorer")) != most:
                assert time.monotonic() < deadline_s, f"still {len(service.replicas('Scorer'))} Scorers"
                time.sleep(0.2)
            service.await_answer("/readyz", 200)
            time.sleep(2)
    check_all_answered(answers)
    LOG.info(f"{len(answers)} answers, slowest {max(answer.seconds for answer in answers):.2f} s")


@pytest.mark.timeout(560)
def test_load_calls_scorers_and_calm_sends_them_away_without_a_failed_request(service: RealService) -> None:
    service.scorers(
        3, least=1, target_ongoing_requests=2, upscale_delay_s=1, downscale_delay_s=3, look_back_period_s=3
    )
    service.reload()
    answers: list[Answer] = []
    counts: list[int] = []

    def await_scorers(count: int) -> None:
        deadline_s = time.monotonic() + 150
        while len(service.replicas("Scorer")) != count:
            assert time.monotonic() < deadline_s, f"{len(service.replicas('Scorer'))} Scorers, not {count}"
            time.sleep(0.2)
        counts.append(count)

    # As many as one Scorer has under way at its target, however slow the machine is.
    with steady(service, answers, clients=2):
        await_scorers(1)
        with behind(lambda stop: score(service.url, stop.is_set, answers, clients=64, users=USERS)):
            await_scorers(3)
            time.sleep(2)
        await_scorers(1)
        time.sleep(2)
    check_all_answered(answers)
    LOG.info(
        f"Scorers {counts}, {len(answers)} answers, slowest {max(answer.seconds for answer in answers):.2f} s"
    )
