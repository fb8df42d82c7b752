"""Rows per second of `item` and `evidence`, beside the matrix products alone at the same shapes.

    python jobs/benchmarks/score.py [--quick --out FOLDER] [--device cuda]

The product alone is that of the embeddings with as many heads, without a centre, a scale or what a method
does afterwards; for evidence it is two, of the chosen and of the rejected. Embeddings are float32, or
bfloat16 with products in bfloat16 (autocast), or float16 as tables hold them, beside one in float32. One
thread on a CPU, whose time is CPU time. `limit` is the lesser of what the arithmetic and the bytes allow.

Writes `results/score.json`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from clock import chosen, medians, peaks
from recording import save, spread, surroundings

from raypref.checkpoint import build
from raypref.methods import BTConfig, FedVPAConfig, LoReConfig, PReFConfig, VPLConfig, VRFConfig
from raypref.methods.base import MethodConfig, RewardModel
from raypref.types import Dims

FILE = "score.json"
REACH = 0.8
VRF, FEDVPA = VRFConfig(), FedVPAConfig()
METHODS: dict[str, tuple[MethodConfig, int, int]] = {
    "bt": (BTConfig(), 1, 0),
    "lore": (LoReConfig(), 1 + LoReConfig().bases, 1 + LoReConfig().bases),
    "pref": (PReFConfig(), PReFConfig().bases, PReFConfig().bases),
    "vrf": (VRF, VRF.bases, VRF.features + VRF.bases),
    "fedvpa": (FEDVPA, 1 + FEDVPA.rank, 1 + FEDVPA.rank + FEDVPA.features),
    "vpl": (VPLConfig(), 1 + VPLConfig().latent, 1 + VPLConfig().latent),
}
"""Configuration, and heads that an item and a comparison are multiplied with."""

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PIECE_BYTES = {"cpu": 2**25, "cuda": 2**31}
"""Of float32 embeddings in a call: far more than a cache holds, far less than memory does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    given, device = chosen(__doc__, FILE, arguments)
    widths, names = ((64,), ("lore", "vrf")) if given.quick else ((384, 4096), tuple(METHODS))
    rounds, least_s = (2, 0.01) if given.quick else (7, 0.3)
    able = peaks(device, given.quick)
    rows = [
        row
        for dim, name, dtype in itertools.product(widths, names, TYPES)
        for row in measured(name, dim, dtype, device, able, rounds, least_s)
    ]
    found = {
        "command": "python jobs/benchmarks/score.py",
        **surroundings("torch"),
        "device": str(device),
        "peaks": able,
        "reach": REACH,
        "rows": rows,
    }
    save(given.out / FILE, found)
    for row in rows:
        print(
            f"{row['method']:7}{row['what']:9}{row['dim']:5} {row['dtype']:9}"
            f"{row['rows_s']['median']:14,.0f} rows/s, product {row['product_rows_s']['median']:14,.0f}, "
            f"ratio {row['ratio']['median']:.2f}, of the limit {row['rows_s']['median'] / row['limit']:.2f}"
        )
    return 0


@torch.no_grad()
def measured(
    name: str,
    dim: int,
    dtype: str,
    device: torch.device,
    able: dict[str, float],
    rounds: int,
    least_s: float,
) -> list[dict[str, Any]]:
    """Return the figures of a method's items and, if it has any, evidence."""
    config, item_heads, evidence_heads = METHODS[name]
    size = PIECE_BYTES[device.type] // (4 * dim)
    one, other = (torch.randn(size, dim, device=device).to(TYPES[dtype]) for _ in range(2))
    model = _model(config, dim, device)
    found: list[dict[str, Any]] = []
    for what, heads, blocks in (("item", item_heads, (one,)), ("evidence", evidence_heads, (one, other))):
        if not heads:
            continue
        precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        heads_FD = torch.randn(heads, dim, device=device).to(precision)
        works = {
            "ours": _ours(model, what, blocks, dtype, device),
            "product": _product(heads_FD, [block.to(precision) for block in blocks]),
        }
        taken = medians(works, device, rounds, least_s)
        flops = 2 * dim * heads * len(blocks)
        peak = able["bfloat16_flops" if dtype == "bfloat16" else "float32_flops"]
        limit = min(peak / flops, able["read_bytes"] / sum(block[0].nbytes for block in blocks))
        found.append(
            {
                "method": name,
                "what": what,
                "dim": dim,
                "dtype": dtype,
                "heads": heads,
                "rows": size,
                "rows_s": spread([size / s for s in taken["ours"]]),
                "product_rows_s": spread([size / s for s in taken["product"]]),
                "ratio": spread([p / o for p, o in zip(taken["product"], taken["ours"], strict=True)]),
                "limit": limit,
            }
        )
    return found


def _model(config: MethodConfig, dim: int, device: torch.device) -> RewardModel:
    model = build(config, Dims(dim, 16), 0).to(device).eval()
    model.fit_scale(torch.randn(1000, dim, device=device))
    return model


def _ours(
    model: RewardModel, what: str, blocks: Sequence[torch.Tensor], dtype: str, device: torch.device
) -> Callable[[], object]:
    def run() -> torch.Tensor:
        precision: AbstractContextManager[object] = nullcontext()
        if dtype == "bfloat16":
            precision = torch.autocast(device.type, torch.bfloat16)
        with precision:
            return model.item(*blocks) if what == "item" else model.evidence(*blocks)

    return run


def _product(heads_FD: torch.Tensor, blocks: Sequence[torch.Tensor]) -> Callable[[], object]:
    return lambda: [F.linear(block_ND, heads_FD) for block_ND in blocks]


if __name__ == "__main__":
    raise SystemExit(main())
