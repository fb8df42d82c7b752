"""Workers and nodes that die under a run: a real cluster of several nodes, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from raypref import files
from raypref.checkpoint import Bundle
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.tables import Tables
from raypref.train.log import METRICS_FILE, read_lines
from raypref.train.shards import Shards
from raypref.train.state import save_state
from raypref.train.trainer import run_directory
from tests.conftest import REPOSITORY
from tests.serve.chaos.service import free_ports
from tests.train import ledger
from tests.train.runs import result, session

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

USERS, STEPS, USERS_PER_STEP = 48, 240, 16
VISITS = STEPS * USERS_PER_STEP // USERS
"""How often each comparison must be fed: every visit to a user feeds all of the user's comparisons."""

START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""A group that was planned for a node which is gone is given up after this, and planned again."""

NODE_BYTES = 100 * 2**20

DRIVER = """
import sys
from pathlib import Path
from raypref.config_file import load_config
from raypref.train import trainer
from tests.train import ledger
from tests.train.runs import result, session
trainer.RESIZE_S, trainer.work = 2.0, ledger.work
trainer.run(load_config(Path(sys.argv[1]), []))
"""


Workers = int | tuple[int, int]


def configured(folder: Path, data: Path, workers: Workers = 1) -> RunConfig:
    return parse_config(
        {
            "dir": str(folder),
            "items": str(data / "items"),
            "tables": str(data / "tables"),
            "planted": {"dim": 8, "train_prompts": 40, "test_prompts": 10, "rewards": 2}
            | {"seen_users": USERS, "unseen_users": 8, "comparisons": 6, "shots": 4, "valid": 2},
            "method": {"type": "lore", "solver": "adam", "bases": 2}
            | {"recipe": {"steps": STEPS, "users_per_step": USERS_PER_STEP}},
            "train": {"workers": workers, "checkpoint_every": 20, "log_every": 5, "patience": 0}
            | {"validate_every": 200, "max_failures": 5},
        },
        [],
        "test",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    write_planted(configured(folder, folder).planted, folder / "items", folder / "tables", buckets=8)
    return folder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes with room for one worker each."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    # Ray looks whether the port is free, dashboard or not; the default one is the test run's cluster's.
    [port] = free_ports(1)
    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 1, "object_store_memory": NODE_BYTES, "include_dashboard": False}
        | {"dashboard_port": port}
        | {"_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 3}},
    )
    try:
        add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=NODE_BYTES)


class Driver:
    """A training in a process of its own, on a cluster."""

    def __init__(self, config: RunConfig, cluster: Cluster) -> None:
        self.directory = run_directory(config, Tables.open(config.tables_dir))
        self.fed, self.said = config.dir / "fed", config.dir / "said"
        self.fed.mkdir(exist_ok=True)
        self.pause(0.05)
        path = config.dir / "run.yaml"
        path.write_text(json.dumps(config.model_dump(mode="json")))
        with self.said.open("a") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(path)],
                env={**os.environ, "RAY_ADDRESS": cluster.address, START_TIMEOUT_S: "20"},
                stdout=said,
                stderr=said,
            )

    def pause(self, seconds: float) -> None:
        """Let every loss take so much longer from now on."""
        files.write_text(self.fed / ledger.PAUSE_S, str(seconds))

    def wait(self, what: str, done: Callable[[], bool], seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert self.process.poll() is None, self.said.read_text()[-3000:]
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.05)

    def step(self) -> int:
        return max((line["step"] for line in read_lines(self.directory / METRICS_FILE)), default=0)

    def wait_for_steps(self, steps: int) -> None:
        """Wait for so many steps more than now; a run that has lost some must make up for them."""
        until = self.step() + steps
        self.wait(f"step {until}", lambda: self.step() >= until)

    def workers(self) -> list[psutil.Process]:
        """The processes that have fed a loss within the last two seconds."""
        recent = [path for path in self.fed.glob("*.jsonl") if time.time() - path.stat().st_mtime < 2.0]
        return [psutil.Process(int(path.stem)) for path in recent if psutil.pid_exists(int(path.stem))]

    def wait_for_workers(self, count: int) -> None:
        self.wait(f"{count} workers", lambda: len(self.workers()) == count)

    def kill(self) -> None:
        """Kill the driver alone; what it started must find out by itself."""
        self.process.kill()
        self.process.wait()

    def finish(self) -> None:
        assert self.process.wait(180) == 0, self.said.read_text()[-3000:]


@pytest.fixture
def driven(cluster: Cluster, data: Path, tmp_path: Path) -> Iterator[Callable[[Workers], Driver]]:
    """Start the training, or start it again; no process of it is left."""
    drivers: list[Driver] = []

    def drive(workers: Workers) -> Driver:
        drivers.append(Driver(configured(tmp_path, data, workers), cluster))
        return drivers[-1]

    yield drive
    for driver in drivers:
        driver.kill()


def test_nodes_workers_and_the_driver_may_die_and_come_back(
    driven: Callable[[Workers], Driver], cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    config, driver = configured(tmp_path, data, (1, 2)), driven((1, 2))
    driver.wait_for_workers(2)
    driver.wait_for_steps(25)
    driver.workers()[0].send_signal(signal.SIGKILL)
    driver.wait_for_steps(25)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    driver.wait_for_workers(1)
    driver.wait_for_steps(25)
    # Ray notices a new node within half a minute; the run shall not be over by then.
    driver.pause(0.4)
    add_node(cluster)
    driver.wait_for_workers(2)
    driver.pause(0.05)
    driver.wait_for_steps(25)
    driver.kill()
    assert driver.step() < STEPS
    # Ray keeps the killed run's elastic workers reserved for three minutes; fixed ones take what is free.
    driver = driven(2)
    driver.pause(0.0)
    driver.finish()

    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    # Every comparison was fed equally often: what was fed again because of a death, was fed the same.
    learn = tables.comparisons("seen", ["train"])
    pairs = zip(items.gather(learn.chosen_M), items.gather(learn.rejected_M), strict=True)
    once = Counter(ledger.fingerprint(*pair) for pair in pairs)
    fed = ledger.read(tmp_path / "fed")
    assert fed == Counter({comparison: VISITS * count for comparison, count in once.items()})

    # The weights are those of a run that nothing happened to.
    alone = session(config, Shards(2))
    for _ in alone.steps():
        pass
    (tmp_path / "alone").mkdir()
    save_state(alone.state, tmp_path / "alone")
    expected = result(config, 2, tmp_path / "alone")
    found = Bundle.load(config.bundle_dir).model.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
