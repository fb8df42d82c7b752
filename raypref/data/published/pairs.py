"""Datasets of pairs with a column that says whose they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field

from raypref.data.published.base import Count, Published, Row
from raypref.data.published.records import Records


class TRL(Published):
    """What TRL's trainers take, in all of its forms: prompt explicit or implicit, text or chat."""

    name: ClassVar[str] = "trl"
    title: ClassVar[str] = "any preference dataset in TRL's forms that has a column of users"
    citation: ClassVar[str] = "huggingface.co/docs/trl/dataset_formats"
    licence: ClassVar[str] = "the dataset's own"
    files: ClassVar[str] = "JSONL, Parquet, CSV, a dataset on disk, or hf:OWNER/NAME"

    user: str = Field(default="user_id", description="The column that says whose a comparison is.")

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield the rows; a prompt of messages that both answers begin with is told from them.

        Where answers are text and there is no prompt, it stays in both.
        """
        for record in records.read(self.user, "chosen", "rejected"):
            count.records += 1
            chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
            if prompt is None:
                prompt, chosen, rejected = _explicit(chosen, rejected)
            row = {"user_id": record[self.user], "prompt": prompt, "chosen": chosen, "rejected": rejected}
            yield row | {name: record[name] for name in ("timestamp", "weight", "group") if name in record}


class RewardBench(Published):
    """Pairs that reward models are judged by; a user is a subset."""

    name: ClassVar[str] = "rewardbench"
    title: ClassVar[str] = "pairs of RewardBench and what evaluates like it; a user is a subset"
    citation: ClassVar[str] = "RewardBench, arXiv 2403.13787"
    licence: ClassVar[str] = "ODC-BY"
    files: ClassVar[str] = "Parquet or JSONL with subset, or hf:allenai/reward-bench"
    published: ClassVar[Mapping[str, int]] = {"comparisons": 2985}

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield the rows; several answers on a side make a row each, and an id that comes again none."""
        seen: set[tuple[str, str]] = set()
        for record in records.read("prompt", "chosen", "rejected", "subset"):
            count.records += 1
            name = str(record["subset"]), str(record.get("id"))
            if record.get("id") is not None and name in seen:
                count.leave("repeated")
                continue
            seen.add(name)
            for chosen in _answers(record["chosen"]):
                for rejected in _answers(record["rejected"]):
                    row = {"user_id": record["subset"], "prompt": record["prompt"]}
                    yield row | {"chosen": chosen, "rejected": rejected}


def _answers(value: Any) -> list[Any]:
    """Return the answers of a side, of which there may be a list, which must never become the text of one."""
    return (
        list(value) if isinstance(value, list) and all(isinstance(part, str) for part in value) else [value]
    )


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _explicit(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return prompt, chosen and rejected of a pair whose answers begin with the prompt."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        pairs = zip(chosen, rejected, strict=False)
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        while shared and _role(chosen[shared - 1]) == "assistant":
            shared -= 1
        return chosen[:shared], chosen[shared:], rejected[shared:]
    return "", chosen, rejected
