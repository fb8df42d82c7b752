"""Infer all users of a store anew, in bulk, before or after a bundle is swapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raypref.data.items import ItemTable
from raypref.serve.judge import Judge
from raypref.serve.stores.base import Key, Store
from raypref.serve.users import Users

PAGE = 512
"""Users inferred at a time."""


def refresh(
    bundle: Path,
    items: Path | None,
    store: Store,
    half_life_days: float | None,
    progress: Callable[[int], object],
) -> tuple[int, list[tuple[Key, str]]]:
    """Give every user of a store a vector of a bundle; a running service finds them there.

    Users change meanwhile without harm: a vector of an older version is not kept. Killed and run again, it
    infers only those that have no vector yet.

    Args:
        bundle: the bundle that is to serve.
        items: items table that stored comparisons name rows of.
        store: where the users are.
        half_life_days: as the service has it.
        progress: told how many users are done, page by page.

    Returns:
        How many users have a vector now, and those that have none with the reason.

    Raises:
        InputError, CorruptError, MismatchError: the bundle cannot be used; see `Judge.load`.
        StoreDown: the store did not answer.
    """
    judge = Judge.load(bundle, None if items is None else ItemTable.open(items))
    users = Users(store, max_comparisons=1, half_life_days=half_life_days)
    done, failed, last = 0, list[tuple[Key, str]](), None
    while page := store.keys(last, PAGE):
        wrong = users.standing(judge, page).wrong
        failed += [(page[row], str(error)) for row, error in sorted(wrong.items())]
        done += len(page) - len(wrong)
        progress(len(page))
        last = page[-1]
    return done, failed
