"""How far a population job is, and how long it will take: a bar on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType

from tqdm import tqdm

INTERVAL_S = 10.0
"""Between two lines."""


class Progress:
    """Counts users; the time left is what the rest takes at the speed so far."""

    def __init__(self, name: str, users: int, done: int) -> None:
        """Begin with `done` of `users` made by an earlier run."""
        self._name, self._users, self._done, self._before = name, users, done, done
        self._begun_s = time.time()
        self._told_s = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=name, total=users, initial=done, unit=" users", smoothing=0.05)

    def __enter__(self) -> Progress:
        return self

    def add(self, users: int, begun_s: float) -> None:
        """Count users that are done, whose work began at `begun_s`, seconds since 1970."""
        # Workers take long to start; what is left will not.
        self._begun_s = begun_s if self._done == self._before else min(self._begun_s, begun_s)
        self._done += users
        if self._bar is not None:
            self._bar.update(users)
        elif time.monotonic() - self._told_s >= INTERVAL_S:
            self._tell()

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        speed = (self._done - self._before) / max(time.time() - self._begun_s, 1e-9)
        left_s = (self._users - self._done) / speed if speed else None
        line = {
            "job": self._name,
            "users": self._done,
            "of": self._users,
            "users_per_s": round(speed, 1),
            "left_s": None if left_s is None else round(left_s, 1),
        }
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._tell()
