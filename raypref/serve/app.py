"""The Ray Serve application: an ingress, Scorers behind it and, where text comes in, Embedders."""

# Serve reads the annotation of `build` as it stands, so annotations are no strings here.

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from raypref import __version__
from raypref.checkpoint import read_info
from raypref.config import EmbedConfig
from raypref.hub import resolve
from raypref.schema import Embedder as EmbedderIdentity
from raypref.serve.compat import compat_router
from raypref.serve.config import ServeConfig, ServeSettings
from raypref.serve.embedder import embedder_deployment, matching, rendered, rendered_prompt
from raypref.serve.exchange import ASGIApp
from raypref.serve.guard import Guard
from raypref.serve.intake import TextEmbedder
from raypref.serve.keys import Keys
from raypref.serve.meter import Meter
from raypref.serve.pages import page_router
from raypref.serve.refusals import install_refusals
from raypref.serve.remote import RayRemote, Remote
from raypref.serve.rewards import TextRewards
from raypref.serve.routes import native_router
from raypref.serve.scorer import Scorer
from raypref.serve.service import Service
from raypref.serve.spans import within
from raypref.serve.tracing import open_tracer
from raypref.wire.requests import DecayRequest, LearnRequest, RankRequest, ScoreRequest, SuggestRequest, Text

ALONE = "memory:"
"""The store that no two replicas can share."""

ONGOING = 3
"""Messages under way at a Scorer that keep it busy; each holds many requests."""

REQUESTS = (DecayRequest, LearnRequest, RankRequest, ScoreRequest, SuggestRequest)


def make_app(config: ServeSettings, scorer: Remote, embedder: TextEmbedder | None) -> ASGIApp:
    """Return the ASGI application of one ingress process."""
    meter = Meter()
    tracer = open_tracer(config.tracing, "ingress")
    service = Service(config, scorer, embedder, meter, tracer)
    app = FastAPI(title="raypref", version=__version__, summary="Personal rewards over HTTP.")
    app.include_router(native_router(service))
    app.include_router(compat_router(TextRewards(scorer, embedder, meter)))
    if config.explore is not None:
        app.include_router(page_router(config.explore))
    install_refusals(app)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            _, definitions = models_json_schema(
                [(model, "validation") for model in REQUESTS], ref_template="#/components/schemas/{model}"
            )
            found["components"]["schemas"] |= definitions["$defs"]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi
    keys = None if config.keys is None else Keys.load(config.keys)
    return Guard(app, config.limits, keys, meter, tracer)


class RayEmbedder:
    """Embedders behind a Serve handle, as `TextEmbedder`."""

    def __init__(self, remote: Remote, config: EmbedConfig) -> None:
        """Render text as `config` says."""
        self._remote = remote
        self._config = config
        self._identity: EmbedderIdentity | None = None

    async def embed(self, items: Sequence[tuple[Text | None, Text]]) -> tuple[np.ndarray, EmbedderIdentity]:
        """Return embeddings and what made them; see `TextEmbedder.embed`."""
        identity, template = await self.describe(), self._config.template
        texts = [rendered(template, prompt, response) for prompt, response in items]
        if self._config.prompts:
            texts += [rendered_prompt(template, prompt or "") for prompt, _ in items]
        with within("Embedder.embed", "client", texts=len(texts)):
            emb_ND: np.ndarray = await self._remote.call("embed", texts)
        if self._config.prompts:
            emb_ND = np.concatenate(np.split(emb_ND, 2), 1)
        return emb_ND, identity

    async def describe(self) -> EmbedderIdentity:
        """Return which map from text to vectors this is; the same for the life of the deployment."""
        if self._identity is None:
            self._identity = cast(EmbedderIdentity, await self._remote.call("describe"))
        return self._identity


class Ingress:
    """One ingress replica: the ASGI application, with handles to the other deployments."""

    def __init__(
        self, config: ServeSettings, scorer: DeploymentHandle, embedder: DeploymentHandle | None
    ) -> None:
        """Build the application."""
        text: TextEmbedder | None = None
        if embedder is not None and config.embed is not None:
            text = RayEmbedder(RayRemote(embedder, config.timeout_s), config.embed)
        self._app = make_app(config, RayRemote(scorer, config.timeout_s), text)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what Serve is to hand requests to."""
        return self._app


def build(args: ServeConfig) -> Application:
    """Return the application; what Serve's configuration says of a deployment overrides what is set here.

    `bundle` reaches the Scorers as `user_config`, where a configuration may name another one: replicas swap
    to it in place. A change of `args` starts them anew.
    """
    if args.embed is not None:
        args = args.model_copy(update={"embed": matching(args.embed, read_info(resolve(args.bundle)))})
    settings = args.settings
    scorer = _deployment(
        Scorer,
        name="Scorer",
        user_config={"bundle": args.bundle},
        max_ongoing_requests=4 * args.batch,
        max_queued_requests=8 * args.batch,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 1 if args.store.startswith(ALONE) else 4,
            "target_ongoing_requests": ONGOING,
            "upscale_delay_s": 3,
            "downscale_delay_s": 60,
        },
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=args.timeout_s,
        ray_actor_options={"num_cpus": 1},
    )
    ingress = _deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        # The guard answers what is too much, at once; Serve would let it wait.
        max_ongoing_requests=4 * args.limits.max_in_flight,
        num_replicas=1,
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=args.timeout_s,
        ray_actor_options={"num_cpus": 0.5},
    )
    embedder = None if args.embed is None else embedder_deployment(args.embed).bind(args.embed)
    return ingress.bind(settings, scorer.bind(settings, args.bundle), embedder)


def _deployment(kind: type[Any], **options: Any) -> Deployment:
    # Serve's decorator is typed for decoration only.
    return cast(Deployment, serve.deployment(kind, **options))
