"""Faults that let in whoever comes."""

from __future__ import annotations

from tests.k8s.faults.seeding import (
    CONTAINER,
    HEAD,
    JOB,
    JOB_HEAD,
    SERVICE,
    WORKER,
    Faults,
    J,
    S,
    add,
    both,
    drop,
    egress_only,
    other_pods,
    put,
    set_env,
    without,
)

FAULTS: Faults = {
    "privileged": (
        SERVICE,
        put(S, f"{CONTAINER}.securityContext.privileged", True),
        "pod-security",
        "privileged",
    ),
    "root": (
        SERVICE,
        put(S, f"{WORKER}.template.spec.securityContext.runAsUser", 0),
        "pod-security",
        "root",
    ),
    "open autoscaler": (
        SERVICE,
        drop(S, "spec.rayClusterConfig.autoscalerOptions.securityContext.capabilities"),
        "pod-security",
        "drop: [ALL]",
    ),
    "open submitter": (JOB, drop(J, "spec.submitterPodTemplate"), "pod-security", "submitter"),
    "hostPath": (
        SERVICE,
        put(S, f"{WORKER}.template.spec.volumes.2", {"name": "shm", "hostPath": {"path": "/dev/shm"}}),
        "host-access",
        "claim or an emptyDir",
    ),
    "account": (
        SERVICE,
        drop(S, f"{WORKER}.template.spec.automountServiceAccountToken"),
        "service-account",
        "say false",
    ),
    "latest": (SERVICE, put(S, f"{CONTAINER}.image", "raypref:latest"), "image-pinned", "pin a version"),
    "no tag": (
        JOB,
        put(J, f"{JOB_HEAD}.template.spec.containers.0.image", "host:5000/raypref"),
        "image-pinned",
        "pin",
    ),
    "no token": (SERVICE, drop(S, "spec.rayClusterConfig.authOptions"), "token-auth", "may run code"),
    "committed Secret": (
        SERVICE,
        add("{apiVersion: v1, kind: Secret, metadata: {name: x}, stringData: {password: hunter2}}"),
        "secret-committed",
        "stand in the manifests",
    ),
    "open dashboard": (
        SERVICE,
        add(
            "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {type: LoadBalancer, "
            "ports: [{name: d, port: 8265, targetPort: dashboard}]}}"
        ),
        "exposed",
        "use ClusterIP",
    ),
    "open head": (SERVICE, put(S, f"{HEAD}.serviceType", "NodePort"), "exposed", "dashboard reachable"),
    "no policy": (
        SERVICE,
        other_pods,
        "network-policy",
        "no NetworkPolicy selects it",
    ),
    "no autoscaler options": (
        SERVICE,
        drop(S, "spec.rayClusterConfig.autoscalerOptions.securityContext"),
        "pod-security",
        "autoscalerOptions",
    ),
    "capability": (
        SERVICE,
        put(S, f"{CONTAINER}.securityContext.capabilities.add", ["SYS_ADMIN"]),
        "pod-security",
        "SYS_ADMIN",
    ),
    "escalation": (
        JOB,
        drop(J, "spec.submitterPodTemplate.spec.containers.0.securityContext.allowPrivilegeEscalation"),
        "pod-security",
        "submitterPodTemplate",
    ),
    "unconfined": (
        SERVICE,
        put(S, f"{CONTAINER}.securityContext.seccompProfile.type", "Unconfined"),
        "pod-security",
        "RuntimeDefault",
    ),
    "open store": (
        SERVICE,
        drop("StatefulSet", "spec.template.spec.containers.0.securityContext"),
        "pod-security",
        "StatefulSet",
    ),
    "init container": (
        SERVICE,
        put(
            S,
            f"{WORKER}.template.spec.initContainers",
            [
                {
                    "name": "x",
                    "image": "x:1",
                    "resources": {"requests": {"cpu": 1, "memory": 1}, "limits": {"cpu": 1, "memory": 1}},
                    "lifecycle": {"preStop": {"exec": {"command": ["sleep 9"]}}},
                }
            ],
        ),
        "pod-security",
        "initContainers",
    ),
    "host network": (
        SERVICE,
        put(S, f"{HEAD}.template.spec.hostNetwork", True),
        "host-access",
        "leave it out",
    ),
    "host port": (SERVICE, put(S, f"{CONTAINER}.ports.0.hostPort", 8080), "host-access", "hostPort"),
    "NFS": (
        SERVICE,
        put(S, f"{WORKER}.template.spec.volumes.2", {"name": "shm", "nfs": {"server": "x", "path": "/"}}),
        "host-access",
        "nfs",
    ),
    "account of a head": (
        SERVICE,
        both(
            put(S, "spec.rayClusterConfig.enableInTreeAutoscaling", False),
            drop(S, "spec.rayClusterConfig.autoscalerOptions"),
        ),
        "service-account",
        "headGroupSpec",
    ),
    "short digest": (
        SERVICE,
        put(S, f"{CONTAINER}.image", "raypref:0.1.0@sha256:abc"),
        "image-pinned",
        "pin",
    ),
    "nightly": (SERVICE, put(S, f"{CONTAINER}.image", "raypref:nightly"), "image-pinned", "pin"),
    "no secret's name": (
        SERVICE,
        drop(S, "spec.rayClusterConfig.authOptions.secretName"),
        "token-auth",
        "Secret's name",
    ),
    "tokens of Kubernetes": (
        SERVICE,
        put(S, "spec.rayClusterConfig.authOptions.enableK8sTokenAuth", True),
        "token-auth",
        "not for jobs",
    ),
    "password of Redis": (
        "overlays/gcs-fault-tolerance",
        put(S, "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword", {"value": "hunter2"}),
        "secret-committed",
        "valueFrom",
    ),
    "password in the environment": (
        SERVICE,
        set_env(CONTAINER, "PGPASSWORD", "hunter2"),
        "secret-in-env",
        "valueFrom",
    ),
    "open head Service": (
        SERVICE,
        put(S, f"{HEAD}.headService", {"spec": {"type": "LoadBalancer"}}),
        "exposed",
        "headService",
    ),
    "ingress of the head": (SERVICE, put(S, f"{HEAD}.enableIngress", True), "exposed", "say false"),
    "ingress": (
        SERVICE,
        add(
            "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: x}, "
            "spec: {rules: [{http: {paths: [{path: /, pathType: Prefix, "
            "backend: {service: {name: h, port: {number: 8265}}}}]}}]}}"
        ),
        "exposed",
        "leads to 8265",
    ),
    "route": (
        SERVICE,
        add(
            "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: x}, "
            "spec: {rules: [{backendRefs: [{name: h, port: 8265}]}]}}"
        ),
        "exposed",
        "leads to 8265",
    ),
    "policies of Egress only": (SERVICE, egress_only, "network-policy", "for Ingress"),
    "no policies at all": (SERVICE, without("NetworkPolicy"), "network-policy", "RayService"),
    "open to everybody": (
        SERVICE,
        drop("NetworkPolicy", "spec.ingress.0.from", "raypref-operator"),
        "network-open",
        "from whom",
    ),
    "open to every namespace": (
        SERVICE,
        put("NetworkPolicy", "spec.ingress.0.from", [{"namespaceSelector": {}}], "raypref-inside"),
        "network-open",
        "from whom",
    ),
    "open to the world": (
        SERVICE,
        put(
            "NetworkPolicy",
            "spec.ingress.0.from",
            [{"podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}],
            "raypref-inside",
        ),
        "network-open",
        "from whom",
    ),
}
