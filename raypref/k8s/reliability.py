"""What keeps a cluster standing: resources, draining, spreading, budgets, names that meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil
from typing import Any

from raypref.errors import ConfigError
from raypref.k8s.documents import load
from raypref.k8s.kustomize import Manifest
from raypref.k8s.objects import Build, Finding, at, clusters, of_kind, pods, selects
from raypref.k8s.serving import ALWAYS
from raypref.serve.config_file import BUILDER

COUNTED = ("cpu", "memory")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
PATIENCE_S = 20
"""What Serve waits for a replica to end, unless a deployment says otherwise."""


def resources(build: Build) -> Iterator[Finding]:
    """Ray takes logical resources from limits, so requests are the same; and every container has limits."""
    for pod in pods(build):
        for path, container in pod.containers():
            asked, most = (at(container, f"resources.{name}") or {} for name in ("requests", "limits"))
            for name in COUNTED:
                if name not in most:
                    yield build.finding(pod.owner, f"{path}.resources.limits", f"say {name}.", "resources")
                elif pod.role != "pod" and asked.get(name) != most[name]:
                    message = (
                        f"{name}: {asked.get(name)} is asked for and {most[name]} the limit; say the same."
                    )
                    yield build.finding(pod.owner, f"{path}.resources", message, "resources")
    for cluster in clusters(build):
        # Left out, KubeRay's own are equal.
        given = at(cluster.spec, "autoscalerOptions.resources")
        if cluster.autoscaled and given is not None:
            asked, most = given.get("requests") or {}, given.get("limits") or {}
            if any(name not in most or asked.get(name) != most[name] for name in COUNTED):
                path = f"{cluster.path}.autoscalerOptions.resources"
                message = "say the same cpu and memory as requests and as limits."
                yield build.finding(cluster.owner, path, message, "resources")


def draining(build: Build) -> Iterator[Finding]:
    """A worker that serves answers until nobody sends it anything, and then what is under way."""
    for pod in pods(build):
        if pod.role != "worker" or pod.owner.get("kind") != "RayService":
            continue
        for path, container in pod.containers():
            pause = _pause(at(container, "lifecycle.preStop") or {})
            if pause is None:
                message = "sleep before `ray stop`: endpoints take a while to forget a pod."
                yield build.finding(pod.owner, f"{path}.lifecycle.preStop", message, "drain")
                continue
            needed = pause + _longest_shutdown(str(at(pod.owner, "spec.serveConfigV2")))
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            if grace < needed:
                message = f"{grace} s is less than preStop and graceful_shutdown_timeout_s, {needed} s."
                yield build.finding(
                    pod.owner, f"{pod.path}.spec.terminationGracePeriodSeconds", message, "drain"
                )


def _pause(hook: Manifest) -> int | None:
    """Return the seconds for which a hook sleeps; None if it does not."""
    if at(hook, "sleep.seconds") is not None:
        return int(at(hook, "sleep.seconds"))
    found = re.search(r"\bsleep (\d+)([smh]?)\b", " ".join(at(hook, "exec.command") or []))
    return None if found is None else int(found[1]) * UNITS[found[2]]


def _longest_shutdown(text: str) -> int:
    try:
        applications = at(load(text), "applications") or []
    except ConfigError:
        return 0
    found: list[float] = []
    for application in applications:
        held = {one["name"]: one for one in application.get("deployments") or []}
        ours = ALWAYS if application.get("import_path") == BUILDER else ()
        for name in {*held, *ours}:
            given = at(held.get(name), "graceful_shutdown_timeout_s")
            found.append(PATIENCE_S if given is None else given)
    return ceil(max(found, default=PATIENCE_S))


def spreading(build: Build) -> Iterator[Finding]:
    """Workers stand on several nodes."""
    for pod in pods(build):
        if pod.role == "worker":
            rules = pod.spec.get("topologySpreadConstraints") or []
            if not any(selects(rule.get("labelSelector"), pod.labels) for rule in rules):
                path = f"{pod.path}.spec.topologySpreadConstraints"
                yield build.finding(
                    pod.owner, path, "spread the workers: one node must not take all.", "spread"
                )


def budgets(build: Build) -> Iterator[Finding]:
    """A disruption budget of pods that an operator owns is a number that stays, and selects some."""
    for subject in of_kind(build.objects, "PodDisruptionBudget"):
        if not isinstance(at(subject, "spec.minAvailable"), int):
            message = "say minAvailable as a number: of an operator's pods Kubernetes counts nothing else."
            yield build.finding(subject, "spec", message, "disruption")
        chosen = [pod for pod in pods(build) if selects(at(subject, "spec.selector"), pod.labels)]
        if any(True for _ in clusters(build)) and not chosen:
            yield build.finding(subject, "spec.selector", "selects no pod of this build.", "disruption")


def ports(build: Build) -> Iterator[Finding]:
    """Ports have names of their own in a container, and what names them finds them."""
    for pod in pods(build):
        for path, container in pod.containers():
            names = [str(port["name"]) for port in container.get("ports") or [] if "name" in port]
            if len(set(names)) < len(names):
                yield build.finding(pod.owner, f"{path}.ports", "two ports have one name.", "ports")
    for subject in build.objects:
        match subject.get("kind"):
            case "Service":
                selector = {"matchLabels": at(subject, "spec.selector") or {}}
                wanted = [port.get("targetPort") for port in at(subject, "spec.ports") or []]
                known = _names(build, selector) if at(subject, "spec.selector") else None
            case "NetworkPolicy":
                rules = at(subject, "spec.ingress") or []
                wanted = [port.get("port") for rule in rules for port in rule.get("ports") or []]
                known = _names(build, at(subject, "spec.podSelector")) or None  # of nobody: opens nothing
            case "ServiceMonitor":
                wanted = [endpoint.get("port") for endpoint in at(subject, "spec.endpoints") or []]
                known = _service_ports(build, at(subject, "spec.selector"))
            case "PodMonitor":
                wanted = [endpoint.get("port") for endpoint in at(subject, "spec.podMetricsEndpoints") or []]
                known = _names(build, at(subject, "spec.selector"))
            case _:
                continue
        for name in wanted:
            if isinstance(name, str) and known is not None and name not in known:
                message = f"nothing that it selects has a port named {name}."
                yield build.finding(subject, "spec", message, "ports")


def _names(build: Build, selector: Any) -> set[str] | None:
    """Return the names of ports of selected pods; None in a build of no pods at all."""
    found = list(pods(build))
    chosen = [pod for pod in found if selects(selector, pod.labels)]
    containers = [container for pod in chosen for _, container in pod.containers()]
    names = {str(port.get("name")) for container in containers for port in container.get("ports") or []}
    return names if found else None


def _service_ports(build: Build, selector: Any) -> set[str] | None:
    """Return the names of ports of selected Services; None in a build of no Services at all."""
    found = of_kind(build.objects, "Service")
    chosen = [one for one in found if selects(selector, at(one, "metadata.labels") or {})]
    names = {str(port.get("name")) for one in chosen for port in at(one, "spec.ports") or []}
    return names if found else None


RULES = (resources, draining, spreading, budgets, ports)
