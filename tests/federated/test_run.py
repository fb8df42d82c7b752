"""Whole runs on Ray: the pool of actors, what is killed in it, and what is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import threading
import time
from pathlib import Path

import psutil
import pytest

from raypref import files
from raypref.checkpoint import Bundle
from raypref.cli import main
from raypref.config import RunConfig
from raypref.data.tables import Tables
from raypref.federated.messages import Broadcast
from raypref.federated.phases import Answer
from raypref.federated.pool import Carrier, Pool
from raypref.federated.rounds import federate
from raypref.federated.run import finished, run, run_directory
from raypref.serve.judge import Judge
from raypref.train.log import METRICS_FILE, read_lines
from tests.conftest import kill_training
from tests.federated.world import SEEN, begun, configured, tables_of, trained

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROUNDS = 12


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def described(folder: Path, data: Path, **federated: object) -> RunConfig:
    return configured(folder, data, workers=2, **{"rounds": ROUNDS, **federated})


def digest(config: RunConfig) -> str:
    return files.sha256(config.bundle_dir / "model.safetensors")


def lines_of(config: RunConfig) -> list[dict[str, float]]:
    directory = run_directory(config, Tables.open(config.tables_dir))
    return read_lines(directory / METRICS_FILE)


@pytest.fixture(scope="module")
def whole(ray_cluster: None, population: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = described(tmp_path_factory.mktemp("whole"), population)
    run(config)
    return config


def wait_for_round(config: RunConfig, number: int, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(line["step"] >= number for line in lines_of(config)):
            return
        time.sleep(0.02)
    raise AssertionError(f"round {number} was not closed within {seconds} s")


def carriers(pid: int) -> list[psutil.Process]:
    """Return the processes of the pool's actors."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "Carrier" in " ".join(child.cmdline())]


def test_actors_do_what_one_process_does(whole: RunConfig, population: Path, tmp_path: Path) -> None:
    server, _ = trained(described(tmp_path / "run", population), tmp_path / "clients")
    _, tables = tables_of(whole)
    finished(whole, server, tables).save(tmp_path / "bundle")
    assert digest(whole) == files.sha256(tmp_path / "bundle" / "model.safetensors")


def test_rounds_are_logged(whole: RunConfig) -> None:
    lines = lines_of(whole)
    assert [line["step"] for line in lines] == list(range(1, ROUNDS + 1))
    for line in lines:
        assert line["kind"] == "round"
        assert (line["sampled"], line["counted"], line["failed"], line["late"]) == (6, 6, 0, 0)
        assert line["bytes_up"] > line["bytes_vectors"] == 6 * 64
        assert "epsilon" not in line
        assert "loss" not in line


def test_the_same_run_again_does_nothing_but_write_the_bundle(whole: RunConfig) -> None:
    before = digest(whole)
    run(whole)
    assert digest(whole) == before
    assert len(lines_of(whole)) == ROUNDS


def test_a_service_takes_the_bundle_like_any_other(whole: RunConfig) -> None:
    judge = Judge.load(whole.bundle_dir, None)
    assert judge.info.users == SEEN
    assert judge.prior_Z.shape == (16,)


def test_a_killed_server_goes_on_after_the_last_closed_round(
    whole: RunConfig, population: Path, tmp_path: Path
) -> None:
    config = described(tmp_path / "run", population)
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    kill_training(tmp_path / "run.yaml", lambda: wait_for_round(config, 4))
    assert not config.bundle_dir.exists()
    assert 4 <= lines_of(config)[-1]["step"] < ROUNDS
    run(config)
    assert digest(config) == digest(whole)
    assert [line["step"] for line in lines_of(config)] == list(range(1, ROUNDS + 1))


