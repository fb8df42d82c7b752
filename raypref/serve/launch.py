"""Run a Serve configuration on this machine, in throughput mode, and say where it listens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from raypref.checkpoint import verify
from raypref.errors import ConfigError, RayprefError
from raypref.hub import resolve

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

THROUGHPUT = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""HAProxy before the replicas, and no thread between a replica's loop and our code: about twelve times the
requests a second of Serve's own proxy. It listens on every interface, whatever `host` says."""

SERVE = {
    # From the ingress to the Scorers and back: 4 MiB, unless told otherwise.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
"""What else Ray reads from its environment, on every node of a cluster that serves."""

POLL_S = 0.2


def set_throughput(throughput: bool) -> None:
    """Choose Serve's proxy, before Ray is imported; what the environment already says stays.

    Args:
        throughput: HAProxy on every interface, or Serve's own proxy where `http_options.host` says.
    """
    for name, value in THROUGHPUT.items():
        os.environ.setdefault(name, value if throughput else "0")
    for name, value in SERVE.items():
        os.environ.setdefault(name, value)


@contextmanager
def running(
    config: ServeDeploySchema,
    cpus: int | None = None,
    metrics_port: int | None = None,
    ready_s: float = 180.0,
) -> Generator[str]:
    """Run a block with the applications up, and yield the address at which they answer.

    Connects to the cluster of RAY_ADDRESS, or starts a local one, which shows Prometheus its figures at
    `metrics_port`.

    Raises:
        ConfigError: an application failed to start, or took longer than `ready_s`.
    """
    from ray import serve

    from raypref.cluster import connected

    with connected(cpus, metrics_port):
        try:
            deploy(config)
            _await(config, ready_s)
            yield f"http://127.0.0.1:{config.http_options.port}"
        finally:
            serve.shutdown()


def deploy(config: ServeDeploySchema) -> None:
    """Tell the cluster that this process is connected to what to serve; it gets there on its own."""
    from ray.serve._private.api import serve_start

    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config, _blocking=False)


def bundles_in_place(config: ServeDeploySchema, running: ServeDeploySchema) -> ServeDeploySchema:
    """Return a configuration whose bundles running replicas can swap.

    Serve starts every replica anew when `args` change in any way, so what runs keeps the bundle it has there
    and the Scorer's `user_config` names the new one.
    """
    from ray.serve.schema import DeploymentSchema

    from raypref.serve.config_file import BUILDER

    config = config.model_copy(deep=True)
    args_of = {application.name: application.args for application in running.applications}
    for application in config.applications:
        before = args_of.get(application.name, {})
        if application.import_path != BUILDER or "bundle" not in before:
            continue
        bundle = application.args["bundle"]
        application.args = {**application.args, "bundle": before["bundle"]}
        scorer = next((found for found in application.deployments if found.name == "Scorer"), None)
        if scorer is None:
            scorer = DeploymentSchema(name="Scorer")
            application.deployments = [*application.deployments, scorer]
        if "user_config" not in scorer.model_fields_set:
            scorer.user_config = {"bundle": bundle}
    return config


def _await(config: ServeDeploySchema, ready_s: float) -> None:
    """Wait until every application runs."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    names = [application.name for application in config.applications]
    deadline_s = time.monotonic() + ready_s
    while True:
        found = serve.status().applications
        states = {name: found[name] for name in names if name in found}
        failed = [
            f"{name}: {state.message}"
            for name, state in states.items()
            if state.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
        ]
        if failed:
            raise ConfigError("the service did not start. " + "; ".join(failed))
        if len(states) == len(names) and all(
            state.status == ApplicationStatus.RUNNING for state in states.values()
        ):
            return
        if time.monotonic() > deadline_s:
            raise ConfigError(f"the service was not up after {ready_s:g} s: {states}")
        time.sleep(POLL_S)


def serve_forever(
    path: Path, overrides: list[str], metrics_port: int | None, say: Callable[[str], None]
) -> None:
    """Serve a configuration until SIGINT or SIGTERM, and say where it listens; SIGHUP reads it again."""
    config = _read(path, overrides)
    signals: SimpleQueue[int] = SimpleQueue()
    _send_to(signals)
    with running(config, metrics_port=metrics_port):
        say(listening(config))
        say(measured())
        # Ray has taken them over.
        _send_to(signals)
        while signals.get() == signal.SIGHUP:
            try:
                deploy(bundles_in_place(_read(path, overrides), config))
                say(f"{path} is read again.")
            except RayprefError as error:
                say(f"{path} is not taken over, the service goes on as it was: {error}")
    say("stopped.")


def measured() -> str:
    """Say where Prometheus finds the figures of this machine."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["NodeID"] == here)
    return f"figures for Prometheus: http://127.0.0.1:{port}/metrics"


def _send_to(signals: SimpleQueue[int]) -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.put(number))


def _read(path: Path, overrides: list[str]) -> ServeDeploySchema:
    from raypref.serve.config_file import applications, read_serve_config

    config = read_serve_config(path, overrides)
    for application in applications(config):
        verify(resolve(application.bundle))
    return config


def listening(config: ServeDeploySchema) -> str:
    """Say where the service listens, and who may use it."""
    host, port = config.http_options.host, config.http_options.port
    everywhere = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" or host in ("0.0.0.0", "::")
    where = f"0.0.0.0:{port}, which is every interface of this machine" if everywhere else f"{host}:{port}"
    open_to_all = any(application.args.get("open") for application in config.applications)
    who = "NO KEY IS ASKED FOR" if open_to_all else "API keys are asked for"
    return f"listening on {where}; {who}. API: http://127.0.0.1:{port}/docs"
