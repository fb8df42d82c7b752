"""What programs find in their environment: keys that Ray knows, and no secret in plain sight."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from raypref.errors import ConfigError
from raypref.k8s.documents import load
from raypref.k8s.objects import Build, Finding, at, of_kind, pods

KEYS = frozenset(
    {
        *("working_dir", "py_modules", "py_executable", "pip", "uv", "conda", "env_vars", "excludes"),
        *("config", "image_uri", "worker_process_setup_hook"),
    }
)
"""Of a runtime environment."""

LOGIN = re.compile(r"\w+://[^/\s:@]*:[^/\s@$]+@")
_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN(?!IZER)|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})\b"
    r"|BEGIN [A-Z ]*PRIVATE KEY"
)
_PLAIN = re.compile(r"[-/.\w]*[/.][-/.\w]*|\d{1,6}|true|false|", re.IGNORECASE)
"""Values that are no secret whatever their name: paths, numbers, switches."""


def environments(build: Build) -> Iterator[Finding]:
    """The runtime environment is known to Ray, and holds no secret: the dashboard shows it."""
    path = "spec.runtimeEnvYAML"
    for job in of_kind(build.objects, "RayJob"):
        if _tells("", at(job, "spec.entrypoint", "")):
            message = "holds a secret, and the dashboard and the logs show it; take it from a Secret."
            yield build.finding(job, "spec.entrypoint", message, "secret-in-env")
        try:
            given = load(str(at(job, path, "")))
        except ConfigError as error:
            yield build.finding(job, path, str(error), "runtime-env")
            continue
        if given is None:
            continue
        if not isinstance(given, dict) or not isinstance(given.get("env_vars", {}), dict):
            message = "say a mapping, and a mapping of `env_vars`."
            yield build.finding(job, path, message, "runtime-env")
            continue
        environment = cast("dict[str, Any]", given)
        for key in environment.keys() - KEYS:
            yield build.finding(job, path, f"{key}: unknown key.", "runtime-env")
        for name, value in environment.get("env_vars", {}).items():
            if not isinstance(value, str):
                yield build.finding(job, path, f"{name}: Ray takes text only; quote it.", "runtime-env")
            if _tells(str(name), value):
                message = f"{name}: the dashboard and the logs show it; take it from a Secret with `env`."
                yield build.finding(job, path, message, "secret-in-env")


def variables(build: Build) -> Iterator[Finding]:
    """The environment of a container holds no secret."""
    for pod in pods(build):
        for path, container in pod.containers():
            for variable in container.get("env") or []:
                if "value" in variable and _tells(str(variable.get("name")), variable["value"]):
                    message = f"{variable['name']}: take it from a Secret with valueFrom."
                    yield build.finding(pod.owner, f"{path}.env", message, "secret-in-env")


def _tells(name: str, value: Any) -> bool:
    text = str(value)
    named = _NAME.search(name) is not None and not _PLAIN.fullmatch(text)
    return named or LOGIN.search(text) is not None or _VALUE.search(text) is not None


RULES = (environments, variables)
