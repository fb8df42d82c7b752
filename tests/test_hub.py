"""Bundles on a hub, through the hub's own client, as somebody at a terminal would push and fetch them."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from raypref.checkpoint import Bundle, Result, model_card, read_info, verify
from raypref.errors import CorruptError, InputError
from raypref.hub import FILES, results_of, without_users
from tests.hub import TOKEN, Hub
from tests.serve.world import METHOD_NAMES, make_bundle

Run = Callable[..., subprocess.CompletedProcess[str]]

USER = {"user_id": "ann", "row": 0, "comparisons": 3, "vector": [1.0, 2.0]}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """raypref with the hub on loopback, and a cache of its own."""
    numbers = itertools.count()

    def run(
        *arguments: object,
        token: str | None = TOKEN,
        endpoint: str = hub.url,
        cache: str | None = None,
        program: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        home = tmp_path / "caches" / (cache or str(next(numbers)))
        environment = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_TOKEN": token} if token else {}
        return subprocess.run(
            [sys.executable, *(("-c", program) if program else ("-m", "raypref")), *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a user by name."""
    directory = make_bundle(tmp_path_factory.mktemp("made") / "taste", "pref")
    held = Bundle.load(directory)
    import pyarrow as pa

    Bundle(held.model, held.info, pa.Table.from_pylist([USER], held.users.schema)).save(directory)
    return directory


def scores(directory: Path) -> list[torch.Tensor]:
    """What a new user's rewards are."""
    model = Bundle.load(directory).model
    draw = torch.Generator().manual_seed(0)
    chosen, rejected, items = (torch.randn(6, model.dims.embedding, generator=draw) for _ in range(3))
    with torch.no_grad():
        user_BZ = model.infer(model.evidence(chosen, rejected)[None], torch.ones(1, 6))
        reward = model.reward(model.item(items)[None], user_BZ)
    return [part for part in (reward.mean_BN, reward.var_BN) if part is not None]


def test_a_bundle_goes_to_the_hub_and_back_without_its_users(
    hub: Hub, run: Run, bundle: Path, tmp_path: Path
) -> None:
    pushed = run("push", bundle, "me/taste", "--license", "apache-2.0")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.endswith("pushed without the users that it was trained on\n")
    assert hub.private["me/taste"]
    assert set(hub.files("me/taste")) == {*FILES, ".gitattributes"}
    pulled = run("pull", "me/taste", "-o", tmp_path / "bundle")
    assert pulled.returncode == 0, pulled.stderr
    commit = list(hub.commits["me/taste"])[-1]
    assert pulled.stdout == f"{tmp_path / 'bundle'}: me/taste@{commit}, verified\n"
    verify(tmp_path / "bundle")
    assert pq.read_table(tmp_path / "bundle/users.parquet").num_rows == 0
    for found, expected in zip(scores(tmp_path / "bundle"), scores(bundle), strict=True):
        assert torch.equal(found, expected)
    assert b"ann" not in b"".join(hub.files("me/taste").values())
    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / "bundle/README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "raypref"
    # The bundle that was pushed is as it was.
    assert pq.read_table(bundle / "users.parquet").to_pylist() == [USER]


def test_users_are_pushed_when_asked_for_and_revisions_are_kept_apart(
    hub: Hub, run: Run, bundle: Path, tmp_path: Path
) -> None:
    assert run("push", bundle, "me/versions", "--public").returncode == 0
    first = list(hub.commits["me/versions"])[-1]
    pushed = run("push", bundle, "me/versions", "--with-users")
    assert "pushed with the users" in pushed.stdout
    assert not hub.private["me/versions"]
    assert run("pull", "me/versions", "-o", tmp_path / "new", token=None).returncode == 0
    assert pq.read_table(tmp_path / "new/users.parquet").to_pylist() == [USER]
    assert run("pull", f"hf://me/versions@{first}", "-o", tmp_path / "old").returncode == 0
    assert pq.read_table(tmp_path / "old/users.parquet").num_rows == 0


SERVE = """
import asyncio, sys
from raypref.serve.config import ServeConfig
from raypref.serve.scorer import Scorer

config = ServeConfig(bundle=sys.argv[1], store="memory:", open=True)
scorer = Scorer(config.settings, config.bundle)
asyncio.run(scorer.reconfigure({"bundle": config.bundle}))
print(asyncio.run(scorer.describe()).model)
"""


