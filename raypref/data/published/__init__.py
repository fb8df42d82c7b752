"""Published preference datasets, read as their owners give them; the tuple below is the only list of them."""

from raypref.data.published.attributes import HelpSteer2, UltraFeedback
from raypref.data.published.base import Published
from raypref.data.published.dialogues import HH
from raypref.data.published.pairs import TRL, RewardBench
from raypref.data.published.personalllm import PersonalLLM
from raypref.data.published.prism import Prism
from raypref.data.published.tldr import TLDR
from raypref.data.published.votes import Polis

DATASETS: tuple[type[Published], ...] = (
    TRL,
    Prism,
    PersonalLLM,
    TLDR,
    HH,
    UltraFeedback,
    HelpSteer2,
    Polis,
    RewardBench,
)

__all__ = ["DATASETS", "Published"]
