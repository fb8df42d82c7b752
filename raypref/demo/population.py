"""A planted population that judges the shipped text bank by conflicting tastes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any

import numpy as np

LENSES = ("nature", "technology", "thrift", "company", "comfort", "discipline", "art", "tradition")
"""The values that answers speak for; every prompt of the bank has one answer for each."""

TASTES: dict[str, dict[str, float]] = {
    "rambler": {"nature": 2.0, "discipline": 1.0, "technology": -1.5, "comfort": -1.5, "long": -0.5},
    "tinkerer": {"technology": 2.0, "thrift": 1.0, "tradition": -1.5, "nature": -1.5, "long": 0.5},
    "host": {"company": 2.0, "tradition": 1.0, "comfort": 0.5, "discipline": -2.0, "thrift": -1.0},
    "dreamer": {"art": 2.0, "comfort": 1.0, "company": -1.0, "discipline": -1.5, "long": 0.5},
    "saver": {"thrift": 2.0, "discipline": 1.0, "comfort": -2.0, "art": -0.5, "long": -0.5},
}
"""Five ways to value an answer; a user is a Dirichlet mixture of them, mostly near one."""

CONCENTRATION = 0.15
SHARPNESS = 1.5
"""A user prefers an answer with probability σ(SHARPNESS · difference of value)."""


@dataclass(frozen=True)
class Answer:
    """A row of the bank."""

    prompt: str
    response: str
    lens: str
    length: str

    def value(self, taste: dict[str, float]) -> float:
        """Return how much a taste values this answer."""
        return taste.get(self.lens, 0.0) + taste.get(self.length, 0.0)


def load_bank() -> dict[str, list[Answer]]:
    """Return the answers of every prompt, in the order of the shipped files."""
    bank: dict[str, list[Answer]] = {}
    folder = package_files("raypref.demo") / "bank"
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        for line in file.read_text(encoding="utf-8").splitlines():
            answer = Answer(**json.loads(line))
            bank.setdefault(answer.prompt, []).append(answer)
    return bank


def judge(bank: dict[str, list[Answer]], users: int, comparisons: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield comparisons in long form: every user judges random pairs of answers to random prompts."""
    rng = np.random.default_rng(seed)
    prompts = list(bank)
    values = np.array(
        [
            [[answer.value(taste) for taste in TASTES.values()] for answer in answers]
            for answers in bank.values()
        ]
    )
    for user in range(users):
        weights = rng.dirichlet(np.full(len(TASTES), CONCENTRATION))
        for _ in range(comparisons):
            prompt = int(rng.integers(len(prompts)))
            answers = bank[prompts[prompt]]
            first, second = rng.choice(len(answers), 2, replace=False)
            gap = float((values[prompt, first] - values[prompt, second]) @ weights)
            if rng.random() >= 1.0 / (1.0 + np.exp(-SHARPNESS * gap)):
                first, second = second, first
            yield {
                "user_id": f"user-{user:04d}",
                "prompt": prompts[prompt],
                "chosen": answers[first].response,
                "rejected": answers[second].response,
            }
