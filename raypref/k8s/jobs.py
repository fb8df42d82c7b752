"""What a RayJob runs: its program, its run, and the workers that the run wants."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import Any, cast

from raypref.config import RunConfig, TrainConfig
from raypref.config_file import parse_config
from raypref.errors import ConfigError
from raypref.k8s.documents import load
from raypref.k8s.kustomize import Manifest
from raypref.k8s.objects import Build, Cluster, Finding, amount, at, clusters, of_kind

HOME = PurePosixPath("/app")
"""The image's working directory, to which all paths are relative."""

CONFIG = HOME / "config"

WRITTEN = ("dir", "items", "tables", "bundle", "report", "users", "scores")
"""Paths of a run that jobs write to."""

TRAINS = (["python", "jobs/train.py"], ["raypref", "train"])
"""How an entrypoint begins that waits for workers of Ray Train."""


def entrypoints(build: Build) -> Iterator[Finding]:
    """The program is there."""
    for job in of_kind(build.objects, "RayJob"):
        message = ""
        match _words(job):
            case ["python", program, *_]:
                if not program.endswith(".py") or not Path(program).is_file():
                    message = f"{program}: no such file, from here; the image has what this folder has."
            case ["raypref", _, *_]:
                pass
            case _:
                message = "runs neither `python jobs/…` nor `raypref …`."
        if message:
            yield build.finding(job, "spec.entrypoint", message, "entrypoint")


def runs(build: Build) -> Iterator[Finding]:
    """The run that a job names is mounted, valid, and writes to a volume that all its pods have."""
    for job in of_kind(build.objects, "RayJob"):
        path = run_path(job)
        if path is None:
            continue
        name = config_map_name(job, path)
        if name is None:
            message = f"{path}: mount a ConfigMap at {(HOME / path).parent}."
            yield build.finding(job, "spec.entrypoint", message, "run-config")
            continue
        held = _config_maps(build.objects, name)
        if not held and not _config_maps(build.beside or build.objects, name):
            message = f"no ConfigMap {name}, with {path.name}, is among what is checked."
            yield build.finding(job, "spec.entrypoint", message, "run-config")
        groups = at(job, "spec.rayClusterSpec.workerGroupSpecs") or []
        pods = [_mounts(_head(job)), *(_mounts(at(group, "template.spec") or {}) for group in groups)]
        for config_map in held:
            for message in _wrong(config_map, path.name, pods):
                yield build.finding(config_map, f"data.{path.name}", message, "run-config")


def workers(build: Build) -> Iterator[Finding]:
    """Training has room for its fewest workers; it would wait for them for ever."""
    for cluster in clusters(build):
        job = cluster.owner
        path = run_path(job)
        name = None if path is None else config_map_name(job, path)
        if path is None or name is None or _words(job)[:2] not in TRAINS:
            continue
        for config_map in _config_maps(build.objects, name):
            try:
                run = _parsed(config_map, path.name)
            except ConfigError:
                continue  # `runs` says what is wrong with it
            message = _too_many(run.train, cluster)
            if message:
                yield build.finding(job, "spec.rayClusterSpec.workerGroupSpecs", message, "run-workers")


def run_path(job: Manifest) -> PurePosixPath | None:
    """Return the run that a job's entrypoint names, relative to the image's working directory."""
    words = _words(job)
    if words[:1] not in (["python"], ["raypref"]):
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("-c", "--config"):
            return PurePosixPath(following)
        if word.startswith("--config="):
            return PurePosixPath(word.partition("=")[2])
    return None


def config_map_name(job: Manifest, path: PurePosixPath) -> str | None:
    """Return the name of the ConfigMap that a job mounts where its run is to be; None if it mounts none."""
    folder = (HOME / path).parent
    return next((at(one.volume, "configMap.name") for one in _mounts(_head(job)) if one.path == folder), None)


def _head(job: Manifest) -> Manifest:
    return at(job, "spec.rayClusterSpec.headGroupSpec.template.spec") or {}


def _words(job: Manifest) -> list[str]:
    """Return an entrypoint as a shell takes it; none if it does not."""
    try:
        return shlex.split(str(at(job, "spec.entrypoint", "")))
    except ValueError:
        return []


@dataclass(frozen=True)
class Mount:
    """A volume where a container has it."""

    path: PurePosixPath
    read_only: bool
    volume: Manifest


