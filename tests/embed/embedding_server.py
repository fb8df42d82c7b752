"""A small real embeddings server on loopback, which fails as it is told to."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

DIM = 8


def vector(text: str) -> np.ndarray:
    """The embedding that the server gives a text: of unit length, decided by the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    emb_D = np.random.default_rng(seed).normal(size=DIM)
    return (emb_D / np.linalg.norm(emb_D)).astype(np.float32)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.guard = threading.Lock()
        self.times: Counter[str] = Counter()
        """How often each text was embedded."""
        self.faults: list[str] = []
        """What to do wrong in the next requests, one each."""
        self.requests = 0
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.pause_s = 0.0

    def fault(self) -> str | None:
        with self.guard:
            self.requests += 1
            return self.faults.pop(0) if self.faults else None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        with server.guard:
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            server.headers.append(dict(self.headers))
        texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        time.sleep(server.pause_s)
        answer = self._answer(texts, server.fault())
        # Counted down before the client can know, so that its next request is not counted beside this one.
        with server.guard:
            server.under_way -= 1
        if answer:
            self._send(*answer)
        else:
            self.close_connection = True

    def _answer(self, texts: list[str], fault: str | None) -> tuple[int, dict[str, Any]] | None:
        if fault and fault.isdigit():
            return int(fault), {"error": "told to fail"}
        if fault in ("hang", "drop"):
            time.sleep(1.5 if fault == "hang" else 0)
            return None
        data = [{"index": n, "embedding": vector(text).tolist()} for n, text in enumerate(texts)]
        if fault == "count":
            data.pop()
        elif fault == "nan":
            data[-1]["embedding"][3] = math.nan
        elif fault == "null":
            data[-1]["embedding"][3] = None
        elif fault == "dim":
            data[-1]["embedding"].pop()
        elif fault == "index":
            data[-1]["index"] = 0
        elif fault == "json":
            return 200, {"no": "data"}
        elif fault == "short":
            data[-1]["embedding"] = [0.0] * DIM
        with self.server.guard:
            self.server.times.update(texts)
        return 200, {"data": data[::-1]}

    def _send(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        if status != 200:
            self.send_header("retry-after", "0.2")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
