"""How many numbers a method trains, as the seen users grow (LoRe's third figure)."""

from __future__ import annotations

from papers.claim import Bench, Claim, Figures
from papers.published import PUBLISHED, Method, config_of
from raypref.types import Dims

WIDTH = 4096
USERS = tuple(10**power for power in range(2, 7))
BUILT = (10, 20)
"""Users that models are built for, to count what a user adds; a million rows are not allocated."""
FEWER = 10
"""Times fewer that count as far fewer."""

METHODS: dict[str, Method] = {
    "LoRe": {**PUBLISHED["lore"], "bases": 5},
    "PAL": PUBLISHED["pal"],
    "VPL": PUBLISHED["vpl"],
    "PReF": PUBLISHED["pref"],
    "SPL": PUBLISHED["spl"],
    "raypref bt": {"type": "bt"},
    "raypref lore": {"type": "lore"},
    "raypref pal": {"type": "pal"},
    "raypref pref": {"type": "pref"},
    "raypref vrf": {"type": "vrf"},
    "raypref vpl": {"type": "vpl"},
    "raypref spl": {"type": "spl"},
    "raypref fedvpa": {"type": "fedvpa"},
}
"""What is counted: as published at the papers' sizes, then this project's defaults."""


def parameters(method: Method, users: int, width: int = WIDTH) -> int:
    """Return how many numbers a method trains, from two small builds: every user adds equally many."""
    config = config_of(method)
    few, more = (
        sum(parameter.numel() for parameter in config.build(Dims(width, count)).parameters())
        for count in BUILT
    )
    each = (more - few) // (BUILT[1] - BUILT[0])
    return few + each * (users - BUILT[0])


def measure(bench: Bench) -> Figures:
    """Count every method at every number of users."""
    return {
        "width": WIDTH,
        "users": list(USERS),
        "parameters": {name: [parameters(method, n) for n in USERS] for name, method in METHODS.items()},
    }


def conditions(figures: Figures) -> dict[str, bool]:
    """Return whether PAL and VPL are far larger, at each number of users."""
    counts = figures["parameters"]
    return {
        f"{users:,} users: {peer} has {FEWER} times LoRe's parameters or more": bool(
            counts[peer][i] >= FEWER * counts["LoRe"][i]
        )
        for i, users in enumerate(figures["users"])
        for peer in ("PAL", "VPL")
    }


def reading(figures: Figures) -> str:
    """Say by how much, at each end and where it turns."""
    counts, users = figures["parameters"], figures["users"]
    said = [
        f"at {users[i]:,} users "
        + ", ".join(f"{name} {counts[name][i]:,}" for name in ("LoRe", "PAL", "VPL"))
        for i in (0, len(users) - 1)
    ]
    own = counts["raypref lore"]
    kept = "whatever their number" if own[0] == own[-1] else f"to {own[-1]:,}"
    return f"D = {figures['width']}: {'; '.join(said)}; this project's LoRe {own[0]:,} {kept}."


CLAIMS = (
    Claim(
        6,
        "parameters",
        "LoRe needs far fewer parameters than PAL and VPL as the seen users grow",
        "LoRe, arXiv 2504.14439",
        measure,
        conditions,
        reading,
    ),
)
