"""What KubeRay 1.7 refuses, or needs an alpha gate for, and its schema cannot say (its validation.go)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from raypref.k8s.objects import CLUSTERS, Build, Finding, at, clusters, has_name, pods

RAY = "2.60.0"
"""What raypref is built on."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}

GONE = {
    "RayService": ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"),
    "RayJob": ("deletionStrategy.onSuccess", "deletionStrategy.onFailure"),
}
MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
TAKEN = ("num-cpus", "num-gpus", "memory", "resources")
"""Of rayStartParams, what a group's `resources` say too."""
SWITCH = "RAY_enable_autoscaler_v2"
_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_VALUE = re.compile(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)

GATES = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}


def names(build: Build) -> Iterator[Finding]:
    """Names become Services and labels: DNS labels, with room for KubeRay's suffixes."""
    for subject in build.objects:
        longest = LONGEST.get(str(subject.get("kind")))
        name = str(at(subject, "metadata.name", ""))
        if longest is not None and (len(name) > longest or not _LABEL.fullmatch(name)):
            message = f"{name!r}: use at most {longest} of a-z, 0-9 and -, beginning with a letter."
            yield build.finding(subject, "metadata.name", message, "name")
        elif not name and not at(subject, "metadata.generateName") and has_name(subject):
            yield build.finding(subject, "metadata.name", "say it.", "name")


def replicas(build: Build) -> Iterator[Finding]:
    """Numbers of workers are in order, and group names differ."""
    for cluster in clusters(build):
        counted = Counter(str(group.get("groupName")) for _, group in cluster.groups())
        for path, group in cluster.groups():
            if counted[str(group.get("groupName"))] > 1:
                yield build.finding(
                    cluster.owner, f"{path}.groupName", "two groups have this name.", "group-name"
                )
            least, now, most = (group.get(name) for name in ("minReplicas", "replicas", "maxReplicas"))
            if least is None or most is None:
                yield build.finding(cluster.owner, path, "say minReplicas and maxReplicas.", "replicas")
            elif not least <= (least if now is None else now) <= most:
                message = f"minReplicas {least}, replicas {now}, maxReplicas {most} are not in order."
                yield build.finding(cluster.owner, path, message, "replicas")


def start_params(build: Build) -> Iterator[Finding]:
    """Resources of a group are said once; nothing is scheduled on the head."""
    for cluster in clusters(build):
        for path, group in cluster.all_groups():
            params = group.get("rayStartParams") or {}
            if "labels" in params:
                yield build.finding(
                    cluster.owner,
                    f"{path}.rayStartParams.labels",
                    "use the group's `labels`.",
                    "start-params",
                )
            if group.get("resources") and (twice := [name for name in TAKEN if name in params]):
                message = f"`resources` and {', '.join(twice)} of rayStartParams exclude each other."
                yield build.finding(cluster.owner, path, message, "start-params")
        if str(at(cluster.spec, "headGroupSpec.rayStartParams.num-cpus")) != "0":
            yield build.finding(
                cluster.owner,
                f"{cluster.path}.headGroupSpec.rayStartParams",
                'set num-cpus: "0": work that exhausts the head ends the cluster.',
                "head-cpus",
            )


def labels(build: Build) -> Iterator[Finding]:
    """A group's labels, which Ray schedules by, have the form of Kubernetes'."""
    for cluster in clusters(build):
        for path, group in cluster.all_groups():
            for name, value in (group.get("labels") or {}).items():
                if not _KEY.fullmatch(str(name)) or not _VALUE.fullmatch(str(value)):
                    message = f"{name}: {value} is no label: use letters, digits, -, _ and dots, at most 63."
                    yield build.finding(cluster.owner, f"{path}.labels", message, "group-labels")


def autoscaler(build: Build) -> Iterator[Finding]:
    """The autoscaler is v2, and replaces pods itself."""
    for cluster in clusters(build):
        if not cluster.autoscaled:
            if "autoscalerOptions" in cluster.spec:
                yield build.finding(
                    cluster.owner,
                    f"{cluster.path}.autoscalerOptions",
                    "without enableInTreeAutoscaling nothing reads it.",
                    "autoscaler",
                )
            continue
        if at(cluster.spec, "autoscalerOptions.version") != "v2":
            yield build.finding(
                cluster.owner, f"{cluster.path}.autoscalerOptions.version", "say v2.", "autoscaler"
            )
        for path, group in cluster.groups():
            if group.get("suspend"):
                message = "a group cannot be suspended where the autoscaler counts it; leave it out."
                yield build.finding(cluster.owner, f"{path}.suspend", message, "autoscaler")
        if SWITCH in cluster.head_env():
            path = f"{cluster.path}.headGroupSpec.template.spec.containers.0.env"
            message = f"{SWITCH} is what autoscalerOptions.version says; leave it out."
            yield build.finding(cluster.owner, path, message, "autoscaler")
    for pod in pods(build):
        policy = pod.spec.get("restartPolicy", "Never")
        if pod.autoscaled and policy != "Never":
            message = f"{policy}: autoscaler v2 replaces pods itself; say Never."
            yield build.finding(pod.owner, f"{pod.path}.spec.restartPolicy", message, "autoscaler")


