from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
NUMBER = re.compile(r"[+-]?\d+\.\d+|\d+")
ACCURACY_TOLERANCE = 0.03
"""Another processor rounds otherwise, and trains to slightly other figures."""


def printed() -> list[str]:
    block = README.split("<!-- demo output -->")[1].split("<!-- end of demo output -->")[0]
    return block.strip().removeprefix("```\n").removesuffix("\n```").splitlines()


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_prints_what_the_readme_promises(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raypref", "demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    promised = printed()
    assert [NUMBER.sub("#", line).split() for line in lines] == [
        NUMBER.sub("#", line).split() for line in promised
    ], done.stdout
    table = re.compile(r"^  (bt|lore|vrf) ")
    rows = [(line, promise) for line, promise in zip(lines, promised, strict=True) if table.match(line)]
    assert len(rows) == 6
    for line, promise in rows:
        found, expected = (list(map(float, re.findall(r"0\.\d+", text))) for text in (line, promise))
        assert found == pytest.approx(expected, abs=ACCURACY_TOLERANCE), line
    report = (tmp_path / "demo-run/report/report.html").read_text()
    assert report.count("<svg") >= 6
    for bundle in ("bt", "lore", "vrf"):
        assert (tmp_path / "demo-run/bundles" / bundle / "manifest.json").is_file()


def test_personal_methods_beat_the_baseline_in_the_promised_table() -> None:
    for setting in ("warm", "cold"):
        lines = iter(printed())
        next(line for line in lines if line.startswith(f"{setting} items"))
        rows = {
            line.split()[0]: list(map(float, line.split()[1:]))
            for line, _ in zip(lines, range(3), strict=False)
        }
        assert rows["lore"][-1] > rows["bt"][-1] + 0.05
        assert rows["vrf"][-1] > rows["bt"][-1] + 0.05


def test_every_command_of_the_readme_exists() -> None:
    from raypref.cli import main

    commands = set(re.findall(r"^raypref (\w+)", README, re.MULTILINE)) | set(
        re.findall(r"`raypref (\w+)", README)
    )
    assert {"embed", "prepare", "train", "eval", "methods", "check"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(
    "name", ["table.py", "serve_table.py", "speed_table.py", "gpu_table.py", "federated_table.py"]
)
def test_the_figures_are_those_that_were_recorded(name: str) -> None:
    script = REPOSITORY / "jobs/benchmarks" / name
    table = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    assert table.stdout.strip() in README


def test_every_file_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:raypref|jobs|tests|requirements)/[\w./]+)`", README):
        assert (REPOSITORY / name).exists(), name
