"""Scores as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raypref.wire.answers import Numbers, ScoreAnswer
from raypref.wire.arrays import Encoded
from raypref.wire.tensors import unpack_answer


@dataclass(frozen=True)
class Scores:
    """Scores of N candidates for U users; one row where a call names no users."""

    id: str
    model: str
    """The one bundle behind all of it: name@fingerprint."""
    users: tuple[str | None, ...]
    """In the order of the request; None where a row belongs to no stored user."""
    mean: np.ndarray
    """(U, N) float32; higher is preferred."""
    std: np.ndarray | None
    """(U, N) float32; None where the method has no uncertainty."""
    probability: np.ndarray
    """(U, N) float32: that the user prefers the candidate to the baseline (default: the first one)."""
    version: np.ndarray
    """(U) int64, of each user's comparisons."""
    shots: np.ndarray
    """(U) int64, comparisons that count."""
    cold: np.ndarray
    """(U) bool: nothing is known of the user, the scores are the population's."""
    degraded: np.ndarray
    """(U) bool: the store is down, the user may be known after all."""

    @classmethod
    def of(cls, answer: ScoreAnswer) -> Scores:
        """Return an answer's rows as arrays.

        Raises:
            ValueError: rows of different lengths, or values that are not finite.
        """
        rows = answer.data
        stds = [row.std for row in rows if row.std is not None]
        if stds and len(stds) != len(rows):
            raise ValueError("some rows have a standard deviation and others none")
        return cls(
            id=answer.id,
            model=answer.model,
            users=tuple(row.user for row in rows),
            mean=_rows([row.mean for row in rows]),
            std=_rows(stds) if stds else None,
            probability=_rows([row.probability for row in rows]),
            version=np.array([row.version for row in rows], np.int64),
            shots=np.array([row.shots for row in rows], np.int64),
            cold=np.array([row.cold for row in rows], np.bool_),
            degraded=np.array([row.degraded for row in rows], np.bool_),
        )

    @classmethod
    def unpack(cls, content: bytes) -> Scores:
        """Read a bulk answer.

        Raises:
            ValueError: it is none, or holds values that are not finite.
        """
        rest, tensors = unpack_answer(content)
        try:
            return cls(
                id=rest["id"],
                model=rest["model"],
                users=tuple(rest["users"]),
                mean=tensors["mean"],
                std=tensors.get("std"),
                probability=tensors["probability"],
                version=tensors["version"],
                shots=tensors["shots"],
                cold=tensors["cold"].astype(np.bool_),
                degraded=tensors["degraded"].astype(np.bool_),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a bulk answer without {error}") from error

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together and values that are not finite."""
        shape = (len(self.users), self.mean.shape[-1])
        arrays = (
            [self.mean, self.probability] if self.std is None else [self.mean, self.probability, self.std]
        )
        if any(array.shape != shape for array in arrays):
            raise ValueError(f"scores of shapes {[array.shape for array in arrays]} for {shape[0]} users")
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("scores that are not finite")


def _rows(values: list[Numbers]) -> np.ndarray:
    return np.stack([np.asarray(v.array() if isinstance(v, Encoded) else v, np.float32) for v in values])
