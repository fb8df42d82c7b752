"""Questions with candidates whose worth to a user is known: planted rewards, or ratings held out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import cast

import numpy as np

from raypref.config import BestOfConfig, PlantedConfig, RunConfig
from raypref.data.items import ItemTable
from raypref.data.planted import PROMPTS_PER_BLOCK, USERS_PER_BLOCK, item_block, plant, user_weights
from raypref.data.rows import RatingRows
from raypref.data.sources import Source, render
from raypref.data.tables import Tables
from raypref.errors import InputError
from raypref.schema import canonical_text, content_hash


@dataclass(frozen=True)
class Questions:
    """Q questions, each to one user, sorted by user; candidates in a random order."""

    user_Q: np.ndarray
    """Number in the users table."""
    item_QN: np.ndarray
    """Ids of items; -1 where a question has fewer candidates."""
    worth_QN: np.ndarray
    """What each is worth to the user; NaN where there is none."""
    truth: str
    """Where the worth comes from, in words."""

    @property
    def candidates_Q(self) -> np.ndarray:
        """How many candidates each question has."""
        return (self.item_QN >= 0).sum(1)


def ask(config: RunConfig, items: ItemTable, tables: Tables) -> Questions:
    """Return questions to unseen users about items that they have not compared in training.

    Users, their questions and the candidates are drawn by the seed alone, the same for every bundle.

    Raises:
        InputError: no user is unseen, nothing says what is worth what, or no question has two candidates.
    """
    options = config.bestofn
    user_U = np.flatnonzero(tables.rows < 0)
    if not len(user_U):
        raise InputError(f"{tables.directory}: no unseen users to choose for; prepare with a share of them.")
    draw = np.random.default_rng(options.seed)
    user_U = np.sort(draw.permutation(user_U)[: options.users])
    planted = tables.metadata.options.get("planted")
    if planted is not None:
        questions = _planted(PlantedConfig.model_validate(planted), tables, user_U, options, draw)
    elif config.input.path is not None:
        questions = _rated(config, items, tables, user_U, draw)
    else:
        raise InputError(
            "bestofn: nothing says what a response is worth to a user: plant a population, or name ratings "
            "with input.path."
        )
    if not len(questions.user_Q) or questions.candidates_Q.max() < 2:
        raise InputError("bestofn: no prompt has two responses that an unseen user has not trained on.")
    return questions


def _planted(
    planted: PlantedConfig,
    tables: Tables,
    user_U: np.ndarray,
    options: BestOfConfig,
    draw: np.random.Generator,
) -> Questions:
    """Ask about prompts of the test, which nobody trained on."""
    world = plant(planted)
    most = min(max(options.n), planted.responses)
    wanted = min(options.questions, planted.test_prompts)
    name_U = np.array(tables.users["user_id"].to_pylist(), np.int64)[user_U]
    prompts, items, worths = [], [], []
    blocks: dict[int, np.ndarray] = {}
    rewards: dict[int, np.ndarray] = {}
    for name in name_U.tolist():
        block, place = divmod(name, USERS_PER_BLOCK)
        if block not in blocks:
            blocks[block] = user_weights(world, block)
        asked = planted.train_prompts + draw.permutation(planted.test_prompts)[:wanted]
        for prompt in asked.tolist():
            part, row = divmod(prompt, PROMPTS_PER_BLOCK)
            if part not in rewards:
                rewards[part] = item_block(world, part) @ world.rewards_RD.T
            chosen = draw.permutation(planted.responses)[:most]
            place_N = row * planted.responses + chosen
            items.append(prompt * planted.responses + chosen)
            worths.append(rewards[part][place_N] @ blocks[block][place])
            prompts.append(prompt)
    return Questions(
        np.repeat(user_U, wanted), np.array(items), np.array(worths), "planted rewards of test prompts"
    )


def _rated(
    config: RunConfig, items: ItemTable, tables: Tables, user_U: np.ndarray, draw: np.random.Generator
) -> Questions:
    """Ask about responses that the user rated and that are in none of the user's training comparisons."""
    options = config.bestofn
    names = tables.users["user_id"].to_pylist()
    wanted = {names[user]: user for user in user_U.tolist()}
    train = tables.comparisons("unseen", ["train"])
    told: dict[int, set[int]] = {}
    for at, user in enumerate(train.user_U.tolist()):
        part = slice(train.offsets[at], train.offsets[at + 1])
        told[user] = {*train.chosen_M[part].tolist(), *train.rejected_M[part].tolist()}
    found: dict[tuple[int, bytes], dict[int, float]] = defaultdict(dict)
    template = items.metadata.embedder.template
    for batch in Source(config.input).batches():
        if not isinstance(batch, RatingRows):
            raise InputError(
                f"{config.input.path}: comparisons do not say what a response is worth; give ratings, or "
                "plant a population."
            )
        for user_id, prompt, response, rating in zip(
            batch.user_id, batch.prompt, batch.response, batch.rating, strict=True
        ):
            user = wanted.get(user_id)
            if user is None:
                continue
            item = int(items.rows_of([content_hash(render(template, prompt, response))])[0])
            if item >= 0 and item not in told.get(user, ()):
                found[user, content_hash(canonical_text(prompt))][item] = rating
    asked: dict[int, list[dict[int, float]]] = defaultdict(list)
    for user, key in sorted(found):
        if len(found[user, key]) > 1:
            asked[user].append(found[user, key])
    user_Q, item_QN, worth_QN = [], [], []
    most = max(options.n)
    for user in sorted(asked):
        for place in draw.permutation(len(asked[user]))[: options.questions]:
            rated = asked[user][place]
            order = draw.permutation(sorted(rated))[:most]
            user_Q.append(user)
            item_QN.append(np.pad(order, (0, most - len(order)), constant_values=-1))
            worth = np.array([rated[item] for item in order.tolist()])
            worth_QN.append(np.pad(worth, (0, most - len(order)), constant_values=np.nan))
    shape = (len(user_Q), most)
    return Questions(
        np.array(user_Q, np.int64),
        np.array(item_QN, np.int64).reshape(shape),
        cast(np.ndarray, np.array(worth_QN, float).reshape(shape)),
        "the user's own ratings, held out",
    )
