"""What KubeRay makes of a manifest, on this machine: `ray start` of its nodes, in the image's layout."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

import httpx
import psutil
import yaml

from raypref.k8s.kustomize import Manifest
from raypref.k8s.objects import at
from tests.serve.chaos.service import free_ports

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
STORE_BYTES = 256 * 2**20
START_S = 90.0
MOST_NODES = 4
BYTES = {"Mi": 2**20, "Gi": 2**30}


class LocalCluster:
    """A Ray cluster as a manifest says, with token authentication, each node a tree of processes of its own.

    The folder is the image's /app: what the manifest mounts below it (`config/`, `runs/`, `secrets/`) is put
    there by whoever makes the cluster, and the nodes run in it.
    """

    def __init__(
        self,
        app: Path,
        spec: Manifest,
        environment: Mapping[str, str] | None = None,
        redis: tuple[str, str] | None = None,
    ) -> None:
        """Prepare it.

        Args:
            app: the image's working directory.
            spec: RayClusterSpec.
            environment: what the manifest takes from Secrets.
            redis: the host:port and the password that `gcsFaultToleranceOptions` names.
        """
        self.app = app
        self.spec = spec
        self._environment = dict(environment or {})
        self._redis = redis
        self._token = secrets.token_hex(32)
        # Ray's sockets want short paths.
        self._temporary = Path(tempfile.mkdtemp(prefix="rp"))
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._free = iter(free_ports(3 + 8 * MOST_NODES))
        self._gcs, self._dashboard, self._client = self._take(3)
        self._ports: dict[str, list[int]] = {}
        app.mkdir(parents=True, exist_ok=True)
        (app / "jobs").symlink_to(REPOSITORY / "jobs")

    def _take(self, count: int) -> list[int]:
        return list(islice(self._free, count))

    @property
    def dashboard(self) -> str:
        """Where jobs and applications are submitted."""
        return f"http://127.0.0.1:{self._dashboard}"

    def environment(self, container: Manifest | None = None) -> dict[str, str]:
        """Return the environment of a container: the image's, the manifest's, that of Secrets, the token."""
        given = {one["name"]: one["value"] for one in (container or {}).get("env") or [] if "value" in one}
        kept = ("LANG", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "HF_HUB_OFFLINE")
        return (
            {name: os.environ[name] for name in kept if name in os.environ}
            | {"PATH": f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
            | {"HOME": str(self._temporary), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token, "RAY_USAGE_STATS_ENABLED": "0"}
            | given
            | self._environment
        )

    def start(self, workers: int) -> None:
        """Start the head and that many pods of the first worker group, one after the other.

        Here all nodes name their sockets in one folder: two that start at a time would take the same names.
        """
        self.start_head()
        self.wait("the head", lambda: self._alive() == 1)
        for number in range(workers):
            self.start_worker(f"worker-{number}")

    def start_head(self) -> None:
        """Start the head, or a new one for one that was killed, without that one's files."""
        (self._temporary / "ray_current_cluster").unlink(missing_ok=True)
        group = self.spec["headGroupSpec"]
        arguments = [
            "--head",
            f"--port={self._gcs}",
            f"--dashboard-port={self._dashboard}",
            f"--ray-client-server-port={self._client}",
            "--dashboard-host=127.0.0.1",
            f"--num-cpus={group['rayStartParams']['num-cpus']}",
            f"--temp-dir={self._temporary}",
        ]
        environment = {}
        if self._redis is not None:
            # As KubeRay does for `gcsFaultToleranceOptions`; its namespace is the RayCluster's UID.
            address, password = self._redis
            environment = {"RAY_REDIS_ADDRESS": address, "RAY_external_storage_namespace": "test"}
            arguments.append(f"--redis-password={password}")
        self._start("head", group, arguments, environment)
        self.wait("the dashboard", lambda: self.get("/api/version").status_code == 200)

    def start_worker(self, name: str) -> None:
        """Start a pod of the first worker group."""
        group = self.spec["workerGroupSpecs"][0]
        cpus = at(group, "template.spec.containers.0.resources.limits.cpu")
        arguments = [f"--address=127.0.0.1:{self._gcs}", f"--num-cpus={cpus}"]
        # KubeRay gives workers of a cluster with fault tolerance ten minutes for a new head.
        environment = {} if self._redis is None else {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        before = self._alive()
        self._start(name, group, arguments, environment)
        self.wait(name, lambda: self._alive() > before)

    def _alive(self) -> int:
        nodes = self.get("/nodes?view=summary").json()["data"]["summary"]
        return sum(at(node, "raylet.state") == "ALIVE" for node in nodes)

    def _start(self, name: str, group: Manifest, arguments: list[str], environment: dict[str, str]) -> None:
        container = at(group, "template.spec.containers.0")
        limit: str = container["resources"]["limits"]["memory"]
        if name not in self._ports:
            self._ports[name] = self._take(8)
        manager, objects, agent, grpc, metrics, runtime, stats, figures = self._ports[name]
        first = 10_000 + 400 * list(self._ports).index(name)
        command = [
            str(PROGRAMS / "ray"),
            "start",
            *arguments,
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--memory={int(limit[:-2]) * BYTES[limit[-2:]]}",
            f"--object-store-memory={STORE_BYTES}",
            f"--node-manager-port={manager}",
            f"--object-manager-port={objects}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={metrics}",
            f"--runtime-env-agent-port={runtime}",
            f"--min-worker-port={first}",
            f"--max-worker-port={first + 399}",
            "--disable-usage-stats",
        ]
        beside = {
            # What each pod has to itself; here all HAProxies listen on one port.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self._temporary / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self._temporary / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self._temporary),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self._temporary / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self._temporary / "metrics.sock"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(figures),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
        }
        with (self._temporary / f"{name}.log").open("ab") as log:
            self._nodes[name] = subprocess.Popen(
                command,
                cwd=self.app,
                env=self.environment(container) | beside | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        """Return what `ray start` of a node printed."""
        return (self._temporary / f"{name}.log").read_text()

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        """Ask the dashboard."""
        headers = {"Authorization": f"Bearer {token or self._token}"}
        return httpx.get(self.dashboard + path, headers=headers, timeout=10)

    def wait(self, what: str, done: Callable[[], bool], within_s: float = START_S) -> None:
        """Wait until something holds; an HTTP error says that it does not yet."""
        deadline_s = time.monotonic() + within_s
        while True:
            with suppress(httpx.HTTPError):
                if done():
                    return
            for name, node in self._nodes.items():
                assert node.poll() is None, f"{name} ended: {self.log(name)}"
            assert time.monotonic() < deadline_s, f"{what}: not within {within_s:g} s"
            time.sleep(0.1)

    def run(
        self, command: list[str], timeout_s: float, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Ray's commands against the cluster, as the submitter's pod would."""
        return subprocess.run(
            [str(PROGRAMS / command[0]), *command[1:]],
            cwd=self.app,
            env=self.environment() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def submit(self, job: Manifest, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Submit a RayJob's entrypoint with its runtime environment and wait for its end, as KubeRay does."""
        runtime_env = json.dumps(yaml.safe_load(at(job, "spec.runtimeEnvYAML", "{}")))
        options = [f"--address={self.dashboard}", f"--runtime-env-json={runtime_env}"]
        entrypoint = shlex.split(at(job, "spec.entrypoint"))
        return self.run(["ray", "job", "submit", *options, "--", *entrypoint], timeout_s)

    def deploy(self, serve_config: str) -> None:
        """Give a text to `serve deploy`."""
        file = self.app / "serve.yaml"
        file.write_text(serve_config)
        done = self.run(["serve", "deploy", f"--address={self.dashboard}", str(file)], 60)
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, name: str) -> list[psutil.Process]:
        """Return all processes of a node."""
        node = self._nodes.get(name)
        if node is None:
            return []
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(node.pid)
            return [top, *top.children(recursive=True)]
        return []

    def kill(self, name: str) -> None:
        """End a node at once, as the loss of its machine would."""
        ended = self.processes(name)
        for process in ended:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(ended, timeout=20)
        node = self._nodes.pop(name, None)
        if node is not None:
            node.wait(20)

    def stop(self) -> None:
        """End all nodes."""
        for name in reversed(list(self._nodes)):
            self.kill(name)
        shutil.rmtree(self._temporary, ignore_errors=True)
