"""Answers rated by attribute, where each attribute, or whoever cares for it alone, plays a user."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from raypref.data.published.base import Count, Kind, Published, Row
from raypref.data.published.records import Record, Records
from raypref.data.rows import Text
from raypref.errors import InputError

TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
"""Begins every turn but the first of HelpSteer2's longer prompts."""

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
    published: ClassVar[Mapping[str, int]] = {"responses": 21362}
    """20,324 to train, 1,038 to validate."""

    @property
    def kind(self) -> Kind:
        """Ratings."""
        return "ratings"

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield an answer's rating by each attribute."""
        for record in records.read("prompt", "response", *HELPSTEER):
            count.records += 1
            count.met("prompts", record["prompt"])
            count.met("responses", count.records)
            for attribute in HELPSTEER:
                if str(record[attribute]) not in ("0", "1", "2", "3", "4"):
                    count.skip("no_rating_of_0_to_4")
                else:
                    yield {
                        "user_id": attribute,
                        "prompt": _turns(record["prompt"]),
                        "response": record["response"],
                        "rating": record[attribute],
                    }


class UltraFeedback(Published):
    """Users who each care for one attribute, and disagree: UF-P (VPL, arXiv 2408.10075).

    UF-P takes the pairs that another dataset chose (`pairs`). Without them two answers of each prompt are
    drawn, and figures are not to be held against UF-P's.
    """

    name: ClassVar[str] = "ultrafeedback"
    title: ClassVar[str] = (
        "users who care for one attribute each: UF-P-2 and UF-P-4 with `pairs`, otherwise any two answers"
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
    pairs: str | None = Field(
        default=None,
        description="Of which pairs UF-P is: ultrafeedback-binarized-preferences-cleaned, as files or "
        "hf:argilla/…, joined by the texts of prompt and answers.",
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
        wanted = None if self.pairs is None else _wanted(Records(self.pairs))
        judged: list[tuple[str, str, str, list[bool]]] = []
        for record in records.read("instruction", "completions"):
            count.records += 1
            answers = _answers(record)
            if len(answers) < 2:
                count.skip("fewer_than_two_answers")
                continue
            count.met("prompts", record["instruction"])
            for left, right in _chosen(answers, record["instruction"], wanted, draw):
                count.met("pairs", (record["instruction"], left, right))
                coins = draw.random(len(ULTRAFEEDBACK)) < 0.5
                ratings, others = answers[left], answers[right]
                prefers = [
                    bool(coin) if ratings[name] == others[name] else ratings[name] > others[name]
                    for name, coin in zip(ULTRAFEEDBACK, coins, strict=True)
                ]
                if not self.controversial or len(set(prefers)) == 2:
                    judged.append((record["instruction"], left, right, prefers))
        if wanted and not judged:
            raise InputError(f"{self.pairs}: none of its pairs is among the answers of {records.place}.")
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


def _turns(prompt: Any) -> Text:
    """Return the messages of a prompt of several turns; one of a single turn stays as it is."""
    if not isinstance(prompt, str) or TURN.search(prompt) is None:
        return prompt
    first, *others = TURN.split(prompt)
    turns = [("User", first), *zip(others[::2], others[1::2], strict=True)]
    return [{"role": who.lower(), "content": text} for who, text in turns]


def _wanted(records: Records) -> dict[str, list[tuple[str, str]]]:
    """Return the pairs of answers to each prompt; each side is the dialogue that ends in it."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in records.read("prompt", "chosen", "rejected"):
        chosen, rejected = _ending(record["chosen"]), _ending(record["rejected"])
        if chosen is not None and rejected is not None and chosen != rejected:
            found[record["prompt"]].append((chosen, rejected))
    return found


def _ending(dialogue: Any) -> str | None:
    """Return the last message of a dialogue, or a text as it is."""
    try:
        text = dialogue if isinstance(dialogue, str) else dialogue[-1]["content"]
    except (IndexError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _chosen(
    answers: Mapping[str, Any],
    prompt: str,
    wanted: Mapping[str, list[tuple[str, str]]] | None,
    draw: np.random.Generator,
) -> list[tuple[str, str]]:
    """Return the pairs of a prompt that are judged: those wanted, or two answers drawn."""
    if wanted is not None:
        return [pair for pair in wanted.get(prompt, []) if pair[0] in answers and pair[1] in answers]
    texts = list(answers)
    first, second = draw.choice(len(texts), 2, replace=False)
    return [(texts[first], texts[second])]


def _answers(record: Record) -> dict[str, dict[str, float]]:
    """Return the ratings of the answers that all four attributes are rated of, in their order."""
    found: dict[str, dict[str, float]] = {}
    completions: Any = record["completions"]
    for completion in completions if isinstance(completions, list) else []:
        try:
            rated = {name: float(completion["annotations"][name]["Rating"]) for name in ULTRAFEEDBACK}
            found.setdefault(str(completion["response"]), rated)
        except (KeyError, TypeError, ValueError):
            continue  # N/A
    return found
