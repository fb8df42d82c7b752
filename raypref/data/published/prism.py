"""PRISM: people in many countries talk to many models and say how good each answer is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from raypref.data.published.base import Count, Kind, Published, Row
from raypref.data.published.records import Record, Records
from raypref.data.rows import Message

COLUMNS = ("user_id", "conversation_id", "turn", "user_prompt", "model_response", "if_chosen", "score")

LORE_CONVERSATIONS = 6
LORE_SHORT, LORE_TEXT, LORE_PROMPT = 2300, 2400, 1500
"""LoRe's filter of people; in characters, question and answer of a conversation that counts, of a
pair, and the prompt."""


class Prism(Published):
    """Opening turns (several models answer) and later turns (two answers of the one that was chosen).

    A row's group is its conversation: later prompts of a conversation hold the answers chosen before them.
    """

    name: ClassVar[str] = "prism"
    title: ClassVar[str] = "conversations of 1,396 people with 21 models, each answer rated"
    citation: ClassVar[str] = "PRISM, arXiv 2404.16019 (NeurIPS 2024)"
    licence: ClassVar[str] = "CC BY 4.0 (people) and CC BY-NC 4.0 (answers)"
    files: ClassVar[str] = "utterances.jsonl, or hf:HannahRoseKirk/prism-alignment"
    published: ClassVar[Mapping[str, int]] = {
        "users": 1396,
        "conversations": 8011,
        "utterances": 68371,
        "models": 21,
    }

    protocol: Literal["plain", "lore"] = Field(
        default="plain",
        description="lore: people with at least six conversations, question and answer under 2,400 "
        "characters, the last 1,500 of the prompt (LoRe, arXiv 2504.14439, first release).",
    )
    form: Literal["comparisons", "ratings"] = Field(
        default="comparisons",
        description="comparisons: the chosen answer over each other of its turn; ratings: the score of "
        "every answer.",
    )
    min_conversations: PositiveInt = Field(default=1, description="Fewest conversations of a person.")

    @property
    def kind(self) -> Kind:
        """As `form` says."""
        return self.form

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield rows, conversation by conversation; each rejected answer makes a row of its own."""
        talks: dict[tuple[str, str], dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
        for record in records.read(*COLUMNS, part="utterances"):
            count.records += 1
            count.met("utterances", count.records)
            needed = COLUMNS if self.form == "ratings" else COLUMNS[:-1]
            if any(record[name] is None for name in needed):
                count.skip("missing")
                continue
            if not str(record["turn"]).isdigit():
                count.skip("no_turn")
                continue
            if not isinstance(record["model_response"], str) or not isinstance(record["user_prompt"], str):
                count.skip("no_text")
                continue
            count.met("conversations", record["conversation_id"])
            count.met("models", record.get("model_name"))
            talk = talks[str(record["user_id"]), str(record["conversation_id"])]
            answers = talk[int(record["turn"])]
            if not any(_same(record, answer) for answer in answers):
                answers.append({**record, "record": count.records - 1})
        held = Counter(user for (user, _), turns in talks.items() if self._counts(turns))
        least = max(self.min_conversations, LORE_CONVERSATIONS if self.protocol == "lore" else 1)
        for (user, conversation), turns in talks.items():
            if held[user] >= least:
                for row in self._talk(user, turns, count):
                    yield row | {"group": conversation}

    def _counts(self, turns: dict[int, list[Record]]) -> bool:
        """Return whether a conversation counts for its person: by LoRe's protocol, with a short turn."""
        if self.protocol == "plain":
            return True
        return any(
            {_true(answer["if_chosen"]) for answer in answers} == {True, False}
            and all(
                len(answer["user_prompt"]) + len(answer["model_response"]) <= LORE_SHORT for answer in answers
            )
            for answers in turns.values()
        )

    def _talk(self, user: str, turns: dict[int, list[Record]], count: Count) -> Iterator[Row]:
        history: list[Message] = []
        for turn in sorted(turns):
            answers = turns[turn]
            chosen = [answer for answer in answers if _true(answer["if_chosen"])]
            asked = {"role": "user", "content": answers[0]["user_prompt"]}
            prompt = self._cut([*history, asked])
            if self.form == "ratings":
                for answer in answers:
                    row = {"user_id": user, "prompt": prompt, "response": answer["model_response"]}
                    yield row | {"rating": answer["score"]}
            elif chosen:
                for answer in answers:
                    if not _true(answer["if_chosen"]):
                        yield from self._pair(user, prompt, chosen[0], answer, count)
            if not chosen:
                count.leave("nothing_chosen", answers[0]["record"])
                return  # nothing says how it went on
            history = [*prompt, {"role": "assistant", "content": chosen[0]["model_response"]}]

    def _pair(
        self, user: str, prompt: list[Message], chosen: Record, rejected: Record, count: Count
    ) -> Iterator[Row]:
        texts = [answer["model_response"] for answer in (chosen, rejected)]
        if self.protocol == "lore" and len(chosen["user_prompt"]) + max(map(len, texts)) >= LORE_TEXT:
            count.leave("too_long", rejected["record"])
        elif texts[0] == texts[1]:
            count.leave("same_text", rejected["record"])
        else:
            yield {"user_id": user, "prompt": prompt, "chosen": texts[0], "rejected": texts[1]}

    def _cut(self, prompt: list[Message]) -> list[Message]:
        """Return the end of a prompt, the current question with it, as LoRe's protocol cuts it."""
        if self.protocol == "plain":
            return prompt
        left, kept = LORE_PROMPT, list[Message]()
        for message in reversed(prompt):
            if left <= 0:
                break
            text: str = message["content"][-left:]
            left -= len(text)
            kept.append({**message, "content": text})
        return kept[::-1]


def _same(one: Record, other: Record) -> bool:
    """Return whether a record has come before."""
    return all(one[name] == other[name] for name in ("model_response", "if_chosen"))


def _true(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1")
