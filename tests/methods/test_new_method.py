"""A new method is three files: the method, its place in the union, and a test that inherits the contract."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

METHOD = '''"""Centroid: a user is the mean of what their choices had over what they left."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from raypref.methods.base import MethodConfig, Recipe, preference_loss
from raypref.methods.linear import LinearRewardModel
from raypref.types import Dims, Episodes, Loss, Reward


class CentroidConfig(MethodConfig):
    """Nearest centroid: a user's taste is the mean direction of their choices."""

    citation: ClassVar[str] = "Rocchio, The SMART Retrieval System 1971"
    type: Literal["centroid"] = "centroid"
    recipe: Recipe = Recipe(steps=100, context=(0, 6))
    width: PositiveInt = Field(default=4, description="K, directions in which users differ.")

    def build(self, dims: Dims) -> Centroid:
        """Return an untrained model."""
        return Centroid(self, dims)


class Centroid(LinearRewardModel):
    """r_u = v·e + z_u·Ae, z_u = Σ_i A(e⁺_i − e⁻_i) / (1 + n)."""

    uncertain = False

    def __init__(self, config: CentroidConfig, dims: Dims) -> None:
        super().__init__(dims)
        self.config = config
        self.heads_FD = nn.Parameter(dims.embedding**-0.5 * torch.randn(1 + config.width, dims.embedding))

    def item(self, emb_ND: Tensor) -> Tensor:
        return self.standardise(emb_ND) @ self.heads_FD.mT

    def evidence(self, chosen_ND: Tensor, rejected_ND: Tensor) -> Tensor:
        return (self.item(chosen_ND) - self.item(rejected_ND))[..., 1:]

    def infer(self, evidence_BPE: Tensor, mask_BP: Tensor) -> Tensor:
        return (evidence_BPE * mask_BP.unsqueeze(-1)).sum(1) / (1.0 + mask_BP.sum(1, keepdim=True))

    def reward(self, item_BNF: Tensor, user_BZ: Tensor) -> Reward:
        return Reward(item_BNF[..., 0] + (item_BNF[..., 1:] @ user_BZ.unsqueeze(-1)).squeeze(-1))

    def loss(self, episodes: Episodes, progress: float) -> Loss:
        user_BZ = self.infer(self.encode(episodes.context), episodes.context.mask_BP)
        nll = preference_loss(self(episodes.target, user_BZ), episodes.target.mask_BP)
        return Loss(nll, {"nll": nll.detach()})
'''

TEST = """from __future__ import annotations

from raypref.methods.centroid import CentroidConfig
from tests.methods.contract import Contract


class TestCentroid(Contract):
    config = CentroidConfig()
"""

NEEDED = (
    "pyproject.toml",
    "tests/conftest.py",
    "tests/methods/conftest.py",
    "tests/methods/contract.py",
    "tests/methods/small_population.py",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, as far as a method needs it, with one more method."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPOSITORY / "raypref", copy / "raypref", ignore=shutil.ignore_patterns("__pycache__"))
    for name in NEEDED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, copy / name)
    (copy / "raypref/methods/centroid.py").write_text(METHOD)
    (copy / "tests/methods/test_centroid.py").write_text(TEST)
    union = copy / "raypref/methods/__init__.py"
    text = re.sub(r"(AnyMethod = Annotated\[\s*)", r"\1CentroidConfig | ", union.read_text(), count=1)
    before = "from raypref.methods.base import MethodConfig\n"
    assert text.count("CentroidConfig") == text.count(before) == 1
    union.write_text(text.replace(before, f"{before}from raypref.methods.centroid import CentroidConfig\n"))
    return copy


def python(checkout: Path, *arguments: str) -> str:
    """What Python prints when the copy, not the installed package, is `raypref`."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "110"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_copy_is_what_runs(checkout: Path) -> None:
    package = python(checkout, "-c", "import raypref; print(raypref.__file__)")
    assert Path(package.strip()) == checkout / "raypref" / "__init__.py"


def test_a_method_with_a_place_in_the_union_passes_the_contract(checkout: Path) -> None:
    arguments = ("-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "tests/methods")
    passed = re.search(r"^(\d+) passed, 1 deselected", python(checkout, *arguments), re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 15


def test_a_method_with_a_place_in_the_union_is_listed(checkout: Path) -> None:
    listed = python(checkout, "-m", "raypref", "methods").splitlines()
    start = next(i for i, line in enumerate(listed) if line.startswith("centroid:"))
    assert "Nearest centroid: a user's taste is the mean direction of their choices." in listed[start]
    assert "Rocchio, The SMART Retrieval System 1971" in listed[start + 1]
    settings = "width K, directions in which users differ. [0 < int; default 4]"
    assert listed[start + 2].split() == settings.split()
