"""The line to the store of users: a store that fails is left alone for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

from raypref.serve.spans import Span, within
from raypref.serve.stores.base import Store, StoreDown

T = TypeVar("T")

Access = Literal["read", "write"]

PAUSE_S = 1.0
"""How long a store that failed is left alone: requests in between fail at once instead of waiting in line."""


class Line:
    """Asks one store; from any thread."""

    def __init__(self, store: Store) -> None:
        """Take an open store."""
        self.store = store
        self._down_until_s = 0.0

    def ask(self, question: Callable[[Store], T], access: Access = "read", users: int = 1) -> T:
        """Ask the store, unless it has just failed.

        Args:
            question: what to ask.
            access: whether it changes the log.
            users: how many it is about.

        Raises:
            StoreDown: it did not answer, now or a moment ago.
        """
        if time.monotonic() < self._down_until_s:
            raise StoreDown("the store failed a moment ago and is left alone for a second; try again then.")
        try:
            with self.span(access, users):
                return question(self.store)
        except StoreDown:
            self._down_until_s = time.monotonic() + PAUSE_S
            raise

    def span(self, access: Access, users: int) -> AbstractContextManager[Span | None]:
        """Run a block, in a traced request, as a use of the store."""
        return within(f"store {access}", "client", store=self.store.kind, users=users)
