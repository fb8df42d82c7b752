"""A small real service on loopback, with the native API's shapes, which misbehaves as it is told to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response

from raypref.wire.answers import ScoreAnswer, UserAnswer, UserScores
from raypref.wire.arrays import Encoded, vector
from raypref.wire.errors import WireError
from raypref.wire.requests import (
    Bulk,
    DecayRequest,
    Item,
    LearnRequest,
    RankRequest,
    ScoreRequest,
    SuggestRequest,
)
from raypref.wire.tensors import MEDIA_TYPE, pack_answer, unpack_request

MODEL = "planted@0123"


def expected(user: str | None, item: Any) -> float:
    """The mean that this service gives an item for a user: decided by both alone."""
    if isinstance(item, np.ndarray):
        return float(item.astype(np.float32).sum())
    digest = hashlib.sha256(f"{user}\0{item}".encode()).digest()
    return int.from_bytes(digest[:2]) / 65536


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class State:
    url: str
    faults: list[str] = field(default_factory=list)
    """What to do wrong in the next requests, one each; `after:` does the work first."""
    always: str | None = None
    """What to do wrong in every request."""
    seen: list[Seen] = field(default_factory=list)
    comparisons: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Of each user, by event id; what of each was stored."""
    decays: dict[str, float] = field(default_factory=dict)
    cold: bool = False
    std: bool = True
    api_key: str | None = None
    released: threading.Event = field(default_factory=threading.Event)
    under_way: int = 0
    most_under_way: int = 0


def application(state: State) -> FastAPI:
    app = FastAPI()

    def user_answer(user: str, **more: Any) -> dict[str, Any]:
        shots = len(state.comparisons.get(user, {}))
        answer = UserAnswer(user=user, version=shots, shots=shots, cold=not shots, model=MODEL)
        return {**answer.model_dump(), **more}

    async def parsed(request: Request, model: Any) -> tuple[Any, dict[str, np.ndarray]]:
        body = await request.body()
        if request.headers["content-type"] == MEDIA_TYPE:
            return unpack_request(body, model)
        return model.model_validate_json(body), {}

    def value_of(item: Item) -> Any:
        if item.embedding is not None:
            return vector(item.embedding)
        return item.item if item.text is None else json.dumps(item.model_dump()["text"])

    def means(
        asked: ScoreRequest | RankRequest, tensors: dict[str, np.ndarray], user: str | None
    ) -> np.ndarray:
        if "candidates" in tensors:
            return tensors["candidates"].astype(np.float32).sum(1)
        if isinstance(asked.candidates, Bulk):
            return asked.candidates.embeddings.array().astype(np.float32).sum(1)
        return np.array([expected(user, value_of(item)) for item in asked.candidates], np.float32)

    @app.post("/v1/users/{user}/comparisons")
    async def learn(user: str, request: Request) -> dict[str, Any]:
        asked, tensors = await parsed(request, LearnRequest)
        kept = state.comparisons.setdefault(user, {})
        new = 0
        for place, one in enumerate(asked.comparisons):
            if "chosen" in tensors:
                raw = tensors["chosen"][place].tobytes() + tensors["rejected"][place].tobytes()
            else:
                raw = one.model_dump_json(include={"chosen", "rejected"}).encode()
            new += one.event_id not in kept
            kept.setdefault(one.event_id, raw)
        ids = [one.event_id for one in asked.comparisons]
        return user_answer(user, applied=new, duplicates=len(ids) - new, erased=0, event_ids=ids)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        asked, tensors = await parsed(request, ScoreRequest)
        users = asked.users or [asked.user]
        mean_UN = np.stack([means(asked, tensors, user) for user in users])
        if MEDIA_TYPE in request.headers["accept"]:
            ones_U = np.ones(len(users), np.int64)
            flags_U = np.full(len(users), state.cold, np.uint8)
            body = pack_answer(
                {"id": "s", "model": MODEL, "users": [user for user in users if user is not None]},
                {"mean": mean_UN, "probability": mean_UN * 0 + 0.5, "version": ones_U, "shots": ones_U}
                | {"cold": flags_U, "degraded": flags_U * 0}
                | ({"std": mean_UN * 0 + 0.1} if state.std else {}),
            )
            return Response(body, media_type=MEDIA_TYPE)
        assert asked.encoding == "base64"
        rows = [
            UserScores(
                user=user,
                version=1,
                shots=1,
                cold=state.cold,
                mean=Encoded.of(mean_N),
                std=Encoded.of(mean_N * 0 + 0.1) if state.std else None,
                probability=Encoded.of(mean_N * 0 + 0.5),
            )
            for user, mean_N in zip(users, mean_UN, strict=True)
        ]
        answer = ScoreAnswer(id="s", model=MODEL, data=rows)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post("/v1/rank")
    async def rank(request: Request) -> dict[str, Any]:
        asked, tensors = await parsed(request, RankRequest)
        data = []
        for user in asked.users or [asked.user]:
            mean_N = means(asked, tensors, user).astype(float)
            order = np.argsort(-mean_N)[: asked.top]
            ranking = [
                {
                    "index": int(n),
                    "score": float(mean_N[n]),
                    "mean": float(mean_N[n]),
                    "std": None,
                    "probability": 0.5,
                }
                for n in order
            ]
            data.append({"user": user, "version": 1, "shots": 1, "cold": False, "ranking": ranking})
        return {"id": "r", "model": MODEL, "data": data}

    @app.post("/v1/suggest")
    async def suggest(request: Request) -> dict[str, Any]:
        asked, _ = await parsed(request, SuggestRequest)
        pair = {"gain": 0.1, "probability": 0.5, "std": 1.0}
        data = [pair | {"index": n} for n in range(min(asked.top, len(asked.pairs)))]
        who = {"user": asked.user, "version": 1, "shots": 1, "cold": False}
        return {"id": "g", "model": MODEL, **who, "data": data}

    @app.post("/v1/users/{user}/decay")
    async def decay(user: str, request: Request) -> dict[str, Any]:
        asked, _ = await parsed(request, DecayRequest)
        state.decays.setdefault(asked.event_id, asked.factor)
        return user_answer(user)

    @app.get("/v1/users/{user}")
    async def user(user: str) -> dict[str, Any]:
        return user_answer(user)

    @app.delete("/v1/users/{user}")
    async def erase(user: str) -> dict[str, Any]:
        return {"id": user, "deleted": state.comparisons.pop(user, None) is not None}

    @app.delete("/v1/users/{user}/comparisons/{event_id}")
    async def forget(user: str, event_id: str) -> dict[str, Any]:
        gone = state.comparisons.get(user, {}).pop(event_id, None)
        return {"id": event_id, "deleted": gone is not None}

    @app.get("/v1/users/{user}/export")
    async def export(user: str) -> dict[str, Any]:
        items = {"chosen": {"item": 1}, "rejected": {"item": 2}}
        stored = [
            {"event_id": one, "timestamp": 1.0, "weight": 1.0, **items}
            for one in state.comparisons.get(user, {})
        ]
        whole = Encoded.of(np.array([0.25, 0.75], np.float32)).model_dump()
        return {"user": user, "version": 1, "model": MODEL, "vector": whole, "comparisons": stored}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": MODEL, "created": 1, "method": "bt", "dim": 4, "embedder": {}, "accepts": ["embedding"]}
        return {"data": [{**card, "uncertain": True, "seen_users": 3}]}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


