"""`raypref demo`: the main job from text to a personal score, on what ships with raypref."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raypref import files
from raypref.checkpoint import Bundle
from raypref.cluster import connected
from raypref.config import RunConfig
from raypref.config_file import parse_config
from raypref.data.inference import gather
from raypref.data.items import ItemTable
from raypref.data.prepare import prepare
from raypref.data.sources import render
from raypref.demo.population import TASTES, Answer, judge, load_bank
from raypref.embed.pipeline import embed
from raypref.evaluate.run import evaluate_bundles, summary
from raypref.schema import content_hash
from raypref.train.trainer import run as train

USERS, COMPARISONS = 600, 40
METHODS: dict[str, dict[str, Any]] = {name: {"type": name} for name in ("bt", "lore", "vrf")}
NEW_USER_TASTE = "rambler"
ANSWERS_TO_SCORE = ("nature", "comfort")
MARKER = ".raypref-demo"
CPUS = 3
"""Of the local cluster, however many the machine has: two workers and one that reads for them."""


def demo(directory: Path) -> None:
    """Embed, prepare, train three methods, evaluate, report, and score two answers for a new user.

    Prints what each step did. Everything is written below `directory`; an earlier demo there is replaced.
    """
    began = time.perf_counter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    files.require_ours(directory, MARKER)
    shutil.rmtree(directory, ignore_errors=True)
    files.write_text(directory / MARKER, "Made by `raypref demo`, which replaces this folder.\n")
    bank = load_bank()
    rows = list(judge(bank, USERS, COMPARISONS, seed=0))
    files.write_text(directory / "comparisons.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    config = configure(directory, METHODS["vrf"])
    with connected(CPUS):
        with step(f"embed: {sum(map(len, bank.values()))} answers to {len(bank)} prompts, with MiniLM"):
            made = embed(config)
            print(f"  {made.count} vectors of width {made.embedder.dim}")
        with step(f"prepare: {len(rows)} comparisons of {USERS} users, {len(TASTES)} conflicting tastes"):
            metadata = prepare(config)
            for name, count in metadata.comparisons.items():
                print(f"  {name:<14}{count:>7}")
        bundles: list[Path] = []
        for name, method in METHODS.items():
            with step(f"train: {name} on {config.train.workers} workers"):
                chosen = configure(directory, method)
                info = train(chosen)
                print(f"  {info.steps} steps, held-out accuracy {info.metrics['valid_accuracy']:.3f}")
                bundles.append(chosen.bundle_dir)
    with step("evaluate: users that training never met, after 0 to 16 comparisons"):
        print(summary(evaluate_bundles(config, bundles)))
        print(f"  report: {config.report_dir / 'report.html'}")
    with step("score: a new user gives five comparisons"):
        meet(Bundle.load(bundles[-1]), ItemTable.open(config.items_dir), bank)
    print(f"done in {time.perf_counter() - began:.0f} s")


def configure(directory: Path, method: dict[str, Any]) -> RunConfig:
    """Return the demo's run of one method."""
    name = method["type"]
    return parse_config(
        {
            "dir": str(directory),
            "bundle": str(directory / "bundles" / name),
            "input": {"path": str(directory / "comparisons.jsonl")},
            "embed": {"engine": "transformers", "template": "{response}"},
            "prepare": {"unit": "prompt", "buckets": 8, "min_train": 8},
            "method": method,
            "train": {"workers": 2, "validate_every": 50},
            "evaluate": {"shots": [0, 1, 2, 4, 8, 16]},
        },
        [],
        "demo",
    )


def meet(bundle: Bundle, items: ItemTable, bank: dict[str, list[Answer]]) -> None:
    """Show what five comparisons of one user do to the scores of two answers."""
    prompts, taste, rng = list(bank), TASTES[NEW_USER_TASTE], np.random.default_rng(5)
    chosen: list[Answer] = []
    rejected: list[Answer] = []
    for prompt in rng.choice(len(prompts) - 1, 5, replace=False):
        first, second = rng.choice(len(bank[prompts[prompt]]), 2, replace=False)
        pair = [bank[prompts[prompt]][first], bank[prompts[prompt]][second]]
        better, worse = sorted(pair, key=lambda answer: answer.value(taste), reverse=True)
        chosen.append(better)
        rejected.append(worse)
        print(f'  "{better.response}"')
        print(f'      rather than "{worse.response}"')
    answers = [answer for answer in bank[prompts[-1]] if answer.lens in ANSWERS_TO_SCORE]
    print(f"  {prompts[-1]}")
    model = bundle.model
    with torch.no_grad():
        evidence_1PE = model.evidence(vectors(items, chosen), vectors(items, rejected)).unsqueeze(0)
        item_1NF = model.item(vectors(items, answers)).unsqueeze(0)
        for who, mask_1P in (("anybody", torch.zeros(1, 5)), ("this user", torch.ones(1, 5))):
            user_1Z = model.infer(evidence_1PE, mask_1P)
            reward = model.reward(item_1NF, user_1Z)
            margin = model.margin(item_1NF[:, :1], item_1NF[:, 1:], user_1Z)
            assert reward.var_BN is not None
            scores = zip(reward.mean_BN[0].tolist(), reward.var_BN[0].sqrt().tolist(), strict=True)
            shown = ", ".join(f"{mean:+.2f} ± {std:.2f}" for mean, std in scores)
            chance = float(margin.probability_BN()[0, 0])
            print(f"  {who:<10}{shown}; prefers the first with probability {chance:.2f}")
    for number, answer in enumerate(answers, 1):
        print(f'    {number}. "{answer.response}"')


def vectors(items: ItemTable, answers: Sequence[Answer]) -> torch.Tensor:
    """Return the embeddings of answers that the items table holds."""
    template = items.metadata.embedder.template
    texts = [render(template, answer.prompt, answer.response) for answer in answers]
    return gather(items, items.rows_of([content_hash(text) for text in texts]))


@contextmanager
def step(title: str) -> Generator[None]:
    """Announce a step and say how long it took."""
    print(title, flush=True)
    began = time.perf_counter()
    yield
    print(f"  {time.perf_counter() - began:.0f} s", flush=True)
