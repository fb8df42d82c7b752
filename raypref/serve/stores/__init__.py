"""Stores of users, opened by a url."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from raypref.errors import ConfigError
from raypref.serve.stores.base import Store

FORMS = "memory:, sqlite:///path.db, postgresql://…, redis://…, rediss://… or valkey://…"


def open_store(url: str, *, timeout_s: float = 2.0) -> Store:
    """Open a store of users.

    Args:
        url: `memory:`; `sqlite:///relative.db` or `sqlite:////absolute.db`; `postgresql://…`; `redis://…`,
            `rediss://…` or `valkey://…`, with `?durability=everysec` or `none` where that is enough.
        timeout_s: how long the store may take to answer before a call raises StoreDown.

    Raises:
        ConfigError: the url names no store, its extra is not installed, or the server's settings would lose
            what it acknowledges.
        StoreDown: the store does not answer.
        CorruptError: the store's file is damaged.
        MismatchError: a newer raypref, or another program, made the store.
    """
    scheme = url.partition(":")[0]
    if url == "memory:":
        from raypref.serve.stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        from raypref.serve.stores.sqlite import SQLiteStore

        return SQLiteStore(_path(url), timeout_s)
    if scheme == "postgresql":
        try:
            from raypref.serve.stores.postgres import PostgresStore
        except ImportError as error:
            raise _missing("postgres", error) from error
        return PostgresStore(url, timeout_s)
    if scheme in ("redis", "rediss", "valkey"):
        try:
            from raypref.serve.stores.redis import RedisStore
        except ImportError as error:
            raise _missing("redis", error) from error
        return RedisStore(url, timeout_s)
    raise ConfigError(f"{scheme!r} names no store; its url is one of {FORMS}.")


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment or len(parts.path) < 2:
        raise ConfigError(f"{url}: no file is named; write sqlite:///relative.db or sqlite:////absolute.db.")
    return Path(parts.path[1:])


def _missing(extra: str, error: ImportError) -> ConfigError:
    return ConfigError(f"This store needs another package ({error}): pip install 'raypref[{extra}]'.")
