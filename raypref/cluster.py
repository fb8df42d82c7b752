"""Connect to Ray: the cluster that RAY_ADDRESS names, or a small local one."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

import ray

OBJECT_STORE_BYTES = 1 << 30
"""Of a local cluster; tables stream through it, they need not fit."""


@contextmanager
def connected(
    cpus: int | None = None, metrics_port: int | None = None, dashboard: bool = False
) -> Generator[None]:
    """Run a block connected to Ray, and disconnect afterwards if it was not connected before.

    Args:
        cpus: of a local cluster, where one is started; None takes the machine's.
        metrics_port: where a local cluster shows Prometheus its figures; None takes any free port.
        dashboard: start a local cluster's, on loopback. Ray Train asks it which trainings are dead, to free
            what these had reserved.
    """
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            # The C++ core tells of every actor that it cannot restart; its log files keep the rest.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            # Ray Data and Ray Train start more processes than a small machine has cores, and Ray says so.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
        ray.init(
            address=address or "local",
            num_cpus=None if address else cpus,
            object_store_memory=None if address else OBJECT_STORE_BYTES,
            include_dashboard=None if address else dashboard,
            log_to_driver=False,
            _metrics_export_port=None if address else metrics_port,
            logging_level=logging.ERROR,
        )
    _quiet_data()
    try:
        with _interruptible():
            yield
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _interruptible() -> Generator[None]:
    """Let Ctrl-C end a block as KeyboardInterrupt: Ray Train's handler aborts, then exits with success."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGINT, before)


def _quiet_data() -> None:
    """Show Ray Data's progress bars on terminals only, and of its log only errors."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
