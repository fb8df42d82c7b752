"""The real service: `raypref serve` as a process of its own, with Ray, HAProxy and replicas."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.conftest import terminal_signals

READY_S = 150.0


class RealService:
    """One `raypref serve`; ports and HAProxy's files are its own, so that others may run beside it."""

    def __init__(self, folder: Path, bundle: Path, **args: Any) -> None:
        """Prepare a configuration; `args` goes to the application."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.file = folder / "serve.yaml"
        self.database = folder / "users.db"
        port, self._metrics_port, self._stats_port = free_ports(3)
        self.url = f"http://127.0.0.1:{port}"
        self.config: dict[str, Any] = {
            "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 60},
            "logging_config": {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False},
            "applications": [
                {
                    "name": "raypref",
                    "route_prefix": "/",
                    "import_path": "raypref.serve.app:build",
                    "args": {
                        "bundle": str(bundle),
                        "store": f"sqlite:///{self.database}",
                        "open": True,
                        **args,
                    },
                    "deployments": [
                        {"name": "Ingress", "num_replicas": 2, "ray_actor_options": {"num_cpus": 0.2}},
                        {"name": "Scorer", "ray_actor_options": {"num_cpus": 0.3}},
                    ],
                }
            ],
        }
        self.scorers(3)
        self._process: subprocess.Popen[bytes] | None = None
        # The paths of HAProxy's sockets hold a node's id, and may be 97 characters long.
        self._haproxy = Path(tempfile.mkdtemp(prefix="ha"))

    @property
    def _application(self) -> dict[str, Any]:
        return self.config["applications"][0]

    def scorers(self, most: int, least: int | None = None, **autoscaling: Any) -> None:
        """Set how many Scorers there are to be, in the file."""
        least = most if least is None else least
        scaling = {"min_replicas": least, "max_replicas": most, **autoscaling}
        self._application["deployments"][1]["autoscaling_config"] = scaling
        self._write()

    def bundle(self, directory: Path) -> None:
        """Set the bundle, in the file."""
        self._application["args"]["bundle"] = str(directory)
        self._write()

    def _write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.config))

    def start(self) -> None:
        """Start and wait until it says where it listens."""
        haproxy = self._haproxy
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self._metrics_port),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self._stats_port),
        }
        environment.pop("RAY_ADDRESS", None)
        with (self._folder / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("raypref")), "serve", str(self.file)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=terminal_signals,
            )
        deadline_s = time.monotonic() + READY_S
        while "listening on" not in self.output():
            assert self._process.poll() is None, self.output()
            assert time.monotonic() < deadline_s, f"not up after {READY_S:g} s: {self.output()}"
            time.sleep(0.1)

    def output(self) -> str:
        """Return what the command has printed."""
        return (self._folder / "output.txt").read_text()

    def reload(self) -> None:
        """Have the service read its file again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas, in no order."""
        title = f"ray::ServeReplica:raypref:{deployment}"
        return [process for process in self.processes() if title in _command(process)]

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the service: command, Ray, HAProxy, replicas."""
        if self._process is None or self._process.poll() is not None:
            return []
        top = psutil.Process(self._process.pid)
        return [top, *top.children(recursive=True)]

    def kill(self) -> None:
        """End every process of it at once, as a power cut would."""
        ended = self.processes()
        for process in ended:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(ended, timeout=20)
        if self._process is not None:
            self._process.wait(20)

    def stop(self) -> None:
        """End it for good; by force, because Serve drains an ingress for half a minute."""
        self.kill()
        shutil.rmtree(self._haproxy, ignore_errors=True)

    def await_answer(self, path: str, status: int, within_s: float = 30.0) -> httpx.Response:
        """Return the answer to a GET, once it has that status."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                response = httpx.get(self.url + path, timeout=5)
                if response.status_code == status:
                    return response
                found = f"{response.status_code} {response.text}"
            except httpx.HTTPError as error:
                found = repr(error)
            assert time.monotonic() < deadline_s, f"{path} is not {status} after {within_s:g} s: {found}"
            time.sleep(0.1)


def rss_bytes(process: psutil.Process) -> int:
    """Return the resident memory of a process."""
    return process.memory_info().rss


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, outside the range that Serve's replicas take."""
    found: list[int] = []
    for port in range(21000 + os.getpid() % 5000, 29000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", port)):
                try:
                    probe.bind(("0.0.0.0", port))
                except OSError:
                    continue
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
