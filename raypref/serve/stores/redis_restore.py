"""Imported users into Redis: nothing is rolled back there, so what is refused is taken back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from raypref.serve.stores.base import Key, Record, Tombstone
from raypref.serve.stores.redis_rows import KEYS, PREFIX, TOMBSTONES, Command, User, at, get, put, spread
from raypref.serve.stores.redis_server import Change, RedisServer
from raypref.serve.stores.rules import here, here_erased

PAGE = 200
T = TypeVar("T")


def restore(
    server: RedisServer,
    owner_of: Callable[[Key], str],
    records: Iterable[Record],
    tombstones: Iterable[Tombstone],
) -> None:
    """Put users and tombstones into a store that has none of them.

    Raises:
        InputError: a user is already here; all that came in with this call is gone again.
    """
    ours = f"{PREFIX}restoring:{secrets.token_hex(8)}"
    try:
        for page in _pages(records):
            changes = [_restored(owner_of(record.key), record, ours) for record in page]
            for record, applied in zip(page, server.apply(changes), strict=True):
                if not applied:
                    raise here(record.key)
        for page in _pages(tombstones):
            _restore_tombstones(server, page, ours)
    except Exception:
        _take_back(server, ours)
        raise
    server.ask([("DEL", ours)])


def _restored(owner: str, record: Record, ours: str) -> Change:
    if not record.version:
        return Change(owner, 0)
    commands = put(owner, record.key, record.version, len(record.events), record.events)
    commands += spread(f"SADD {at('operations', owner)}", *((name,) for name in record.operations))
    return Change(owner, 0, [*commands, ("SADD", ours, owner)])


def _restore_tombstones(server: RedisServer, stones: Sequence[Tombstone], ours: str) -> None:
    commands: list[Command] = []
    for stone in stones:
        commands.append(get(stone.owner))
        commands.append(("SISMEMBER", ours, stone.owner))
        commands.append(("ZSCORE", TOMBSTONES, stone.owner))
    answers = iter(server.ask(commands, atomic=True))
    changes: list[Change] = []
    for stone, row, restored, there in zip(stones, answers, answers, answers, strict=True):
        user = User.of(row)
        if there is not None or (user.version and not restored):
            raise here_erased(stone.owner)
        erased = ("erased_version", stone.version, "erased_s", repr(stone.erased_s))
        gone = spread(f"HSET {at('gone', stone.owner)}", *((event, "") for event in stone.events))
        commands = [*gone, ("ZADD", TOMBSTONES, 0, stone.owner), ("SADD", ours, stone.owner)]
        if stone.version:
            commands.append(("HSET", at("user", stone.owner), *erased))
        changes.append(Change(stone.owner, user.version, commands))
    for stone, applied in zip(stones, server.apply(changes), strict=True):
        if not applied:
            raise here_erased(stone.owner)


def _take_back(server: RedisServer, ours: str) -> None:
    kinds = ("user", "events", "evidence", "raw", "operations", "gone")
    with server.answering():
        for owner in server.client.sscan_iter(ours):
            name = owner.decode()
            ((tenant, user),) = server.ask([("HMGET", at("user", name), "tenant", "name")])
            commands: list[Command] = [
                ("DEL", *(at(kind, name) for kind in kinds)),
                ("ZREM", TOMBSTONES, name),
            ]
            if tenant is not None:
                commands.append(("ZREM", KEYS, tenant + b"\0" + user))
            server.ask(commands, atomic=True)
        server.ask([("DEL", ours)])


def _pages(values: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(values)
    while page := list(islice(remaining, PAGE)):
        yield page
