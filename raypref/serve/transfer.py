"""Users from one store into another, through a file of JSON lines that is the same whichever store wrote it.

A header; users in order of tenant and user; tombstones in order of owner; and a closing line with their
numbers and the sha256 of all lines before it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from raypref.errors import CorruptError, InputError, MismatchError
from raypref.serve.stores.base import Event, Key, Record, Store, Tombstone

FORMAT = "raypref.users"
VERSION = 1
PAGE = 50
"""Users in memory at a time."""

SETTINGS = ("salt", "embedder")

T = TypeVar("T")


def export_store(store: Store, path: Path) -> None:
    """Write all users and tombstones of a store to a file, readable by its owner only, whole or not at all.

    Each user is of one moment; what changes while the export runs may or may not be in it.

    Raises:
        StoreDown: the store does not answer.
    """
    digest = hashlib.sha256()
    with _new_file(path) as file:

        def write(line: dict[str, Any]) -> None:
            data = _line(line)
            digest.update(data)
            file.write(data)

        write({"format": FORMAT, "version": VERSION} | {name: store.setting(name, "") for name in SETTINGS})
        users = tombstones = 0
        for record in _records(store):
            write(_user_line(record))
            users += 1
        for stone in store.tombstones():
            write(
                {
                    "owner": stone.owner,
                    "version": stone.version,
                    "erased_s": stone.erased_s + 0.0,
                    "events": stone.events,
                }
            )
            tombstones += 1
        file.write(_line({"users": users, "tombstones": tombstones, "sha256": digest.hexdigest()}))


def import_store(path: Path, store: Store) -> None:
    """Put all users and tombstones of an exported file into a store that has none of them.

    Raises:
        InputError: there is no such file, or one of its users is in the store already.
        CorruptError: the file was cut short or altered.
        MismatchError: the file is of another version, or the store has another salt or embedder.
        StoreDown: the store does not answer.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    header = _header(path)
    users, tombstones = _verify(path)
    _agree(path, header, store)
    with path.open("rb") as file:
        next(file)
        store.restore(
            _parsed(path, islice(file, users), _record), _parsed(path, islice(file, tombstones), _tombstone)
        )


def _records(store: Store) -> Iterator[Record]:
    after: Key | None = None
    while keys := store.keys(after, PAGE):
        # One erased since its key was read has become a tombstone.
        yield from (record for record in store.records(keys) if record.version)
        after = keys[-1]


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = _load(path, file.readline())
    if header.get("format") != FORMAT:
        raise CorruptError(f"{path}: is no export of raypref's users. Name the file that an export wrote.")
    if header.get("version") != VERSION:
        raise MismatchError(
            f"{path}: export version {header.get('version')}, this raypref reads {VERSION}; import it with "
            "the raypref that wrote it."
        )
    if not all(isinstance(header.get(name), str) for name in SETTINGS):
        raise _damaged(path, "its header lacks a setting")
    return header


def _verify(path: Path) -> tuple[int, int]:
    """Return the numbers of users and tombstones, once all of the file is known to be there and unaltered."""
    digest, lines, last = hashlib.sha256(), 0, b""
    with path.open("rb") as file:
        for line in file:
            digest.update(last)
            lines += 1
            last = line
    end = _load(path, last)
    users, tombstones = end.get("users"), end.get("tombstones")
    if not isinstance(users, int) or not isinstance(tombstones, int):
        raise _damaged(path, "it was cut short")
    if lines != users + tombstones + 2 or last != _line(end) or end.get("sha256") != digest.hexdigest():
        raise _damaged(path, "it was altered")
    return users, tombstones


def _agree(path: Path, header: dict[str, Any], store: Store) -> None:
    """Give the store the file's settings, unless it has others."""
    for name in SETTINGS:
        kept = store.setting(name, "")
        if kept and kept != header[name]:
            raise MismatchError(
                f"{path}: comes from a store with another {name} than this one; import it into a new store"
                + (f" for the embedder {header[name]}." if name == "embedder" else ".")
            )
    for name in SETTINGS:
        store.setting(name, header[name])


def _user_line(record: Record) -> dict[str, Any]:
    return {
        "tenant": record.key.tenant,
        "user": record.key.user,
        "version": record.version,
        "operations": record.operations,
        "events": [
            {
                "event_id": event.event_id,
                # Plus zero, because not every store knows -0.0.
                "time_s": event.time_s + 0.0,
                "weight": event.weight,
                "chosen": base64.b64encode(event.chosen).decode(),
                "rejected": base64.b64encode(event.rejected).decode(),
                "encoder": event.encoder,
                "evidence": base64.b64encode(event.evidence).decode(),
            }
            for event in record.events
        ],
    }


def _record(line: dict[str, Any]) -> Record:
    binary = ("chosen", "rejected", "evidence")
    events = [event | {name: base64.b64decode(event[name]) for name in binary} for event in line["events"]]
    key = Key(line["tenant"], line["user"])
    return Record(key, line["version"], tuple(Event(**event) for event in events), tuple(line["operations"]))


def _tombstone(line: dict[str, Any]) -> Tombstone:
    return Tombstone(line["owner"], line["version"], line["erased_s"], tuple(line["events"]))


def _parsed(path: Path, lines: Iterable[bytes], parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    for line in lines:
        try:
            value = parse(_load(path, line))
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise _damaged(path, f"a line does not parse ({error!r})") from error
        yield value


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _load(path: Path, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _damaged(path, "it was cut short or altered") from error
    if not isinstance(value, dict):
        raise _damaged(path, "a line holds something else")
    return value


def _damaged(path: Path, what: str) -> CorruptError:
    return CorruptError(f"{path}: {what}. Export again, or restore the file from a copy.")


@contextmanager
def _new_file(path: Path) -> Generator[BinaryIO]:
    """Yield a file that becomes `path`, durably, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
