"""Who may do what: the restricted pod security standard, tokens, images, what is reachable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raypref.k8s.objects import Build, Finding, at, clusters, of_kind, pods

HOST = ("hostNetwork", "hostPID", "hostIPC")
VOLUMES = frozenset(
    {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
        *("projected", "secret", "image"),
    }
)
"""That the restricted standard allows."""
FLOATING = frozenset({"", "latest", "main", "master", "nightly", "edge", "dev", "stable"})
"""Tags that are moved, by their name."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def restricted(build: Build) -> Iterator[Finding]:
    """Every container is held to the restricted standard: head, workers, submitter, autoscaler, stores."""
    for pod in pods(build):
        for path, container in pod.containers():
            for problem in _unrestricted(
                pod.spec.get("securityContext") or {}, container.get("securityContext") or {}
            ):
                yield build.finding(pod.owner, f"{path}.securityContext", problem, "pod-security")
    for cluster in clusters(build):
        options = cluster.spec.get("autoscalerOptions")
        if cluster.autoscaled:
            head = at(cluster.spec, "headGroupSpec.template.spec.securityContext") or {}
            for problem in _unrestricted(head, at(options, "securityContext") or {}):
                path = f"{cluster.path}.autoscalerOptions.securityContext"
                yield build.finding(cluster.owner, path, problem, "pod-security")
    for job in of_kind(build.objects, "RayJob"):
        submitted = at(job, "spec.submissionMode", "K8sJobMode") == "K8sJobMode"
        if submitted and not at(job, "spec.submitterPodTemplate"):
            message = "say how it is secured: KubeRay's own submitter is not restricted."
            yield build.finding(job, "spec.submitterPodTemplate", message, "pod-security")


def _unrestricted(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    if container.get("privileged"):
        yield "privileged: true takes all protection away; leave it out."
    if container.get("allowPrivilegeEscalation") is not False:
        yield "say allowPrivilegeEscalation: false."
    if "ALL" not in (at(container, "capabilities.drop") or []):
        yield "say capabilities: {drop: [ALL]}."
    if added := set(at(container, "capabilities.add") or []) - {"NET_BIND_SERVICE"}:
        yield f"capabilities.add: {', '.join(sorted(added))}; leave it out."
    if container.get("procMount", "Default") != "Default":
        yield "procMount shows what is to be hidden; leave it out."
    if container.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "say runAsNonRoot: true."
    if container.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runAsUser 0 is root; take another."
    profile = at(container, "seccompProfile.type") or at(pod, "seccompProfile.type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield "say seccompProfile: {type: RuntimeDefault}."


def hosts(build: Build) -> Iterator[Finding]:
    """Pods see nothing of their node."""
    for pod in pods(build):
        for name in HOST:
            if pod.spec.get(name):
                yield build.finding(pod.owner, f"{pod.path}.spec.{name}", "leave it out.", "host-access")
        for number, volume in enumerate(pod.spec.get("volumes") or []):
            for kind in volume.keys() - VOLUMES - {"name"}:
                path = f"{pod.path}.spec.volumes.{number}.{kind}"
                yield build.finding(pod.owner, path, "use a claim or an emptyDir.", "host-access")
        for path, container in pod.containers():
            for port in container.get("ports") or []:
                if port.get("hostPort"):
                    yield build.finding(pod.owner, f"{path}.ports", "leave hostPort out.", "host-access")


def accounts(build: Build) -> Iterator[Finding]:
    """Only a head whose autoscaler asks the API server has a token for it."""
    for pod in pods(build):
        if (
            not (pod.role == "head" and pod.autoscaled)
            and pod.spec.get("automountServiceAccountToken") is not False
        ):
            path = f"{pod.path}.spec.automountServiceAccountToken"
            yield build.finding(
                pod.owner, path, "say false: nothing in it asks the API server.", "service-account"
            )


def images(build: Build) -> Iterator[Finding]:
    """What runs tomorrow is what runs today."""
    for pod in pods(build):
        for path, container in pod.containers():
            image = str(container.get("image", ""))
            name, _, digest = image.partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            if not _DIGEST.fullmatch(digest) and (digest or tag.lower() in FLOATING):
                message = f"{image or 'no image'}: pin a version or a digest."
                yield build.finding(pod.owner, f"{path}.image", message, "image-pinned")


def tokens(build: Build) -> Iterator[Finding]:
    """Whoever reaches a dashboard may run code there, unless it asks for a token."""
    for cluster in clusters(build):
        options = cluster.spec.get("authOptions") or {}
        path = f"{cluster.path}.authOptions"
        if options.get("enableK8sTokenAuth"):
            yield build.finding(
                cluster.owner, path, "Kubernetes' tokens are not for jobs and services.", "token-auth"
            )
        elif options.get("mode") != "token" or not options.get("secretName"):
            message = "say mode: token and the Secret's name: whoever reaches the dashboard may run code."
            yield build.finding(cluster.owner, path, message, "token-auth")


def secrets(build: Build) -> Iterator[Finding]:
    """No secret is committed, but for examples."""
    for subject in () if ".example." in Path(build.where).name else of_kind(build.objects, "Secret"):
        if subject.get("data") or subject.get("stringData"):
            message = "its values stand in the manifests; make it with kubectl or a secrets operator."
            yield build.finding(subject, "data", message, "secret-committed")
    for cluster in clusters(build):
        path = "gcsFaultToleranceOptions.redisPassword.value"
        if at(cluster.spec, path) is not None:
            message = "stands in the manifest; take it from a Secret with valueFrom."
            yield build.finding(cluster.owner, f"{cluster.path}.{path}", message, "secret-committed")


RULES = (restricted, hosts, accounts, images, tokens, secrets)
