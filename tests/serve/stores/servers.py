"""Real database servers for the tests, on loopback, in folders of their own."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ACCOUNT = "postgres"
"""PostgreSQL refuses to run as root; started by root, it runs as this user."""


def binary(name: str) -> str:
    """Return the path of a server's program; skip where it is missing, fail where CI has to have it."""
    places = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))
    if found is None:
        message = f"{name} is not installed; apt-get install postgresql redis-server"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server(ABC):
    """A server process with its folder and port; it can be frozen, killed and started again."""

    url: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def ready(self) -> bool: ...

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            account = ACCOUNT if self.drops_root() else None
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=account,
                group=account,
                extra_groups=[] if account else None,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def drops_root(self) -> bool:
        return False

    def _all(self) -> list[psutil.Process]:
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server and its children."""
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        processes = self._all()
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)
        psutil.wait_procs(processes, timeout=30)


class Postgres(Server):
    """PostgreSQL, with a database for every test."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self.settings = settings
        self.data = folder / "data"
        self._databases = 0
        if self.drops_root():
            shutil.chown(folder, ACCOUNT, ACCOUNT)
        subprocess.run(
            [
                binary("initdb"),
                "-D",
                str(self.data),
                "-U",
                "tester",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            user=ACCOUNT if self.drops_root() else None,
            group=ACCOUNT if self.drops_root() else None,
        )

    def drops_root(self) -> bool:
        return os.geteuid() == 0

    def command(self) -> list[str]:
        defaults = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "32MB"}
        settings = defaults | {"port": str(self.port)} | self.settings
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [binary("postgres"), "-D", str(self.data), *options]

    def address(self, database: str = "postgres") -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True, connect_timeout=5) as db:
            cursor = db.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def ready(self) -> bool:
        import psycopg

        try:
            return self.execute("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def new_url(self) -> str:
        """Create an empty database and return its url."""
        self._databases += 1
        name = f"test{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.address(name)


class Redis(Server):
    """Redis (or Valkey), emptied for every test."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self.settings = {"appendonly": "yes", "appendfsync": "always"} | settings

    def command(self) -> list[str]:
        settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder), "save": ""}
        options = [
            part for name, value in (settings | self.settings).items() for part in (f"--{name}", value)
        ]
        return [binary("redis-server"), *options]

    def address(self, query: str = "") -> str:
        return f"redis://127.0.0.1:{self.port}/0{query}"

    def client(self):
        import redis

        return redis.Redis(port=self.port, socket_timeout=5)

    def ready(self) -> bool:
        import redis

        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.ResponseError):
            return False

    def new_url(self) -> str:
        """Empty the server and return its url."""
        with self.client() as client:
            client.flushall()
        return self.address()
