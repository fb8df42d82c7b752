"""The Ray cluster that a run uses: the one it is told of, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import sys


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one; nothing if connected already."""
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    context = DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
