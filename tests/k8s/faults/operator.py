"""Faults that KubeRay's operator and schemas refuse."""

from __future__ import annotations

from tests.k8s.faults.seeding import (
    CONTAINER,
    HEAD,
    JOB,
    SERVICE,
    WORKER,
    Faults,
    J,
    S,
    add,
    both,
    drop,
    put,
    set_env,
    two_groups,
)

FAULTS: Faults = {
    "typo": (SERVICE, put(S, f"{WORKER}.minReplica", 2), "schema", "'minReplica' was unexpected"),
    "typo deep": (SERVICE, put(S, f"{CONTAINER}.resorces", {}), "schema", "'resorces' was unexpected"),
    "wrong type": (
        SERVICE,
        put(S, "spec.rayClusterConfig.autoscalerOptions.idleTimeoutSeconds", "60"),
        "schema",
        "not of type 'integer'",
    ),
    "wrong choice": (
        SERVICE,
        put(S, "spec.rayClusterConfig.autoscalerOptions.upscalingMode", "Fast"),
        "schema",
        "not one of",
    ),
    "native typo": (SERVICE, put("NetworkPolicy", "spec.podSelectr", {}), "schema", "'podSelectr'"),
    "v1alpha1": (SERVICE, put(S, "apiVersion", "ray.io/v1alpha1"), "api-version", "use ray.io/v1"),
    "min > max": (SERVICE, put(S, f"{WORKER}.minReplicas", 9), "replicas", "not in order"),
    "long name": (SERVICE, put(S, "metadata.name", "r" * 48), "name", "at most 47"),
    "bad name": (JOB, put(J, "metadata.name", "1-job"), "name", "beginning with a letter"),
    "resources twice": (
        SERVICE,
        both(
            put(S, f"{WORKER}.resources", {"CPU": "4"}), put(S, f"{WORKER}.rayStartParams", {"num-cpus": "4"})
        ),
        "start-params",
        "exclude each other",
    ),
    "work on the head": (SERVICE, drop(S, f"{HEAD}.rayStartParams.num-cpus"), "head-cpus", "num-cpus"),
    "autoscaler v1": (
        SERVICE,
        put(S, "spec.rayClusterConfig.autoscalerOptions.version", "v1"),
        "autoscaler",
        "say v2",
    ),
    "restarts": (
        SERVICE,
        put(S, f"{WORKER}.template.spec.restartPolicy", "Always"),
        "autoscaler",
        "replaces pods itself",
    ),
    "alpha gate": (
        SERVICE,
        put(S, "spec.rayClusterConfig.networkPolicy", {"mode": "DenyAll"}),
        "alpha-gate",
        "RayClusterNetworkPolicy",
    ),
    "deprecated": (
        SERVICE,
        put(S, "spec.serviceUnhealthySecondThreshold", 900),
        "deprecated",
        "has no effect",
    ),
    "old Ray": (SERVICE, put(S, "spec.rayClusterConfig.rayVersion", "2.46.0"), "ray-version", "2.46.0"),
    "Redis twice": (
        "overlays/gcs-fault-tolerance",
        set_env(f"{HEAD}.template.spec.containers.0", "RAY_REDIS_ADDRESS", "redis:6379"),
        "gcs-options",
        "leave it out",
    ),
    "bad quantity": (
        SERVICE,
        put(
            S,
            f"{CONTAINER}.resources",
            {"requests": {"cpu": "4", "memory": "16GB"}, "limits": {"cpu": "4", "memory": "16GB"}},
        ),
        "schema",
        "does not match",
    ),
    "no such native kind": (
        SERVICE,
        put("PodDisruptionBudget", "kind", "PodDisruptionBugdet"),
        "schema",
        "policy/v1 has no PodDisruptionBugdet",
    ),
    "no such Ray kind": (
        SERVICE,
        add("{apiVersion: ray.io/v1, kind: RayServce, metadata: {name: x}}"),
        "schema",
        "ray.io/v1 has no RayServce",
    ),
    "no name": (SERVICE, drop("PodDisruptionBudget", "metadata.name"), "name", "say it"),
    "no maximum": (SERVICE, drop(S, f"{WORKER}.minReplicas"), "replicas", "say minReplicas"),
    "two groups of one name": (SERVICE, two_groups, "group-name", "two groups"),
    "labels of ray start": (
        SERVICE,
        put(S, f"{WORKER}.rayStartParams", {"labels": "a=b"}),
        "start-params",
        "use the group's `labels`",
    ),
    "memory twice": (
        SERVICE,
        both(
            put(S, f"{WORKER}.resources", {"CPU": "4"}), put(S, f"{WORKER}.rayStartParams", {"memory": "100"})
        ),
        "start-params",
        "memory of rayStartParams",
    ),
    "bad label": (
        SERVICE,
        put(S, f"{WORKER}.labels", {"zone": "north of here"}),
        "group-labels",
        "is no label",
    ),
    "suspended group": (SERVICE, put(S, f"{WORKER}.suspend", True), "autoscaler", "cannot be suspended"),
    "autoscaler twice": (
        SERVICE,
        set_env(f"{HEAD}.template.spec.containers.0", "RAY_enable_autoscaler_v2", "1"),
        "autoscaler",
        "is what autoscalerOptions.version says",
    ),
    "options of nothing": (
        SERVICE,
        both(
            put(S, "spec.rayClusterConfig.enableInTreeAutoscaling", False),
            put(S, f"{HEAD}.template.spec.automountServiceAccountToken", False),
        ),
        "autoscaler",
        "nothing reads it",
    ),
    "embedded storage": (
        "overlays/gcs-fault-tolerance",
        put(S, "spec.rayClusterConfig.gcsFaultToleranceOptions", {"backend": "rocksdb"}),
        "alpha-gate",
        "use redis",
    ),
    "cron": (
        JOB,
        both(put(J, "kind", "RayCronJob", "raypref-demo"), put("RayCronJob", "spec", {})),
        "alpha-gate",
        "RayCronJob",
    ),
    "old fault tolerance": (
        SERVICE,
        put(S, "metadata.annotations", {"ray.io/ft-enabled": "true"}),
        "deprecated",
        "gcsFaultToleranceOptions",
    ),
    "Redis without options": (
        SERVICE,
        set_env(f"{HEAD}.template.spec.containers.0", "RAY_REDIS_ADDRESS", "redis:6379"),
        "gcs-options",
        "leave it out",
    ),
    "Redis in parameters": (
        "overlays/gcs-fault-tolerance",
        put(S, f"{HEAD}.rayStartParams.redis-password", "$REDIS"),
        "gcs-options",
        "leave it out",
    ),
    "Redis nowhere": (
        "overlays/gcs-fault-tolerance",
        drop(S, "spec.rayClusterConfig.gcsFaultToleranceOptions.redisAddress"),
        "gcs-options",
        "say where Redis is",
    ),
    "another manager": (SERVICE, put(S, "spec.managedBy", "me"), "managed-by", "'me' is none of"),
}