class Unruly:
    """Stands before the application and spoils requests, down to the connection."""

    def __init__(self, app: FastAPI, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        state = self.state
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        state.seen.append(Seen(scope["method"], scope["path"], headers, body))
        fault = state.faults.pop(0) if state.faults else state.always
        if state.api_key is not None and headers.get("authorization") != f"Bearer {state.api_key}":
            fault = "401"
        state.under_way += 1
        state.most_under_way = max(state.most_under_way, state.under_way)
        try:
            await self._answer(fault or "", body, scope, send)
        finally:
            state.under_way -= 1

    async def _answer(self, fault: str, body: bytes, scope: Any, send: Any) -> None:
        parts: list[Any] = []

        async def again() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Any) -> None:
            parts.append(message)

        if not fault or fault.startswith("after:"):
            await self.app(scope, again, keep)
            fault = fault.removeprefix("after:")
            if not fault:
                for part in parts:
                    await send(part)
                return
        kind, _, argument = fault.partition(" ")
        if kind.isdigit():
            refusal = WireError(int(kind), f"told to answer {kind}", "candidates")
            extra = [(b"retry-after", argument.encode())] if argument else []
            await send({"type": "http.response.start", "status": int(kind), "headers": extra})
            await send({"type": "http.response.body", "body": refusal.body()})
        elif kind == "hang":
            while not self.state.released.is_set():
                await asyncio.sleep(0.02)
        elif kind == "drip":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9999")]}
            )
            while not self.state.released.is_set():
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
                await asyncio.sleep(0.05)
        elif kind in ("half", "reset"):
            headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"object": ', "more_body": True})
            transport = send.__self__.transport
            if kind == "reset":
                # Lingering for no time at all is what sends a reset.
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                transport.abort()
            else:
                transport.close()
        elif kind == "slow":
            await asyncio.sleep(float(argument))
            await self._answer("", body, scope, send)
        else:
            content = {"html": b"<html>", "nan": argument.encode(), "json": b'{"some": "thing"}'}[kind]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": content})


@contextmanager
def serving() -> Iterator[State]:
    """Run the service in a thread; the state is what it knows and does."""
    # Named, because asyncio sends small parts at once only over sockets that say they are TCP.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        state = State(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            Unruly(application(state), state),
            loop="asyncio",
            http="h11",
            lifespan="off",
            log_level="critical",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.should_exit = True
            server.force_exit = True
            thread.join()
