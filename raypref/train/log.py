"""Metrics of a training run: JSON lines and TensorBoard, rewound when a run resumes, and trackers."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from raypref import files
from raypref.train.loop import StepMetrics
from raypref.train.trackers import Tracker

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes one line of metrics at a time; lines past the step that a run resumes from are dropped."""

    def __init__(self, directory: Path, resume_step: int, trackers: Sequence[Tracker] = ()) -> None:
        """Open the log of a run that has taken `resume_step` steps; it closes the trackers with itself."""
        path = directory / METRICS_FILE
        kept = [line for line in read_lines(path) if line["step"] <= resume_step]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)
        self._trackers = trackers

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log values of a step; `kind` is train or valid."""
        line = {"kind": kind, "step": step, "time": round(time.time(), 3)}
        line |= {name: float(f"{value:.6g}") for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        for tracker in self._trackers:
            tracker.log(step, {f"{kind}/{name}": value for name, value in values.items()})

    def train(self, metrics: StepMetrics, speed: Speed) -> None:
        """Log a training step and the speed since the last one logged."""
        values = {"loss": metrics.loss, **metrics.parts, "grad_norm": metrics.grad_norm, "lr": metrics.lr}
        self.write("train", metrics.step, {**values, **speed.figures()})

    def close(self) -> None:
        """Flush and close the files and the trackers."""
        self._file.close()
        self._board.close()
        for tracker in self._trackers:
            tracker.close()


class Speed:
    """Steps and comparisons a second, of all workers."""

    def __init__(self, workers: float) -> None:
        """Start the clock; this worker's comparisons stand for those of each of `workers`."""
        self._workers = workers
        self.restart()

    def restart(self) -> None:
        """Start the clock again."""
        self._start, self._steps, self._comparisons = time.monotonic(), 0, 0

    def add(self, comparisons: int) -> None:
        """Count a step."""
        self._steps += 1
        self._comparisons += comparisons

    def figures(self) -> dict[str, float]:
        """Return both speeds since the start of the clock."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        return {
            "steps_per_s": self._steps / elapsed,
            "comparisons_per_s": self._workers * self._comparisons / elapsed,
        }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a metrics file; a line that a kill cut short is not one."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


@contextmanager
def progress(directory: Path, steps: int, interval_s: float = 1.0) -> Generator[None]:
    """Show how the run that logs to `directory` goes on, on stderr: a bar on a terminal, else its lines."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(directory, steps, interval_s, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(directory: Path, steps: int, interval_s: float, done: threading.Event) -> None:
    bar = tqdm(total=steps, unit="step", desc="train") if sys.stderr.isatty() else None
    shown = time.time()
    finished = False
    while not finished:
        finished = done.wait(interval_s)
        for line in read_lines(directory / METRICS_FILE):
            if line["time"] <= shown:
                continue
            shown = line["time"]
            if bar is None:
                print(json.dumps(line), file=sys.stderr, flush=True)
            else:
                bar.update(line["step"] - bar.n)
                bar.set_postfix({name: f"{line[name]:.4g}" for name in ("loss", "accuracy") if name in line})
    if bar is not None:
        bar.close()
