from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raypref import __version__
from raypref.k8s.operator import RAY
from tests.k8s.conftest import REPOSITORY

DOCKERFILE = REPOSITORY / "Dockerfile"


def lines(name: str) -> set[str]:
    return set((REPOSITORY / "requirements" / name).read_text().splitlines())


def instructions(stage: str) -> list[str]:
    """The instructions of a stage, continued lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    body = re.search(rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    return [line for line in body[1].splitlines() if line and not line.startswith("#")]


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copies = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()}
    assert sources >= {"raypref", "jobs", "pyproject.toml", "requirements/cpu.txt"}
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert source.split("/")[0] in kept, source


def test_images_run_as_a_user_who_is_not_root() -> None:
    for stage in ("cpu", "gpu"):
        lines = [line for name in ("base", stage) for line in instructions(name) if line.startswith("USER")]
        assert lines[-1] == "USER 1000:1000"


def installed(stage: str) -> set[str]:
    found = [re.search(r"apt-get install ((?:-\S+ )*)([^&]+)", line) for line in instructions(stage)]
    return {package for match in found if match is not None for package in match[2].split()}


def test_what_probes_and_kernels_need_is_there() -> None:
    """KubeRay asks a RayService's workers how they are with wget; Triton compiles with gcc."""
    assert installed("base") == {"wget"}
    assert installed("gpu") == {"gcc", "libc6-dev"}
    assert instructions("cpu") == ["COPY --from=build-cpu /opt/venv /opt/venv"]


def test_manifests_name_the_image_of_this_version() -> None:
    files = [DOCKERFILE, *(REPOSITORY / "k8s").rglob("*.yaml")]
    tags = {tag for file in files for tag in re.findall(r"raypref/raypref:([\w.-]+)", file.read_text())}
    assert tags == {f"{__version__}-cpu", f"{__version__}-gpu"}


def test_the_locks_agree() -> None:
    assert lines("cpu.txt") < lines("dev.txt")
    assert f"ray=={RAY}" in lines("cpu.txt")
    for package in ("ray", "transformers", "fastapi", "pydantic", "safetensors"):
        pins = [
            {line for line in lines(name) if line.startswith(f"{package}==")}
            for name in ("cpu.txt", "gpu.txt")
        ]
        assert pins[0] == pins[1] != set(), package
    torch = [
        {line.split("+")[0] for line in lines(name) if line.startswith("torch==")}
        for name in ("cpu.txt", "gpu.txt")
    ]
    assert torch[0] == torch[1] != set()


@pytest.mark.slow
def test_the_lock_alone_makes_an_environment_that_works(tmp_path: Path) -> None:
    """The install lines of the image, run into an empty environment."""
    (install,) = [line for line in instructions("build-cpu") if line.startswith("RUN")]
    first, _, second = install.removeprefix("RUN ").partition("&&")
    python = tmp_path / "venv" / "bin" / "python"
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, *shlex.split(first)[1:], "-q")
    options = ["-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    assert shlex.split(second)[1:] == [*options, "/src"]
    # As the Dockerfile copies it: building leaves files where the sources are.
    source = tmp_path / "src"
    shutil.copytree(REPOSITORY / "raypref", source / "raypref")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    site = tmp_path / "site"
    run(python, *options, "-q", "--target", site, source)
    environment["PYTHONPATH"] = str(site)
    run(
        python,
        "-c",
        "import raypref.serve.app, raypref.train.trainer, raypref.tune, vllm, raypref.population",
    )
    assert "lore" in run(python, "-m", "raypref", "methods")
    bill = tmp_path / "sbom.json"
    cyclonedx = Path(sys.executable).with_name("cyclonedx-py")
    run(cyclonedx, "environment", "--output-reproducible", "--output-file", bill, python)
    listed = {
        f"{one['name'].lower()}=={one['version']}" for one in json.loads(bill.read_text())["components"]
    }
    locked = {line.lower() for line in lines("cpu.txt") if "==" in line}
    assert {re.sub(r"[-_.]+", "-", line) for line in locked} <= {
        re.sub(r"[-_.]+", "-", line) for line in listed
    }
