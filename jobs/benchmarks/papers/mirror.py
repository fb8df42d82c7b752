"""The mirror law: a user whose every comparison is swapped is the opposite user (SPL)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from papers.claim import Bench, Claim, Figures
from papers.collapse import BUDGET, HEADS, ROBUST, SHORT
from papers.fitted import Fitted, fitted
from papers.ingredients import VRF
from papers.published import PUBLISHED, Method
from raypref.data.inference import contexts
from raypref.evaluate.protocol import frozen
from raypref.types import Pairs

POPULATION = "planted-noisy"
USERS_PER_BATCH = 256
OPPOSITE = 0.9
"""Cosine from which on a user counts as the opposite one."""
EXACT = 0.999

FEW: Method = {"recipe": {"steps": 100, "users_per_step": 200}}
"""Recipe of the published solvers here: which way weights turn needs no more."""

METHODS: dict[str, Method] = {
    **{name: {"type": name} for name in ("bt", "lore", "pal", "pref")},
    "vrf": VRF,
    **{name: {**method, "recipe": BUDGET} for name, method in ROBUST.items()},
    "pref-zero": {"type": "pref", "prior": "zero"},
    **{f"{name}-published": {**PUBLISHED[name], **FEW} for name in ("lore", "pref")},
    **{f"{name}-released": {**head, "recipe": SHORT} for name, head in HEADS.items()},
}
SIGNED = {"lore": "lore-published", "pref": "vrf"}
"""Methods whose weights may be negative, each with one whose weights are a point of the simplex."""


@dataclass(frozen=True)
class Mirrored:
    """Held-out margins of users, of the same users with every comparison swapped, and of nobody's."""

    own_BN: Tensor
    swapped_BN: Tensor
    nobody_BN: Tensor
    cosine_B: Tensor | None
    """Of the posterior's mean with minus the swapped user's; None without a posterior."""


def measure(bench: Bench) -> Figures:
    """Swap every unseen user's comparisons, under every method."""
    found = {name: law(fitted(bench, POPULATION, method)) for name, method in METHODS.items()}
    return {"population": POPULATION, "seed": 0, "methods": found}


def law(of: Fitted) -> Figures:
    """Return how far the swapped user is the opposite one, mean over users.

    `raw` compares whole reward differences, `personal` what is left of them without the reward of a user
    nothing is known of, which no comparison of the user's can turn round.
    """
    with frozen(of.model):
        parts = list(_mirrored(of))
    own, swapped, nobody = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("own_BN", "swapped_BN", "nobody_BN")
    )
    cosines = [part.cosine_B for part in parts if part.cosine_B is not None]
    return {
        "raw": opposite(own, swapped),
        "personal": opposite(own - nobody, swapped - nobody),
        "posterior_cosine": float(torch.cat(cosines).mean()) if cosines else None,
    }


def _mirrored(of: Fitted) -> Iterator[Mirrored]:
    model, tables = of.model, of.tables
    judged = tables.comparisons("unseen", ["cold"])
    known = tables.comparisons("unseen", ["train"]).select(judged.user_U)
    for context, test in zip(
        *(contexts(of.items, part, USERS_PER_BATCH) for part in (known, judged)), strict=True
    ):
        swapped = context.swap()
        mask_BP = context.mask_BP
        users = [model.infer(model.encode(each), mask_BP) for each in (context, swapped)]
        users.append(model.infer(model.encode(context), torch.zeros_like(mask_BP)))
        own_BN, swapped_BN, nobody_BN = (model(test, user_BZ).mean_BN * test.mask_BP for user_BZ in users)
        yield Mirrored(own_BN, swapped_BN, nobody_BN, _cosine(of, context, swapped))


def _cosine(of: Fitted, context: Pairs, swapped: Pairs) -> Tensor | None:
    latents = [of.model.latent(of.model.encode(each), each.mask_BP) for each in (context, swapped)]
    means = [latent.mean_BL for latent in latents if latent is not None]
    return torch.cosine_similarity(means[0], -means[1], dim=-1) if means else None


def opposite(own_BN: Tensor, swapped_BN: Tensor) -> Figures | None:
    """Return the cosine with minus the swapped margins, and 1 − ‖a + b‖ / (‖a‖ + ‖b‖); None where all is 0.

    Which of a pair is called chosen is arbitrary: the cosine is the correlation over pairs both ways round.
    """
    scale_B = own_BN.norm(dim=1) + swapped_BN.norm(dim=1)
    used_B = scale_B > 1e-6
    if not used_B.any():
        return None
    own_BN, swapped_BN = own_BN[used_B].double(), swapped_BN[used_B].double()
    turned_B = torch.cosine_similarity(own_BN, -swapped_BN, dim=1)
    nearness_B = 1 - (own_BN + swapped_BN).norm(dim=1) / (own_BN.norm(dim=1) + swapped_BN.norm(dim=1))
    return {
        "cosine": float(turned_B.mean()),
        "nearness": float(nearness_B.mean()),
        "users": int(used_B.sum()),
    }


def personal(figures: Figures, name: str) -> float:
    """Return the cosine of a method's personal part with minus the swapped user's; 0 where it has none."""
    found = figures["methods"][name]["personal"]
    return found["cosine"] if found else 0.0


def conditions(figures: Figures) -> dict[str, bool]:
    """Return whether SPL keeps the law and VPL does not, and whether signed weights keep it better."""
    return {
        "SPL's personal part turns round": personal(figures, "spl") >= OPPOSITE,
        "so does that of SPL as released": personal(figures, "spl-released") >= OPPOSITE,
        "SPL as released keeps the law better than VPL as released": personal(figures, "spl-released")
        > personal(figures, "vpl-released"),
        "PReF's turns round exactly under a prior centred on zero": personal(figures, "pref-zero") >= EXACT,
        **{
            f"{signed}, whose weights are signed, keeps it better than {simplex}": personal(figures, signed)
            > personal(figures, simplex)
            for signed, simplex in SIGNED.items()
        },
    }


def reading(figures: Figures) -> str:
    """List every method's cosine, whole and personal."""
    said = []
    for name, found in figures["methods"].items():
        raw, own = (
            f"{found[part]['cosine']:+.2f}" if found[part] else "none" for part in ("raw", "personal")
        )
        cosine = found["posterior_cosine"]
        said.append(f"{name} {raw} / {own}" + ("" if cosine is None else f" (posterior {cosine:+.2f})"))
    return "Cosine with minus the swapped user's reward, whole / personal part: " + ", ".join(said) + "."


CLAIMS = (
    Claim(
        9,
        "mirror",
        "A user whose every comparison is swapped is the opposite user",
        "SPL, arXiv 2603.12595",
        measure,
        conditions,
        reading,
    ),
)
