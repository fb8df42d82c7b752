"""Run a Serve configuration on this machine, in throughput mode, and say where it listens."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from raypref.config_file import apply_override, describe
from raypref.errors import ConfigError

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

THROUGHPUT = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""HAProxy before the replicas, and no thread between a replica's loop and our code: about twelve times the
requests a second of Serve's own proxy. It listens on every interface, whatever `host` says."""

BUILDER = "raypref.serve.app:build"

POLL_S = 0.2


def set_throughput(throughput: bool) -> None:
    """Choose Serve's proxy, before Ray is imported; what the environment already says stays.

    Args:
        throughput: HAProxy on every interface, or Serve's own proxy where `http_options.host` says.
    """
    for name, value in THROUGHPUT.items():
        os.environ.setdefault(name, value if throughput else "0")
    os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")


def read_serve_config(path: Path, overrides: list[str]) -> ServeDeploySchema:
    """Read a Serve configuration and check every key of it, which Serve itself does not.

    `--set` reaches into the first application's `args`.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is invalid.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error}).") from error
    return parse_serve_config(raw, overrides, str(path))


def parse_serve_config(raw: Any, overrides: list[str], where: str) -> ServeDeploySchema:
    """Return the configuration that a mapping describes; see `read_serve_config`."""
    from ray.serve.schema import ServeDeploySchema

    from raypref.serve.config import ServeConfig

    if not isinstance(raw, dict) or not raw.get("applications"):
        raise ConfigError(f"{where}: a Serve configuration is a mapping with `applications`.")
    for override in overrides:
        apply_override(raw["applications"][0].setdefault("args", {}), override)
    try:
        found = ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from error
    _refuse_unknown(raw, found, where)
    for application in found.applications:
        if application.import_path != BUILDER:
            continue
        try:
            args = ServeConfig.model_validate(application.args)
        except ValidationError as error:
            raise ConfigError(describe(error, f"{where}: applications.{application.name}.args")) from error
        known = {"Ingress", "Scorer"} | ({"Embedder"} if args.embed else set())
        for deployment in application.deployments:
            if deployment.name not in known:
                raise ConfigError(
                    f"{where}: deployments: {deployment.name} is none of {', '.join(sorted(known))}."
                )
    return found


def _refuse_unknown(raw: Any, parsed: Any, where: str) -> None:
    """Raise ConfigError for a key that Serve's schema dropped in silence."""
    if isinstance(parsed, BaseModel) and isinstance(raw, Mapping):
        fields = type(parsed).model_fields
        for key, value in raw.items():
            if key not in fields:
                raise ConfigError(f"{where}: {key}: unknown key; Serve would ignore it.")
            _refuse_unknown(value, getattr(parsed, key), f"{where}: {key}")
    elif isinstance(parsed, list) and isinstance(raw, list):
        for number, (value, item) in enumerate(zip(raw, parsed, strict=False)):
            _refuse_unknown(value, item, f"{where}[{number}]")


@contextmanager
def running(config: ServeDeploySchema, cpus: int | None = None, ready_s: float = 180.0) -> Generator[str]:
    """Run a block with the applications up, and yield the address at which they answer.

    Connects to the cluster of RAY_ADDRESS, or starts a local one.

    Raises:
        ConfigError: an application failed to start, or took longer than `ready_s`.
    """
    from ray import serve
    from ray.serve._private.api import serve_start

    from raypref.cluster import connected

    with connected(cpus):
        try:
            client = serve_start(
                http_options=config.http_options.model_dump(), proxy_location=config.proxy_location
            )
            client.deploy_apps(config, _blocking=False)
            _await(config, ready_s)
            yield f"http://127.0.0.1:{config.http_options.port}"
        finally:
            serve.shutdown()


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


def serve_forever(path: Path, overrides: list[str], say: Callable[[str], None]) -> None:
    """Serve a configuration until SIGINT or SIGTERM, and say where it listens."""
    config = read_serve_config(path, overrides)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running(config):
        say(listening(config))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
    say("stopped.")


def listening(config: ServeDeploySchema) -> str:
    """Say where the service listens, and who may use it."""
    host, port = config.http_options.host, config.http_options.port
    everywhere = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" or host in ("0.0.0.0", "::")
    where = f"0.0.0.0:{port}, which is every interface of this machine" if everywhere else f"{host}:{port}"
    open_to_all = any(application.args.get("open") for application in config.applications)
    who = "NO KEY IS ASKED FOR" if open_to_all else "API keys are asked for"
    return f"listening on {where}; {who}. API: http://127.0.0.1:{port}/docs"
