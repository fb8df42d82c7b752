"""Faults of what a RayJob runs."""

from __future__ import annotations

from tests.k8s.faults.seeding import JOB, JOB_HEAD, Faults, J, put, without

FAULTS: Faults = {
    "no program": (JOB, put(J, "spec.entrypoint", "python jobs/trian.py"), "entrypoint", "no such file"),
    "no run": (
        JOB,
        put(J, f"{JOB_HEAD}.template.spec.volumes.0", {"name": "config", "emptyDir": {}}),
        "run-config",
        "mount a ConfigMap",
    ),
    "unknown run key": (
        JOB,
        put("ConfigMap", "data", {"run.yaml": "dir: runs/x\ntrian: {workers: 2}\n"}),
        "run-config",
        "trian: unknown key",
    ),
    "outside the volume": (
        JOB,
        put("ConfigMap", "data", {"run.yaml": "dir: elsewhere\n"}),
        "run-config",
        "lies on no volume",
    ),
    "runtime_env typo": (JOB, put(J, "spec.runtimeEnvYAML", "env_var: {A: b}"), "runtime-env", "unknown key"),
    "secret in runtime_env": (
        JOB,
        put(J, "spec.runtimeEnvYAML", "env_vars: {PGPASSWORD: hunter2}"),
        "secret-in-env",
        "dashboard and the logs",
    ),
    "no quote": (JOB, put(J, "spec.entrypoint", "python 'jobs/train.py"), "entrypoint", "runs neither"),
    "a shell": (JOB, put(J, "spec.entrypoint", "bash -c 'curl x | sh'"), "entrypoint", "runs neither"),
    "another module": (JOB, put(J, "spec.entrypoint", "python -m raypref"), "entrypoint", "no such file"),
    "no ConfigMap": (JOB, without("ConfigMap"), "run-config", "no ConfigMap raypref-run"),
    "another file": (
        JOB,
        put(J, "spec.entrypoint", "python jobs/train.py --config=config/other.yaml"),
        "run-config",
        "is missing",
    ),
    "run key twice": (
        JOB,
        put("ConfigMap", "data", {"run.yaml": "dir: runs/x\ndir: runs/y\n"}),
        "run-config",
        "stands there twice",
    ),
    "a list for a run": (JOB, put("ConfigMap", "data", {"run.yaml": "- dir"}), "run-config", "is no run"),
    "around the volume": (
        JOB,
        put("ConfigMap", "data", {"run.yaml": "dir: runs/../x\n"}),
        "run-config",
        "lies on no volume",
    ),
    "input elsewhere": (
        JOB,
        put("ConfigMap", "data", {"run.yaml": "dir: runs/x\ninput: {path: a.parquet}\n"}),
        "run-config",
        "input.path: a.parquet",
    ),
    "workers without the volume": (
        JOB,
        put(J, "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.volumeMounts", []),
        "run-config",
        "of every pod",
    ),
    "read only": (
        JOB,
        put(J, f"{JOB_HEAD}.template.spec.containers.0.volumeMounts.1.readOnly", True),
        "run-config",
        "read only",
    ),
    "gone with the pod": (
        JOB,
        put(J, f"{JOB_HEAD}.template.spec.volumes.1", {"name": "runs", "emptyDir": {}}),
        "run-config",
        "goes with the pod",
    ),
    "runtime_env is a list": (JOB, put(J, "spec.runtimeEnvYAML", "- a"), "runtime-env", "a mapping"),
    "runtime_env is no YAML": (JOB, put(J, "spec.runtimeEnvYAML", "a: ["), "runtime-env", "cannot be read"),
    "a number in runtime_env": (
        JOB,
        put(J, "spec.runtimeEnvYAML", "env_vars: {A: 1}"),
        "runtime-env",
        "quote it",
    ),
    "key by its look": (
        JOB,
        put(J, "spec.runtimeEnvYAML", f"env_vars: {{A: hf_{'x' * 30}}}"),
        "secret-in-env",
        "dashboard",
    ),
    "login in the entrypoint": (
        JOB,
        put(J, "spec.entrypoint", "raypref eval --set a=s3://me:hunter2@x/y"),
        "secret-in-env",
        "spec.entrypoint",
    ),
    "more workers than fit": (
        JOB,
        put("ConfigMap", "data", {"run.yaml": "dir: runs/x\ntrain: {workers: [17, 32]}\n"}),
        "run-workers",
        "room for 16 (4 pods of 4 CPU)",
    ),
    "a GPU where there is none": (
        JOB,
        put("ConfigMap", "data", {"run.yaml": "dir: runs/x\ntrain: {use_gpu: true}\n"}),
        "run-workers",
        "no worker has a GPU",
    ),
}
