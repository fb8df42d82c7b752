"""The comparisons of a bucket of users, split and capped; ratings become comparisons inside each split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from raypref.config import PrepareConfig
from raypref.data.rows import RowTally
from raypref.data.splits import COLD, SPLITS, STRADDLING, TRAIN, WARM, Splitter, mix

SEEN, UNSEEN = np.uint8(1), np.uint8(2)
"""Marks of an item that stands in a training comparison, by the cohort of its user."""

Columns = dict[str, np.ndarray]
"""Columns of equal length by name."""


def take(columns: Columns, index: np.ndarray) -> Columns:
    """Return the rows that a mask or an index names."""
    return {name: values[index] for name, values in columns.items()}


class Former:
    """Turns the rows of some users into comparisons with a split.

    Input columns are `user` (position among the bucket's users), `user_key`, `seen`, `prompt_key`,
    `timestamp`, `row` and, where groups are held out, `group_key`, and then, for comparisons, `chosen`,
    `rejected`, their `_key`s and `weight`, for ratings `item`, `item_key` and `rating`. Output columns
    are `user`, `chosen`, `rejected`, `split` (code), `weight`, `timestamp` and `row`, by user in an order
    that depends on the comparisons alone.
    """

    def __init__(self, config: PrepareConfig, min_rating_gap: float, tally: RowTally) -> None:
        """Form by `config`; rows that are left out are counted in `tally`."""
        self._config = config
        self._splitter = Splitter(config)
        self._gap = min_rating_gap
        self._tally = tally
        held = config.max_heldout
        self._most = np.array([config.max_train if code == TRAIN else held for code in range(len(SPLITS))])

    def comparisons(self, rows: Columns) -> Columns:
        """Return the comparisons of a comparisons input; those between two splits are left out."""
        same = rows["chosen"] == rows["rejected"]
        self._tally.add("same_item", rows["row"][same])
        rows = take(rows, ~same)
        sides = [self._split(rows, rows[f"{side}_key"]) for side in ("chosen", "rejected")]
        split = np.where(sides[0] == sides[1], sides[0], np.int8(STRADDLING))
        self._tally.add("straddling", rows["row"][split == STRADDLING])
        rows = take({**rows, "split": split}, split != STRADDLING)
        # Repeats are evidence and stay; numbering them makes their order independent of the input's.
        repeat_of = (rows["rejected_key"], rows["chosen_key"], rows["prompt_key"], rows["user"])
        rows = take(rows, np.lexsort((rows["split"], rows["weight"], rows["timestamp"], *repeat_of)))
        repeats = _same_as_before(*(rows[n] for n in ("user", "prompt_key", "chosen_key", "rejected_key")))
        nth = _rank(~repeats).astype(np.uint64)
        name = mix(mix(rows["prompt_key"], rows["chosen_key"]), rows["rejected_key"])
        draw = self._splitter.keyed("order", mix(mix(rows["user_key"], name), nth))
        rows = take(rows, np.lexsort((draw, rows["split"], rows["user"])))
        kept = _rank(_starts(rows["user"], rows["split"])) < self._most[rows["split"]]
        self._tally.add("over_cap", rows["row"][~kept])
        return _output(take(rows, kept))

    def ratings(self, rows: Columns) -> Columns:
        """Return comparisons drawn from a ratings input, uniformly from all that each user's votes allow.

        Votes are split first, then paired inside each (user, prompt, split). Possible pairs are counted, not
        listed: a vote beats as many others as are rated lower by the gap; numbering them is enough to draw.
        """
        latest = np.where(np.isnan(rows["timestamp"]), -np.inf, rows["timestamp"])
        rows = take(
            rows, np.lexsort((rows["row"], latest, rows["item_key"], rows["prompt_key"], rows["user"]))
        )
        again = _same_as_before(rows["user"], rows["prompt_key"], rows["item_key"])
        replaced = np.append(again[1:], False)
        self._tally.add("duplicate_rating", rows["row"][replaced])
        rows = take(rows, ~replaced)
        rows["split"] = self._split(rows, rows["item_key"])
        rows = take(
            rows,
            np.lexsort((rows["item_key"], rows["rating"], rows["prompt_key"], rows["split"], rows["user"])),
        )
        groups = _starts(rows["user"], rows["split"], rows["prompt_key"])
        beaten = _lower_in_group(groups, rows["rating"], self._gap)
        first = np.arange(len(beaten)) - _rank(groups)
        pairs = list(self._draw(rows, beaten, first))
        chosen, rejected = (
            np.concatenate([pair[side] for pair in pairs] or [np.zeros(0, np.int64)]) for side in (0, 1)
        )
        return _output(
            {
                **{name: rows[name][chosen] for name in ("user", "split", "row")},
                "chosen": rows["item"][chosen],
                "rejected": rows["item"][rejected],
                "weight": np.ones(len(chosen), np.float32),
                "timestamp": np.maximum(rows["timestamp"][chosen], rows["timestamp"][rejected]),
            }
        )

    def _draw(
        self, votes: Columns, beaten: np.ndarray, first: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (chosen, rejected) vote numbers, user by user, split by split."""
        starts = np.flatnonzero(_starts(votes["user"], votes["split"]))
        ends = np.append(starts[1:], len(beaten))
        seeds = self._splitter.keyed("pairs", mix(votes["user_key"][starts], votes["split"][starts]))
        for start, end, seed in zip(starts, ends, seeds, strict=True):
            cumulative = np.cumsum(beaten[start:end])
            possible, most = int(cumulative[-1]), int(self._most[votes["split"][start]])
            # Permuting is part of drawing: the order of a user's comparisons says nothing about them.
            rng = np.random.Generator(np.random.PCG64(int(seed)))
            number = (
                rng.choice(possible, min(possible, most), replace=False) if possible else np.zeros(0, int)
            )
            chosen = np.searchsorted(cumulative, number, side="right")
            nth = number - (cumulative[chosen] - beaten[start:end][chosen])
            yield start + chosen, first[start:end][chosen] + nth

    def _split(self, rows: Columns, item_key: np.ndarray) -> np.ndarray:
        unit = item_key if self._config.unit == "item" else rows[f"{self._config.unit}_key"]
        return self._splitter.split(rows["user_key"], rows["seen"], unit)


def keep_honest(rows: Columns, trained: np.ndarray, items: int, tally: RowTally) -> Columns:
    """Return the comparisons whose held-out items are as warm or as cold as their split promises.

    Args:
        rows: comparisons as `Former` makes them.
        trained: by item, whether it stands in a seen user's (`SEEN`) or an unseen user's (`UNSEEN`) training.
        items: number of items.
        tally: counts those left out: `warm_unseen_items`, `cold_trained_items`.
    """
    train = rows["split"] == TRAIN
    name = {side: rows["user"] * items + rows[side] for side in ("chosen", "rejected")}
    own = np.concatenate([name[side][train] for side in name])
    by_others = [((trained[rows[side]] & SEEN) > 0) & ~np.isin(name[side], own) for side in name]
    lone = (rows["split"] == WARM) & ~np.logical_and(*by_others)
    known = (rows["split"] == COLD) & ((trained[rows["chosen"]] | trained[rows["rejected"]]) > 0)
    tally.add("warm_unseen_items", rows["row"][lone])
    tally.add("cold_trained_items", rows["row"][known])
    return take(rows, ~(lone | known))


def _output(rows: Columns) -> Columns:
    names = ("user", "chosen", "rejected", "split", "weight", "timestamp", "row")
    return {name: rows[name] for name in names}


def _same_as_before(*columns: np.ndarray) -> np.ndarray:
    return ~_starts(*columns)


def _starts(*columns: np.ndarray) -> np.ndarray:
    """Return where a new group of equal values begins; `columns` are sorted by groups."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for values in columns:
        new[1:] |= values[1:] != values[:-1]
    return new


def _rank(starts: np.ndarray) -> np.ndarray:
    """Return each row's place in its group, from 0."""
    place = np.arange(len(starts))
    return place - np.maximum.accumulate(np.where(starts, place, 0))


def _lower_in_group(starts: np.ndarray, rating: np.ndarray, gap: float) -> np.ndarray:
    """Return how many of its group each row beats by `gap`; groups are sorted by rating."""
    group = np.cumsum(starts) - 1
    count = len(rating)
    # One sort of ratings and thresholds together; at equality the rating comes first and is beaten.
    # A gap below the rating's precision still means lower, never equal.
    value = np.concatenate((rating, np.minimum(rating - gap, np.nextafter(rating, -np.inf))))
    threshold = np.repeat([False, True], count)
    order = np.lexsort((threshold, value, np.tile(group, 2)))
    lower = np.cumsum(~threshold[order])
    beaten = np.empty(2 * count, np.int64)
    beaten[order] = lower
    before = np.flatnonzero(starts)[group] if count else group
    return beaten[count:] - before
