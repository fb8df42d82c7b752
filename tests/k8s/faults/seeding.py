"""What is done to manifests that are right, and what must be said then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from raypref.k8s.kustomize import Manifest
from raypref.k8s.objects import at

Mutation = Callable[[list[Manifest]], None]

Faults = dict[str, tuple[str, Mutation, str, str]]
"""By name: a folder, what is done to what it builds, the rule that finds it, and a part of what it says."""


def the(objects: list[Manifest], kind: str, name: str = "") -> Manifest:
    return next(
        one for one in objects if one["kind"] == kind and (not name or one["metadata"]["name"] == name)
    )


def put(kind: str, path: str, value: Any, name: str = "") -> Mutation:
    """Set what stands at a.b.0.c of an object."""
    *parents, last = path.split(".")

    def mutate(objects: list[Manifest]) -> None:
        node = at(the(objects, kind, name), ".".join(parents))
        node[int(last) if isinstance(node, list) else last] = value

    return mutate


def drop(kind: str, path: str, name: str = "") -> Mutation:
    *parents, last = path.split(".")

    def mutate(objects: list[Manifest]) -> None:
        node = at(the(objects, kind, name), ".".join(parents))
        del node[int(last) if isinstance(node, list) else last]

    return mutate


def other_pods(objects: list[Manifest]) -> None:
    """Let network policies select pods of somebody else."""
    for one in objects:
        if one["kind"] == "NetworkPolicy":
            one["spec"]["podSelector"] = {"matchLabels": {"app": "other"}}


def both(*mutations: Mutation) -> Mutation:
    def mutate(objects: list[Manifest]) -> None:
        for one in mutations:
            one(objects)

    return mutate


def serve_text(old: str, new: str) -> Mutation:
    """Change the text of the Serve configuration, in the RayService and in its file."""

    def mutate(objects: list[Manifest]) -> None:
        spec = the(objects, "RayService")["spec"]
        assert old in spec["serveConfigV2"]
        spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)

    return mutate


def set_env(container: str, name: str, value: str) -> Mutation:
    """Add to the environment of a container of the service."""

    def mutate(objects: list[Manifest]) -> None:
        at(the(objects, S), f"{container}.env").append({"name": name, "value": value})

    return mutate


def add(manifest: str) -> Mutation:
    def mutate(objects: list[Manifest]) -> None:
        objects.append(yaml.safe_load(manifest))

    return mutate


SERVICE, JOB = "overlays/postgres-store", "base/jobs"
HEAD, WORKER = "spec.rayClusterConfig.headGroupSpec", "spec.rayClusterConfig.workerGroupSpecs.0"
CONTAINER = f"{WORKER}.template.spec.containers.0"
JOB_HEAD = "spec.rayClusterSpec.headGroupSpec"
S, J = "RayService", "RayJob"


def without(kind: str) -> Mutation:
    def mutate(objects: list[Manifest]) -> None:
        objects[:] = [one for one in objects if one["kind"] != kind]

    return mutate


def egress_only(objects: list[Manifest]) -> None:
    for one in objects:
        if one["kind"] == "NetworkPolicy":
            one["spec"]["policyTypes"] = ["Egress"]


def two_groups(objects: list[Manifest]) -> None:
    groups = at(the(objects, S), WORKER.removesuffix(".0"))
    groups.append(groups[0])


def spread_others(objects: list[Manifest]) -> None:
    for rule in at(the(objects, S), f"{WORKER}.template.spec.topologySpreadConstraints"):
        rule["labelSelector"] = {"matchLabels": {"app": "other"}}


def no_gpus(objects: list[Manifest]) -> None:
    for group in at(the(objects, S), WORKER.removesuffix(".0")):
        for given in group["template"]["spec"]["containers"][0]["resources"].values():
            given.pop("nvidia.com/gpu", None)


def ends(policy: str, condition: dict[str, Any], *others: tuple[str, dict[str, Any]]) -> Mutation:
    """Let rules say how a job ends."""
    rules = [{"policy": one, "condition": when} for one, when in ((policy, condition), *others)]
    return both(
        put("RayJob", "spec.shutdownAfterJobFinishes", False),
        put("RayJob", "spec.ttlSecondsAfterFinished", 0),
        put("RayJob", "spec.deletionStrategy", {"deletionRules": rules}),
    )
