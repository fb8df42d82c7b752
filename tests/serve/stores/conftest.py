from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serve.stores.servers import Server


@contextmanager
def running(make: Callable[[Path], Server]) -> Iterator[Server]:
    # Not under pytest's folders: those are closed to the account that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="raypref-server-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        server = make(Path(folder))
        try:
            server.start()
            yield server
        finally:
            if server.process is not None:
                server.kill()
