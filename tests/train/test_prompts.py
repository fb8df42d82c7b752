"""A method that reads prompts, from tables to an evaluated bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypref.checkpoint import Bundle
from raypref.config import RunConfig
from raypref.data.items import ItemTable, append_items
from raypref.data.prepare import prepare
from raypref.data.prompts import link_prompts, render_prompt
from raypref.data.sources import iter_texts, render
from raypref.data.tables import Tables
from raypref.errors import MismatchError
from raypref.evaluate.protocol import evaluate
from raypref.evaluate.run import evaluate_bundles
from raypref.methods import PALBConfig
from raypref.schema import content_hash
from raypref.train.session import fit
from tests.data.corpus import FAKE, comparisons, run_config


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A run over prepared comparisons whose prompts are not embedded."""
    config = run_config(tmp_path / "run", comparisons(12, 30))
    prepare(config)
    method = {"type": "pal_b", "prototypes": 2, "points": 4, "recipe": {"steps": 8, "users_per_step": 4}}
    quick = config.evaluate.model_copy(update={"shots": (0, 4), "seeds": (0,), "bootstrap": 10})
    return config.model_copy(update={"method": PALBConfig.model_validate(method), "evaluate": quick})


def embed_prompts(run: RunConfig) -> None:
    texts = {
        (render(FAKE.template, *item), render_prompt(FAKE.template, item[0]))
        for item in iter_texts(run.input)
    }
    prompts = sorted({content_hash(prompt) for _, prompt in texts})
    emb_ND = np.random.default_rng(1).normal(size=(len(prompts), FAKE.dim)).astype(np.float16)
    append_items(run.items_dir, FAKE, [(prompts, emb_ND)])
    link_prompts(run.items_dir, [(content_hash(item), content_hash(prompt)) for item, prompt in texts])


def test_prompts_reach_training_evaluation_and_the_bundle(run: RunConfig) -> None:
    embed_prompts(run)
    items, tables = ItemTable.open(run.items_dir), Tables.open(run.tables_dir)
    bundle = fit(run, items, tables)
    assert bundle.model.dims.embedding == bundle.info.dim == 2 * FAKE.dim
    assert bundle.info.embedder == FAKE
    bundle.save(run.bundle_dir)
    found = evaluate_bundles(run, [run.bundle_dir])["pal_b"]
    again = evaluate(Bundle.load(run.bundle_dir).model, items.with_prompts(), tables, run.evaluate)
    assert found.cells == again.cells
    assert len(found.cells) > 0
    with pytest.raises(MismatchError, match="the items have D = 4, the model takes 8"):
        evaluate(bundle.model, items, tables, run.evaluate)


def test_a_table_without_prompts_is_refused(run: RunConfig) -> None:
    items, tables = ItemTable.open(run.items_dir), Tables.open(run.tables_dir)
    with pytest.raises(MismatchError, match=r"embed.prompts: true"):
        fit(run, items, tables)


def test_methods_without_prompts_do_not_notice_them(run: RunConfig) -> None:
    plain = RunConfig.model_validate(
        {**run.model_dump(exclude={"method"}), "method": {"type": "bt", "recipe": {"steps": 8}}}
    )
    tables = Tables.open(run.tables_dir)
    before = fit(plain, ItemTable.open(run.items_dir), tables).model.state_dict()
    embed_prompts(run)
    after = fit(plain, ItemTable.open(run.items_dir), tables).model.state_dict()
    assert all(bool((after[name] == value).all()) for name, value in before.items())
