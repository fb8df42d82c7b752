"""What can be reached, and from where: Services, gateways, network policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raypref.k8s.kustomize import Manifest
from raypref.k8s.objects import Build, Finding, Pod, at, clusters, of_kind, pods, selects

INSIDE = frozenset({"dashboard", "gcs", "gcs-server", "redis", "client", 8265, 6379, 10001})
"""Ports that run code, or hold what runs it, by name and number."""
OUTWARD = ("LoadBalancer", "NodePort")


def exposed(build: Build) -> Iterator[Finding]:
    """Dashboard, GCS and client port stay inside the cluster."""
    for subject in build.objects:
        kind = at(subject, "spec.type")
        if subject.get("kind") == "Service" and kind in OUTWARD:
            for port in at(subject, "spec.ports") or []:
                if {port.get("port"), port.get("targetPort"), port.get("name")} & INSIDE:
                    message = f"{kind} makes {port.get('name', port.get('port'))} reachable; use ClusterIP."
                    yield build.finding(subject, "spec.type", message, "exposed")
        if subject.get("kind") in ("Ingress", "HTTPRoute", "TCPRoute"):
            for port in _backends(subject.get("spec")):
                if port in INSIDE:
                    message = f"leads to {port}, where whoever comes may run code; take it out."
                    yield build.finding(subject, "spec", message, "exposed")
    for cluster in clusters(build):
        head = at(cluster.spec, "headGroupSpec") or {}
        for path in ("serviceType", "headService.spec.type"):
            kind = at(head, path, "ClusterIP")
            if kind != "ClusterIP":
                message = f"{kind} makes the dashboard reachable; use ClusterIP."
                where = f"{cluster.path}.headGroupSpec.{path}"
                yield build.finding(cluster.owner, where, message, "exposed")
        if head.get("enableIngress"):
            where = f"{cluster.path}.headGroupSpec.enableIngress"
            yield build.finding(cluster.owner, where, "makes the dashboard reachable; say false.", "exposed")


def _backends(node: Any) -> Iterator[Any]:
    """Yield the ports, by name or number, that an Ingress or a route leads to."""
    if isinstance(node, list):
        for part in node:
            yield from _backends(part)
    elif isinstance(node, dict):
        yield from (at(node, path) for path in ("service.port.number", "service.port.name"))
        for one in node.get("backendRefs") or []:
            yield one.get("port")
        for part in node.values():
            yield from _backends(part)


def policies(build: Build) -> Iterator[Finding]:
    """Pods are closed but for what a NetworkPolicy opens; those of a service always."""
    own = of_kind(build.objects, "NetworkPolicy")
    for pod in pods(build):
        # The folder of a service alone leaves its policies to the folder beside it.
        held = own or (
            of_kind(build.beside, "NetworkPolicy") if pod.owner.get("kind") == "RayService" else None
        )
        if held is None or any(_closes(policy, pod) for policy in held):
            continue
        message = "no NetworkPolicy selects it for Ingress; everybody reaches it."
        yield build.finding(pod.owner, f"{pod.path}.metadata.labels", message, "network-policy")


def _closes(policy: Manifest, pod: Pod) -> bool:
    kinds = at(policy, "spec.policyTypes") or ["Ingress"]
    return "Ingress" in kinds and selects(at(policy, "spec.podSelector"), pod.labels)


def openings(build: Build) -> Iterator[Finding]:
    """What a policy opens to everybody is no port that runs code."""
    for policy in of_kind(build.objects, "NetworkPolicy"):
        for number, rule in enumerate(at(policy, "spec.ingress") or []):
            if all(_somebody(peer) for peer in rule.get("from") or [{}]):
                continue
            ports = {port.get("port") for port in rule.get("ports") or []}
            if not ports or None in ports or ports & INSIDE:
                message = "opens ports that run code to everybody; say from whom."
                yield build.finding(policy, f"spec.ingress.{number}", message, "network-open")


def _somebody(peer: dict[str, Any]) -> bool:
    """Return whether a peer is less than everybody."""
    if "ipBlock" in peer:
        return not str(at(peer, "ipBlock.cidr")).endswith("/0")
    if "namespaceSelector" not in peer:
        return "podSelector" in peer
    return bool(peer["namespaceSelector"] or peer.get("podSelector"))


RULES = (exposed, policies, openings)
