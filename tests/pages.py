"""What pages tell people to type, and a terminal to type it in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.conftest import REPOSITORY, terminal_signals

Sections = dict[str, list[str]]


def sections(page: Path) -> Sections:
    """The lines of raypref in the blocks of a page, by the heading that they stand under."""
    found: Sections = {}
    heading, block = "", False
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            block = not block
        elif not block and line.startswith("#"):
            heading = line.lstrip("# ")
        elif block and line.lstrip().startswith("raypref "):
            found.setdefault(heading, []).append(line.strip())
    return found


class Terminal:
    """A folder, and a shell in it that knows raypref."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = kept | {"PATH": path} | environment

    def _start(self, line: str, output: int | None = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
            preexec_fn=terminal_signals,
        )

    def run(self, line: str, timeout_s: float = 300.0) -> str:
        """Run a line; return what it prints."""
        process = self._start(line)
        try:
            printed, errors = process.communicate(timeout=timeout_s)
        finally:
            _kill_session(process.pid)
        assert process.returncode == 0, f"{line}\n{printed}{errors}"
        return printed

    def follow(self, page: str, heading: str, **placeholders: str) -> str:
        """Run what a section says; return all that it prints."""
        printed = ""
        for line in sections(REPOSITORY / page)[heading]:
            # What a cluster is told needs one.
            command = line.split("| kubectl")[0]
            for name, value in placeholders.items():
                command = command.replace(name, value)
            printed += self.run(command)
        return printed

    @contextmanager
    def running(self, line: str, url: str, within_s: float = 150.0) -> Iterator[None]:
        """Run a line that goes on until Ctrl-C, once a URL answers."""
        process = self._start(f"exec {line}", subprocess.DEVNULL)
        try:
            deadline_s = time.monotonic() + within_s
            while True:
                try:
                    if httpx.get(url, timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert process.poll() is None, line
                assert time.monotonic() < deadline_s, line
                time.sleep(0.2)
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            _kill_session(process.pid)


def _kill_session(leader: int) -> None:
    """End what a terminal has left running."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                process.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def write_block(page: str, language: str, holding: str, file: Path) -> None:
    """Write the block of a page that holds a text to a file."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (REPOSITORY / page).read_text(), re.M | re.S)
    [block] = [one for one in blocks if holding in one]
    file.write_text(block)
