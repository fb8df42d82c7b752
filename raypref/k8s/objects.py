"""What rules look at: objects that are built together, their Ray clusters, and their pods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raypref.k8s.kustomize import Manifest

Role = Literal["head", "worker", "submitter", "pod"]

CLUSTERS = {"RayJob": "spec.rayClusterSpec", "RayService": "spec.rayClusterConfig", "RayCluster": "spec"}
"""Where a kind holds its Ray cluster."""

TEMPLATES = {
    "Pod": "",
    "Deployment": "spec.template",
    "StatefulSet": "spec.template",
    "DaemonSet": "spec.template",
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
}
"""Where a kind that is not Ray's holds its pod template."""


@dataclass(frozen=True, order=True)
class Finding:
    """Something that is wrong: where, what, and what to do about it."""

    where: str
    """A file, or the folder of a kustomization."""
    subject: str
    """Kind and name of the object; empty for a file as a whole."""
    path: str
    message: str
    rule: str

    def __str__(self) -> str:
        """Return it as a line."""
        parts = (self.where, self.subject, self.path, f"{self.message} [{self.rule}]")
        return " ".join(": ".join(part for part in parts if part).split())


@dataclass(frozen=True)
class Build:
    """Objects that are applied together."""

    where: str
    objects: Sequence[Manifest]
    serve_texts: dict[str, str] = field(default_factory=dict)
    """Serve configurations that are checked in the same run, by file."""
    beside: Sequence[Manifest] = ()
    """Objects of all builds that are checked in the same run."""

    def finding(self, subject: Manifest, path: str, message: str, rule: str) -> Finding:
        """Return a finding about one of the objects."""
        return Finding(self.where, title(subject), path.removeprefix("."), message, rule)


def title(subject: Manifest) -> str:
    """Return kind and name."""
    return f"{subject.get('kind')}/{at(subject, 'metadata.name')}"


def has_name(subject: Manifest) -> bool:
    """Return whether the API server wants a name; files of tools (kind, kustomize) have none."""
    group = str(subject.get("apiVersion")).rpartition("/")[0]
    return not group.startswith(("kind.", "kustomize."))


def of_kind(objects: Iterable[Manifest], kind: str) -> list[Manifest]:
    """Return the objects of a kind."""
    return [subject for subject in objects if subject.get("kind") == kind]


def at(node: Any, path: str, default: Any = None) -> Any:
    """Return what stands at a.b.0.c of nested mappings and lists, or the default."""
    for name in path.split(".") if path else ():
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return default
    return node


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster inside an object."""

    owner: Manifest
    path: str
    spec: Manifest

    @property
    def autoscaled(self) -> bool:
        """Whether Ray's autoscaler runs in the head's pod."""
        return self.spec.get("enableInTreeAutoscaling") is True

    def head_env(self) -> set[str]:
        """Return the names of the environment of Ray's container on the head."""
        given = at(self.spec, "headGroupSpec.template.spec.containers.0.env") or []
        return {str(variable.get("name")) for variable in given}

    def all_groups(self) -> Iterator[tuple[str, Manifest]]:
        """Yield the head's group and those of workers, and their paths."""
        yield f"{self.path}.headGroupSpec", at(self.spec, "headGroupSpec") or {}
        yield from self.groups()

    def groups(self) -> Iterator[tuple[str, Manifest]]:
        """Yield worker groups and their paths."""
        for number, group in enumerate(self.spec.get("workerGroupSpecs") or []):
            yield f"{self.path}.workerGroupSpecs.{number}", group


def clusters(build: Build) -> Iterator[Cluster]:
    """Yield the Ray clusters of a build."""
    for owner in build.objects:
        path = CLUSTERS.get(str(owner.get("kind")))
        spec = None if path is None else at(owner, path)
        if path is not None and isinstance(spec, dict):
            yield Cluster(owner, path, spec)


def amount(group: Manifest, kind: str) -> float:
    """Return how much of a resource Ray takes a worker to have: what is said to it, or its limits."""
    parameter, resource = {"cpu": ("num-cpus", "CPU")}.get(kind, ("num-gpus", "GPU"))
    limits = at(group, "template.spec.containers.0.resources.limits") or {}
    for given in (
        at(group, f"rayStartParams.{parameter}"),
        at(group, f"resources.{resource}"),
        limits.get(kind),
    ):
        if given is not None:
            text = str(given)
            return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    return 0.0


@dataclass(frozen=True)
class Pod:
    """A pod template."""

    owner: Manifest
    path: str
    template: Manifest
    role: Role
    autoscaled: bool = False
    """Whether Ray's autoscaler, which asks the API server, runs in it or counts it."""

    @property
    def spec(self) -> Manifest:
        """The pod's specification."""
        return self.template.get("spec") or {}

    @property
    def labels(self) -> dict[str, str]:
        """The labels that the pod will have, KubeRay's among them."""
        found = dict(at(self.template, "metadata.labels") or {})
        if self.role in ("head", "worker"):
            given = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/created-by": "kuberay-operator"}
            found = given | found | {"ray.io/node-type": self.role, "ray.io/is-ray-node": "yes"}
        return found

    def containers(self) -> Iterator[tuple[str, Manifest]]:
        """Yield containers, those that run before the others too, and their paths."""
        for kind in ("initContainers", "containers"):
            for number, container in enumerate(self.spec.get(kind) or []):
                yield f"{self.path}.spec.{kind}.{number}", container


def pods(build: Build) -> Iterator[Pod]:
    """Yield all pod templates of a build."""
    for cluster in clusters(build):
        head = at(cluster.spec, "headGroupSpec.template")
        if isinstance(head, dict):
            yield Pod(
                cluster.owner, f"{cluster.path}.headGroupSpec.template", head, "head", cluster.autoscaled
            )
        for path, group in cluster.groups():
            if isinstance(group.get("template"), dict):
                yield Pod(cluster.owner, f"{path}.template", group["template"], "worker", cluster.autoscaled)
    for owner in of_kind(build.objects, "RayJob"):
        submitter = at(owner, "spec.submitterPodTemplate")
        if isinstance(submitter, dict):
            yield Pod(owner, "spec.submitterPodTemplate", submitter, "submitter")
    for owner in build.objects:
        path = TEMPLATES.get(str(owner.get("kind")))
        template = None if path is None else at(owner, path)
        if path is not None and isinstance(template, dict):
            yield Pod(owner, path, template, "pod")


def selects(selector: Any, labels: dict[str, str]) -> bool:
    """Return whether a label selector matches; an empty one matches all."""
    for name, value in (at(selector, "matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    for rule in at(selector, "matchExpressions") or []:
        held = labels.get(rule["key"])
        match rule["operator"]:
            case "In":
                fits = held in rule["values"]
            case "NotIn":
                fits = held not in rule["values"]
            case "Exists":
                fits = held is not None
            case _:
                fits = held is None
        if not fits:
            return False
    return True
