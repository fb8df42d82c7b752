"""Clients that ask again the moment they are answered, at next to no cost: they share the machine."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

from tests.serve.chaos.load import score_body

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)


@dataclass
class Blows:
    """What came back."""

    lasted_s: float
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Of answers with status 200."""
    unsound: list[bytes] = field(default_factory=list)
    """Refusals that are not in OpenAI's error form, or do not say when to come back."""
    broken: int = 0
    """Connections that ended without an answer."""

    @property
    def served_per_s(self) -> float:
        """Requests with status 200 in a second."""
        return self.statuses[200] / self.lasted_s

    def __str__(self) -> str:
        """Say it in a line."""
        ordered = sorted(self.seconds) or [0.0]
        p50_s, p99_s = (ordered[int(part * (len(ordered) - 1))] for part in (0.5, 0.99))
        return (
            f"{self.served_per_s:.0f}/s served, p50 {p50_s:.3f} s, p99 {p99_s:.3f} s, "
            f"statuses {dict(self.statuses)}, {self.broken} broken"
        )


class _Client(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, request: bytes, blows: Blows) -> None:
        self._request = request
        self._blows = blows
        self._received = b""
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._begun_s = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or (length is not None and len(body) < int(length[1])):
            return
        self._received = b""
        status = int(head[9:12])
        if not self.stopped:
            self._blows.statuses[status] += 1
            if status == 200:
                self._blows.seconds.append(time.monotonic() - self._begun_s)
            elif not (_RETRY_AFTER.search(head) and body.startswith(b'{"error":{"message":')):
                self._blows.unsound.append(head + body)
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.stopped:
            self._blows.broken += 1


async def hammer(url: str, clients: int, lasts_s: float, users: int = 20) -> Blows:
    """Ask for scores with that many clients, for so long."""
    where = httpx.URL(url)
    blows = Blows(lasts_s)
    loop = asyncio.get_running_loop()
    connections: list[tuple[asyncio.Transport, _Client]] = []
    for number in range(clients):
        body = score_body(number % 16, f"user-{number % users}")
        head = (
            f"POST /v1/score HTTP/1.1\r\nhost: {where.netloc.decode()}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        client = _Client(head.encode() + body, blows)
        connections.append(
            await loop.create_connection(lambda client=client: client, where.host, where.port or 80)
        )
    await asyncio.sleep(lasts_s)
    for transport, client in connections:
        client.stopped = True
        transport.abort()
    await asyncio.sleep(0)
    return blows