def test_a_service_takes_a_revision_of_the_hub_and_nothing_that_may_change(
    hub: Hub, run: Run, bundle: Path, tmp_path: Path
) -> None:
    assert run("push", bundle, "me/served").returncode == 0
    commit = list(hub.commits["me/served"])[-1]
    served = run(f"hf://me/served@{commit}", program=SERVE)
    assert served.returncode == 0, served.stderr
    assert re.fullmatch(r"served@[0-9a-f]{12}\n", served.stdout)
    drifting = run("hf://me/served", program=SERVE)
    assert "name a revision, hf://me/served@REVISION" in drifting.stderr
    absent = run("hf://me/served@v2", program=SERVE)
    assert "has no such revision" in absent.stderr


def test_what_the_hub_does_not_give_is_said_and_nothing_is_left(
    hub: Hub, run: Run, bundle: Path, tmp_path: Path
) -> None:
    assert run("push", bundle, "me/broken").returncode == 0
    hub.broken.add("model.safetensors")
    target = tmp_path / "bundle"
    try:
        damaged = run("pull", "me/broken", "-o", target, cache="damaged")
    finally:
        hub.broken.clear()
    assert not target.exists()
    # What came damaged into the cache is fetched again.
    assert run("pull", "me/broken", "-o", tmp_path / "healed", cache="damaged").returncode == 0
    hub.commits["me/other"], hub.private["me/other"] = {}, False
    hub.commit("me/other", {"README.md": b"a model"})
    for done, message in (
        (damaged, "model.safetensors: differs from manifest.json"),
        (
            run("pull", "me/nothing", "-o", target),
            "hf://me/nothing: no such repository, or not yours to read",
        ),
        (
            run("pull", "me/broken", "-o", target, token=None),
            "not yours to read; `hf auth login`, or set HF_TOKEN",
        ),
        (run("pull", "me/broken@v9", "-o", target), "hf://me/broken@v9: has no such revision"),
        (run("pull", "me/other", "-o", target), "is no bundle (model.safetensors, checkpoint.json"),
        (run("pull", "a/b/c", "-o", target), "is no name of a repository, which is OWNER/NAME"),
        (run("push", bundle, "me/new", token=None), "HF_TOKEN"),
        (run("push", tmp_path, "me/new"), "no bundle here"),
        (run("pull", "me/broken", "-o", target, endpoint="http://127.0.0.1:9"), "the hub is out of reach"),
        (run("describe", "hf://me/nothing"), "no such repository"),
    ):
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not target.exists()
    assert "me/new" not in hub.commits


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_new_users_do_not_notice_that_the_seen_ones_are_gone(method: str, tmp_path: Path) -> None:
    directory = make_bundle(tmp_path / "bundle", method)
    without_users(Bundle.load(directory)).save(tmp_path / "without")
    for found, expected in zip(scores(tmp_path / "without"), scores(directory), strict=True):
        assert torch.equal(found, expected)
    model = Bundle.load(tmp_path / "without").model
    for name in model.user_rows:
        assert not model.get_parameter(name).any()


def test_the_card_holds_what_was_measured(bundle: Path) -> None:
    from huggingface_hub import ModelCard

    info = read_info(bundle).model_copy(update={"metrics": {"valid_accuracy": 0.75}})
    card = ModelCard(model_card(info, "mit", [Result("unseen users after 4 comparisons", "cold", 0.625)]))
    card.data.to_dict()
    held = {(one.dataset_config, one.metric_type): one.metric_value for one in card.data.eval_results or []}
    assert held == {
        ("seen users, in training: valid_accuracy", "valid_accuracy"): 0.75,
        ("unseen users after 4 comparisons, cold items", "accuracy"): 0.625,
    }
    assert "| unseen users after 4 comparisons, cold items | accuracy | 0.6250 |" in card.text
    assert "personal data" in card.text
    # A local embedder has no name on the hub.
    assert card.data.base_model is None
    named = info.embedder.model_copy(update={"model": "sentence-transformers/all-MiniLM-L6-v2"})
    card = ModelCard(model_card(info.model_copy(update={"embedder": named})))
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.license is None


def test_results_come_from_a_report(tmp_path: Path) -> None:
    cell = {"cohort": "unseen", "setting": "warm", "shots": 4, "accuracy_per_user": {"mean": 0.7}}
    cells = [cell, {**cell, "cohort": "seen", "shots": None}]
    (tmp_path / "report.json").write_text(json.dumps({"evaluations": {"vrf": {"cells": cells}}}))
    assert results_of(tmp_path, "vrf") == [
        Result("unseen users after 4 comparisons", "warm", 0.7),
        Result("seen users", "warm", 0.7),
    ]
    with pytest.raises(InputError, match="has vrf and no bt"):
        results_of(tmp_path, "bt")
    with pytest.raises(InputError, match="no report here"):
        results_of(tmp_path / "none", "vrf")
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(CorruptError, match="not readable"):
        results_of(tmp_path, "vrf")