def test_a_killed_actor_changes_nothing(whole: RunConfig, population: Path, tmp_path: Path) -> None:
    config = described(tmp_path / "run", population)
    killed: list[int] = []

    def kill() -> None:
        wait_for_round(config, 3)
        victim = random.Random(0).choice(carriers(os.getpid()))
        victim.send_signal(signal.SIGKILL)
        killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    run(config)
    thread.join()
    assert killed
    assert digest(config) == digest(whole)
    assert all(line["counted"] == 6 for line in lines_of(config))


def test_a_killed_actor_costs_a_masked_round_at_most(
    ray_cluster: None, population: Path, tmp_path: Path
) -> None:
    """The secrets of its clients die with it; the next round has new ones."""
    config = described(tmp_path / "run", population, masking=True)
    killed: list[int] = []

    def kill() -> None:
        wait_for_round(config, 3)
        victim = random.Random(0).choice(carriers(os.getpid()))
        victim.send_signal(signal.SIGKILL)
        killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    run(config)
    thread.join()
    assert killed
    lines = lines_of(config)
    assert [line["step"] for line in lines] == list(range(1, ROUNDS + 1))
    assert len([line for line in lines if line["counted"] < 6]) <= 1
    assert lines[-1]["counted"] == 6


def test_an_actor_that_hangs_costs_its_clients_of_a_round_and_is_started_anew(
    whole: RunConfig, population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "hung"

    class Hanging(Carrier):
        """Hangs once, in the third round."""

        def answer(self, phase: str, client: int, common: bytes, own: bytes) -> Answer:
            if not marker.exists() and Broadcast.from_bytes(common).round == 2:
                marker.touch()
                time.sleep(600)
            return super().answer(phase, client, common, own)

    monkeypatch.setattr("raypref.federated.pool.Carrier", Hanging)
    config = described(tmp_path / "run", population, deadline_s=10.0, rounds=40, local_steps=1)
    run(config)
    assert marker.exists()
    lines = lines_of(config)
    assert [line["step"] for line in lines] == list(range(1, 41))
    lost = [line["step"] for line in lines if line["counted"] < 6]
    # As many rounds as it takes to start a process, one after the other.
    assert lost == list(range(3, 3 + len(lost)))
    assert lost
    assert lines[-1]["counted"] == 6


def test_noise_is_accounted_for_and_its_secret_is_nobody_elses(
    ray_cluster: None, population: Path, tmp_path: Path
) -> None:
    config = configured(
        tmp_path / "run",
        population,
        {"type": "bt"},
        workers=2,
        rounds=3,
        masking=True,
        privacy={"clip": 0.1, "noise": 1.0},
    )
    run(config)
    epsilons = [line["epsilon"] for line in lines_of(config)]
    assert sorted(epsilons) == epsilons
    assert epsilons[0] > 0.1
    secret = run_directory(config, Tables.open(config.tables_dir)) / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(secret.read_bytes()) == 32
    assert not list(config.bundle_dir.glob("secret*"))
    assert Bundle.load(config.bundle_dir).users.num_rows == 0


def test_what_cannot_be_trained_so_says_why(
    population: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path / "run", population)
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = ["train", "-c", str(tmp_path / "run.yaml")]
    assert main([*command, "--set", "train.use_gpu=true"]) == 2
    assert "clients train on CPUs" in capsys.readouterr().err
    assert main([*command, "--set", "federated.privacy={}"]) == 2
    assert "no finite ε" in capsys.readouterr().err
    assert not config.bundle_dir.exists()


def test_the_pool_spreads_clients_over_its_actors(
    ray_cluster: None, population: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path / "run", population, workers=4, rounds=2).absolute()
    pool = Pool(config, Tables.open(config.tables_dir), tmp_path / "clients")
    try:
        assert len(pool.clients()) == SEEN
        server = begun(config, pool)
        assert all(len(done.found.clients) == 6 for done in federate(server, pool, config.federated))
        assert len(list((tmp_path / "clients").glob("bucket-*.sqlite"))) > 1
    finally:
        pool.close()
