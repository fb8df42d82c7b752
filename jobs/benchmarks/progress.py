"""Trials done, of all, on standard error."""

from __future__ import annotations

import sys
import time

from record import Record
from tqdm import tqdm


class Progress:
    """A bar on a terminal, a line a trial elsewhere."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        """Begin with `done` of `total` trials recorded already."""
        self._total, self._known, self._done, self._shown = total, done, 0, shown
        self._start = time.monotonic()
        self._bar = None

    def __enter__(self) -> Progress:
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._known, unit="trial")
        elif self._shown:
            self._say(f"{self._known} of {self._total} trials are recorded already")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def done(self, record: Record) -> None:
        """Count a trial."""
        self._done += 1
        trial = record.trial
        what = f"{trial.label} on {trial.population}, seed {trial.seed}"
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(what)
            if record.error:
                self._bar.write(f"{what}: failed: {record.error}", file=sys.stderr)
        elif self._shown:
            left = self._total - self._known - self._done
            eta = (time.monotonic() - self._start) / self._done * left / 60
            took = f"failed: {record.error}" if record.error else f"{record.fit_seconds:.1f} s"
            self._say(f"[{self._known + self._done}/{self._total}] {what}: {took}; {eta:.0f} min left")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
