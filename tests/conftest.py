from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# A gate asks the same questions every time; developers' runs go on searching.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole run, with explicit resources."""
    import ray

    ray.init(
        num_cpus=4,
        object_store_memory=512 * 2**20,
        include_dashboard=True,  # frees what killed trainings had reserved
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


@dataclass(frozen=True)
class DemoRun:
    """Where the demo ran, and what it printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """`raypref demo`, once."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "raypref", "demo"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return DemoRun(folder, done.stdout)


def terminal_signals() -> None:
    """Give a child process the Ctrl-C of a terminal: what runs in the background inherits it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_training(description: Path, reached: Callable[[], None]) -> None:
    """Run `raypref train` in a process of its own, and kill it and all that it started at a point."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    driver = subprocess.Popen(
        [sys.executable, "-m", "raypref", "train", "-c", str(description)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    family = psutil.Process(driver.pid)
    try:
        reached()
    finally:
        for process in [*family.children(recursive=True), family]:
            process.kill()
        driver.wait()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is computed here has the bits of what a worker with one CPU computes, on every processor."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real preferences; RAYPREF_REAL_DATA names it, ../shared/data is looked at too."""
    folder = Path(os.environ.get("RAYPREF_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "polis_ratings.parquet").is_file():
        pytest.skip(f"no real data in {folder}")
    return folder
