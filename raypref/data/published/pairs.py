"""Datasets of pairs with a column that says whose they are."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from raypref.data.published.base import Count, Published, Row
from raypref.data.published.records import Record, Records
from raypref.errors import InputError

SIDES = "chosen", "rejected"


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
    """Pairs that reward models are judged by: a user is a subset, or, by their scores, a reward model."""

    name: ClassVar[str] = "rewardbench"
    title: ClassVar[str] = (
        "pairs of RewardBench and what evaluates like it; a user is a subset, or a model by its `scores`"
    )
    citation: ClassVar[str] = "RewardBench, arXiv 2403.13787"
    licence: ClassVar[str] = "ODC-BY"
    files: ClassVar[str] = "Parquet or JSONL with subset, or hf:allenai/reward-bench"
    published: ClassVar[Mapping[str, int]] = {"pairs": 2985}
    """Of the split `filtered`, which `raw` holds too."""

    scores: str | None = Field(
        default=None,
        description="What rewardbench's run_rm.py wrote, one file of eval-set-scores or a folder of them: "
        "users are then the models, who prefer what they scored higher; joined by subset and id.",
    )

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield the rows, of the split `filtered` where there is one.

        Several answers on a side make a row each, and an id that comes again none.
        """
        pairs: dict[tuple[str, str], Record] = {}
        for record in records.read("prompt", "chosen", "rejected", "subset", split="filtered"):
            count.records += 1
            number = record.get("id")
            name = str(record["subset"]), f"record {count.records}" if number is None else str(number)
            if name in pairs:
                count.leave("repeated")
                continue
            pairs[name] = record
            count.met("pairs", name)
        if self.scores is None:
            for record in pairs.values():
                yield from _crossed(record["subset"], record, *SIDES)
            return
        for file in _score_files(Path(self.scores)):
            model, scored = _scored(file)
            for place, (name, chosen, rejected) in enumerate(scored):
                if name not in pairs:
                    count.leave("no_such_pair", place)
                elif chosen == rejected:
                    count.leave("same_score", place)
                else:
                    sides = SIDES if chosen > rejected else SIDES[::-1]
                    yield from _crossed(model, pairs[name], *sides)


def _crossed(user: Any, pair: Record, better: str, worse: str) -> Iterator[Row]:
    for chosen in _answers(pair[better]):
        for rejected in _answers(pair[worse]):
            yield {"user_id": user, "prompt": pair["prompt"], "chosen": chosen, "rejected": rejected}


def _score_files(place: Path) -> list[Path]:
    files = sorted(place.rglob("*.json")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"{place}: no file of scores here; scores names what run_rm.py wrote (*.json).")
    return files


def _scored(file: Path) -> tuple[str, list[tuple[tuple[str, str], float, float]]]:
    """Return the model of a file of scores and, for each pair, its name and the scores of its sides."""
    try:
        found = json.loads(file.read_bytes())
        columns = [found[name] for name in ("subset", "id", "scores_chosen", "scores_rejected")]
        return str(found["model"]), [
            ((str(subset), str(number)), _score(chosen), _score(rejected))
            for subset, number, chosen, rejected in zip(*columns, strict=True)
        ]
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise InputError(
            f"{file}: not scores as run_rm.py writes them to eval-set-scores, one object with model and the "
            f"columns subset, id, scores_chosen and scores_rejected ({type(error).__name__}: {error})."
        ) from error


def _score(value: Any) -> float:
    """Return a score, which models with one output wrap in a list."""
    score = float(value[0] if isinstance(value, list) else value)
    if not math.isfinite(score):
        raise ValueError(f"a score is {score}")
    return score


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
