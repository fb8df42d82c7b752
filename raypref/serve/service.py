"""The ingress without HTTP: a request becomes a call of the Scorers, their answer an answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from raypref.errors import MismatchError
from raypref.schema import require_embedder
from raypref.serve import calls
from raypref.serve.batching import Batcher
from raypref.serve.calls import LEARNED_TOGETHER, comparisons_of, scores_of
from raypref.serve.config import ServeSettings
from raypref.serve.intake import Intake, TextEmbedder
from raypref.serve.meter import Meter
from raypref.serve.remote import Remote
from raypref.serve.spans import Tracer, origin, under, within
from raypref.wire.answers import (
    Deleted,
    ExportAnswer,
    LearnAnswer,
    ModelCard,
    ModelsAnswer,
    Near,
    StoredComparison,
    SuggestAnswer,
    Suggestion,
    UserAnswer,
)
from raypref.wire.arrays import Encoded, vector
from raypref.wire.errors import WireError
from raypref.wire.requests import (
    Bulk,
    Comparison,
    DecayRequest,
    LearnRequest,
    Pair,
    RankRequest,
    ScoreRequest,
    SuggestRequest,
    Who,
)

Tensors = Mapping[str, np.ndarray]

A = TypeVar("A")

LANES = 4
"""Messages under way from one ingress to the Scorers, of each kind."""

FUTURE_S = 300.0
"""How far a client's clock may be ahead."""


