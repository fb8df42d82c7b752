"""The runbook names commands, files and figures that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from raypref.cli import _parser
from raypref.serve.config import ServeSettings
from raypref.serve.guard import Limits
from tests.conftest import REPOSITORY

RUNBOOK = (REPOSITORY / "docs/operations.md").read_text()


def commands() -> Iterator[str]:
    """Every command line of ours, in a block or within a sentence."""
    for block in re.findall(r"^ *```\n(.*?)^ *```", RUNBOOK, re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.splitlines() if line.strip().startswith("raypref "))
    yield from re.findall(r"`(raypref [a-z][^`]*)`", RUNBOOK)


COMMANDS = sorted(set(commands()))


def test_there_are_commands_of_every_kind() -> None:
    kinds = {" ".join(line.split()[1:3]) for line in COMMANDS}
    assert {"keys create", "keys revoke", "users export", "users import", "users refresh"} <= kinds


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    words = shlex.split(line)
    # `raypref users refresh`, named without its arguments.
    if words[1] in ("users", "keys") and len(words) == 3:
        with pytest.raises(SystemExit) as stop:
            _parser().parse_args([*words[1:], "--help"])
        assert stop.value.code == 0
        return
    _parser().parse_args(words[1:])


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"(?:`|-k )((?:raypref|jobs|tests|k8s|docs|serve_configs)/[\w./-]*)", RUNBOOK)
    assert len(named) > 8
    for name in named:
        assert (REPOSITORY / name).exists(), name


def test_every_link_within_it_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", RUNBOOK, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors


def test_its_capacity_is_what_was_measured() -> None:
    script = REPOSITORY / "jobs/benchmarks/serve_table.py"
    table = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    promised = RUNBOOK.split("<!-- capacity -->")[1].split("<!-- end of capacity -->")[0]
    assert promised.strip() == table.stdout.split("\n\n")[0]


def test_its_settings_are_settings() -> None:
    named = set(re.findall(r"`limits\.(\w+)`", RUNBOOK)) | {"max_held_bytes"}
    assert named <= set(Limits.model_fields)
    (line,) = re.findall(r"^ +tracing: (\{.*\})$", RUNBOOK, re.MULTILINE)
    assert ServeSettings(open=True, tracing=yaml.safe_load(line)).tracing
