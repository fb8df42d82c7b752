"""`raypref k8s render COMMAND -c run.yaml`: the RayJob of a run, and the run that it mounts."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from raypref.config_file import parse_config
from raypref.errors import ConfigError
from raypref.k8s.check import judge
from raypref.k8s.jobs import config_map_name, run_path
from raypref.k8s.kustomize import NAMES, Manifest, build, is_kustomization
from raypref.k8s.objects import Build, at, of_kind, pods

LABEL = "raypref.io/command"
"""By which a job says which command it runs."""

CARRIED = ("app.kubernetes.io/part-of", LABEL)
"""Labels of a job that its run has too, so that both are found, and deleted, together."""


def render(
    command: str,
    run: dict[str, Any] | None,
    source: str,
    folder: Path,
    name: str | None = None,
    image: str | None = None,
) -> list[Manifest]:
    """Return the RayJob of a command, after the ConfigMap of the run that it mounts.

    Args:
        command: as the label of the job says it, such as `train`.
        run: what the user says of the run; None for a job that has none.
        source: where the run stands, for messages.
        folder: a kustomization of jobs.
        name: of the job; its ConfigMap is NAME-run. Default: as the kustomization has it.
        image: of Ray's containers. Default: as the kustomization has it.

    Raises:
        ConfigError: there is no such job, the run is not valid, or a rule of `raypref check` is broken.
    """
    job = _job(command, folder)
    path = run_path(job)
    if path is None and run is not None:
        raise ConfigError(f"{command} has no run; leave -c and --set out.")
    if path is not None and run is None:
        raise ConfigError(f"{command}: name its run with -c run.yaml.")
    if name is not None:
        job["metadata"]["name"] = name
    if image is not None:
        for pod in pods(Build(str(folder), [job])):
            (at(pod.spec, "containers.0") or {})["image"] = image
    objects = [job]
    if path is not None and run is not None:
        parse_config(copy.deepcopy(run), [], source)
        config_map = _config_map(job, path.name, run)
        _mount(job, config_map_name(job, path), config_map["metadata"]["name"])
        objects = [config_map, job]
    findings = judge(Build(str(folder), objects), {})
    if findings:
        raise ConfigError("\n".join(["nothing was rendered.", *map(str, findings)]))
    return objects


def dump(objects: Sequence[Manifest]) -> str:
    """Return objects as YAML documents, in which text of several lines stays as it is read."""
    return "---\n".join(map(_yaml, objects))


def _job(command: str, folder: Path) -> Manifest:
    """Return the job of a command.

    Raises:
        ConfigError: the folder cannot be built, or has no job of that command, or several.
    """
    if not is_kustomization(folder):
        raise ConfigError(f"{folder}: is no kustomization (no {NAMES[0]}); name one of jobs with --from.")
    jobs = of_kind(build(folder), "RayJob")
    found = [job for job in jobs if _command(job) == command]
    if len(found) != 1:
        held = ", ".join(sorted(map(_command, jobs))) or "no jobs"
        raise ConfigError(f"{folder}: {len(found)} jobs for {command!r}, one is needed; it has {held}.")
    return found[0]


def _command(job: Manifest) -> str:
    labels: dict[str, str] = at(job, "metadata.labels") or {}
    return labels.get(LABEL, "")


def _config_map(job: Manifest, file: str, run: dict[str, Any]) -> Manifest:
    metadata = job["metadata"]
    kept = {key: metadata[key] for key in ("namespace",) if key in metadata}
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key in CARRIED}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{metadata['name']}-run", **kept, "labels": labels},
        "data": {file: _yaml(run)},
    }


def _mount(job: Manifest, old: str | None, new: str) -> None:
    """Let all volumes of a ConfigMap be of another."""
    for pod in pods(Build("", [job])):
        for volume in pod.spec.get("volumes") or []:
            if old is not None and at(volume, "configMap.name") == old:
                volume["configMap"]["name"] = new


class _Dumper(yaml.SafeDumper):
    """Text of several lines becomes a block, and what other readers take for no text is quoted."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Readers turn Unicode's other line breaks into \n, unless they are escaped.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
# kubectl reads these as a truth value or a number, PyYAML as text.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?0o[0-7]+$"), list("-+0"))


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
