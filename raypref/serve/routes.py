"""The routes of the native API."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from raypref.serve.calls import Scored
from raypref.serve.service import Service, Tensors
from raypref.wire.answers import (
    Deleted,
    ErrorAnswer,
    ExportAnswer,
    LearnAnswer,
    ModelsAnswer,
    RankAnswer,
    Ranked,
    ScoreAnswer,
    SuggestAnswer,
    UserAnswer,
    UserRanking,
)
from raypref.wire.arrays import encoded_rows
from raypref.wire.errors import WireError
from raypref.wire.ids import Id
from raypref.wire.invalid import refusal_of
from raypref.wire.requests import (
    DecayRequest,
    LearnRequest,
    RankRequest,
    ScoreRequest,
    SuggestRequest,
)
from raypref.wire.requests import Request as WireRequest
from raypref.wire.tensors import MEDIA_TYPE, pack_answer, unpack_request

R = TypeVar("R", bound=WireRequest)

_ID = TypeAdapter[str](Id)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": what}
    for status, what in (
        (400, "The body is no JSON."),
        (401, "No valid API key."),
        (413, "The body is too large."),
        (422, "The request does not fit; `param` says where."),
        (429, "Too much is under way; come back after Retry-After seconds."),
        (503, "The store or the model is not to be had; come back after Retry-After seconds."),
    )
}


def native_router(service: Service) -> APIRouter:
    """Return the routes under /v1, and the probes."""
    router = APIRouter(responses=ERRORS)

    @router.post(
        "/v1/users/{user}/comparisons",
        response_model=LearnAnswer,
        openapi_extra=_body(LearnRequest),
        tags=["users"],
    )
    async def learn(user: str, request: Request) -> Response:
        """Add comparisons to a user: at 200 they are durable. With `event_id` a retry is harmless."""
        wanted, tensors = _read(request, LearnRequest)
        return _json(await service.learn(_tenant(request), _id(user, "user"), wanted, tensors))

    @router.get("/v1/users/{user}", response_model=UserAnswer, tags=["users"])
    async def user(user: str, request: Request) -> Response:
        """What is known of a user; a user who never compared anything is `cold`."""
        return _json(await service.user(_tenant(request), _id(user, "user")))

    @router.delete("/v1/users/{user}", response_model=Deleted, tags=["users"])
    async def erase(user: str, request: Request) -> Response:
        """Erase a user: comparisons, vector, everything. Late retries do not bring them back."""
        return _json(await service.erase(_tenant(request), _id(user, "user")))

    @router.delete("/v1/users/{user}/comparisons/{event_id}", response_model=Deleted, tags=["users"])
    async def forget(user: str, event_id: str, request: Request) -> Response:
        """Remove one comparison, exactly: the user is as if it had never been."""
        return _json(await service.forget(_tenant(request), _id(user, "user"), _id(event_id, "event_id")))

    @router.get("/v1/users/{user}/export", response_model=ExportAnswer, tags=["users"])
    async def export(user: str, request: Request) -> Response:
        """All that is kept of a user."""
        return _json(await service.export(_tenant(request), _id(user, "user")))

    @router.post(
        "/v1/users/{user}/decay",
        response_model=UserAnswer,
        openapi_extra=_body(DecayRequest),
        tags=["users"],
    )
    async def decay(user: str, request: Request) -> Response:
        """Make a user's comparisons so far count less: tastes change."""
        wanted, _ = _read(request, DecayRequest)
        return _json(await service.decay(_tenant(request), _id(user, "user"), wanted))

    @router.post("/v1/score", response_model=ScoreAnswer, openapi_extra=_body(ScoreRequest), tags=["rewards"])
    async def score(request: Request) -> Response:
        """Rewards of candidates for one user, many users, or nobody in particular."""
        wanted, tensors = _read(request, ScoreRequest)
        scored = await service.score(_tenant(request), wanted, tensors)
        if MEDIA_TYPE in request.headers.get("accept", ""):
            return _bulk(scored)
        return _scores(scored, encoded_rows if wanted.encoding == "base64" else np.ascontiguousarray)

    @router.post("/v1/rank", response_model=RankAnswer, openapi_extra=_body(RankRequest), tags=["rewards"])
    async def rank(request: Request) -> Response:
        """The best of N, most preferred first; with `risk` by mean − λ·std."""
        wanted, tensors = _read(request, RankRequest)
        scored = await service.score(_tenant(request), wanted, tensors)
        return _json(_ranking(scored, wanted.risk, wanted.top))

    @router.post(
        "/v1/suggest", response_model=SuggestAnswer, openapi_extra=_body(SuggestRequest), tags=["rewards"]
    )
    async def suggest(request: Request) -> Response:
        """Which of these pairs to ask the user about next, by expected information gain."""
        wanted, tensors = _read(request, SuggestRequest)
        return _json(await service.suggest(_tenant(request), wanted, tensors))

    @router.get("/v1/models", response_model=ModelsAnswer, tags=["service"])
    async def models() -> Response:
        """The model that is served."""
        return _json(await service.models())

    @router.get("/healthz", tags=["service"])
    async def healthz() -> Response:
        """Whether this process answers."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    @router.get("/readyz", tags=["service"])
    async def readyz() -> Response:
        """Whether the bundle asked for serves, the store answers and text is embedded as it needs."""
        trouble = await service.trouble()
        if trouble is not None:
            raise WireError(503, trouble, retry_after_s=1)
        return Response(b'{"status":"ready"}', media_type="application/json")

    return router


def _read(request: Request, model: type[R]) -> tuple[R, Tensors]:
    """Return a request's body, checked, and the tensors that came with it."""
    body: bytes = request.state.body
    if getattr(request.state, "bulk", False):
        return unpack_request(body, model)
    try:
        return model.model_validate_json(body), {}
    except ValidationError as error:
        raise refusal_of(error) from None


