from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, DemoRun

README = (REPOSITORY / "README.md").read_text()
NUMBER = re.compile(r"[+-]?\d+\.\d+|\d+")
ACCURACY_TOLERANCE = 0.03
"""Another processor rounds otherwise, and trains to slightly other figures."""


def printed() -> list[str]:
    block = README.split("<!-- demo output -->")[1].split("<!-- end of demo output -->")[0]
    return block.strip().removeprefix("```\n").removesuffix("\n```").splitlines()


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_prints_what_the_readme_promises(demo_run: DemoRun) -> None:
    lines = demo_run.printed.splitlines()
    promised = printed()
    assert [NUMBER.sub("#", line).split() for line in lines] == [
        NUMBER.sub("#", line).split() for line in promised
    ], demo_run.printed
    table = re.compile(r"^  (bt|lore|vrf) ")
    rows = [(line, promise) for line, promise in zip(lines, promised, strict=True) if table.match(line)]
    assert len(rows) == 6
    for line, promise in rows:
        found, expected = (list(map(float, re.findall(r"0\.\d+", text))) for text in (line, promise))
        assert found == pytest.approx(expected, abs=ACCURACY_TOLERANCE), line
    report = (demo_run.folder / "demo-run/report/report.html").read_text()
    assert report.count("<svg") >= 6
    for bundle in ("bt", "lore", "vrf"):
        assert (demo_run.folder / "demo-run/bundles" / bundle / "manifest.json").is_file()


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

    commands = set(re.findall(r"`raypref (\w+)", README)) | set(re.findall(r"^raypref (\w+)", README, re.M))
    assert {"embed", "prepare", "train", "eval", "methods"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_results_are_rows_of_the_whole_table() -> None:
    block = README.split("<!-- results -->")[1].split("<!-- end of results -->")[0].strip()
    whole = (REPOSITORY / "docs/results.md").read_text().splitlines()
    rows = block.splitlines()
    assert len(rows) > 3
    assert [row for row in rows if row not in whole] == []


def test_the_figures_of_speed_are_those_that_were_recorded() -> None:
    command = [sys.executable, str(REPOSITORY / "jobs/benchmarks/speed_table.py"), "--summary"]
    table = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"<!-- speed -->\n{table.stdout}<!-- end of speed -->" in README


def test_the_file_tree_is_what_is_there() -> None:
    block = README.split("## How it is built")[1].split("```")[1]
    lines = [re.split(r"\s{2,}", line.strip()) for line in block.strip().splitlines()]
    within = [line[0].split() for line in lines if line[0].endswith((".py", "/")) and line[0] != "raypref/"]
    named = {name.rstrip("/") for names in within for name in names}
    kept = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    assert named >= {path.name for path in (REPOSITORY / "raypref").iterdir()} - kept
    for name in named:
        assert (REPOSITORY / name).exists() or (REPOSITORY / "raypref" / name).exists(), name
