"""Reddit TL;DR: workers compare summaries of posts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from raypref.data.published.base import Count, Published, Row
from raypref.data.published.records import Record, Records
from raypref.errors import InputError

ACTIVE = 10
SHORT = range(3, 6)
"""PAL's rule: of the ten most active workers of the training split, those at places four to six prefer the
shorter summary. Its unseen workers, whose rule is not published, are not among them."""

DROPPED = 2
"""LoRe leaves out this many of the least active workers of each split."""


class TLDR(Published):
    """Two different benchmarks go by this name; they must not be mixed."""

    name: ClassVar[str] = "tldr"
    title: ClassVar[str] = "comparisons of summaries of Reddit posts, by worker"
    citation: ClassVar[str] = "Stiennon et al., arXiv 2009.01325 (NeurIPS 2020)"
    licence: ClassVar[str] = "as its repository says; the posts are their authors'"
    files: ClassVar[str] = (
        "batch*.json of the comparisons, or Parquet of the hub's conversion (openai/summarize_from_feedback, "
        "branch refs/convert/parquet); hf: runs no script, which that repository is"
    )

    published: ClassVar[Mapping[str, int]] = {
        "training_workers": 53,
        "training_records": 92858,
        "validation_records": 86086,
    }

    protocol: Literal["workers", "length"] = Field(
        default="workers",
        description="workers: their own labels, of those who are in both splits (LoRe, VRF); length: labels "
        "replaced by a rule about length, supervised summaries only, the ten most active workers (PAL).",
    )
    split: Literal["train", "valid", "both"] = Field(
        default="both", description="Which of the official splits; raypref prepare makes its own."
    )

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield comparisons of the workers that the protocol keeps."""
        kept: list[tuple[str, str, Row]] = []
        for record in records.read(
            "info", "summaries", "choice", "worker", "split", part=self._part(records)
        ):
            count.records += 1
            split = "train" if str(record["split"]).startswith("train") else "valid"
            count.met("training_records" if split == "train" else "validation_records", count.records)
            row = self._row(record)
            if row is not None and row["prompt"] is None:
                count.leave("article")  # of CNN and the Daily Mail, which some batches compare
                continue
            if row is None:
                count.skip("malformed")
                continue
            count.met("workers", row["user_id"])
            if split == "train":
                count.met("training_workers", row["user_id"])
            if self.protocol == "workers" or all(_supervised(policy) for policy in row["policies"]):
                kept.append((row["user_id"], split, row))
        workers = _in_both(kept) if self.protocol == "workers" else _most_active(kept)
        if not workers:
            raise InputError(f"{records.place}: no worker is left by protocol={self.protocol}.")
        for worker, split, row in kept:
            if worker in workers and self.split in (split, "both"):
                chosen, rejected = row["chosen"], row["rejected"]
                if self.protocol == "length":
                    shorter = workers.index(worker) in SHORT
                    chosen, rejected = sorted((chosen, rejected), key=len, reverse=not shorter)
                    if len(chosen) == len(rejected):
                        continue
                yield {"user_id": worker, "prompt": row["prompt"], "chosen": chosen, "rejected": rejected}

    @staticmethod
    def _part(records: Records) -> str | None:
        # The hub has comparisons and axis ratings under one name.
        return "comparisons" if records.place.startswith("hf:") else None

    @staticmethod
    def _row(record: Record) -> Row | None:
        info, summaries = _parsed(record["info"]), _parsed(record["summaries"])
        try:
            texts = [summary["text"].strip() for summary in summaries]
            choice = int(record["choice"])
            if not record["worker"] or choice not in (0, 1):
                return None
            return {
                "user_id": str(record["worker"]),
                "prompt": info.get("post"),
                "chosen": texts[choice],
                "rejected": texts[1 - choice],
                "policies": [str(summary.get("policy")) for summary in summaries],
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            return None


def _supervised(policy: str) -> bool:
    return "sup" in policy and "ppo" not in policy


def _parsed(value: Any) -> Any:
    """Return nested values that CSV keeps as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _in_both(kept: list[tuple[str, str, Row]]) -> list[str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for worker, split, _ in kept:
        counts[split][worker] += 1
    staying = [
        {worker for worker, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:-DROPPED]}
        for found in (counts["train"], counts["valid"])
    ]
    return sorted(staying[0] & staying[1])


def _most_active(kept: list[tuple[str, str, Row]]) -> list[str]:
    counts = Counter(worker for worker, split, _ in kept if split == "train")
    return [worker for worker, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:ACTIVE]]
