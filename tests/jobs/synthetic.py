"""Results as `methods.py` writes them, small and made up."""

from __future__ import annotations

from typing import Any

SHOTS = (0, 1, 16)


def cell(accuracy: float, latent: bool = False) -> dict[str, Any]:
    lead = accuracy - 0.7
    return {
        "accuracy": accuracy,
        "by_seed": [accuracy],
        "interval": [accuracy - 0.01, accuracy + 0.01],
        "difference": {"mean": lead, "interval": [lead - 0.01, lead + 0.01]},
        "latent_gain": 0.05 if latent else None,
        "collapse": {"active_units": 7.0, "units": 16.0, "kl": 3.5, "mutual_information": 1.25}
        if latent
        else None,
    }


def method(kind: str, gain: float, variant: bool = False, setting: str = "cold") -> dict[str, Any]:
    cells = {f"unseen/{setting}/{shots}": cell(0.7 + gain * shots / 16) for shots in SHOTS}
    cells[f"unseen/{setting}/16"] = cell(0.7 + gain, latent=kind == "vpl")
    return {
        "variant": variant,
        "config": {"type": kind},
        "method": {"type": kind},
        "failed": [],
        "parameters": {"shared": 1234, "per_user": 5},
        "fit_seconds": {"median": 2.5, "all": [2.5]},
        "adaptation": [
            {
                "shots": 16,
                "users": users,
                "batch": users,
                "infer_seconds": 4e-5 * users,
                "encode_seconds": 1e-5,
            }
            for users in (1, 10_000)
        ],
        "cells": cells,
    }


def result(population: str, setting: str = "cold") -> dict[str, Any]:
    methods = {
        "bt": method("bt", 0.0, setting=setting),
        "vrf": method("vrf", 0.15, setting=setting),
        "vpl": method("vpl", 0.1, setting=setting),
        "vpl-released": method("vpl", -0.1, variant=True, setting=setting),
        "pal": {
            "variant": False,
            "config": {"type": "pal"},
            "failed": [{"seed": 0, "error": "it <broke>"}],
        },
    }
    return {
        "population": population,
        "size": "quick",
        "setting": setting,
        "shots": list(SHOTS),
        "seeds": [0],
        "machine": {"processor": "x86_64", "cores": 2},
        "versions": {"raypref": "0"},
        "methods": methods,
    }
