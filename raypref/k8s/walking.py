"""What stands at the paths that are to be checked: kustomizations, manifests, Serve configurations."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from raypref.errors import ConfigError
from raypref.k8s.documents import load_all
from raypref.k8s.kustomize import NAMES, Manifest, build, is_kustomization
from raypref.k8s.objects import Finding

STDIN = "-"
SUFFIXES = (".yaml", ".yml")
LEFT_ALONE = ("groups", "rule_files")
"""First keys of Prometheus' rules and of their tests, which promtool checks."""


@dataclass
class Found:
    """What is to be checked, by file or by folder of a kustomization."""

    builds: dict[str, list[Manifest]] = field(default_factory=dict)
    serve_texts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    """What could not be read, built, or told."""


def walk(paths: Sequence[Path]) -> Found:
    """Read files that belong to no kustomization, and build kustomizations.

    Raises:
        ConfigError: a path is missing, or nothing there can be checked.
    """
    found = Found()
    for path in paths:
        if str(path) == STDIN:
            _take("standard input", sys.stdin.buffer.read(), found)
        elif path.is_file() and path.name in NAMES:
            _build(path.parent, found)
        elif path.is_file():
            _read(path, found)
        elif path.is_dir():
            for folder in sorted({path, *(each for each in path.rglob("*") if each.is_dir())}):
                if is_kustomization(folder):
                    _build(folder, found)
            for file in sorted(path.rglob("*")):
                if file.suffix in SUFFIXES and file.is_file() and not _inside(file, path):
                    _read(file, found)
        else:
            raise ConfigError(f"{path}: no such file or folder.")
    if not (found.builds or found.serve_texts or found.findings):
        raise ConfigError(f"{', '.join(map(str, paths))}: no manifests and no Serve configurations here.")
    return found


def _build(folder: Path, found: Found) -> None:
    """Build a kustomization; a component is nothing alone."""
    where = str(folder)
    try:
        if not _is_component(folder):
            found.builds[where] = list(_items(build(folder)))
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        message = str(error).removeprefix(f"{folder}: ")
        found.findings.append(Finding(where, "", "", message, "kustomize"))


def _is_component(folder: Path) -> bool:
    file = next(folder / name for name in NAMES if (folder / name).is_file())
    return "kind: Component" in file.read_text().splitlines()


def _read(file: Path, found: Found) -> None:
    try:
        content = file.read_bytes()
    except OSError as error:
        found.findings.append(Finding(str(file), "", "", f"cannot be read ({error}).", "yaml"))
        return
    _take(str(file), content, found)


def _take(where: str, content: bytes, found: Found) -> None:
    """Tell what a file is."""
    try:
        text = content.decode()
        documents = load_all(text)
    except (ConfigError, UnicodeDecodeError) as error:
        message = str(error) if isinstance(error, ConfigError) else f"is no text ({error})."
        found.findings.append(Finding(where, "", "", message, "yaml"))
        return
    if len(documents) == 1 and isinstance(documents[0], dict) and "applications" in documents[0]:
        found.serve_texts[where] = text
        return
    objects: list[Manifest] = []
    for number, document in enumerate(documents):
        if not isinstance(document, dict):
            message = f"document {number} is no mapping but {document!r:.60}."
            found.findings.append(Finding(where, "", "", message, "unknown"))
            continue
        one = cast("dict[str, Any]", document)
        if isinstance(one.get("apiVersion"), str) and isinstance(one.get("kind"), str):
            objects.append(one)
        elif not any(key in one for key in LEFT_ALONE):
            message = (
                f"document {number} is neither an object of Kubernetes (apiVersion and kind) "
                "nor a Serve configuration (applications) of its own; correct it, or do not name it."
            )
            found.findings.append(Finding(where, "", "", message, "unknown"))
    if objects:
        found.builds[where] = list(_items(objects))


def _items(objects: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield objects, those in a List by themselves."""
    for one in objects:
        if str(one.get("kind")).endswith("List") and isinstance(one.get("items"), list):
            yield from _items([item for item in one["items"] if isinstance(item, dict)])
        else:
            yield one


def _inside(file: Path, root: Path) -> bool:
    """Return whether a file is in the folder of a kustomization or of a component, or below one."""
    folder = file.parent
    while True:
        if is_kustomization(folder):
            return True
        if folder == root:
            return False
        folder = folder.parent
