"""Products of many embeddings with a few heads, without a standardised copy of the embeddings.

(e − c)/s · h = e · (h/s) − c · (h/s): centre and scale go into the heads. What must be cast or subtracted
first is, on a CPU, taken in pieces that stay in its cache: a copy of all would cost more than the product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_NUMBERS = 2**19
"""Numbers in a piece, which a core's cache holds."""


def project(emb_ND: Tensor, heads_FD: Tensor, center_D: Tensor, scale: Tensor) -> Tensor:
    """Return standardised embeddings times heads, NF, float32.

    Rounding is relative to an embedding before it is centred: float32 has digits to spare there, also beside
    what the embedding lost when it was stored as float16. Autocast to bfloat16 has not, so that embeddings
    which are not bfloat16 themselves are centred first.
    """
    heads_FD = _scaled(heads_FD, scale)
    if _autocast(emb_ND) and emb_ND.dtype != torch.bfloat16:
        return F.linear(emb_ND - center_D, heads_FD).float()
    bias_F = -(heads_FD @ center_D)
    if emb_ND.dtype == heads_FD.dtype or _autocast(emb_ND):
        return F.linear(emb_ND, heads_FD, bias_F).float()
    parts = [F.linear(part_MD.to(heads_FD.dtype), heads_FD, bias_F) for part_MD in _pieces(emb_ND)]
    return torch.cat(parts).view(*emb_ND.shape[:-1], len(heads_FD))


def project_difference(chosen_ND: Tensor, rejected_ND: Tensor, heads_FD: Tensor, scale: Tensor) -> Tensor:
    """Return differences of standardised embeddings times heads, NF, float32; the centre cancels exactly."""
    heads_FD = _scaled(heads_FD, scale)
    # bfloat16 embeddings that autocast multiplies as they are stay what they are.
    dtype = chosen_ND.dtype if _autocast(chosen_ND) else heads_FD.dtype
    parts: list[Tensor] = []
    for chosen_MD, rejected_MD in zip(_pieces(chosen_ND), _pieces(rejected_ND), strict=True):
        parts.append(F.linear(chosen_MD.to(dtype) - rejected_MD.to(dtype), heads_FD).float())
    return torch.cat(parts).view(*chosen_ND.shape[:-1], len(heads_FD))


def _scaled(heads_FD: Tensor, scale: Tensor) -> Tensor:
    """Return heads / scale, row after row: a product with the transposed layout takes twice as long."""
    return (heads_FD / scale).contiguous()


def _autocast(emb_ND: Tensor) -> bool:
    return torch.is_autocast_enabled(emb_ND.device.type)


def _pieces(emb_ND: Tensor) -> tuple[Tensor, ...]:
    """Return rows in pieces; an accelerator takes them all at once."""
    flat_ND = emb_ND.reshape(-1, emb_ND.shape[-1])
    if emb_ND.device.type != "cpu":
        return (flat_ND,)
    return flat_ND.split(max(1, PIECE_NUMBERS // max(1, emb_ND.shape[-1])))
