"""Plain features of an English text. They count and look up; none of them understands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)|\n+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LIST_ITEM = re.compile(r"^\s*(?:[-*•+]|\d+[.)])\s", re.MULTILINE)
MARKDOWN = re.compile(r"\*\*[^*\n]+\*\*|^#{1,6} |`[^`\n]+`|\[[^\]\n]+\]\(|^\|", re.MULTILINE)
CODE_BLOCK = re.compile(r"^\s*```.*?(?:^\s*```|\Z)", re.MULTILINE | re.DOTALL)
REFUSAL = re.compile(
    r"\bI (?:cannot|can['’]t|won['’]t|will not)\b|\bI(?: am|['’]m) (?:unable|not able|sorry,? but)\b"
    r"|\bas an AI\b",
    re.IGNORECASE,
)
LATINATE = re.compile(r"\w{2,}(?:tions?|sions?|ments?|ity|ities|ances?|ences?|ous|ive|ify|ize|ise|ally)$")
WINDOW = 50
"""Words over which their variety is measured, so that a long text does not seem poor."""

FIRST_PERSON = "i me my mine myself i'm i've i'd i'll we us our ours ourselves we're we've we'll"
SECOND_PERSON = "you your yours yourself yourselves you're you've you'd you'll"
HEDGES = (
    "maybe perhaps might may could possibly probably seems seem seemingly appears apparently somewhat "
    "generally usually often sometimes likely roughly arguably presumably suggests"
)
POLITE = "please thank thanks kindly sorry welcome appreciate grateful glad pardon excuse"


# The features of one text come after each other.
@lru_cache(maxsize=1)
def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, with straight apostrophes."""
    return tuple(WORD.findall(text.replace("’", "'").lower()))


def _rate(text: str, counted: Callable[[str], bool]) -> float:
    found = words(text)
    return 100.0 * sum(map(counted, found)) / max(1, len(found))


def _lexicon(known: str) -> Callable[[str], float]:
    listed = frozenset(known.split())
    return lambda text: _rate(text, listed.__contains__)


def _sentence_words(text: str) -> float:
    sentences = [count for part in SENTENCE_END.split(text) if (count := len(words(part)))]
    return sum(sentences) / max(1, len(sentences))


def _variety(text: str) -> float:
    found = words(text)
    windows = [found[first : first + WINDOW] for first in range(0, max(1, len(found) - WINDOW + 1), WINDOW)]
    return sum(len(set(window)) / max(1, len(window)) for window in windows) / len(windows)


def _contracted(word: str) -> bool:
    # A possessive ends as some contractions do, so 's is none.
    return "'" in word and not word.endswith("'s")


def _formality(text: str) -> float:
    return _rate(text, lambda word: LATINATE.match(word) is not None) - _rate(text, _contracted)


def _count(pattern: re.Pattern[str]) -> Callable[[str], float]:
    return lambda text: float(len(pattern.findall(text)))


@dataclass(frozen=True)
class Feature:
    """A number that a text has, and what to call more and less of it."""

    name: str
    more: str
    less: str
    measure: Callable[[str], float]


FEATURES: tuple[Feature, ...] = (
    Feature("characters", "longer", "shorter", lambda text: float(len(text))),
    Feature("words", "more words", "fewer words", lambda text: float(len(words(text)))),
    Feature("sentence_words", "longer sentences", "shorter sentences", _sentence_words),
    Feature("variety", "more varied words", "more repeated words", _variety),
    Feature("questions", "more question marks", "fewer question marks", lambda text: float(text.count("?"))),
    Feature(
        "exclamations",
        "more exclamation marks",
        "fewer exclamation marks",
        lambda text: float(text.count("!")),
    ),
    Feature("numbers", "more numbers", "fewer numbers", _count(NUMBER)),
    Feature("list_items", "more lists", "fewer lists", _count(LIST_ITEM)),
    Feature("markdown", "more markdown", "less markdown", _count(MARKDOWN)),
    Feature("code_blocks", "more code", "less code", _count(CODE_BLOCK)),
    Feature("first_person", "more first person", "less first person", _lexicon(FIRST_PERSON)),
    Feature("second_person", "more second person", "less second person", _lexicon(SECOND_PERSON)),
    Feature("hedges", "more hedges", "fewer hedges", _lexicon(HEDGES)),
    Feature("formality", "more formal", "less formal", _formality),
    Feature("politeness", "more polite words", "fewer polite words", _lexicon(POLITE)),
    Feature("refusal", "refuses more", "refuses less", lambda text: float(REFUSAL.search(text) is not None)),
)
"""Lengths and marks are counts. `variety` is the share of different words in stretches of 50 words.
`first_person`, `second_person`, `hedges` and `politeness` are words of a list per 100 words. `formality` is
Latinate words (in -tion, -ment, -ity, -ance, -ous, -ive, -ify, …) less contractions (n't, 're, …), per 100
words. `refusal` is 1 where the text says "I cannot", "I'm sorry, but" or the like."""


def measure(texts: Sequence[str]) -> np.ndarray:
    """Return every feature of every text, float64 (texts, features)."""
    return np.array([[feature.measure(text) for feature in FEATURES] for text in texts], np.float64)
