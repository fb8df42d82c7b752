"""What a Scorer does with a batch of requests, whoever runs it: no HTTP, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raypref.serve.calls import Score, Scored, StoreRefused, Suggest, Suggested, Who
from raypref.serve.judge import Judge, Query
from raypref.serve.raw import embeddings
from raypref.serve.spans import within
from raypref.serve.standings import Crowd, Standing
from raypref.serve.stores.base import Key, StoreDown
from raypref.serve.users import Users
from raypref.wire.errors import WireError

OnStoreFailure = Literal["prior", "refuse"]


@dataclass(frozen=True)
class _Row:
    """One request, resolved: for whom, as of which version."""

    call: Score
    crowd: Crowd
    emb_ND: np.ndarray
    baseline_1D: np.ndarray


def store_refusal(error: StoreDown) -> StoreRefused:
    """Return the answer to a request that needs a store that is down."""
    return StoreRefused(503, f"the store of users is down: {error}", retry_after_s=1)


def score(
    judge: Judge, users: Users, calls: Sequence[Score], on_store_failure: OnStoreFailure
) -> list[Scored | WireError]:
    """Score a batch of requests: one read of the store, one item pass, one join for each shape."""
    answers: list[Scored | WireError | None] = [None] * len(calls)
    keys = [Key(call.tenant, user) for call in calls for user in call.who.users]
    down: StoreDown | None = None
    known = Crowd.alike(Standing(0, 0, judge.prior_Z), len(keys))
    if keys:
        try:
            known = users.standing(judge, keys)
        except StoreDown as error:
            down = error
    rows: dict[int, _Row] = {}
    last = 0
    for number, call in enumerate(calls):
        own = slice(last, last := last + len(call.who.users))
        try:
            require_model(judge, call.model)
            if not call.who.users:
                crowd = Crowd.alike(transient(judge, users, call.who), 1)
            elif down is not None and on_store_failure == "refuse":
                raise store_refusal(down)
            else:
                crowd = known.part(own)
            emb_ND = embeddings(judge, call.candidates)
            baseline_1D = emb_ND[:1] if call.baseline is None else embeddings(judge, call.baseline)
            rows[number] = _Row(call, crowd, emb_ND, baseline_1D)
        except WireError as error:
            answers[number] = error
    if rows:
        with within("scoring", requests=len(rows)):
            found = _score(judge, list(rows.values()), down is not None)
        for number, scored in zip(rows, found, strict=True):
            answers[number] = scored
    return [answer for answer in answers if answer is not None]


def _score(judge: Judge, rows: list[_Row], degraded: bool) -> list[Scored | WireError]:
    item_NF = judge.features(np.concatenate([part for row in rows for part in (row.emb_ND, row.baseline_1D)]))
    queries: list[Query] = []
    first = 0
    for row in rows:
        last = first + len(row.emb_ND)
        queries.append(Query(item_NF[first:last], item_NF[last], row.crowd.vector_UZ))
        first = last + 1
    answers: list[Scored | WireError] = []
    for row, rewards in zip(rows, judge.rewards(queries), strict=True):
        if not rewards.finite():
            answers.append(
                WireError(422, "a score is not finite: the embeddings are too large.", "candidates")
            )
            continue
        answers.append(
            Scored(
                judge.id,
                row.call.who.users,
                row.crowd.version_U,
                row.crowd.shots_U,
                degraded and bool(row.call.who.users),
                rewards.mean_UN,
                rewards.std_UN,
                rewards.probability_UN,
            )
        )
    return answers


def transient(judge: Judge, users: Users, who: Who) -> Standing:
    """Return who is scored where no stored user is named: comparisons, a vector, weights, or the population.

    Raises:
        WireError: the vector is not one of this bundle's, or nobody can have these weights.
    """
    if who.comparisons is not None:
        return users.transient(judge, who.comparisons)
    if who.weights is not None:
        try:
            return Standing(0, 1, judge.steer(who.weights))
        except ValueError as error:
            raise WireError(422, f"weights: {error}.", "weights") from error
    if who.vector_Z is None:
        return Standing(0, 0, judge.prior_Z)
    if who.vector_Z.shape != judge.prior_Z.shape:
        raise WireError(
            422,
            f"a user's vector has {judge.prior_Z.size} numbers here, this has {who.vector_Z.size}; export it "
            f"from {judge.id}.",
            "vector",
        )
    return Standing(0, 1, who.vector_Z.astype(np.float32))


def suggest(judge: Judge, users: Users, call: Suggest) -> Suggested:
    """Return what asking about each pair is expected to tell about the user.

    Raises:
        WireError: the method keeps no posterior, or the request does not fit the bundle.
        StoreDown: the user is stored, and the store does not answer.
    """
    require_model(judge, call.model)
    if call.who.users:
        standing = users.stored(judge, Key(call.tenant, call.who.users[0]))
    else:
        standing = transient(judge, users, call.who)
    chosen_ND, rejected_ND = embeddings(judge, call.chosen), embeddings(judge, call.rejected)
    with within("scoring", requests=1):
        found = judge.gains(judge.features(chosen_ND), judge.features(rejected_ND), standing.vector_Z)
    if found is None:
        raise WireError(
            422, f"{judge.id} keeps no posterior of users, so no answer is worth more than another.", "model"
        )
    if not all(np.isfinite(part_N).all() for part_N in found):
        raise WireError(422, "a gain is not finite: the embeddings are too large.", "pairs")
    return Suggested(judge.id, standing.version, standing.shots, *found)


def require_model(judge: Judge, asked: str | None) -> None:
    """Raise WireError unless a request asks for the model that is served, by its name or its full id."""
    if asked is not None and asked not in (judge.id, judge.id.partition("@")[0]):
        raise WireError(404, f"model {asked} is not served here; this is {judge.id}.", "model")
