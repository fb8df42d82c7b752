"""Faults that end in an outage."""

from __future__ import annotations

from raypref.k8s.objects import at
from tests.k8s.faults.seeding import CONTAINER, SERVICE, WORKER, Faults, S, drop, put, spread_others, the

FAULTS: Faults = {
    "no limit": (SERVICE, drop(S, f"{CONTAINER}.resources.limits.memory"), "resources", "say memory"),
    "requests below limits": (
        SERVICE,
        put(S, f"{CONTAINER}.resources.requests.cpu", "1"),
        "resources",
        "say the same",
    ),
    "no preStop": (SERVICE, drop(S, f"{CONTAINER}.lifecycle"), "drain", "sleep before"),
    "short grace": (
        SERVICE,
        put(S, f"{WORKER}.template.spec.terminationGracePeriodSeconds", 60),
        "drain",
        "60 s is less",
    ),
    "one node": (SERVICE, drop(S, f"{WORKER}.template.spec.topologySpreadConstraints"), "spread", "one node"),
    "budget in shares": (
        SERVICE,
        put("PodDisruptionBudget", "spec", {"maxUnavailable": 1, "selector": {}}),
        "disruption",
        "minAvailable as a number",
    ),
    "budget of nothing": (
        SERVICE,
        put("PodDisruptionBudget", "spec.selector.matchLabels.raypref\0io/component", "srve"),
        "disruption",
        "selects no pod",
    ),
    "wrong port": (
        SERVICE,
        put("Service", "spec.ports.0.targetPort", "postgers"),
        "ports",
        "has a port named postgers",
    ),
    "unequal autoscaler": (
        SERVICE,
        put(S, "spec.rayClusterConfig.autoscalerOptions.resources.requests.cpu", "100m"),
        "resources",
        "autoscalerOptions",
    ),
    "no limit of a store": (
        SERVICE,
        drop("StatefulSet", "spec.template.spec.containers.0.resources.limits"),
        "resources",
        "StatefulSet",
    ),
    "sleep in minutes": (
        SERVICE,
        put(S, f"{CONTAINER}.lifecycle.preStop.exec.command", ["/bin/sh", "-c", "sleep 2m; ray stop"]),
        "drain",
        "155 s",
    ),
    "spread of others": (SERVICE, spread_others, "spread", "spread the workers"),
    "wrong port of a policy": (
        SERVICE,
        put("NetworkPolicy", "spec.ingress.0.ports.0.port", "metrcs", "raypref-metrics"),
        "ports",
        "named metrcs",
    ),
    "wrong port of a monitor": (
        "base/servicemonitor",
        put("ServiceMonitor", "spec.endpoints.0.port", "metrcs"),
        "ports",
        "named metrcs",
    ),
    "monitor of nothing": (
        "base/servicemonitor",
        put("ServiceMonitor", "spec.selector.matchLabels", {"a": "b"}),
        "ports",
        "named metrics",
    ),
    "two ports of one name": (
        SERVICE,
        lambda objects: at(the(objects, S), f"{CONTAINER}.ports").append(
            {"name": "metrics", "containerPort": 9000}
        ),
        "ports",
        "two ports",
    ),
}
