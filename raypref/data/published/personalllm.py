"""PersonalLLM: users who weigh ten reward models, each in their own way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from raypref.data.published.base import Count, Published, Row
from raypref.data.published.records import Records

RESPONSES = 8

SCALES = {
    "gemma_2b": (4.3304, 2.0386),
    "gemma_7b": (1.6260, 2.6097),
    "mistral_raft": (8.3092, 3.0728),
    "llama3_sfairx": (1.0638, 2.9530),
    "oasst_deberta_v3": (2.8977, 1.7208),
    "beaver_7b": (6.2335, 3.0126),
    "oasst_pythia_7b": (4.7064, 1.3659),
    "oasst_pythia_1b": (4.2939, 2.3018),
    "mistral_ray": (3.0136, 1.6903),
    "mistral_weqweasdas": (7.0711, 2.5786),
}
"""Mean and standard deviation of each reward model's scores, as its authors give them."""


class PersonalLLM(Published):
    """Each user compares, for some prompts, the answer they value most with the one they value least."""

    name: ClassVar[str] = "personalllm"
    title: ClassVar[str] = "8 answers to each of 10,402 prompts, scored by 10 reward models that users weigh"
    citation: ClassVar[str] = "PersonalLLM, arXiv 2409.20296 (ICLR 2025)"
    licence: ClassVar[str] = "as its repository says"
    files: ClassVar[str] = "Parquet or JSONL with response_1 … response_8, or hf:namkoong-lab/PersonalLLM"
    published: ClassVar[Mapping[str, int]] = {"prompts": 10402}

    users: PositiveInt = Field(default=1500, description="Users; each draws weights of the reward models.")
    alpha: PositiveFloat = Field(
        default=0.1, description="Of the Dirichlet draw of weights; smaller: users differ more."
    )
    prompts_per_user: PositiveInt = Field(
        default=47, description="Prompts that each user compares answers to."
    )
    standardise: bool = Field(
        default=True, description="Bring the models' scores to one scale first; LoRe takes them raw."
    )
    seed: int = Field(default=0, description="Of users and their prompts.")

    def rows(self, records: Records, count: Count) -> Iterator[Row]:
        """Yield best over worst, for every user and prompt drawn for them."""
        texts: list[tuple[str, list[str]]] = []
        scores: list[list[list[float]]] = []
        needed = [f"response_{number + 1}_{model}" for number in range(RESPONSES) for model in SCALES]
        for record in records.read(
            "prompt", *(f"response_{number + 1}" for number in range(RESPONSES)), *needed
        ):
            count.records += 1
            try:
                flat = [float(record[name]) for name in needed]
            except (TypeError, ValueError):
                flat = [math.nan]
            if not record["prompt"] or not all(map(math.isfinite, flat)):
                count.skip("no_scores")
                continue
            count.met("prompts", record["prompt"])
            texts.append(
                (record["prompt"], [record[f"response_{number + 1}"] for number in range(RESPONSES)])
            )
            scores.append([flat[first : first + len(SCALES)] for first in range(0, len(flat), len(SCALES))])
        if not texts:
            return
        scores_NRM = np.array(scores)
        if self.standardise:
            mean_M, deviation_M = np.array(list(SCALES.values())).T
            scores_NRM = (scores_NRM - mean_M) / deviation_M
        draw = np.random.default_rng(self.seed)
        for user in range(self.users):
            weight_M = draw.dirichlet(np.full(len(SCALES), self.alpha))
            for number in draw.permutation(len(texts))[: self.prompts_per_user]:
                value_R = scores_NRM[number] @ weight_M
                prompt, responses = texts[number]
                best, worst = responses[value_R.argmax()], responses[value_R.argmin()]
                if best != worst:
                    yield {"user_id": f"user-{user:05d}", "prompt": prompt, "chosen": best, "rejected": worst}
