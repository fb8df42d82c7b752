"""A Redis or Valkey server: what it must be set to, and changes there that happen whole or not at all."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from raypref.errors import ConfigError
from raypref.serve.stores.base import StoreDown
from raypref.serve.stores.redis_rows import Command, at

DURABLE = {
    "always": "In the append-only file, synced to the server's disk; a failover to a replica may lose what "
    "the replica had not received.",
    "everysec": "In the server's memory, and on its disk within about a second: a crash loses that second.",
    "none": "In the server's memory: a crash may lose all since its last snapshot.",
}

# Runs commands, each led by its number of words, if the user still has the version that they were made for.
CHANGE = """
local version = redis.call('HGET', KEYS[1], 'version') or redis.call('HGET', KEYS[1], 'erased_version') or '0'
if version ~= ARGV[1] then return 0 end
local place = 2
while place <= #ARGV do
    local words = tonumber(ARGV[place])
    redis.call(unpack(ARGV, place + 1, place + words))
    place = place + words + 1
end
return 1
"""
REMEMBER = """
if redis.call('HGET', KEYS[1], 'version') == ARGV[1] then
    redis.call('HSET', KEYS[1], 'basis', ARGV[2], 'vector', ARGV[3])
end
"""
REENCODE = """
for place = 1, #ARGV, 2 do
    if redis.call('HEXISTS', KEYS[1], ARGV[place]) == 1 then
        redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1])
    end
end
"""


@dataclass
class Change:
    """Commands for a user who has a version."""

    owner: str
    version: int
    commands: list[Command] = field(default_factory=list)

    def words(self) -> list[Any]:
        """Return the arguments of the script."""
        return [self.version, *(word for command in self.commands for word in (len(command), *command))]


class RedisServer:
    """The connection to a server."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connect and check the settings.

        Raises:
            ConfigError: the url is malformed, or the server is set to lose more than the url accepts.
            StoreDown: the server does not answer.
        """
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        said = query.pop("durability", None)
        if said not in (None, *DURABLE):
            raise ConfigError(
                f"durability={said} of the redis url is unknown; it is one of {', '.join(DURABLE)}."
            )
        self.durability = said or "always"
        self._timeout_s = timeout_s
        scheme = "redis" if parts.scheme == "valkey" else parts.scheme
        plain = urlunsplit((scheme, parts.netloc, parts.path, urlencode(query), ""))
        try:
            # Never the url itself: it may hold a password.
            self._where = f"Redis at {parts.hostname}:{parts.port or 6379}"
            self.client = redis.Redis.from_url(
                plain,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"The store's redis url is malformed: {error}.") from error
        with self.answering():
            self._check_kind()
            self._check_durability(trusted=said is not None)

    def _check_kind(self) -> None:
        if self.client.info("cluster").get("cluster_enabled"):
            raise ConfigError(f"{self._where} is part of a Redis Cluster; name a server that is not.")
        policy = self.client.info("memory").get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise ConfigError(
                f"{self._where} would throw users away when memory is short (maxmemory-policy {policy}): "
                "set maxmemory-policy noeviction."
            )

    def _check_durability(self, trusted: bool) -> None:
        needed = {
            "always": {"appendonly": ["yes"], "appendfsync": ["always"], "no-appendfsync-on-rewrite": ["no"]},
            "everysec": {"appendonly": ["yes"], "appendfsync": ["everysec", "always"]},
            "none": {},
        }[self.durability]
        for name, accepted in needed.items():
            try:
                value = self.client.config_get(name).get(name)
            except redis.ResponseError as error:
                if trusted:
                    return
                raise ConfigError(
                    f"{self._where} does not tell its settings ({error}). Find out what an acknowledgement "
                    f"means there and say it in the url: ?durability={' or '.join(DURABLE)}."
                ) from error
            if value not in accepted:
                raise ConfigError(
                    f"{self._where} has {name} {value}, so an acknowledgement would not mean "
                    f"durability={self.durability}. Set {name} {accepted[0]} in redis.conf (or by CONFIG SET "
                    "and CONFIG REWRITE), or accept less in the url: ?durability=everysec or none."
                )

    @contextmanager
    def answering(self) -> Generator[None]:
        """Turn the client's errors into StoreDown."""
        try:
            yield
        except redis.RedisError as error:
            raise StoreDown(f"{self._where}: {error}. Check that it runs and can be reached.") from error

    def ask(self, commands: Sequence[Command], atomic: bool = False) -> list[Any]:
        """Return the answers to commands, all sent at once; `atomic`: of one moment."""
        if not commands:
            return []
        with self.answering(), self.client.pipeline(transaction=atomic) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute()

    def run(self, script: str, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Run a script for keys with arguments, all sent at once."""
        if not calls:
            return []
        with self.answering():
            digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            answers: list[Any] = [NoScriptError()] * len(calls)
            for _ in range(3):
                # A server that started again has lost its scripts, and may do so between any two calls.
                missing = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
                if not missing:
                    break
                with self.client.pipeline(transaction=False) as pipeline:
                    for place in missing:
                        name, words = calls[place]
                        pipeline.execute_command("EVALSHA", digest, 1, name, *words)
                    got = pipeline.execute(raise_on_error=False)
                for place, answer in zip(missing, got, strict=True):
                    answers[place] = answer
                if any(isinstance(answer, NoScriptError) for answer in got):
                    self.client.script_load(script)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

    def apply(self, changes: Sequence[Change]) -> list[bool]:
        """Apply each change if its user still has that version; return which were."""
        answers = self.run(CHANGE, [(at("user", change.owner), change.words()) for change in changes])
        return [answer == 1 for answer in answers]

    def turns(self) -> Generator[None]:
        """Yield for every attempt at a change that others may get ahead of, until the time is up."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            yield
            if time.monotonic() > deadline:
                raise StoreDown(f"{self._where}: too many others change the same user. Try again.")
            time.sleep(random.uniform(0.0, 0.002))

    def rewrite(self) -> None:
        """Rewrite the append-only file, where there is one, and wait until that is done."""
        with self.answering():
            if not self.client.info("persistence").get("aof_enabled"):
                return
            self._wait_for_rewrite()
            self.client.bgrewriteaof()
            self._wait_for_rewrite()
            status = self.client.info("persistence")["aof_last_bgrewrite_status"]
        if status != "ok":
            raise StoreDown(f"{self._where}: rewriting the append-only file failed; its log says why.")

    def _wait_for_rewrite(self) -> None:
        while True:
            info = self.client.info("persistence")
            if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
                return
            time.sleep(0.02)
