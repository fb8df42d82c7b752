"""A loaded bundle that judges: what a comparison says, who a user is, what they would prefer. No store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raypref.checkpoint import Bundle, fingerprint_of, name_of
from raypref.data.items import ItemTable
from raypref.errors import MismatchError
from raypref.methods.base import RewardModel
from raypref.methods.gaussians import information_gain
from raypref.schema import require_embedder
from raypref.types import Landscape

PASS_SCORES = 1 << 18
"""Scores computed at a time: bounds the memory of a request for many users."""


@dataclass(frozen=True)
class Query:
    """Candidates, what they are compared with, and for whom."""

    item_NF: Tensor
    baseline_F: Tensor
    user_UZ: np.ndarray


@dataclass(frozen=True)
class Rewards:
    """What users think of candidates."""

    mean_UN: np.ndarray
    std_UN: np.ndarray | None
    probability_UN: np.ndarray
    """That the user prefers the candidate to the baseline."""

    def finite(self) -> bool:
        """Return whether every number may be sent."""
        parts = (self.mean_UN, self.std_UN, self.probability_UN)
        return all(part is None or bool(np.isfinite(part).all()) for part in parts)


class Judge:
    """One bundle, verified and ready; immutable, so that a request that holds it sees one bundle only."""

    def __init__(self, name: str, fingerprint: str, bundle: Bundle, items: ItemTable | None) -> None:
        """Hold a bundle, and the items table whose ids requests may name.

        Raises:
            MismatchError: the items table was made by another embedder, or lacks what the method needs.
        """
        self.fingerprint = fingerprint
        self.id = f"{name}@{fingerprint}"
        self.info = bundle.info
        self.loaded_s = time.time()
        self.width = bundle.info.dim
        """Of the embeddings that it takes."""
        self.items = items
        if items is not None:
            require_embedder(items.metadata.embedder, bundle.info.embedder, items.directory)
            self.items = items.with_prompts(bundle.info.method.needs_prompts)
        self._model: RewardModel = bundle.model.requires_grad_(False).eval()
        self.evidence_width = self.encode(*[np.zeros((1, self.width), np.float32)] * 2).shape[1]
        """E, floats that a comparison's evidence takes."""
        self.prior_Z = self.infer(
            [(np.zeros((0, self.evidence_width), np.float32), np.zeros(0, np.float32))]
        )[0]
        """The user nothing is known of."""

    @classmethod
    def load(cls, directory: Path, items: ItemTable | None) -> Judge:
        """Read and verify a bundle.

        Raises:
            InputError: there is no bundle.
            CorruptError: it is damaged.
            MismatchError: another version wrote it, or it does not belong to the items table.
        """
        bundle = Bundle.load(directory)
        return cls(name_of(directory, bundle.info), fingerprint_of(directory), bundle, items)

    def require_successor(self, other: Judge) -> None:
        """Raise MismatchError where `other` could not read the comparisons that are kept for this one."""
        require_embedder(other.info.embedder, self.info.embedder, other.id)
        if other.width != self.width:
            raise MismatchError(
                f"{other.id}: takes embeddings of width {other.width}, {self.id} of {self.width}; "
                "start a service of its own for it."
            )

    @property
    def uncertain(self) -> bool:
        """Whether rewards have a standard deviation."""
        return self._model.uncertain

    @torch.inference_mode()
    def encode(self, chosen_ND: np.ndarray, rejected_ND: np.ndarray) -> np.ndarray:
        """Return evidence_NE of comparisons, float32."""
        return self._model.evidence(_float(chosen_ND), _float(rejected_ND)).float().numpy()

    @torch.inference_mode()
    def features(self, emb_ND: np.ndarray) -> Tensor:
        """Return item_NF."""
        return self._model.item(_float(emb_ND))

    # Not inference_mode: the published solvers of some methods follow gradients.
    @torch.no_grad()
    def infer(self, histories: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return vectors_UZ of users, each given as evidence_PE and weight_P; no evidence gives the prior."""
        longest = max(1, *(len(weight_P) for _, weight_P in histories))
        evidence_UPE = torch.zeros(len(histories), longest, histories[0][0].shape[1])
        mask_UP = torch.zeros(len(histories), longest)
        for row, (evidence_PE, weight_P) in enumerate(histories):
            evidence_UPE[row, : len(weight_P)] = _float(evidence_PE)
            mask_UP[row, : len(weight_P)] = _float(weight_P)
        return self._model.infer(evidence_UPE, mask_UP).numpy()

    @torch.inference_mode()
    def rewards(self, queries: Sequence[Query]) -> list[Rewards]:
        """Answer queries; those of one user with equally many candidates are computed together."""
        found: dict[int, Rewards] = {}

        def size(number: int) -> tuple[bool, int]:
            return len(queries[number].user_UZ) != 1, len(queries[number].item_NF)

        for (many, _), group in groupby(sorted(range(len(queries)), key=size), key=size):
            numbers = list(group)
            if many:
                found |= {number: self._for_many(queries[number]) for number in numbers}
                continue
            item_BNF = torch.stack([queries[number].item_NF for number in numbers])
            baseline_BF = torch.stack([queries[number].baseline_F for number in numbers])
            user_BZ = _float(np.concatenate([queries[number].user_UZ for number in numbers]))
            together = self._judge(item_BNF, baseline_BF, user_BZ)
            for row, number in enumerate(numbers):
                std_UN = None if together.std_UN is None else together.std_UN[row : row + 1]
                found[number] = Rewards(
                    together.mean_UN[row : row + 1], std_UN, together.probability_UN[row : row + 1]
                )
        return [found[number] for number in range(len(queries))]

    def _for_many(self, query: Query) -> Rewards:
        count = len(query.item_NF)
        user_UZ = _float(query.user_UZ)
        parts = [
            self._judge(
                query.item_NF.expand(len(user_BZ), -1, -1), query.baseline_F.expand(len(user_BZ), -1), user_BZ
            )
            for user_BZ in user_UZ.split(max(1, PASS_SCORES // count))
        ]
        if len(parts) == 1:
            return parts[0]
        stds = [part.std_UN for part in parts if part.std_UN is not None]
        return Rewards(
            np.concatenate([part.mean_UN for part in parts]),
            np.concatenate(stds) if stds else None,
            np.concatenate([part.probability_UN for part in parts]),
        )

    def _judge(self, item_BNF: Tensor, baseline_BF: Tensor, user_BZ: Tensor) -> Rewards:
        reward = self._model.reward(item_BNF, user_BZ)
        against_BNF = baseline_BF.unsqueeze(1).expand_as(item_BNF)
        margin = self._model.margin(item_BNF, against_BNF, user_BZ)
        return Rewards(
            reward.mean_BN.numpy(),
            None if reward.var_BN is None or not self.uncertain else reward.var_BN.sqrt().numpy(),
            margin.probability_BN().numpy(),
        )

    @torch.inference_mode()
    def gains(
        self, chosen_NF: Tensor, rejected_NF: Tensor, user_Z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return gain_N (nats), probability_N and std_N (of the difference) of asking a user about pairs.

        None where the method keeps no posterior that an answer could narrow.
        """
        user_1Z = _float(user_Z).unsqueeze(0)
        pair = chosen_NF.unsqueeze(0), rejected_NF.unsqueeze(0), user_1Z
        doubt_1N, margin = self._model.doubt(*pair), self._model.margin(*pair)
        if doubt_1N is None:
            return None
        doubt_1N = doubt_1N.clamp_min(0.0)
        gain_1N = information_gain(margin.mean_BN, doubt_1N)
        return gain_1N[0].numpy(), margin.probability_BN()[0].numpy(), doubt_1N[0].sqrt().numpy()

    @torch.inference_mode()
    def steer(self, weights: Sequence[float]) -> np.ndarray:
        """Return vector_Z of who stands at a place among the reward bases, without doubt.

        Raises:
            ValueError: the method has no such places, or this is none.
        """
        land = self.place(self.prior_Z)
        if land is None:
            raise ValueError(f"{self.id} has no reward bases to weigh")
        if len(weights) != land.mean_BL.shape[1]:
            raise ValueError(f"{self.id} takes {land.mean_BL.shape[1]}, these are {len(weights)}")
        user_1Z = self._model.steer(torch.tensor([weights], dtype=torch.float32))
        assert user_1Z is not None
        return user_1Z[0].numpy()

    @torch.inference_mode()
    def place(self, user_Z: np.ndarray) -> Landscape | None:
        """Return where a user is among the reward bases; None where the method has no such space."""
        return self._model.landscape(_float(user_Z).unsqueeze(0))


def _float(array: np.ndarray) -> Tensor:
    """Return an array as float32; torch takes no memory that it might not write to."""
    array = np.ascontiguousarray(array, np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