def _tenant(request: Request) -> str:
    return request.state.tenant


def _id(value: str, param: str) -> str:
    try:
        return _ID.validate_python(value)
    except ValidationError:
        raise WireError(
            422,
            f"{param}: up to 128 letters, digits and . _ ~ @ : + = -, not beginning with a dot.",
            param,
        ) from None


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _scores(scored: Scored, rows: Callable[[np.ndarray], Iterable[Any]]) -> Response:
    """Return a `ScoreAnswer`, written row by row: models of a thousand users cost more than their numbers."""
    data = [
        {
            "user": user,
            "version": version,
            "shots": shots,
            "cold": not shots,
            "degraded": scored.degraded,
            "mean": mean,
            "std": std,
            "probability": probability,
        }
        for user, version, shots, mean, std, probability in zip(
            scored.users or (None,),
            scored.version_U.tolist(),
            scored.shots_U.tolist(),
            rows(scored.mean_UN),
            repeat(None) if scored.std_UN is None else rows(scored.std_UN),
            rows(scored.probability_UN),
            strict=False,
        )
    ]
    answer = {
        "object": "raypref.score",
        "id": f"score-{uuid.uuid4().hex}",
        "model": scored.model,
        "data": data,
    }
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


def _bulk(scored: Scored) -> Response:
    tensors = {
        "mean": scored.mean_UN,
        "probability": scored.probability_UN,
        "version": scored.version_U.astype(np.int64),
        "shots": scored.shots_U.astype(np.int64),
        "cold": (scored.shots_U == 0).astype(np.uint8),
        "degraded": np.full(len(scored.shots_U), scored.degraded, np.uint8),
    }
    if scored.std_UN is not None:
        tensors["std"] = scored.std_UN
    head = {
        "object": "raypref.score",
        "id": f"score-{uuid.uuid4().hex}",
        "model": scored.model,
        "users": list(scored.users or (None,)),
    }
    return Response(pack_answer(head, tensors), media_type=MEDIA_TYPE)


def _ranking(scored: Scored, risk: float, top: int | None) -> RankAnswer:
    std_UN = np.zeros_like(scored.mean_UN) if scored.std_UN is None else scored.std_UN
    score_UN = scored.mean_UN - risk * std_UN
    data: list[UserRanking] = []
    for row, user in enumerate(scored.users or (None,)):
        order = np.argsort(-score_UN[row], kind="stable")[:top]
        data.append(
            UserRanking(
                user=user,
                version=int(scored.version_U[row]),
                shots=int(scored.shots_U[row]),
                cold=not scored.shots_U[row],
                degraded=scored.degraded,
                ranking=[
                    Ranked(
                        index=int(index),
                        score=float(score_UN[row, index]),
                        mean=float(scored.mean_UN[row, index]),
                        std=None if scored.std_UN is None else float(scored.std_UN[row, index]),
                        probability=float(scored.probability_UN[row, index]),
                    )
                    for index in order
                ],
            )
        )
    return RankAnswer(id=f"rank-{uuid.uuid4().hex}", model=scored.model, data=data)


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI of a body: JSON of `model`, or the same as safetensors."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    content: dict[str, Any] = {
        "application/json": {"schema": schema},
        MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
    }
    return {"requestBody": {"required": True, "content": content}}
