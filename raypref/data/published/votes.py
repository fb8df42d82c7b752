"""Pol.is: people agree or disagree with each other's statements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from raypref.data.published.base import Count, Kind, Published, Row
from raypref.data.published.records import Records, stem
from raypref.errors import InputError

VOTES = ("1", "-1", "0")


class Polis(Published):
    """An export of a conversation: comments.csv, and votes.csv or participants-votes.csv."""

    name: ClassVar[str] = "polis"
    title: ClassVar[str] = "an exported conversation: who agrees (1) or disagrees (-1) with which statement"
    citation: ClassVar[str] = "Small et al., Recerca 2021 (compdemocracy.org/polis)"
    licence: ClassVar[str] = "the conversation's own; those of the Computational Democracy Project CC BY 4.0"
    files: ClassVar[str] = (
        "a folder, or one a conversation, with comments.csv, and votes.csv or participants-votes.csv"
    )

    topic: str | None = Field(default=None, description="What was talked about; default the folder's name.")
    passes: bool = Field(default=True, description="Keep a pass, as a rating of 0 between the others.")

    @property
    def kind(self) -> Kind:
        """Ratings."""
        return "ratings"

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield votes, conversation by conversation; the topic is the prompt, a statement the response.

        A vote that came again counts as it came last.
        """
        folders = sorted({file.parent for file in records.files() if stem(file) == "comments"})
        if not folders:
            raise InputError(f"{records.place}: has no comments.csv, the statements of a conversation.")
        if len(folders) > 1 and self.topic is not None:
            raise InputError(f"{records.place}: holds {len(folders)} conversations; topic names one.")
        for folder in folders:
            yield from self._conversation(folder, count)

    def _conversation(self, folder: Path, count: Count) -> Iterator[Row]:
        topic = self.topic or folder.absolute().name
        said = {
            record["comment-id"]: record["comment-body"]
            for record in Records(_only(folder, "comments")).read("comment-id", "comment-body")
        }
        last: dict[tuple[str, str], str] = {}
        for voter, comment, vote in _votes(folder):
            count.records += 1
            if vote not in VOTES:
                count.skip("no_vote")
            elif comment not in said:
                count.skip("no_such_comment")
            else:
                last[voter, comment] = vote
        for (voter, comment), vote in last.items():
            if vote != "0" or self.passes:
                count.met("statements", (topic, comment))
                user = f"{topic}/{voter}"
                yield {"user_id": user, "prompt": topic, "response": said[comment], "rating": float(vote)}


def _votes(folder: Path) -> Iterator[tuple[str, str, str]]:
    names = {stem(file) for file in Records(str(folder)).files()}
    if "votes" in names:
        for record in Records(_only(folder, "votes")).read("voter-id", "comment-id", "vote"):
            yield record["voter-id"], record["comment-id"], record["vote"]
    elif "participants-votes" in names:
        for record in Records(_only(folder, "participants-votes")).read("participant"):
            for name, vote in record.items():
                if name.isdigit() and vote != "":
                    yield record["participant"], name, vote
    else:
        raise InputError(f"{folder}: has neither votes.csv nor participants-votes.csv.")


def _only(folder: Path, name: str) -> str:
    return str(next(file for file in Records(str(folder)).files() if stem(file) == name))
