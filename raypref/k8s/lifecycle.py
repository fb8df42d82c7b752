"""How jobs end and services are upgraded, as KubeRay 1.7 takes it (its validation.go, its CEL)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from raypref.k8s.objects import Build, Finding, at, clusters, of_kind

ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
"""What goes first; times must not contradict it."""
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")


def ends(build: Build) -> Iterator[Finding]:
    """How a job ends, and what it leaves."""
    for job in of_kind(build.objects, "RayJob"):
        for path, message in _end(job.get("spec") or {}):
            yield build.finding(job, f"spec.{path}", message, "job-end")


def _end(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    stops = spec.get("shutdownAfterJobFinishes") is True
    ttl = spec.get("ttlSecondsAfterFinished") or 0
    strategy = spec.get("deletionStrategy")
    if ttl < 0:
        yield "ttlSecondsAfterFinished", "must not be negative."
    if ttl > 0 and not stops:
        yield "ttlSecondsAfterFinished", "nothing is deleted without shutdownAfterJobFinishes."
    if spec.get("suspend") and not stops:
        yield "suspend", "needs shutdownAfterJobFinishes: true."
    if not stops and not strategy:
        yield "shutdownAfterJobFinishes", "say true: the cluster would stay, and cost, after the job."
    if strategy is None:
        return
    legacy = "onSuccess" in strategy or "onFailure" in strategy  # a finding of its own
    rules = strategy.get("deletionRules") or []
    if rules and stops:
        yield "deletionStrategy", "deletionRules and shutdownAfterJobFinishes exclude each other."
    if not rules and not legacy:
        yield "deletionStrategy.deletionRules", "say when to delete what, or leave deletionStrategy out."
    yield from _rules(rules, at(spec, "rayClusterSpec.enableInTreeAutoscaling") is True)


def _rules(rules: list[dict[str, Any]], autoscaled: bool) -> Iterator[tuple[str, str]]:
    seen: dict[str, dict[str, int]] = {}
    for number, rule in enumerate(rules):
        path = f"deletionStrategy.deletionRules.{number}"
        condition, policy = rule.get("condition") or {}, str(rule.get("policy"))
        status = [str(condition[name]) for name in ("jobStatus", "jobDeploymentStatus") if name in condition]
        if len(status) != 1:
            yield f"{path}.condition", "say jobStatus or jobDeploymentStatus, one of them."
            continue
        if policy == "DeleteWorkers" and autoscaled:
            yield (
                f"{path}.policy",
                "DeleteWorkers is not for clusters with the autoscaler; use DeleteCluster.",
            )
        times = seen.setdefault(status[0], {})
        if policy in times:
            yield path, f"{policy} on {status[0]} is said twice."
        times[policy] = condition.get("ttlSeconds", 0)
    for status, times in seen.items():
        for first, then in pairwise(name for name in ORDER if name in times):
            if times[then] < times[first]:
                message = (
                    f"{status}: {then} after {times[then]} s comes before {first} after {times[first]} s."
                )
                yield "deletionStrategy.deletionRules", message


def modes(build: Build) -> Iterator[Finding]:
    """How a job is submitted, how often it is tried, how long it may take."""
    for job in of_kind(build.objects, "RayJob"):
        for path, message in _mode(job.get("spec") or {}):
            yield build.finding(job, f"spec.{path}", message, "job-mode")


def _mode(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector")
    if not spec.get("rayClusterSpec") and not selector:
        yield "rayClusterSpec", "say what cluster the job runs on."
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector", "name the cluster: ray.io/cluster."
    if selector and spec.get("suspend"):
        yield "suspend", "a job on another's cluster cannot be suspended."
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if name in spec:
                yield name, "has no place in SidecarMode."
        if at(spec, "rayClusterSpec.headGroupSpec.template.spec.restartPolicy", "Never") != "Never":
            yield "rayClusterSpec.headGroupSpec.template.spec.restartPolicy", "say Never in SidecarMode."
    tries = spec.get("backoffLimit") or 0
    if tries < 0:
        yield "backoffLimit", "must not be negative."
    if tries > 0 and mode == "InteractiveMode":
        yield "backoffLimit", "InteractiveMode tries once; leave it out."
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds", "must be positive."


def upgrades(build: Build) -> Iterator[Finding]:
    """An upgrade step by step needs autoscaling and a Gateway, and steps that fit."""
    for cluster in clusters(build):
        if cluster.owner.get("kind") == "RayService":
            head = at(cluster.spec, "headGroupSpec.headService.metadata.name")
            if head:
                path = f"{cluster.path}.headGroupSpec.headService.metadata.name"
                message = "leave it out: two clusters live side by side in an upgrade."
                yield build.finding(cluster.owner, path, message, "upgrade")
            for path, message in _upgrade(cluster.owner.get("spec") or {}, cluster.autoscaled):
                yield build.finding(cluster.owner, f"spec.{path}", message, "upgrade")


def _upgrade(spec: dict[str, Any], autoscaled: bool) -> Iterator[tuple[str, str]]:
    path = "upgradeStrategy"
    kind = at(spec, f"{path}.type", "NewCluster")
    if kind not in UPGRADES:
        yield f"{path}.type", f"{kind} is none of {', '.join(UPGRADES)}."
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    if not autoscaled:
        yield path, "needs enableInTreeAutoscaling."
    path = f"{path}.clusterUpgradeOptions"
    options = at(spec, path) or {}
    if not options.get("gatewayClassName"):
        yield f"{path}.gatewayClassName", "name a class of gateways."
    if options.get("intervalSeconds", 0) <= 0:
        yield f"{path}.intervalSeconds", "must be positive."
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    for name, value in (("maxSurgePercent", surge), ("stepSizePercent", step)):
        if not 0 <= value <= 100:
            yield f"{path}.{name}", "say a number from 0 to 100."
    if step > surge:
        yield f"{path}.stepSizePercent", "must not be above maxSurgePercent."


RULES = (ends, modes, upgrades)
