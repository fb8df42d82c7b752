"""HH-RLHF: two endings of a dialogue, one more helpful or less harmful."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from raypref.data.published.base import Count, Published, Row
from raypref.data.published.records import Records, stem
from raypref.data.rows import Message

PARTS = ("helpful-base", "harmless-base")
"""Folders of the hub's repository; it has more, of other kinds."""

ROLES = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant):")


class HH(Published):
    """A user is a part of the dataset: helpful-base and harmless-base want different things."""

    name: ClassVar[str] = "hh"
    title: ClassVar[str] = "dialogues with two endings; users are its parts, helpful and harmless"
    citation: ClassVar[str] = "Bai et al., arXiv 2204.05862"
    licence: ClassVar[str] = "MIT"
    files: ClassVar[str] = "JSONL (.gz) files of chosen and rejected, one a part, or hf:Anthropic/hh-rlhf"

    published: ClassVar[Mapping[str, int]] = {"comparisons": 91038, "users": 2}
    """helpful-base 43,835 and 2,354, harmless-base 42,537 and 2,312; train and test."""

    user: str | None = Field(
        default=None, description="Whose they are; default the name of the file or its folder, the part."
    )

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield the last answers after the turns that both dialogues share."""
        columns = "chosen", "rejected"
        parts = [(_part(file), Records(str(file)).read(*columns)) for file in records.files()]
        parts = parts or [(part, records.read(*columns, folder=part)) for part in PARTS]
        for part, found in parts:
            user = self.user or part
            for record in found:
                count.records += 1
                chosen, rejected = _messages(record["chosen"]), _messages(record["rejected"])
                if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
                    count.skip("no_common_prompt")
                    continue
                if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
                    count.skip("no_answer")
                    continue
                last = chosen[-1]["content"], rejected[-1]["content"]
                yield {"user_id": user, "prompt": chosen[:-1], "chosen": last[0], "rejected": last[1]}


def _part(file: Path) -> str:
    """Return the part that a file is of: its name, or its folder's where it is named by split alone."""
    name = re.sub(r"(^|[-_.])(train|test)$", "", stem(file))
    return name or file.absolute().parent.name


def _messages(dialogue: object) -> list[Message]:
    """Return the turns of a dialogue; none where it is none."""
    if not isinstance(dialogue, str):
        return []
    before, *parts = TURN.split(dialogue)
    if before.strip() or not parts:
        return []
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": ROLES[who], "content": text.strip()} for who, text in turns]
