"""The client for blocking code."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from raypref.client import calls
from raypref.client.background import Background
from raypref.client.calls import Call
from raypref.client.errors import Unavailable
from raypref.client.items import Candidates, Comparison, ItemLike, Pair, Text, VectorLike
from raypref.client.scores import Scores
from raypref.client.transport import Settings, Transport
from raypref.wire.answers import (
    Deleted,
    ExportAnswer,
    LearnAnswer,
    ModelsAnswer,
    RankAnswer,
    SuggestAnswer,
    UserAnswer,
)

Answered = TypeVar("Answered")


class Client:
    """A client of the service; any number of threads may share it.

    Every method raises InputError, before anything is sent, where the request is not sound, RequestRefused
    where the service will not do it, and Unavailable where it did not answer in time.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        attempt_timeout_s: float = 10.0,
        retries: int = 10,
        max_connections: int = 100,
        max_idle_connections: int = 20,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            base_url: where the service listens.
            api_key: of the tenant; default: the environment's RAYPREF_API_KEY.
            timeout_s: deadline of a whole call, with all its attempts and pauses.
            attempt_timeout_s: after this long an attempt is given up and another made.
            retries: attempts after the first.
            max_connections: requests under way at once; further ones wait within their deadlines.
            max_idle_connections: connections kept open between requests.

        Raises:
            ConfigError: a setting is out of its range.
        """
        settings = Settings(
            base_url, api_key, timeout_s, attempt_timeout_s, retries, max_connections, max_idle_connections
        )
        self._background = Background(lambda: Transport(settings), Transport.close)

    def learn(self, user: str, comparisons: Sequence[Comparison]) -> LearnAnswer:
        """Add comparisons to a user; when this returns, they are durable, each once."""
        return self._call(calls.learn(user, comparisons))

    def score(
        self,
        candidates: Candidates,
        *,
        user: str | None = None,
        users: Sequence[str] | None = None,
        comparisons: Sequence[Comparison] | None = None,
        vector: VectorLike | None = None,
        weights: Sequence[float] | None = None,
        prompt: Text = "",
        baseline: ItemLike | None = None,
    ) -> Scores:
        """Score candidates for stored users, for one who comes with the call, or for nobody: the population.

        Args:
            candidates: one array (N, D), or a sequence of texts, embeddings or item ids.
            user: one stored user.
            users: many stored users; each gets every candidate scored.
            comparisons: of a user who is not stored.
            vector: of a user (Z), as `export` gives it.
            weights: of the reward bases, as `user` gives them: who is known to stand there.
            prompt: of all candidates that are text.
            baseline: what `probability` compares with; default: the first candidate.
        """
        who = calls.Who(user, users, comparisons, vector, weights)
        return self._call(calls.score(candidates, who, prompt, baseline))

    def rank(
        self,
        candidates: Candidates,
        *,
        user: str | None = None,
        users: Sequence[str] | None = None,
        comparisons: Sequence[Comparison] | None = None,
        vector: VectorLike | None = None,
        weights: Sequence[float] | None = None,
        prompt: Text = "",
        risk: float = 0.0,
        top: int | None = None,
    ) -> RankAnswer:
        """Order candidates by mean − risk·std, best first, for each user; `top` limits how many come back."""
        who = calls.Who(user, users, comparisons, vector, weights)
        return self._call(calls.rank(candidates, who, prompt, risk, top))

    def suggest(
        self,
        pairs: Sequence[Pair],
        *,
        user: str | None = None,
        comparisons: Sequence[Comparison] | None = None,
        vector: VectorLike | None = None,
        weights: Sequence[float] | None = None,
        top: int = 1,
    ) -> SuggestAnswer:
        """Choose the pairs to ask the user about next, by expected information gain, best first."""
        who = calls.Who(user, None, comparisons, vector, weights)
        return self._call(calls.suggest(pairs, who, top))

    def user(self, user: str) -> UserAnswer:
        """Return what is known of a user."""
        return self._call(calls.user(user))

    def erase(self, user: str) -> Deleted:
        """Erase a user: comparisons, vector, caches.

        `deleted` is False where there was nothing left to erase, also when an attempt whose answer was lost
        had erased it.
        """
        return self._call(calls.erase(user))

    def forget(self, user: str, event_id: str) -> Deleted:
        """Remove one comparison, exactly: the user is as if it had never been; `deleted` as for `erase`."""
        return self._call(calls.forget(user, event_id))

    def export(self, user: str) -> ExportAnswer:
        """Return all that is kept of a user."""
        return self._call(calls.export(user))

    def decay(
        self, user: str, factor: float, *, event_id: str | None = None, timestamp: float | None = None
    ) -> UserAnswer:
        """Multiply the weights of the user's comparisons so far by `factor`.

        The attempts of one call are harmless to one another. To call again after a failure, choose `event_id`
        and `timestamp` (seconds since 1970) yourself and give the same ones.
        """
        return self._call(calls.decay(user, factor, event_id, timestamp))

    def models(self) -> ModelsAnswer:
        """Return what is served."""
        return self._call(calls.models())

    def ready(self) -> bool:
        """Return whether the service can answer now; asks once."""
        try:
            return self._call(calls.ready(), retries=0)
        except Unavailable:
            return False

    def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        self._background.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, call: Call[Answered], retries: int | None = None) -> Answered:
        return call.answer(self._background.run(lambda transport: transport.exchange(call, retries)))
