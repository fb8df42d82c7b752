"""Rewards of texts, for the compatibility routes: many texts, each for a user of its own, from one bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raypref.serve.calls import Items, Score, Scored, StoreRefused, Who
from raypref.serve.compat_base import Rewarded, ScoredText
from raypref.serve.intake import TextEmbedder
from raypref.serve.meter import Meter
from raypref.serve.remote import Remote
from raypref.serve.spans import origin, within
from raypref.wire.errors import WireError


class TextRewards:
    """Embeds texts and scores them in one call of one Scorer."""

    def __init__(self, scorer: Remote, embedder: TextEmbedder | None, meter: Meter) -> None:
        """Stand between the compatibility routes and the Scorers."""
        self._scorer = scorer
        self._embedder = embedder
        self._meter = meter

    async def rewards(self, tenant: str, items: Sequence[ScoredText]) -> Rewarded:
        """Return the rewards of at least one text.

        Raises:
            WireError: there is no embedder, a text cannot be embedded, or no Scorer answered.
        """
        if self._embedder is None:
            raise WireError(422, "this service embeds no text; configure `embed`, or call /v1/score.")
        emb_ND, embedder = await self._embedder.embed([(item.prompt, item.response) for item in items])
        places: dict[str | None, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(item.user, []).append(place)
        calls = [
            Score(tenant, Who(() if user is None else (user,)), Items.of(emb_ND[own], embedder))
            for user, own in places.items()
        ]
        with within("Scorer.score", "client"):
            # One of them stands for all: they are one request.
            calls[0] = replace(calls[0], origin=origin())
            answers: list[Scored | WireError] = await self._scorer.call("score", calls)
        if any(isinstance(answer, StoreRefused) or getattr(answer, "degraded", False) for answer in answers):
            self._meter.store_failed()
        scored = [answer for answer in answers if not isinstance(answer, WireError)]
        for answer in answers:
            if isinstance(answer, WireError):
                raise answer
        mean_N = np.empty(len(items), np.float32)
        for own, found in zip(places.values(), scored, strict=True):
            mean_N[own] = found.mean_UN[0]
        known = [int(found.shots_U[0]) for found in scored if found.users]
        self._meter.scored(len(items), len(known), known.count(0))
        return Rewarded(mean_N, scored[0].model)
