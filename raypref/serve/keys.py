"""API keys: who may ask, and as which tenant. Only digests of them are kept.

A key reads `rp-<id>-<secret>`. The id may be logged and is how a key is revoked; the secret is shown once.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from raypref import files
from raypref.errors import ConfigError
from raypref.wire.ids import Id

LOG = logging.getLogger("ray.serve.raypref")

CHECK_S = 1.0
"""How often a key file is looked at for changes, at most."""

LONGEST_KEY = 256

NOBODY = hashlib.sha256(b"nobody").hexdigest()


class Entry(BaseModel):
    """One key as it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{8,64}$")] = Field(
        description="The middle of the key."
    )
    tenant: Id = Field(description="Whose requests it signs.")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="Of the whole key, hexadecimal."
    )
    created: int = Field(ge=0, description="When it was made, seconds since 1970.")


_ENTRIES = TypeAdapter(list[Entry])


class Keys:
    """The keys of a file; a change of the file counts within a second."""

    def __init__(self, path: Path, entries: dict[str, Entry], stamp: tuple[int, ...]) -> None:
        """Use `Keys.load`."""
        self._path = path
        self._entries = entries
        self._stamp = stamp
        self._checked_s = time.monotonic()

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Read a key file.

        Raises:
            ConfigError: it is missing, malformed, or readable by others than its owner.
        """
        return cls(path, *_read(path))

    def tenant_of(self, presented: str | None) -> str | None:
        """Return the tenant of a key, None where it is no key of ours.

        The time it takes tells nothing about how much of the key is right.
        """
        self._follow()
        if presented is None or len(presented) > LONGEST_KEY:
            presented = ""
        entry = self._entries.get(_id_of(presented))
        digest = hashlib.sha256(presented.encode(errors="replace")).hexdigest()
        same = hmac.compare_digest(digest, entry.sha256 if entry else NOBODY)
        return entry.tenant if entry and same else None

    def _follow(self) -> None:
        now_s = time.monotonic()
        if now_s - self._checked_s < CHECK_S:
            return
        self._checked_s = now_s
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._entries, self._stamp = _read(self._path)
        except (OSError, ConfigError) as error:
            # Half a deployment must not lock every client out; a key is revoked by a file without it.
            LOG.error("The keys stay as they were: %s", error)


def create_key(path: Path, tenant: str) -> str:
    """Add a key for a tenant to a key file, which may not exist yet, and return the key: this once.

    Raises:
        ConfigError: the tenant's name is not allowed, or the file cannot be used.
    """
    name = secrets.token_hex(6)
    key = f"rp-{name}-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    try:
        entry = Entry(id=name, tenant=tenant, sha256=digest, created=int(time.time()))
    except ValidationError as error:
        raise ConfigError(f"{tenant!r} is no name for a tenant: {error.errors()[0]['msg']}.") from error
    with files.lock(_lock(path)):
        entries = _read(path)[0] if path.exists() else {}
        _write(path, [*entries.values(), entry])
    return key


def revoke_key(path: Path, id: str) -> None:
    """Remove a key from a key file; services that follow the file refuse it within a second.

    Raises:
        ConfigError: no such key, or the file cannot be used.
    """
    with files.lock(_lock(path)):
        entries = _read(path)[0]
        if id not in entries:
            raise ConfigError(
                f"{path}: has no key {id!r}. Give the middle of the key, between the first dashes."
            )
        _write(path, [entry for entry in entries.values() if entry.id != id])


def _id_of(key: str) -> str:
    parts = key.split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "rp" else ""


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode


def _read(path: Path) -> tuple[dict[str, Entry], tuple[int, ...]]:
    try:
        # Before the text, so that a change in between is seen the next time.
        stamp = _stamp(path)
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: no key file can be read here ({error}). Create a key first.") from error
    # A group may read: that is how Kubernetes hands a secret to a process that is not root.
    if stamp[-1] & 0o037:
        raise ConfigError(f"{path}: others than its owner have access to it. Run chmod 600 on it.")
    try:
        entries = _ENTRIES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: no key file: {place} {first['msg']}. Restore it from a copy.") from error
    found = {entry.id: entry for entry in entries}
    if len(found) != len(entries):
        raise ConfigError(f"{path}: two keys have the same id. Remove one of them.")
    return found, stamp


def _write(path: Path, entries: list[Entry]) -> None:
    # Written in a folder of the owner's alone, so that at no moment others can read it.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as private:
        draft = Path(private) / path.name
        files.write_bytes(draft, _ENTRIES.dump_json(entries, indent=2) + b"\n")
        draft.chmod(0o600)
        os.replace(draft, path)
