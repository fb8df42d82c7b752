"""The populations that methods are measured on: planted, our own texts, and real people.

| name | whose taste | held out |
|---|---|---|
| planted-noisy, planted-extreme | Dirichlet(0.1) mixtures of five linear rewards, two protocols | prompts |
| planted-…-diverse, planted-…-alike | the same with α = 0.03 (nearly one reward a user) and α = 1 | prompts |
| pets | two kinds of users who agree but for dogs and cats (SPL, arXiv 2603.12595) | sentences |
| helpsteer2 | users who care for helpfulness, verbosity or complexity alone (HelpSteer2) | prompts |
| polis-warm, polis-cold | people's votes on statements (Pol.is) | votes; statements |
| ukp | crowd workers on arguments (UKPConvArg1): hardly any taste, so the null case | arguments, warm |

Users that are judged are met by no training, everywhere. A population is prepared once per seed and size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judged
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from judged import Size

from raypref import __version__, files
from raypref.config import PlantedConfig, RunConfig, TransformersConfig
from raypref.config_file import parse_config
from raypref.data.items import ItemTable
from raypref.data.planting import write_planted
from raypref.data.prepare import prepare
from raypref.data.sources import iter_texts
from raypref.embed.pipeline import embed_texts
from raypref.errors import InputError

BUCKETS = 8
DATA_VARIABLE = "RAYPREF_REAL_DATA"
EMBED = TransformersConfig(template="{response}")

PROTOCOLS = {"planted-noisy": "noisy", "planted-extreme": "extreme"}
ALPHAS = {"": 0.1, "-diverse": 0.03, "-alike": 1.0}
PLANTED: dict[str, dict[str, Any]] = {
    f"{family}{suffix}": {"protocol": protocol, "alpha": alpha}
    for family, protocol in PROTOCOLS.items()
    for suffix, alpha in ALPHAS.items()
}
PLANTED_SIZES: dict[Size, dict[str, int]] = {
    "quick": {
        "dim": 32,
        "seen_users": 120,
        "unseen_users": 80,
        "comparisons": 30,
        "shots": 16,
        "test_comparisons": 20,
        "train_prompts": 400,
        "test_prompts": 60,
    },
    "default": {
        "dim": 64,
        "seen_users": 400,
        "unseen_users": 300,
        "shots": 16,
        "test_comparisons": 40,
        "train_prompts": 1500,
        "test_prompts": 200,
    },
    "full": {},
}


@dataclass(frozen=True)
class People:
    """A file of real preferences, and how it is split."""

    file: str
    options: Mapping[str, Any]
    """Of `prepare`, beyond the common ones."""
    users: Mapping[Size, int | None]
    """Most users to begin with; some of them are short of comparisons once they are split."""
    least: int
    """Judgements that a user must have to be drawn."""
    gap: float = 1e-9
    """Ratings make a comparison when they differ by this much."""

    def write(self, table: Path, folder: Path, items: Path, seed: int, size: Size) -> None:
        """Prepare `folder` from a draw of the users in the file `table`."""
        drawn = folder.with_name(f"{folder.name}.parquet")
        pq.write_table(self._draw(pq.read_table(table), self.users[size], seed), drawn)
        prepare(self._run(drawn, items, folder, seed))
        drawn.unlink()

    def texts(self, table: Path) -> list[str]:
        """Return the texts to embed, each item's once or more."""
        return [str(response) for _, response in iter_texts(self._run(table).input)]

    def _run(
        self, table: Path, items: Path | None = None, tables: Path | None = None, seed: int = 0
    ) -> RunConfig:
        common = {"seed": seed, "unseen_share": 0.3, "valid_share": 0.0, "max_train": 48, "max_heldout": 40}
        limits = {"min_heldout": 4, "max_short_user_share": 0.95, "buckets": BUCKETS}
        raw = {
            "input": {"path": str(table), "min_rating_gap": self.gap},
            "prepare": {**common, **limits, **self.options},
            "items": items and str(items),
            "tables": tables and str(tables),
        }
        return parse_config(raw, [], table.name)

    def _draw(self, table: pa.Table, users: int | None, seed: int) -> pa.Table:
        if users is None:
            return table
        judging = table.filter(pc.field("rating") != 0) if "rating" in table.column_names else table
        count = judging.group_by("user_id").aggregate([("user_id", "count")])
        able = np.sort(count.filter(pc.field("user_id_count") >= self.least)["user_id"].to_numpy())
        kept = np.random.default_rng(seed).permutation(able)[:users]
        return table.filter(pc.field("user_id").isin(kept.tolist()))