def gates(build: Build) -> Iterator[Finding]:
    """Nothing needs a gate that is off by default, and nothing is deprecated."""
    for cluster in clusters(build):
        for name, gate in GATES.items():
            if name in cluster.spec:
                message = f"needs KubeRay's alpha gate {gate}, which is off by default."
                yield build.finding(cluster.owner, f"{cluster.path}.{name}", message, "alpha-gate")
        if at(cluster.spec, "gcsFaultToleranceOptions.backend") == "rocksdb":
            yield build.finding(
                cluster.owner,
                f"{cluster.path}.gcsFaultToleranceOptions.backend",
                "rocksdb needs an alpha gate; use redis.",
                "alpha-gate",
            )
    for subject in build.objects:
        if subject.get("kind") == "RayCronJob":
            message = "needs KubeRay's alpha gate RayCronJob; use a CronJob that makes RayJobs."
            yield build.finding(subject, "kind", message, "alpha-gate")
        for path in GONE.get(str(subject.get("kind")), ()):
            if at(subject, f"spec.{path}") is not None:
                yield build.finding(subject, f"spec.{path}", "is deprecated and has no effect.", "deprecated")
        if "ray.io/ft-enabled" in (at(subject, "metadata.annotations") or {}):
            yield build.finding(
                subject,
                "metadata.annotations",
                "ray.io/ft-enabled is deprecated; use gcsFaultToleranceOptions.",
                "deprecated",
            )


def versions(build: Build) -> Iterator[Finding]:
    """KubeRay acts on the version of Ray that it is told, not on the image's."""
    for cluster in clusters(build):
        given = cluster.spec.get("rayVersion")
        if given != RAY:
            yield build.finding(
                cluster.owner, f"{cluster.path}.rayVersion", f"{given}: the images hold {RAY}.", "ray-version"
            )


def fault_tolerance(build: Build) -> Iterator[Finding]:
    """Where Redis is, gcsFaultToleranceOptions say, and nothing else."""
    for cluster in clusters(build):
        head = f"{cluster.path}.headGroupSpec"
        params = at(cluster.spec, "headGroupSpec.rayStartParams") or {}
        for name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
            if name in cluster.head_env():
                message = f"{name} is what gcsFaultToleranceOptions say; leave it out."
                path = f"{head}.template.spec.containers.0.env"
                yield build.finding(cluster.owner, path, message, "gcs-options")
        for name in ("redis-password", "redis-username"):
            if name in params:
                message = "is what gcsFaultToleranceOptions say; leave it out."
                yield build.finding(cluster.owner, f"{head}.rayStartParams.{name}", message, "gcs-options")
        options = cluster.spec.get("gcsFaultToleranceOptions")
        if options is None:
            continue
        if options.get("backend", "redis") == "redis" and not options.get("redisAddress"):
            path = f"{cluster.path}.gcsFaultToleranceOptions.redisAddress"
            yield build.finding(cluster.owner, path, "say where Redis is.", "gcs-options")
        if "ray.io/external-storage-namespace" in (at(cluster.owner, "metadata.annotations") or {}):
            message = "use gcsFaultToleranceOptions.externalStorageNamespace."
            yield build.finding(cluster.owner, "metadata.annotations", message, "gcs-options")


def managers(build: Build) -> Iterator[Finding]:
    """Only two controllers may manage an object (a rule of the definitions, in CEL)."""
    for subject in build.objects:
        given = at(subject, "spec.managedBy")
        if subject.get("kind") in CLUSTERS and given is not None and given not in MANAGERS:
            message = f"{given!r} is none of {', '.join(MANAGERS)}."
            yield build.finding(subject, "spec.managedBy", message, "managed-by")


RULES = (names, replicas, start_params, labels, autoscaler, gates, versions, fault_tolerance, managers)
