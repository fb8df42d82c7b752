"""The gallery: all of the explorer's page that does not depend on who looks at it."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from raypref.checkpoint import Bundle, fingerprint_of, name_of
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.rows import Text
from raypref.data.sources import iter_texts, render
from raypref.describe.result import Description
from raypref.describe.run import describe
from raypref.describe.sample import LOOKUP_TEXTS
from raypref.errors import ConfigError, InputError
from raypref.evaluate.landscape import Ellipse, Point, ellipse, point, principal
from raypref.schema import content_hash, require_embedder

PROMPTS, RESPONSES = 100, 8
"""Most prompts of a gallery, and responses to each."""
MAPPED = 400
"""Most users on the map."""


class Section(BaseModel):
    """Base of every part of a gallery."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Shown(Section):
    """A response."""

    item: int = Field(description="Row of the items table, by which the service knows it.")
    text: str


class Question(Section):
    """A prompt and the responses that may be asked about."""

    prompt: str
    responses: list[Shown]


class Population(Section):
    """The bundle's users and bases on two axes of the space where the method compares them."""

    center: list[float] = Field(description="Of the space, L numbers.")
    axes: tuple[list[float], list[float]] = Field(description="Two directions of it, L numbers each.")
    users: list[Point]
    ellipses: list[Ellipse] | None = Field(description="One deviation of each; null where none is known.")
    bases: list[Point] | None
    explained: Point = Field(description="Share of the variance of users and bases along each axis.")


class Gallery(Section):
    """What `gallery.json` holds."""

    model: str = Field(description="Id of the bundle that it is of, as a service calls it.")
    questions: list[Question]
    population: Population | None = Field(description="Null where the method has no map.")
    description: Description


def make_gallery(config: RunConfig, directory: Path, against: Path | None = None) -> Gallery:
    """Return the gallery of a bundle, with the texts of a run's input; the same every time.

    Args:
        config: of the run.
        directory: of the bundle.
        against: an earlier bundle, to tell what drifted since.

    Raises:
        ConfigError: the run names no input.
        InputError: no prompt of the input has two responses in the items table; a bundle keeps no users, or
            the two share none.
        MismatchError: bundle, items and texts do not belong together.
    """
    if config.input.path is None:
        raise ConfigError("explore: people are shown texts; name them with input.path.")
    bundle, items = Bundle.load(directory), ItemTable.open(config.items_dir)
    require_embedder(items.metadata.embedder, bundle.info.embedder, config.items_dir)
    questions = _questions(config, items)
    if not questions:
        raise InputError(f"{config.input.path}: no prompt has two responses in {config.items_dir}.")
    return Gallery(
        model=f"{name_of(directory, bundle.info)}@{fingerprint_of(directory)}",
        questions=questions,
        population=_population(bundle),
        description=describe(config, directory, against=against),
    )


def _questions(config: RunConfig, items: ItemTable) -> list[Question]:
    """Return prompts by the hash of their text, each with its first responses."""
    template = items.metadata.embedder.template
    found: dict[str, list[Shown]] = defaultdict(list)
    texts = iter_texts(config.input)
    while chunk := list(islice(texts, LOOKUP_TEXTS)):
        hashes = [content_hash(render(template, prompt, response)) for prompt, response in chunk]
        for item, (prompt, response) in zip(items.rows_of(hashes).tolist(), chunk, strict=True):
            held = found[_plain(prompt)]
            if item >= 0 and len(held) < RESPONSES:
                held.append(Shown(item=item, text=_plain(response)))
    several = [prompt for prompt, held in found.items() if len(held) > 1]
    chosen = sorted(several, key=content_hash)[:PROMPTS]
    return [Question(prompt=prompt, responses=found[prompt]) for prompt in chosen]


def _plain(text: Text) -> str:
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


@torch.no_grad()
def _population(bundle: Bundle) -> Population | None:
    count = bundle.users.num_rows
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:MAPPED])
    vectors = bundle.users["vector"].take(chosen).to_pylist()
    if not vectors:
        return None
    land = bundle.model.landscape(torch.tensor(vectors, dtype=torch.float32))
    if land is None:
        return None
    mean_BL = land.mean_BL.double().numpy()
    bases_KL = np.zeros((0, mean_BL.shape[1])) if land.bases_KL is None else land.bases_KL.double().numpy()
    center_L, axes_L2, explained = principal(np.concatenate([mean_BL, bases_KL]))
    return Population(
        center=center_L.tolist(),
        axes=(axes_L2[:, 0].tolist(), axes_L2[:, 1].tolist()),
        users=[point(row) for row in (mean_BL - center_L) @ axes_L2],
        ellipses=None
        if land.var_BL is None
        else [ellipse(row, axes_L2) for row in land.var_BL.double().numpy()],
        bases=None if land.bases_KL is None else [point(row) for row in (bases_KL - center_L) @ axes_L2],
        explained=explained,
    )
