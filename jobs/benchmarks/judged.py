"""Populations whose users judge given texts by one rule each: pets and HelpSteer2's attributes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypref import files
from raypref.data.items import ItemTable
from raypref.data.splits import COLD, SPLITS, TRAIN, VALID
from raypref.data.writer import TableWriter
from raypref.schema import METADATA_FILE, content_hash

PETS = Path(__file__).parent / "pets"
TRAINED_SENTENCES = 80

ATTRIBUTES = ("helpfulness", "verbosity", "complexity")
"""HelpSteer2's attributes that conflict: where neither ties, helpfulness orders the two responses otherwise
than verbosity in 44 % of the prompts and than complexity in 37 %, verbosity than complexity in 16 %.
Correctness and coherence agree with helpfulness (99 %, 95 %) and would be the same users again."""

TRAINED_PROMPTS = 0.8
"""Share of HelpSteer2's prompts that training comparisons come from."""

Size = Literal["quick", "default", "full"]
USERS: dict[Size, tuple[int, int]] = {"quick": (60, 40), "default": (150, 100), "full": (600, 400)}
"""Seen and unseen users."""

COMPARISONS, VALIDATION, SHOTS, TEST = 40, 5, 16, 40
"""Comparisons of a seen user to learn from and to stop by, of an unseen user, and of both to be judged on."""


@dataclass(frozen=True)
class Choices:
    """Comparisons that a kind of user may make, in groups that are equally probable."""

    group_M: np.ndarray
    chosen_M: np.ndarray
    """Numbers of texts."""
    rejected_M: np.ndarray

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers of `count` comparisons, different as far as it goes."""
        groups = np.unique(self.group_M)
        order_M = rng.permutation(len(self.group_M))
        by_group = {group: order_M[self.group_M[order_M] == group] for group in groups}
        drawn = rng.choice(groups, count)
        taken = {group: np.resize(rows, (drawn == group).sum()) for group, rows in by_group.items()}
        number = np.empty(count, np.int64)
        for group, rows in taken.items():
            number[drawn == group] = rows
        return number


@dataclass(frozen=True)
class Tastes:
    """Texts and kinds of users: what each kind says of texts to learn from, and of others to be judged on."""

    texts: list[str]
    train: list[Choices]
    test: list[Choices]


def pets() -> Tastes:
    """Return the two kinds of users of Pets: a bird before all, a rabbit behind all, dogs and cats by kind.

    Of ten kinds of pairs, all as probable, five are dog against cat (SPL, arXiv 2603.12595). The first 80
    sentences about each animal train, the others are judged.
    """
    kinds = {
        name: (PETS / f"{name}.txt").read_text().splitlines() for name in ("bird", "dog", "cat", "rabbit")
    }
    texts = [sentence for sentences in kinds.values() for sentence in sentences]
    ends = np.cumsum([0, *(len(sentences) for sentences in kinds.values())])
    number = {
        name: np.split(np.arange(first, last), [TRAINED_SENTENCES])
        for name, (first, last) in zip(kinds, pairwise(ends.tolist()), strict=True)
    }
    agreed = [("bird", "dog"), ("cat", "rabbit"), ("bird", "cat"), ("dog", "rabbit"), ("bird", "rabbit")]

    def choices(side: int, contested: tuple[str, str]) -> Choices:
        pairs = [*agreed, *[contested] * 5]
        grids = [np.meshgrid(number[better][side], number[worse][side]) for better, worse in pairs]
        sizes = [grid[0].size for grid in grids]
        chosen, rejected = (np.concatenate([grid[s].ravel() for grid in grids]) for s in (0, 1))
        return Choices(np.repeat(np.arange(len(pairs)), sizes), chosen, rejected)

    users = (("dog", "cat"), ("cat", "dog"))
    return Tastes(texts, [choices(0, user) for user in users], [choices(1, user) for user in users])


def helpsteer2(path: Path) -> Tastes:
    """Return users who each care for one attribute alone; prompts are held out whole, ties are left out."""
    ratings: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in pq.read_table(path).to_pylist():
        ratings[row["prompt"]][row["user_id"]][row["response"]] = row["rating"]
    texts = list(dict.fromkeys(text for rated in ratings.values() for text in rated[ATTRIBUTES[0]]))
    number = {text: place for place, text in enumerate(texts)}
    trained = set(list(ratings)[: round(TRAINED_PROMPTS * len(ratings))])

    def choices(attribute: str, training: bool) -> Choices:
        pairs: list[tuple[int, int]] = []
        for prompt, rated in ratings.items():
            ordered = sorted(rated[attribute].items(), key=lambda item: item[1], reverse=True)
            if (prompt in trained) == training and ordered[0][1] > ordered[-1][1]:
                pairs.append((number[ordered[0][0]], number[ordered[-1][0]]))
        pairs_M2 = np.array(pairs)
        return Choices(np.zeros(len(pairs)), pairs_M2[:, 0], pairs_M2[:, 1])

    return Tastes(
        texts,
        [choices(attribute, True) for attribute in ATTRIBUTES],
        [choices(attribute, False) for attribute in ATTRIBUTES],
    )


def write(tastes: Tastes, seed: int, size: Size, items: ItemTable, target: Path, buckets: int) -> None:
    """Draw the users that `seed` names and write their comparisons as tables, atomically."""
    rng = np.random.default_rng(seed)
    seen, unseen = USERS[size]
    item_N = items.rows_of([content_hash(text) for text in tastes.texts])
    seen_U = rng.permutation(np.arange(seen + unseen) < seen)
    taste_U = rng.permutation(np.arange(seen + unseen) % len(tastes.train))
    with files.new_directory(target, METADATA_FILE) as directory:
        writer = TableWriter(directory, buckets)
        pair = 0
        for bucket, users in enumerate(np.array_split(np.arange(seen + unseen), buckets)):
            counts = np.zeros((len(users), len(SPLITS)), np.int64)
            for place, user in enumerate(users.tolist()):
                taste = int(taste_U[user])
                learned = COMPARISONS + VALIDATION if seen_U[user] else SHOTS
                train = tastes.train[taste].draw(learned, rng)
                test = tastes.test[taste].draw(TEST, rng)
                split = np.full(learned + TEST, TRAIN)
                split[COMPARISONS:learned] = VALID
                split[learned:] = COLD
                sides = [
                    np.concatenate([one[train], other[test]])
                    for one, other in (
                        (tastes.train[taste].chosen_M, tastes.test[taste].chosen_M),
                        (tastes.train[taste].rejected_M, tastes.test[taste].rejected_M),
                    )
                ]
                writer.comparisons(
                    bucket,
                    {
                        "user": np.full(len(split), user),
                        "pair_id": pair + np.arange(len(split)),
                        "chosen": item_N[sides[0]],
                        "rejected": item_N[sides[1]],
                        "split": split,
                        "weight": np.ones(len(split)),
                        "timestamp": np.full(len(split), np.nan),
                    },
                )
                pair += len(split)
                counts[place] = np.bincount(split, minlength=len(SPLITS))
            writer.close_bucket(bucket)
            names = pa.array([f"user-{user}-taste-{taste_U[user]}" for user in users.tolist()])
            writer.users(names, seen_U[users], counts)
        options = {"judged": {"seed": seed, "size": size}}
        writer.finish(items.metadata, {}, 0, options)
