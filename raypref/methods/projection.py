"""Products of many embeddings with a few heads, without a standardised copy of the embeddings.

(e − c)/s · h = e · (h/s) − c · (h/s): centre and scale go into the heads, so that an embedding is read once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CAST_NUMBERS = 2**18
"""Numbers of a piece of embeddings that a CPU casts at a time: as many as its cache holds."""


def project(emb_ND: Tensor, heads_FD: Tensor, center_D: Tensor, scale: Tensor) -> Tensor:
    """Return standardised embeddings times heads, NF, float32.

    Rounding is relative to an embedding before it is centred: float32 has digits to spare there, also beside
    what the embedding lost when it was stored as float16. Autocast to bfloat16 has not, so that embeddings
    which are not bfloat16 themselves are centred first.
    """
    heads_FD = heads_FD / scale
    if _autocast(emb_ND) and emb_ND.dtype != torch.bfloat16:
        return F.linear(emb_ND - center_D, heads_FD).float()
    return _product(emb_ND, heads_FD, -(heads_FD @ center_D))


def project_difference(chosen_ND: Tensor, rejected_ND: Tensor, heads_FD: Tensor, scale: Tensor) -> Tensor:
    """Return differences of standardised embeddings times heads, NF, float32; the centre cancels.

    Exactly the difference of the two products, except under autocast, which would round each of them.
    """
    heads_FD = heads_FD / scale
    if _autocast(chosen_ND):
        return F.linear(chosen_ND - rejected_ND, heads_FD).float()
    return _product(chosen_ND, heads_FD) - _product(rejected_ND, heads_FD)


def _autocast(emb_ND: Tensor) -> bool:
    return torch.is_autocast_enabled(emb_ND.device.type)


def _product(emb_ND: Tensor, heads_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """Return emb @ heads.T + bias, float32; embeddings of another type are cast piece by piece on a CPU."""
    if emb_ND.dtype == heads_FD.dtype or _autocast(emb_ND):
        return F.linear(emb_ND, heads_FD, bias_F).float()
    if emb_ND.device.type != "cpu":
        return F.linear(emb_ND.to(heads_FD.dtype), heads_FD, bias_F)
    rows = max(1, CAST_NUMBERS // max(1, emb_ND.shape[-1]))
    flat_ND = emb_ND.reshape(-1, emb_ND.shape[-1])
    parts = [F.linear(part_ND.to(heads_FD.dtype), heads_FD, bias_F) for part_ND in flat_ND.split(rows)]
    return torch.cat(parts).view(*emb_ND.shape[:-1], len(heads_FD))
