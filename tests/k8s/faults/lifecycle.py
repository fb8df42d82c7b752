"""Faults of how jobs end and services are upgraded."""

from __future__ import annotations

from tests.k8s.faults.seeding import HEAD, JOB, SERVICE, Faults, J, S, both, drop, ends, put

FAULTS: Faults = {
    "TTL alone": (
        JOB,
        both(
            put(J, "spec.shutdownAfterJobFinishes", False),
            put(
                J,
                "spec.deletionStrategy",
                {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}]},
            ),
        ),
        "job-end",
        "without shutdownAfterJobFinishes",
    ),
    "two ends": (
        JOB,
        put(
            J,
            "spec.deletionStrategy",
            {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}]},
        ),
        "job-end",
        "exclude each other",
    ),
    "sidecar": (JOB, put(J, "spec.submissionMode", "SidecarMode"), "job-mode", "no place in SidecarMode"),
    "steps above surge": (
        "overlays/incremental-upgrade",
        put(S, "spec.upgradeStrategy.clusterUpgradeOptions.stepSizePercent", 60),
        "upgrade",
        "above maxSurgePercent",
    ),
    "no autoscaling": (
        "overlays/incremental-upgrade",
        both(
            put(S, "spec.rayClusterConfig.enableInTreeAutoscaling", False),
            drop(S, "spec.rayClusterConfig.autoscalerOptions"),
            put(S, f"{HEAD}.template.spec.automountServiceAccountToken", False),
        ),
        "upgrade",
        "needs enableInTreeAutoscaling",
    ),
    "DeleteWorkers": (JOB, ends("DeleteWorkers", {"jobStatus": "FAILED"}), "job-end", "use DeleteCluster"),
    "no condition": (JOB, ends("DeleteSelf", {"ttlSeconds": 5}), "job-end", "one of them"),
    "two conditions": (
        JOB,
        ends("DeleteSelf", {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}),
        "job-end",
        "one of them",
    ),
    "self before cluster": (
        JOB,
        ends(
            "DeleteSelf",
            {"jobStatus": "FAILED"},
            ("DeleteCluster", {"jobStatus": "FAILED", "ttlSeconds": 60}),
        ),
        "job-end",
        "comes before DeleteCluster",
    ),
    "a rule twice": (
        JOB,
        ends("DeleteSelf", {"jobStatus": "FAILED"}, ("DeleteSelf", {"jobStatus": "FAILED"})),
        "job-end",
        "said twice",
    ),
    "empty strategy": (JOB, put(J, "spec.deletionStrategy", {}), "job-end", "leave deletionStrategy out"),
    "stays": (
        JOB,
        both(drop(J, "spec.shutdownAfterJobFinishes"), drop(J, "spec.ttlSecondsAfterFinished")),
        "job-end",
        "would stay",
    ),
    "suspended without end": (
        JOB,
        both(ends("DeleteSelf", {"jobStatus": "FAILED"}), put(J, "spec.suspend", True)),
        "job-end",
        "needs shutdownAfterJobFinishes",
    ),
    "negative TTL": (JOB, put(J, "spec.ttlSecondsAfterFinished", -1), "job-end", "must not be negative"),
    "negative tries": (JOB, put(J, "spec.backoffLimit", -1), "job-mode", "must not be negative"),
    "interactive tries": (
        JOB,
        both(put(J, "spec.submissionMode", "InteractiveMode"), put(J, "spec.backoffLimit", 1)),
        "job-mode",
        "tries once",
    ),
    "no time": (JOB, put(J, "spec.activeDeadlineSeconds", 0), "job-mode", "must be positive"),
    "no cluster": (
        JOB,
        both(drop(J, "spec.rayClusterSpec"), put(J, "spec.entrypoint", "raypref demo")),
        "job-mode",
        "what cluster",
    ),
    "cluster of no name": (JOB, put(J, "spec.clusterSelector", {"name": "x"}), "job-mode", "ray.io/cluster"),
    "no such upgrade": (
        SERVICE,
        put(S, "spec.upgradeStrategy.type", "RollingUpdate"),
        "upgrade",
        "is none of",
    ),
    "no gateway": (
        "overlays/incremental-upgrade",
        put(S, "spec.upgradeStrategy.clusterUpgradeOptions.gatewayClassName", ""),
        "upgrade",
        "class of gateways",
    ),
    "no interval": (
        "overlays/incremental-upgrade",
        put(S, "spec.upgradeStrategy.clusterUpgradeOptions.intervalSeconds", 0),
        "upgrade",
        "must be positive",
    ),
    "all above": (
        "overlays/incremental-upgrade",
        put(S, "spec.upgradeStrategy.clusterUpgradeOptions.maxSurgePercent", 150),
        "upgrade",
        "0 to 100",
    ),
    "named head": (
        SERVICE,
        put(S, f"{HEAD}.headService", {"metadata": {"name": "x"}}),
        "upgrade",
        "side by side",
    ),
}
