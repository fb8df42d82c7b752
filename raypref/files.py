"""Atomic files and directories: a reader sees the old, the new, or nothing, never a half."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from raypref.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and durably."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file atomically and durably; `mode` says who may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def require_ours(path: Path, marker: str) -> None:
    """Refuse to replace what stands at `path`, unless it is an empty folder or holds the file `marker`.

    Everything that raypref writes has such a file; what somebody else keeps is never deleted.

    Raises:
        InputError: something else stands there.
    """
    if path.exists() and not (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))):
        raise InputError(
            f"{path}: would be replaced, but holds something else (no {marker}). Name another folder, or "
            "move this one away."
        )


@contextmanager
def new_directory(path: Path, marker: str) -> Generator[Path]:
    """Yield an empty directory that becomes `path` when the block ends well, and vanishes when it does not.

    An existing `path` is replaced whole, at the end.

    Raises:
        InputError: `path` holds something that is not ours to replace.
    """
    require_ours(path, marker)
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = work.with_name(f"{work.name}.old")
    try:
        os.chmod(work, 0o755)
        yield work
        if path.exists():
            os.replace(path, old)
        os.replace(work, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def lock(path: Path) -> Generator[None]:
    """Hold an exclusive lock on the file `path` against other processes of this node; waits for it.

    The operating system frees it when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
