"""Embed with transformers, in Ray workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raypref.config import TransformersConfig
from raypref.embed.engine import EngineActor, Model, normalise
from raypref.embed.tokens import Tokens

if TYPE_CHECKING:
    from ray.data import Dataset


class TransformersEngine:
    """A transformers model without a head: the last hidden state, pooled."""

    def __init__(self, config: TransformersConfig, source: str) -> None:
        """Load the model in the folder `source`, on the first GPU if the engine has one."""
        from transformers import AutoModel

        self._config = config
        self._device = torch.device("cuda" if config.num_gpus else "cpu")
        self._dtype = getattr(torch, config.dtype)
        self._tokens = Tokens(source, config.template, config.max_length)
        model = AutoModel.from_pretrained(
            source, local_files_only=True, use_safetensors=True, dtype=self._dtype
        )
        self._model = model.to(self._device).eval()

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of `texts` in their order, float32 (N, D)."""
        ids = self._tokens(texts)
        # Texts of like length share a batch, so little of it is padding.
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        emb_ND = np.empty((len(ids), self._model.config.get_text_config().hidden_size), np.float32)
        for start in range(0, len(order), self._config.batch_size):
            rows = order[start : start + self._config.batch_size]
            emb_ND[rows] = self._forward([ids[row] for row in rows])
        return normalise(emb_ND) if self._config.normalise else emb_ND

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> np.ndarray:
        length_B = torch.tensor([len(row) for row in ids])
        longest = int(length_B.max())
        # Padding stands on the right, where a causal model's earlier tokens cannot see it.
        ids_BT = torch.tensor([row + [self._tokens.padding] * (longest - len(row)) for row in ids])
        mask_BT = (torch.arange(longest) < length_B[:, None]).long()
        hidden_BTD = self._model(
            input_ids=ids_BT.to(self._device), attention_mask=mask_BT.to(self._device)
        ).last_hidden_state.float()
        return self._pool(hidden_BTD, mask_BT.to(self._device)).cpu().numpy()

    def _pool(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        match self._config.pooling:
            case "mean":
                return (hidden_BTD * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True)
            case "cls":
                return hidden_BTD[:, 0]
            case "last":
                return hidden_BTD[torch.arange(len(hidden_BTD)), mask_BT.sum(1) - 1]


def start(config: TransformersConfig, source: str) -> TransformersEngine:
    """Return an engine that has this process for itself: its threads are its share of the machine."""
    torch.set_num_threads(max(1, int(config.num_cpus)))
    return TransformersEngine(config, source)


class _Actor(EngineActor):
    def __init__(self, config: TransformersConfig, source: str) -> None:
        super().__init__(start, config, source)


def apply(dataset: Dataset, config: TransformersConfig, model: Model) -> Dataset:
    """Return `dataset` (columns `number`, `text`) embedded by a pool of engines (`number`, `embedding`)."""
    from ray.data import ActorPoolStrategy

    fewest, most = config.concurrency
    return dataset.map_batches(
        _Actor,
        fn_constructor_args=(config, model.source),
        # A part at a time, sorted by length inside the engine; an explicit size because GPUs ask for one.
        batch_size=config.part_rows,
        batch_format="numpy",
        compute=ActorPoolStrategy(min_size=fewest, max_size=most),
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
