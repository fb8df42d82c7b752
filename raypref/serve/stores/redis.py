"""Users in Redis or Valkey: for many machines and the shortest answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from raypref.serve.stores.base import (
    Event,
    Key,
    Record,
    State,
    Tombstone,
    Write,
    Written,
    event_digest,
)
from raypref.serve.stores.redis_restore import restore
from raypref.serve.stores.redis_rows import (
    KEYS,
    SETTINGS,
    TOMBSTONES,
    Command,
    User,
    at,
    count,
    get,
    member,
    pack_evidence,
    pack_numbers,
    put,
    spread,
    unpack_event,
    unpack_raw,
)
from raypref.serve.stores.redis_server import DURABLE, REENCODE, REMEMBER, Change, RedisServer
from raypref.serve.stores.rules import Salted, Standing, decayed, judge

PAGE = 200
T = TypeVar("T")


class RedisStore(Salted):
    """A store in Redis or Valkey."""

    kind = "redis"
    nodes: Literal["one", "many"] = "many"

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connect and check what the server's settings make of an acknowledgement.

        Raises:
            ConfigError: the url is malformed, or the server is set to lose more than the url accepts.
            StoreDown: the server does not answer.
        """
        self._server = RedisServer(url, timeout_s)
        self.durable = DURABLE[self._server.durability]

    def read(self, keys: Sequence[Key]) -> list[State]:
        """Return the states of users."""
        users = map(User.of, self._server.ask([get(self._owner(key)) for key in keys]))
        return [State(user.version, user.shots, user.basis, user.vector) for user in users]

    def events(self, keys: Sequence[Key], raw: bool = False) -> list[tuple[int, tuple[Event, ...]]]:
        """Return version and events of each user."""
        return [(user.version, events) for user, events, _ in self._logs(keys, raw)]

    def _logs(
        self, keys: Sequence[Key], raw: bool
    ) -> Iterator[tuple[User, tuple[Event, ...], tuple[str, ...]]]:
        """Yield row, events and operations of each user, a user's all of one moment."""
        kinds = ["events", "evidence", *(["raw"] if raw else [])]
        for start in range(0, len(keys), PAGE):
            owners = [self._owner(key) for key in keys[start : start + PAGE]]
            commands: list[Command] = []
            for owner in owners:
                commands += [get(owner), *(("HGETALL", at(kind, owner)) for kind in kinds)]
                commands.append(("SMEMBERS", at("operations", owner)))
            answers = iter(self._server.ask(commands, atomic=True))
            for _ in owners:
                row, numbers, evidence = next(answers), next(answers), next(answers)
                items = next(answers) if raw else {}
                events = [
                    unpack_event(name, numbers[name], evidence[name], items.get(name))
                    for name in sorted(numbers)
                ]
                operations = sorted(name.decode() for name in next(answers))
                yield User.of(row), tuple(events), tuple(operations)

    def append(self, writes: Sequence[Write], limit: int) -> list[Written]:
        """Add comparisons: each user's in one change, all sent at once."""
        todo: dict[str, list[tuple[int, Write]]] = {}
        for place, write in enumerate(writes):
            todo.setdefault(self._owner(write.key), []).append((place, write))
        written: dict[int, Written] = {}
        for _ in self._server.turns():
            changes: list[Change] = []
            for owner, standing in zip(todo, self._standings(todo), strict=True):
                before, fresh = standing.version, list[Event]()
                for place, write in todo[owner]:
                    written[place], new = judge(write, standing, limit)
                    fresh += new
                if fresh:
                    commands = put(owner, todo[owner][0][1].key, standing.version, standing.shots, fresh)
                    changes.append(Change(owner, before, commands))
            applied = self._server.apply(changes)
            late = {change.owner for change, done in zip(changes, applied, strict=True) if not done}
            todo = {owner: todo[owner] for owner in todo if owner in late}
            if not todo:
                break
        return [written[place] for place in range(len(writes))]

    def _standings(self, writes: dict[str, list[tuple[int, Write]]]) -> list[Standing]:
        asked: list[tuple[str, Key, list[str]]] = []
        commands: list[Command] = []
        for owner, group in writes.items():
            whose = group[0][1].key
            names = list({event.event_id for _, write in group for event in write.events})
            digests = [event_digest(self._salt, whose, name) for name in names]
            asked.append((owner, whose, names))
            commands.append(get(owner))
            commands.append(("HMGET", at("raw", owner), *(names or [""])))
            commands.append(("HMGET", at("gone", owner), *(digests or [""])))
        answers = iter(self._server.ask(commands, atomic=True))
        standings: list[Standing] = []
        for _, _, names in asked:
            standing = User.of(next(answers)).standing()
            known, gone = next(answers), next(answers)
            standing.raw = {
                name: unpack_raw(value)
                for name, value in zip(names, known, strict=False)
                if value is not None
            }
            standing.gone = {name for name, value in zip(names, gone, strict=False) if value is not None}
            standings.append(standing)
        return standings

    def _change(self, whose: Key, also: Command, decide: Callable[[User, Any], tuple[T, list[Command]]]) -> T:
        """Change one user as `decide` says from the user's row and the answer to another command."""
        owner = self._owner(whose)
        for _ in self._server.turns():
            row, answer = self._server.ask([get(owner), also], atomic=True)
            user = User.of(row)
            result, commands = decide(user, answer)
            if not commands or self._server.apply([Change(owner, user.version, commands)])[0]:
                return result
        raise AssertionError("the turns end in an error")

    def forget(self, key: Key, event_id: str) -> State | None:
        """Remove one comparison."""
        owner = self._owner(key)

        def decide(user: User, there: int) -> tuple[State | None, list[Command]]:
            if not there:
                return None, []
            digest = event_digest(self._salt, key, event_id)
            return State(user.version + 1, user.shots - 1), [
                *(("HDEL", at(kind, owner), event_id) for kind in ("events", "evidence", "raw")),
                ("HSET", at("gone", owner), digest, ""),
                ("ZADD", TOMBSTONES, 0, owner),
                *count(owner, user.version + 1, user.shots - 1),
            ]

        return self._change(key, ("HEXISTS", at("events", owner), event_id), decide)

    def decay(self, key: Key, factor: float, operation: str, at_s: float) -> State | None:
        """Multiply the weights of events up to `at_s`, once an operation."""
        owner = self._owner(key)

        def decide(user: User, there: int) -> tuple[State | None, list[Command]]:
            if not user.shots:
                return None, []
            if there:
                return State(user.version, user.shots), []
            ((_, events),) = self.events([key])
            numbers = [
                (event.event_id, pack_numbers(replace(event, weight=decayed(event.weight, factor))))
                for event in events
                if event.time_s <= at_s
            ]
            return State(user.version + 1, user.shots), [
                ("SADD", at("operations", owner), operation),
                *spread(f"HSET {at('events', owner)}", *numbers),
                *count(owner, user.version + 1, user.shots),
            ]

        return self._change(key, ("SISMEMBER", at("operations", owner), operation), decide)

    def erase(self, key: Key, at_s: float) -> bool:
        """Erase a user."""
        owner = self._owner(key)

        def decide(user: User, names: list[bytes]) -> tuple[bool, list[Command]]:
            if not user.log:
                return False, []
            gone = [(event_digest(self._salt, key, name.decode()), "") for name in names]
            erased_s = at_s if user.erased_s is None else max(user.erased_s, at_s)
            return True, [
                ("DEL", *(at(kind, owner) for kind in ("events", "evidence", "raw", "operations", "user"))),
                ("HSET", at("user", owner), "erased_version", user.version + 1, "erased_s", repr(erased_s)),
                *spread(f"HSET {at('gone', owner)}", *gone),
                ("ZADD", TOMBSTONES, 0, owner),
                ("ZREM", KEYS, member(key)),
            ]

        return self._change(key, ("HKEYS", at("events", owner)), decide)

    def remember(self, vectors: Iterable[tuple[Key, int, str, bytes]]) -> None:
        """Keep vectors of users that still have that version."""
        calls = [
            (at("user", self._owner(whose)), (version, basis, vector))
            for whose, version, basis, vector in vectors
        ]
        self._server.run(REMEMBER, calls)

    def reencode(self, key: Key, encoder: str, evidence: Sequence[tuple[str, bytes]]) -> None:
        """Replace the evidence of events that still exist."""
        words = [word for name, data in evidence for word in (name, pack_evidence(encoder, data))]
        self._server.run(REENCODE, [(at("evidence", self._owner(key)), words)])

    def keys(self, after: Key | None = None, limit: int = 1000) -> list[Key]:
        """Return users that have a log, in order."""
        first = b"(" + member(after) if after else b"-"
        (members,) = self._server.ask([("ZRANGEBYLEX", KEYS, first, "+", "LIMIT", 0, limit)])
        return [Key(*member.decode().split("\0")) for member in members]

    def records(self, keys: Sequence[Key]) -> list[Record]:
        """Return all of some users."""
        return [
            Record(whose, user.version, events, operations) if user.log else Record(whose, 0, ())
            for whose, (user, events, operations) in zip(keys, self._logs(keys, raw=True), strict=True)
        ]

    def tombstones(self) -> Iterator[Tombstone]:
        """Yield what is left of erased users and forgotten events."""
        owners, first = [b""], b"-"
        while owners:
            (owners,) = self._server.ask([("ZRANGEBYLEX", TOMBSTONES, first, "+", "LIMIT", 0, PAGE)])
            commands: list[Command] = []
            for owner in owners:
                commands.append(("HMGET", at("user", owner.decode()), "erased_version", "erased_s"))
                commands.append(("HKEYS", at("gone", owner.decode())))
            answers = iter(self._server.ask(commands, atomic=True))
            for owner, (version, erased_s), gone in zip(owners, answers, answers, strict=True):
                events = tuple(sorted(digest.decode() for digest in gone))
                yield Tombstone(owner.decode(), int(version or 0), float(erased_s or 0), events)
            first = b"(" + owners[-1] if owners else first

    def restore(self, records: Iterable[Record], tombstones: Iterable[Tombstone]) -> None:
        """Put users and tombstones into a store that has none of them; taken back where one is refused."""
        restore(self._server, self._owner, records, tombstones)

    def setting(self, name: str, default: str) -> str:
        """Return a named string, setting it where it has no value."""
        first: list[Command] = [("HSETNX", SETTINGS, name, default)] if default else []
        value = self._server.ask([*first, ("HGET", SETTINGS, name)])[-1]
        return value.decode() if value is not None else ""

    def compact(self) -> None:
        """Rewrite the append-only file; snapshots, replicas and backups are the server's to forget."""
        self._server.rewrite()

    def check(self) -> None:
        """Raise StoreDown unless the server answers."""
        self._server.ask([("PING",)])

    def close(self) -> None:
        """Close the connections."""
        self._server.client.close()
