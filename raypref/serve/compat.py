"""Routes of other reward servers, so that their clients find a personal reward where they expect a reward.

Shapes are theirs (OpenRLHF, vLLM, Text Embeddings Inference); the user comes from OpenAI's field `user`, or
from OpenRLHF's `labels`. A 4xx says that the request itself is wrong: these clients never retry one.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from raypref.serve import compat_openrlhf, compat_rerank, compat_tei, compat_vllm
from raypref.serve.compat_base import Answering, Rewarded, Rewards, ScoredText
from raypref.wire.answers import ErrorAnswer

__all__ = ["COMPAT_PATHS", "Rewarded", "Rewards", "ScoredText", "compat_router"]

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")

COMPAT_PATHS = frozenset({"/get_reward", "/classify", "/score", "/pooling", "/predict", *RERANK_PATHS})
"""Where overload is answered with 503: their clients never retry a 4xx."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body is no JSON."},
    422: {"model": ErrorAnswer, "description": "The request breaks a rule."},
    503: {"model": ErrorAnswer, "description": "Overloaded, or a part is down: try again."},
}


def compat_router(rewards: Rewards) -> APIRouter:
    """Return the routes of other servers, scored by `rewards`."""
    router = APIRouter(tags=["compatibility"], responses=_ERRORS)

    def add(path: str, answering: Answering, asked: list[type[BaseModel]], answer: Any) -> None:
        async def route(request: Request) -> Response:
            return Response(to_json(await answering(rewards, request)), media_type="application/json")

        schemas = [model.model_json_schema() for model in asked]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        router.add_api_route(
            path,
            route,
            methods=["POST"],
            response_model=answer,
            name=path.strip("/").replace("/", "_"),
            description=answering.__doc__,
            openapi_extra={"requestBody": body},
        )

    vllm, pairs, tei, openrlhf = compat_vllm, compat_rerank, compat_tei, compat_openrlhf
    add("/get_reward", openrlhf.get_reward, [openrlhf.RewardRequest], openrlhf.RewardAnswer)
    add("/classify", vllm.classify, [vllm.InputRequest], vllm.ClassifyAnswer)
    add("/pooling", vllm.pooling, [vllm.PoolingRequest], vllm.PoolingAnswer)
    add("/score", pairs.score_pairs, [pairs.ScoreRequest], pairs.ScoreAnswer)
    add(
        "/predict",
        tei.predict,
        [tei.PredictRequest],
        list[tei.Prediction] | list[list[tei.Prediction]],
    )
    for path in RERANK_PATHS:
        add(path, _rerank, [pairs.RerankRequest, tei.TextsRequest], pairs.RerankAnswer | list[tei.Rank])
    return router


async def _rerank(rewards: Rewards, request: Request) -> BaseModel | list[Any]:
    """Answer in vLLM's form or, where the body has `texts`, in that of Text Embeddings Inference."""
    if _has_texts(request.state.body):
        return await compat_tei.rank(rewards, request)
    return await compat_rerank.rerank(rewards, request)


def _has_texts(body: bytes) -> bool:
    if b'"texts"' not in body:
        return False
    try:
        fields = from_json(body)
    except ValueError:
        return False
    return isinstance(fields, dict) and "texts" in fields
