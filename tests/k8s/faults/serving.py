"""Faults of Serve configurations."""

from __future__ import annotations

from tests.k8s.faults.seeding import CONTAINER, SERVICE, Faults, S, drop, no_gpus, put, serve_text

FAULTS: Faults = {
    "unknown Serve key": (
        SERVICE,
        serve_text("max_queued_requests: 512", "max_queued_request: 512"),
        "serve-config",
        "max_queued_request: unknown key",
    ),
    "wrong import path": (
        SERVICE,
        serve_text("raypref.serve.app:build", "raypref.serve.app:biuld"),
        "import-path",
        "biuld: cannot be imported",
    ),
    "one replica": (
        SERVICE,
        serve_text("min_replicas: 2\n      max_replicas: 16", "min_replicas: 1\n      max_replicas: 16"),
        "min-replicas",
        "Scorer",
    ),
    "endless queue": (
        SERVICE,
        serve_text("    max_queued_requests: 1024\n", ""),
        "queue-bound",
        "Ingress: say max_queued_requests",
    ),
    "another text": (
        SERVICE,
        serve_text("port: 8000", "port: 8000 "),
        "serve-text",
        "differs from production.yaml",
    ),
    "no room": (
        SERVICE,
        serve_text("ray_actor_options: {num_cpus: 1}", "ray_actor_options: {num_cpus: 20}"),
        "cpus-fit",
        "all workers have 32",
    ),
    "unnamed port": (SERVICE, put(S, f"{CONTAINER}.ports.1.containerPort", 9000), "serve-port", "8000"),
    "key twice": (
        SERVICE,
        serve_text("  port: 8000", "  port: 8000\n  port: 8000"),
        "serve-config",
        "stands there twice",
    ),
    "no YAML": (SERVICE, put(S, "spec.serveConfigV2", "applications: ["), "serve-config", "cannot be read"),
    "no such deployment": (
        SERVICE,
        serve_text("- name: Scorer", "- name: Scorrer"),
        "serve-config",
        "Scorrer is none of",
    ),
    "no such module": (
        SERVICE,
        serve_text("raypref.serve.app:build", "raypref.srve.app:build"),
        "import-path",
        "cannot be imported",
    ),
    "password of the store": (
        SERVICE,
        serve_text("postgresql:///raypref", "postgresql://me:hunter2@db/raypref"),
        "secret-in-env",
        "PGPASSWORD",
    ),
    "replica of no node": (
        SERVICE,
        serve_text("{num_cpus: 1, memory", "{num_cpus: 6, memory"),
        "cpus-fit",
        "more than a worker has",
    ),
    "no GPU": ("overlays/gpu", no_gpus, "cpus-fit", "num_gpus"),
    "no name of the port": (SERVICE, drop(S, f"{CONTAINER}.ports.1"), "serve-port", "8000"),
}
