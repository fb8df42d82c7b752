"""A Ray Serve application that does nothing, in the shape of ours: what the service is measured against.

An ingress takes the body and hands it to one deployment behind it, which answers bytes as long as ours.
"""

# Serve reads the annotations of routes as they stand, so annotations are no strings here.

import json
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

NUMBER = 0.10000000149011612
"""As many digits as a float32 has in JSON."""

SCORED: dict[str, Any] = {
    "object": "raypref.score",
    "id": "score-" + "0" * 32,
    "model": "bundle-384@" + "0" * 12,
    "data": [
        {
            "user": "user-500",
            "version": 4,
            "shots": 4,
            "cold": False,
            "degraded": False,
            "mean": [NUMBER] * 8,
            "std": [NUMBER] * 8,
            "probability": [NUMBER] * 8,
        }
    ],
}
LEARNED: dict[str, Any] = {
    "user": "user-500",
    "version": 5,
    "shots": 5,
    "cold": False,
    "model": "bundle-384@" + "0" * 12,
    "weights": [NUMBER] * 32,
    "std": [NUMBER] * 32,
    "nearest": [{"basis": 0, "distance": NUMBER, "weight": None}] * 3,
    "object": "raypref.user",
    "applied": 1,
    "duplicates": 0,
    "erased": 0,
    "event_ids": ["0" * 20],
}
ANSWERS = {name: json.dumps(body).encode() for name, body in (("score", SCORED), ("learn", LEARNED))}

app = FastAPI()


class Worker:
    """Takes a body and answers what it always answers."""

    async def work(self, kind: str, body: bytes) -> bytes:
        """Return the answer to a kind of request."""
        return ANSWERS[kind]


@serve.ingress(app)  # pyright: ignore[reportUntypedClassDecorator]
class Front:
    """Passes bodies on."""

    def __init__(self, worker: DeploymentHandle) -> None:
        """Take the deployment behind."""
        self._worker = worker

    @app.post("/v1/score")
    async def score(self, request: Request) -> Response:
        """Answer as `POST /v1/score` would."""
        return await self._pass("score", request)

    @app.post("/v1/users/{user}/comparisons")
    async def learn(self, user: str, request: Request) -> Response:
        """Answer as `POST /v1/users/{user}/comparisons` would."""
        return await self._pass("learn", request)

    async def _pass(self, kind: str, request: Request) -> Response:
        found: bytes = await self._worker.work.remote(kind, await request.body())
        return Response(found, media_type="application/json")


def build(args: dict[str, Any]) -> Application:
    """Return the application; it takes no arguments."""
    # Serve's decorator is typed for decoration only.
    worker = cast(Deployment, serve.deployment(cast(Any, Worker), name="Worker", max_ongoing_requests=256))
    front = cast(Deployment, serve.deployment(cast(Any, Front), name="Front", max_ongoing_requests=1024))
    return front.bind(worker.bind())
