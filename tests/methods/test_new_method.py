"""A new method is three files, as docs/add-a-method.md says: its code is what runs here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/add-a-method.md"
METHOD, TEST = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)

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
        timeout=400,
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