class Service:
    """What every route does, whatever its form."""

    def __init__(
        self,
        config: ServeSettings,
        scorer: Remote,
        embedder: TextEmbedder | None,
        meter: Meter,
        tracer: Tracer | None = None,
    ) -> None:
        """Stand between the routes and the Scorers."""
        self._config = config
        self._scorer = scorer
        # One message for many requests: a message costs more than the work of a small request.
        self._scores = Batcher(self._send_scores, config.batch, _one_score, config.max_scores, LANES)
        self._learns = Batcher(self._send_learns, config.batch, _one_learn, LEARNED_TOGETHER, LANES)
        self._embedder = embedder
        self._meter = meter
        self._tracer = tracer

    async def learn(self, tenant: str, user: str, request: LearnRequest, tensors: Tensors) -> LearnAnswer:
        """Add comparisons to a user; they are durable when this returns."""
        self._only_ids(request.comparisons, tensors)
        intake = Intake(tensors)
        self._add_pairs(intake, request.comparisons)
        comparisons = _comparisons(request.comparisons, await intake.resolve(self._embedder))
        call = calls.Learn(tenant, user, comparisons, origin())
        learned = _answered(await self._within(self._learns(call)))
        self._meter.applied(learned.applied)
        return LearnAnswer(
            **_known(user, learned.known),
            applied=learned.applied,
            duplicates=learned.duplicates,
            erased=learned.erased,
            event_ids=list(comparisons.event_ids),
        )

    async def score(self, tenant: str, request: ScoreRequest | RankRequest, tensors: Tensors) -> calls.Scored:
        """Score candidates, for one user or many."""
        intake = Intake(tensors)
        candidates = request.candidates
        items = (
            candidates if isinstance(candidates, Bulk) else [(request.prompt, item) for item in candidates]
        )
        count = intake.count(intake.add("candidates", items))
        scores = count * max(1, len(request.users or ()))
        # Before anything is embedded: that costs more than all else.
        if count > self._config.max_candidates or scores > self._config.max_scores:
            raise WireError(
                422,
                f"{scores} scores of {count} candidates: one request may ask for "
                f"{self._config.max_scores} scores of {self._config.max_candidates}; send it in parts.",
                "candidates",
            )
        baseline = request.baseline if isinstance(request, ScoreRequest) else None
        has_baseline = baseline is not None or "baseline" in tensors
        if has_baseline:
            intake.add("baseline", [(request.prompt, baseline)] if baseline is not None else [])
        has_own = self._add_own(intake, request)
        groups = await intake.resolve(self._embedder)
        own = groups[-2:] if has_own else []
        call = calls.Score(
            tenant,
            _who(request, own, tensors),
            groups[0],
            groups[1] if has_baseline else None,
            request.model,
            origin(),
        )
        answer = await self._within(self._scores(call))
        if isinstance(answer, calls.StoreRefused) or (isinstance(answer, calls.Scored) and answer.degraded):
            self._meter.store_failed()
        scored: calls.Scored = _answered(answer)
        cold = int((scored.shots_U == 0).sum()) if scored.users else 0
        self._meter.scored(scored.mean_UN.size, len(scored.users), cold)
        return scored

    async def suggest(self, tenant: str, request: SuggestRequest, tensors: Tensors) -> SuggestAnswer:
        """Rank pairs by the information that the user's answer is expected to give."""
        intake = Intake({name: part for name, part in tensors.items() if name in ("chosen", "rejected")})
        self._add_pairs(intake, request.pairs)
        has_own = self._add_own(intake, request)
        groups = await intake.resolve(self._embedder)
        call = calls.Suggest(
            tenant, _who(request, groups[2:] if has_own else [], tensors), groups[0], groups[1], request.model
        )
        found: calls.Suggested = await self._call("suggest", call)
        best = np.argsort(-found.gain_N, kind="stable")[: request.top]
        return SuggestAnswer(
            id=f"suggest-{uuid.uuid4().hex}",
            model=found.model,
            user=request.user,
            version=found.version,
            shots=found.shots,
            cold=found.shots == 0,
            data=[
                Suggestion(
                    index=int(index),
                    gain=float(found.gain_N[index]),
                    probability=float(found.probability_N[index]),
                    std=float(found.std_N[index]),
                )
                for index in best
            ],
        )

    async def user(self, tenant: str, user: str) -> UserAnswer:
        """Return what is known of a user; of a new one, what is known of everybody."""
        return UserAnswer(**_known(user, await self._call("user", tenant, user)))

    async def erase(self, tenant: str, user: str) -> Deleted:
        """Erase a user."""
        return Deleted(id=user, deleted=await self._call("erase", tenant, user))

    async def forget(self, tenant: str, user: str, event_id: str) -> Deleted:
        """Remove one comparison."""
        known = await self._call("forget", tenant, user, event_id)
        return Deleted(id=event_id, deleted=known is not None)

    async def decay(self, tenant: str, user: str, request: DecayRequest) -> UserAnswer:
        """Make a user's comparisons count less."""
        operation = request.event_id or uuid.uuid4().hex
        at_s = _no_later(request.timestamp, "timestamp")
        known = await self._call("decay", tenant, user, request.factor, operation, at_s)
        if known is None:
            raise WireError(404, f"user {user} has no comparisons.", "user")
        return UserAnswer(**_known(user, known))

    async def export(self, tenant: str, user: str) -> ExportAnswer:
        """Return all that is kept of a user."""
        found: calls.Exported = await self._call("export", tenant, user)
        known = found.known
        return ExportAnswer(
            user=user,
            version=known.version,
            model=known.model,
            vector=Encoded.of(known.vector_Z) if known.shots and known.vector_Z.size else None,
            comparisons=[
                StoredComparison(
                    event_id=kept.event_id,
                    timestamp=kept.time_s,
                    weight=kept.weight,
                    chosen=kept.chosen,
                    rejected=kept.rejected,
                )
                for kept in found.comparisons
            ],
        )

    async def models(self) -> ModelsAnswer:
        """Return the model that is served."""
        found = await self.describe()
        accepts = ["embedding", *(["item"] if found.items else []), *(["text"] if self._embedder else [])]
        card = ModelCard(
            id=found.model,
            created=int(found.loaded_s),
            method=found.method,
            dim=found.width,
            embedder=found.embedder.model_dump(),
            accepts=accepts,
            uncertain=found.uncertain,
            seen_users=found.seen_users,
        )
        return ModelsAnswer(data=[card])

    async def trouble(self) -> str | None:
        """Return what keeps the service from doing all it should; None where nothing does."""
        found = await self.describe()
        if found.store_down is not None:
            return f"the store of users is down: {found.store_down}"
        if found.refused is not None:
            return f"{found.model} serves, its successor was refused: {found.refused}"
        if self._embedder is not None:
            try:
                require_embedder(await self._embedder.describe(), found.embedder, "embed")
            except MismatchError as error:
                return str(error)
        return None

    async def describe(self) -> calls.Description:
        """Return which model is served, and how the store is."""
        return await self._call("describe")

    async def _send_scores(self, batch: list[calls.Score]) -> list[calls.Scored | WireError]:
        return await self._send("score", batch)

    async def _send_learns(self, batch: list[calls.Learn]) -> list[calls.Learned | WireError]:
        return await self._send("learn", batch)

    async def _send(self, method: str, batch: list[calls.C]) -> Any:
        """Send requests as one message, which is a part of the trace of each that is traced."""
        origins = [call.origin for call in batch if call.origin is not None]
        if self._tracer is None or not origins:
            return await self._scorer.call(method, batch)
        if waiting := self._tracer.join("batch", "internal", origins):
            waiting.end()
        span = self._tracer.join(f"Scorer.{method}", "client", [found.now() for found in origins])
        with under(span):
            return await self._scorer.call(method, batch if span is None else calls.handed_on(batch, span))

    async def _within(self, answer: Awaitable[A]) -> A:
        """Return an answer that may have to wait until others have gone to the Scorers."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await answer
        except TimeoutError:
            raise WireError(
                503, f"no answer within {self._config.timeout_s:g} s; try again.", retry_after_s=1
            ) from None
        except calls.StoreRefused:
            self._meter.store_failed()
            raise

    async def _call(self, method: str, *args: object) -> Any:
        try:
            with within(f"Scorer.{method}", "client"):
                here = origin()
                if here is None:
                    return await self._scorer.call(method, *args)
                return await self._scorer.call("traced", here, method, *args)
        except calls.StoreRefused:
            self._meter.store_failed()
            raise

    def _only_ids(self, pairs: Sequence[Pair], tensors: Tensors) -> None:
        if self._config.keep == "ids" and (
            tensors or any(item.item is None for pair in pairs for item in (pair.chosen, pair.rejected))
        ):
            raise WireError(
                422, "this service keeps ids only (`keep: ids`): compare registered items.", "comparisons"
            )

    def _add_pairs(self, intake: Intake, pairs: Sequence[Pair]) -> None:
        intake.add("chosen", [(pair.prompt, pair.chosen) for pair in pairs])
        intake.add("rejected", [(pair.prompt, pair.rejected) for pair in pairs])

    def _add_own(self, intake: Intake, request: Who) -> bool:
        if request.comparisons is None:
            return False
        self._add_pairs(intake, request.comparisons)
        return True


def _one_score(call: calls.Score) -> int:
    return scores_of([call])


def _one_learn(call: calls.Learn) -> int:
    return comparisons_of([call])


def _answered(answer: A | WireError) -> A:
    if isinstance(answer, WireError):
        raise answer
    return answer


def _who(request: Who, own: Sequence[calls.Items], tensors: Tensors) -> calls.Who:
    if request.comparisons is not None:
        return calls.Who(comparisons=_comparisons(request.comparisons, own))
    if "vector" in tensors:
        return calls.Who(vector_Z=tensors["vector"])
    if request.vector is not None:
        try:
            return calls.Who(vector_Z=vector(request.vector))
        except ValueError as error:
            raise WireError(422, f"vector: {error}", "vector") from error
    if request.weights is not None:
        return calls.Who(weights=tuple(request.weights))
    if request.user is not None:
        return calls.Who((request.user,))
    return calls.Who(tuple(request.users or ()))


def _comparisons(given: Sequence[Comparison], sides: Sequence[calls.Items]) -> calls.Comparisons:
    chosen, rejected = sides
    event_ids = tuple(comparison.event_id or uuid.uuid4().hex for comparison in given)
    if len(set(event_ids)) < len(event_ids):
        raise WireError(
            422, "comparisons: two have the same event_id; an id names one comparison.", "event_id"
        )
    return calls.Comparisons(
        chosen,
        rejected,
        event_ids,
        tuple(_no_later(comparison.timestamp, "timestamp") for comparison in given),
        tuple(comparison.weight for comparison in given),
    )


def _no_later(timestamp: float | None, param: str) -> float:
    """Return a time that a client gave, or now; a time to come would outlive every erasure."""
    now_s = time.time()
    if timestamp is None:
        return now_s
    if timestamp > now_s + FUTURE_S:
        raise WireError(422, f"{param}: {timestamp} is in the future; give seconds since 1970.", param)
    return timestamp


def _known(user: str, known: calls.Known) -> dict[str, Any]:
    return {
        "user": user,
        "version": known.version,
        "shots": known.shots,
        "cold": known.shots == 0,
        "model": known.model,
        "weights": known.weights,
        "std": known.std,
        "nearest": list(_near(known.nearest, known.distances)),
    }


def _near(nearest: Iterable[tuple[int, float]], distances: bool) -> Iterable[Near]:
    for basis, measure in nearest:
        yield Near(basis=basis, distance=measure) if distances else Near(basis=basis, weight=measure)
