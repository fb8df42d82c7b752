"""Answers rated by attribute, where each attribute, or whoever cares for it alone, plays a user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from raypref.data.published.base import Count, Kind, Published, Row
from raypref.data.published.records import Record, Records

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

ULTRAFEEDBACK = ("helpfulness", "honesty", "instruction_following", "truthfulness")
"""User types of UF-P; the first two are those of UF-P-2, where a pair is still controversial by all four."""


class HelpSteer2(Published):
    """Five human ratings of each answer, 0 to 4: five users."""

    name: ClassVar[str] = "helpsteer2"
    title: ClassVar[str] = "answers with five human ratings each; each attribute is a user"
    citation: ClassVar[str] = "HelpSteer2, arXiv 2406.08673 (NeurIPS 2024)"
    licence: ClassVar[str] = "CC BY 4.0"
    files: ClassVar[str] = "train.jsonl.gz, validation.jsonl.gz, or hf:nvidia/HelpSteer2"
    published: ClassVar[Mapping[str, int]] = {"users": 5}

    @property
    def kind(self) -> Kind:
        """Ratings."""
        return "ratings"

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield an answer's rating by each attribute."""
        for record in records.read("prompt", "response", *HELPSTEER):
            count.records += 1
            count.met("prompts", record["prompt"])
            for attribute in HELPSTEER:
                if str(record[attribute]) not in ("0", "1", "2", "3", "4"):
                    count.skip("no_rating_of_0_to_4")
                else:
                    yield {
                        "user_id": attribute,
                        "prompt": record["prompt"],
                        "response": record["response"],
                        "rating": record[attribute],
                    }


class UltraFeedback(Published):
    """Users who each care for one attribute, and disagree, after UF-P (VPL, arXiv 2408.10075).

    UF-P takes the pair of each prompt that another dataset chose; here two of its answers are drawn. Figures
    are not to be held against UF-P's.
    """

    name: ClassVar[str] = "ultrafeedback"
    title: ClassVar[str] = (
        "users who care for one attribute each, as UF-P-2 and UF-P-4 have it, but any two answers"
    )
    citation: ClassVar[str] = "UltraFeedback, arXiv 2310.01377; UF-P: VPL, arXiv 2408.10075 (NeurIPS 2024)"
    licence: ClassVar[str] = "MIT"
    files: ClassVar[str] = "UltraFeedback's JSONL with completions, or hf:openbmb/UltraFeedback"
    published: ClassVar[Mapping[str, int]] = {"prompts": 63967}

    variant: Literal["uf-p-2", "uf-p-4"] = Field(
        default="uf-p-4",
        description="uf-p-2: who cares for helpfulness, who for honesty; uf-p-4: instruction following and "
        "truthfulness too.",
    )
    controversial: bool = Field(
        default=True, description="Only pairs that the four types do not all judge alike, as UF-P has it."
    )
    users_per_type: PositiveInt = Field(default=1, description="Users of each type.")
    comparisons_per_user: PositiveInt | None = Field(
        default=None,
        description="Drawn for each user of a type from all pairs (`disjoint`: from a part of their own).",
    )
    disjoint: bool = Field(default=True, description="Users of one type share no pair.")
    seed: int = Field(default=0, description="Of pairs, of the coins that break ties, and of who gets which.")

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield each user's judgement of their pairs: a tie is broken by a coin of that user type."""
        draw = np.random.default_rng(self.seed)
        judged: list[tuple[str, str, str, list[bool]]] = []
        for record in records.read("instruction", "completions"):
            count.records += 1
            answers = _answers(record)
            if len(answers) < 2:
                count.skip("fewer_than_two_answers")
                continue
            count.met("prompts", record["instruction"])
            first, second = draw.choice(len(answers), 2, replace=False)
            (left, ratings), (right, others) = answers[first], answers[second]
            coins = draw.random(len(ULTRAFEEDBACK)) < 0.5
            prefers = [
                bool(coin) if ratings[name] == others[name] else ratings[name] > others[name]
                for name, coin in zip(ULTRAFEEDBACK, coins, strict=True)
            ]
            if left != right and (not self.controversial or len(set(prefers)) == 2):
                judged.append((record["instruction"], left, right, prefers))
        for place in range(2 if self.variant == "uf-p-2" else 4):
            yield from self._deal(place, judged, draw)

    def _deal(
        self, place: int, judged: list[tuple[str, str, str, list[bool]]], draw: np.random.Generator
    ) -> Iterator[Row]:
        parts = np.array_split(draw.permutation(len(judged)), self.users_per_type)
        for user in range(self.users_per_type):
            own = parts[user] if self.disjoint else draw.permutation(len(judged))
            for number in own[: self.comparisons_per_user].tolist():
                prompt, left, right, prefers = judged[number]
                chosen, rejected = (left, right) if prefers[place] else (right, left)
                name = f"-{user:04d}" if self.users_per_type > 1 else ""
                yield {
                    "user_id": ULTRAFEEDBACK[place] + name,
                    "prompt": prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                }


def _answers(record: Record) -> list[tuple[str, dict[str, float]]]:
    """Return the answers that all four attributes are rated of, in their order."""
    found: list[tuple[str, dict[str, float]]] = []
    completions: Any = record["completions"]
    for completion in completions if isinstance(completions, list) else []:
        try:
            rated = {name: float(completion["annotations"][name]["Rating"]) for name in ULTRAFEEDBACK}
            found.append((str(completion["response"]), rated))
        except (KeyError, TypeError, ValueError):
            continue  # N/A
    return found
