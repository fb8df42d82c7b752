"""How the server reaches clients, phase by phase: bytes to them, bytes back, or the word that one failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

KEYS = "keys"
"""Under masks, a client advertises its public keys; it is sent the session."""

SHARES = "shares"
"""A client shares its secrets among the others; it is sent everybody's keys."""

TRAIN = "train"
"""A client trains; it is sent the broadcast, the round it last counted in, and others' sealed shares."""

UNMASK = "unmask"
"""A client reveals what takes the masks off the sum; it is told whose vectors came."""


@dataclass(frozen=True)
class Answer:
    """What came of asking a client."""

    client: int
    content: bytes | None
    """None where the client failed."""
    failure: str = ""
    """The kind of error, no more: a text could tell of what the client has."""


class Transport(Protocol):
    """Reaches clients, wherever they are."""

    def clients(self) -> np.ndarray:
        """Return the numbers of all clients, sorted."""
        ...

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        """Send every client of `own` what is common and what is its own; yield answers as they come.

        Ends when all have answered or the deadline has passed; whoever has not answered then is given up.
        """
        ...
