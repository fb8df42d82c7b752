from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from raypref.k8s.schema import Schemas, read_crds

REPOSITORY = Path(__file__).parents[2]
CRDS = Path(os.environ.get("RAYPREF_CRDS") or REPOSITORY.parent / "shared" / "kuberay")


@cache
def crds() -> Schemas | None:
    """KubeRay's schemas; RAYPREF_CRDS names the folder, ../shared/kuberay is looked at too."""
    return read_crds(CRDS) if CRDS.is_dir() else None


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    held = crds()
    if held is None:
        pytest.skip(f"no custom resource definitions of KubeRay in {CRDS}")
    return held