WARM = {"cold_share": 0.0, "warm_share": 0.3}
COLD = {"cold_share": 0.3, "warm_share": 0.0}
PEOPLE: dict[str, People] = {
    **{
        f"polis-{setting}": People(
            "polis_ratings.parquet",
            {**shares, "min_train": 16},
            {"quick": 200, "default": 900, "full": None},
            least=16,
            gap=2,
        )
        for setting, shares in (("warm", WARM), ("cold", COLD))
    },
    "ukp": People(
        "ukpconvarg1_pairs.parquet",
        {**WARM, "unit": "prompt", "min_train": 8},
        {"quick": 200, "default": 900, "full": None},
        least=12,
    ),
}
"""Comparisons of one person have statements, or arguments, in common, so items are held out, not rows."""

NAMES = (*PLANTED, "pets", "helpsteer2", *PEOPLE)
FILES = {name: people.file for name, people in PEOPLE.items()} | {
    "helpsteer2": "helpsteer2_train_ratings.parquet"
}
"""What a population needs of the data folder."""


@dataclass(frozen=True)
class Prepared:
    """Where a population's tables are."""

    items: Path
    tables: Path


def data_folder() -> Path | None:
    """Return the folder of real data that the environment names."""
    named = os.environ.get(DATA_VARIABLE)
    return Path(named) if named else None


def family(name: str) -> str:
    """Return the population whose tuned settings this one takes."""
    return next((family for family in PROTOCOLS if name.startswith(family)), name)


def missing(name: str, data: Path | None) -> str | None:
    """Return why a population cannot be had, None where it can."""
    if name not in FILES or (data and (data / FILES[name]).is_file()):
        return None
    return f"no {FILES[name]} in {data}" if data else f"needs --data or {DATA_VARIABLE} for {FILES[name]}"


class Population:
    """One population of a seed and a size, below a folder of work."""

    def __init__(
        self, name: str, seed: int, size: Size, planted: Mapping[str, Any], work: Path, data: Path | None
    ) -> None:
        """Say what is meant; nothing is written.

        Raises:
            InputError: there is no such population, or its data is not here.
        """
        if name not in NAMES:
            raise InputError(f"no population {name!r}; there are {', '.join(NAMES)}.")
        if planted and name not in PLANTED:
            raise InputError(f"{name}: only planted populations take planted options.")
        if why := missing(name, data):
            raise InputError(f"{name}: {why}.")
        self.name = name
        self.seed = seed
        self.size: Size = size
        self._source = data / FILES[name] if data and name in FILES else None
        self._items = work / "items" / (self._source.stem if self._source else name)
        self._planted = None
        if name in PLANTED:
            options = {"seed": seed, **PLANTED_SIZES[size], **PLANTED[name], **planted}
            self._planted = PlantedConfig.model_validate(options)
        self.identity = hashlib.sha256(json.dumps(self._definition(), sort_keys=True).encode()).hexdigest()
        """Everything that the tables depend on."""
        self._folder = work / "populations" / f"{name}-{size}-{seed}-{self.identity[:12]}"

    def embed(self) -> None:
        """Embed the texts that the items table does not hold yet; starts Ray where there are any."""
        if self._planted is None and not (self._items / "metadata.json").is_file():
            embed_texts(self._texts(), self._items, EMBED)

    def prepare(self) -> Prepared:
        """Return the tables, writing them if nobody has; processes that ask at once wait for one."""
        folder = self._folder
        made = Prepared(folder / "items" if self._planted else self._items, folder / "tables")
        with files.lock(folder.with_name(f".{folder.name}.lock")):
            if not (made.tables / "metadata.json").is_file():
                folder.mkdir(exist_ok=True)
                self._write(made)
        return made

    def _write(self, made: Prepared) -> None:
        if self._planted:
            write_planted(self._planted, made.items, made.tables, BUCKETS)
        elif self.name in PEOPLE:
            assert self._source is not None
            PEOPLE[self.name].write(self._source, made.tables, made.items, self.seed, self.size)
        else:
            tastes = judged.pets() if self._source is None else judged.helpsteer2(self._source)
            judged.write(tastes, self.seed, self.size, ItemTable.open(made.items), made.tables, BUCKETS)

    def _texts(self) -> list[str]:
        if self._source is None:
            return judged.pets().texts
        if self.name in PEOPLE:
            return PEOPLE[self.name].texts(self._source)
        return judged.helpsteer2(self._source).texts

    def _definition(self) -> dict[str, Any]:
        common = {"name": self.name, "seed": self.seed, "size": self.size, "version": __version__}
        if self._planted:
            return {**common, "planted": self._planted.model_dump(mode="json")}
        if self.name in PEOPLE:
            assert self._source is not None
            people = PEOPLE[self.name]
            return {**common, "file": files.sha256(self._source), "people": repr(people)}
        texts = hashlib.sha256("\n".join(self._texts()).encode()).hexdigest()
        return {**common, "texts": texts, "rules": files.sha256(Path(judged.__file__))}