def _mounts(pod: Manifest) -> list[Mount]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes") or []}
    return [
        Mount(
            PurePosixPath(mount["mountPath"]), mount.get("readOnly") is True, volumes.get(mount["name"], {})
        )
        for mount in at(pod, "containers.0.volumeMounts") or []
    ]


def _config_maps(objects: Sequence[Manifest], name: str) -> list[Manifest]:
    return [one for one in of_kind(objects, "ConfigMap") if at(one, "metadata.name") == name]


def _parsed(config_map: Manifest, name: str) -> RunConfig:
    """Return the run of a ConfigMap.

    Raises:
        ConfigError: it is missing or not valid.
    """
    text = (config_map.get("data") or {}).get(name)
    if text is None:
        raise ConfigError("is missing; the job reads it.")
    raw = load(text)
    if not isinstance(raw, dict):
        raise ConfigError("is no run: a mapping is needed.")
    return parse_config(cast("dict[str, Any]", raw), [], name)


def _wrong(config_map: Manifest, name: str, pods: list[list[Mount]]) -> Iterator[str]:
    """Yield what is wrong with the run of a ConfigMap, in pods of some mounts."""
    try:
        run = _parsed(config_map, name)
    except ConfigError as error:
        yield str(error)
        return
    written = {name: getattr(run, name) for name in WRITTEN}
    read = {"input.path": run.input.path, "population.candidates": run.population.candidates}
    for key, path in (written | read).items():
        if path is None:
            continue
        full = PurePosixPath(normpath(HOME / str(path)))
        for mounts in pods:
            problem = _unkept(full, key in written, mounts)
            if problem:
                yield f"{key}: {path} {problem}; put it under runs/."
                break


def _unkept(path: PurePosixPath, written: bool, mounts: list[Mount]) -> str:
    """Return why what lies at a path is not there afterwards, or for others; empty if it is."""
    for mount in mounts:
        if mount.path in path.parents and mount.path != CONFIG:
            if written and (mount.read_only or at(mount.volume, "persistentVolumeClaim.readOnly")):
                return "lies on a volume that is read only"
            return "goes with the pod" if "emptyDir" in mount.volume else ""
    return "lies on no volume of every pod"


def _too_many(train: TrainConfig, cluster: Cluster) -> str:
    """Return why the fewest workers of a training never come together; empty if they do."""
    # The processes of clients do not come and go.
    given = train.workers
    fewest = given[0] if isinstance(given, tuple) and train.mode == "central" else train.most_workers
    groups = [group for _, group in cluster.groups()]
    if train.use_gpu and not any(amount(group, "nvidia.com/gpu") for group in groups):
        return (
            "train.use_gpu: no worker has a GPU, so the run would wait for ever; set it to false, or set "
            "limits of nvidia.com/gpu as k8s/overlays/gpu/jobs does."
        )
    room = sum(_pods(group, cluster) * _workers_of_a_pod(group, train) for group in groups)
    if fewest <= room:
        return ""
    each = f"{train.cpus_per_worker:g} CPU{' and a GPU' if train.use_gpu else ''}"
    return (
        f"train.workers: {fewest} at the least, of {each} each, are needed, and there is room for {room} "
        f"({', '.join(_said(group, cluster) for group in groups)}), so the run would wait for ever; lower "
        "train.workers or train.cpus_per_worker, or raise maxReplicas or the limits."
    )


def _pods(group: Manifest, cluster: Cluster) -> int:
    """Return how many pods a worker group has at the most; without an autoscaler their number stays."""
    names = ("maxReplicas",) if cluster.autoscaled else ("replicas", "minReplicas")
    return max(group.get(name) or 0 for name in names) * group.get("numOfHosts", 1)


def _workers_of_a_pod(group: Manifest, train: TrainConfig) -> int:
    """Return how many workers fit into a pod: none is spread over two."""
    # Ray counts in ten thousandths.
    cpus = int(amount(group, "cpu") / train.cpus_per_worker + 1e-4)
    return min(cpus, int(amount(group, "nvidia.com/gpu"))) if train.use_gpu else cpus


def _said(group: Manifest, cluster: Cluster) -> str:
    gpus = amount(group, "nvidia.com/gpu")
    return (
        f"{_pods(group, cluster)} pods of {amount(group, 'cpu'):g} CPU{f' and {gpus:g} GPU' if gpus else ''}"
    )


RULES = (entrypoints, runs, workers)
