"""Pages say what is there: their links lead somewhere, their commands and files exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from raypref.cli import _parser
from tests.conftest import REPOSITORY
from tests.pages import sections

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
NAMED = re.compile(r"`((?:raypref|jobs|tests|requirements|docs|k8s|serve_configs)/[\w./-]+\.\w+)`")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines of raypref in a page's blocks, without comments, pipes and what follows."""
    for line in chain(*sections(page).values()):
        yield shlex.split(re.split(r"\s[|>&]\s?|\s&$", line)[0], comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in NAMED.findall(page.read_text()):
        assert (REPOSITORY / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_ones_that_raypref_takes(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option and argument is parsed; what the command then does is other tests' to show."""
    for words in commands(page):
        try:
            _parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{page.name}: {words}: {capsys.readouterr().err}")


TABLES = {
    "results.md": ["table.py"],
    "serve.md": ["serve_table.py"],
    "speed.md": ["speed_table.py", "gpu_table.py"],
    "federated.md": ["federated_table.py"],
}


@pytest.mark.parametrize(("page", "script"), [(page, name) for page in TABLES for name in TABLES[page]])
def test_the_figures_are_those_that_were_recorded(page: str, script: str) -> None:
    command = [sys.executable, str(REPOSITORY / "jobs/benchmarks" / script)]
    table = subprocess.run(command, check=True, capture_output=True, text=True)
    assert table.stdout.strip() in (REPOSITORY / "docs" / page).read_text()


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs/README.md").read_text()
    for page in PAGES:
        if page.parent.name == "docs" and page.name != "README.md":
            assert f"]({page.name})" in index


def test_a_command_that_raypref_does_not_take_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\nraypref train -c run.yaml --sett a=b  # no\n```\n")
    ((first, *words),) = commands(page)
    assert (first, words) == ("train", ["-c", "run.yaml", "--sett", "a=b"])
    with pytest.raises(SystemExit):
        _parser().parse_args([first, *words])
