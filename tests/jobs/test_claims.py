from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import claims
import numpy as np
import pytest
import torch
from papers import collapse, ingredients, mirror, parameters, prototypes, uncertainty
from papers.claim import markdown_table, read, text_table, verdict
from papers.paired import growth
from papers.published import PUBLISHED, config_of

from raypref.types import Dims

UP, OPEN, DOWN = ({"mean": m, "interval": [m - 0.01, m + 0.01]} for m in (0.05, 0.0, -0.05))
Figures = dict[str, Any]


def leads(found: Figures) -> Figures:
    return {"leads": {"bt": {"a seen/cold/all": UP, "a unseen/cold/1": found}, "lore": {"a": found}}}


def sweep(accuracy: dict[str, float]) -> Figures:
    means = {name: {"mean": value, "interval": [value, value]} for name, value in accuracy.items()}
    return {"population": "p", "cell": "c", "seeds": [0], "accuracy": means}


def speed(times: float) -> Figures:
    each = {"encode_s": 1e-5, "infer_s": 1e-5, "times_vrf": {"median": times, "range": [times, times]}}
    names = ("vrf", "lore", "pal", "pref", "lore-published", "pal-published", "pref-published")
    return {"batches": {batch: {"methods": dict.fromkeys(names, each)} for batch in ("1", "10000")}}


def grid(vpl_falls: bool, spl_lives: bool) -> Figures:
    points: list[Figures] = []
    for comparisons in collapse.COMPARISONS:
        for width in collapse.WIDTHS:
            for place, weight in enumerate(collapse.WEIGHTS):
                alive = comparisons / 100 - width / 1000 - 0.1 * place if vpl_falls else 0.0
                for name, gain, active in (
                    ("vpl", alive, 0.1),
                    ("spl", 0.1 if spl_lives else -0.1, 0.95 if spl_lives else 0.5),
                ):
                    points.append(
                        {
                            "method": f"{name}-released",
                            "population": "p",
                            "comparisons": comparisons,
                            "width": width,
                            "kl_weight": weight,
                            "accuracy": 0.7 + gain,
                            "latent_gain": gain,
                            "active_share": active,
                            "kl": 1.0,
                            "mutual_information": 1.0,
                        }
                    )
    return {"points": points}


def mirrored(cosines: dict[str, float]) -> Figures:
    def part(cosine: float) -> Figures:
        return {"cosine": cosine, "nearness": 0.5, "users": 3}

    found = {
        name: {"raw": part(-0.5), "personal": part(cosines.get(name, 0.5)), "posterior_cosine": None}
        for name in mirror.METHODS
    }
    return {"methods": found | {"bt": {"raw": part(-1.0), "personal": None, "posterior_cosine": None}}}


def separated(purity: float, silhouette: float, gain: Figures) -> Figures:
    switch = {"own": gain, "other": DOWN, "gain": [UP, gain]}
    each = {"purity": purity, "silhouette": silhouette, "own_vector": UP, "nobody": UP}
    return {"populations": {"p": each | {"switch_to_prototype": switch, "switch_to_centre": switch}}}


def prior(gain: Figures) -> Figures:
    each = {"accuracy": {"FedVPL": UP}, "prior_alone": gain, "prior_with_prototypes": gain}
    return {"populations": {"p": each}}


COUNTS = {"VPL": [10, 10], "LoRe": [1, 1], "PAL": [20, 20], "raypref lore": [1, 1]}
CASES: dict[str, tuple[Figures, Figures]] = {
    "leads": (leads(OPEN) | {"leads": {"bt": {"a": UP, "b": OPEN}}}, leads(DOWN)),
    "diversity": (
        {"leads": {"bt": [OPEN, UP]}, "growth": {"bt": UP}},
        {"leads": {"bt": [UP, OPEN]}, "growth": {"bt": DOWN}},
    ),
    "uncertainty": tuple(
        {"populations": {"p": {"bt": {"leads": [OPEN, found], "growth": found}}}} for found in (UP, OPEN)
    ),
    "one_comparison": ({"leads": {"p": UP}}, {"leads": {"p": OPEN}}),
    "ingredients": tuple(
        {"population": "p", "seeds": [0], "accuracy": UP, "cost": {"KL": cost}} for cost in (UP, OPEN)
    ),
    "bases": (
        sweep({"2": 0.7, "6": 0.78, "8": 0.8, "10": 0.802, "12": 0.801, "16": 0.8}),
        sweep({"2": 0.8, "6": 0.78, "8": 0.7, "10": 0.8, "12": 0.79, "16": 0.8}),
    ),
    "kl_weight": (
        sweep({"1e-05": 0.7, "0.0001": 0.8, "0.001": 0.8, "0.01": 0.798, "0.1": 0.7}),
        sweep({"1e-05": 0.8, "0.0001": 0.8}),
    ),
    "speed": (speed(1500.0), speed(999.0)),
    "parameters": tuple(
        {"width": 8, "users": [100, 1000], "parameters": COUNTS | {"LoRe": [own, own]}} for own in (1, 3)
    ),
    "collapse": (grid(vpl_falls=True, spl_lives=True), grid(vpl_falls=False, spl_lives=False)),
    "living": tuple({"size": "full", **sweep(dict.fromkeys(collapse.ROBUST, mean))} for mean in (0.81, 0.79)),
    "prototypes": (separated(0.95, 0.3, UP), separated(0.8, -0.1, UP)),
    "peer_prior": (prior(UP), prior(OPEN)),
    "switching": (separated(0.95, 0.3, UP), separated(0.95, 0.3, OPEN)),
    "mirror": (
        mirrored({"spl": 0.95, "spl-released": 0.95, "pref": 0.9, "pref-zero": 1.0, "lore": 0.9}),
        mirrored({"pref": 0.4, "lore": 0.4}),
    ),
}
"""Of each claim: figures under which all its conditions hold, and figures under which none does."""


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.name)
def test_every_rule_can_hold_and_every_condition_can_fail(claim: claims.Claim) -> None:
    good, bad = (claim.record(figures, {}) for figures in CASES[claim.name])
    assert good["holds"] is True, good["conditions"]
    assert bad["holds"] is False, bad["conditions"]
    assert good["conditions"]
    assert good["reading"] != bad["reading"]
    json.dumps([good, bad], allow_nan=False)


def test_one_condition_that_fails_makes_it_partly() -> None:
    found = claims.CLAIMS[[c.name for c in claims.CLAIMS].index("leads")].record(
        leads(OPEN), {"leads": "Hm."}
    )
    assert found["holds"] == "partly"
    assert found["remarks"] == "Hm."
    assert verdict({"a": True, "b": False}) == "partly"


def test_nothing_measured_shows_nothing() -> None:
    assert verdict({}) is False


@pytest.mark.parametrize("method", ["LoRe", "PAL", "PReF", "raypref lore", "raypref vrf", "raypref fedvpa"])
def test_counted_parameters_are_those_of_the_built_model(method: str) -> None:
    model = config_of(parameters.METHODS[method]).build(Dims(48, 137))
    built = sum(parameter.numel() for parameter in model.parameters())
    assert parameters.parameters(parameters.METHODS[method], 137, width=48) == built


def test_lores_count_is_the_papers() -> None:
    lore = parameters.METHODS["LoRe"]
    assert [parameters.parameters(lore, users) for users in (20, 1000)] == [20_580, 25_480]


def test_published_variants_are_not_the_defaults() -> None:
    for name, method in PUBLISHED.items():
        assert config_of(method) != config_of({"type": name})


def test_a_swapped_user_that_is_the_opposite_is_exactly_so() -> None:
    own_BN = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    exact, same = mirror.opposite(own_BN, -own_BN), mirror.opposite(own_BN, own_BN)
    assert exact is not None
    assert same is not None
    assert (exact["cosine"], exact["nearness"]) == pytest.approx((1.0, 1.0))
    assert (same["cosine"], same["nearness"]) == pytest.approx((-1.0, 0.0))
    half = mirror.opposite(own_BN, -0.5 * own_BN)
    assert half is not None
    assert half["cosine"] == pytest.approx(1.0)
    assert half["nearness"] == pytest.approx(2 / 3)
    assert mirror.opposite(0 * own_BN, 0 * own_BN) is None


def test_each_group_has_the_prototype_that_most_of_it_is_at() -> None:
    group_U, near_U = np.array([0, 0, 0, 1, 1]), np.array([2, 2, 1, 1, 1])
    assert prototypes.matching(group_U, near_U, 3) == (2, 1)
    # Two groups at one prototype cannot both have it.
    assert len(set(prototypes.matching(group_U, np.zeros(5, int), 2))) == 2


def test_silhouette_of_far_groups_is_near_one_and_of_mixed_ones_not_positive() -> None:
    group_U = np.array([0, 0, 1, 1])
    far = np.array([[0.0], [0.1], [9.0], [9.1]])
    assert prototypes.silhouette(far, group_U) > 0.98
    assert prototypes.silhouette(far, np.array([0, 1, 0, 1])) < 0


def test_a_plateau_is_the_longest_run_near_the_best() -> None:
    found = sweep({"1e-05": 0.8, "0.0001": 0.7, "0.001": 0.8, "0.01": 0.799, "0.1": 0.6})["accuracy"]
    assert ingredients.plateau(found) == (0.001, 0.01)


def test_bins_go_from_certain_to_uncertain() -> None:
    found = uncertainty.by_bin(np.array([0.0, 0.0, 0.1, 0.1, 0.3, 0.3]))
    assert [each["mean"] for each in found["leads"]] == pytest.approx([0.0, 0.1, 0.3])
    assert found["growth"] == growth(np.zeros(2), np.full(2, 0.3))
    assert found["growth"]["interval"] == pytest.approx([0.3, 0.3])


@pytest.mark.slow
def test_a_claim_is_measured_recorded_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["parameters", "--size", "quick", "--work", str(tmp_path)]
    assert claims.main(arguments) == 0
    assert "parameters" in capsys.readouterr().out
    found = json.loads((tmp_path / "results/claims_6_parameters.json").read_text())
    assert found["figures"]["parameters"]["LoRe"][1] == 25_480
    assert set(found) >= {"claim", "source", "command", "holds", "reading", "figures", "versions", "machine"}
    assert claims.main([*arguments, "--table"]) == 0
    table = capsys.readouterr().out
    assert found["reading"] in table
    recorded = read(claims.CLAIMS, tmp_path / "results")
    assert [claim.name for claim in recorded] == ["parameters"]
    assert table.strip() == markdown_table(recorded)
    for condition, held in found["conditions"].items():
        assert (f"not: {condition}" in text_table(recorded)) != held


def test_what_cannot_be_checked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims.main(["leads", "--size", "quick", "--work", str(tmp_path)]) == 2
    assert "run jobs/benchmarks/methods.py first" in capsys.readouterr().err
    assert not list(tmp_path.glob("results/claims_*"))
    with pytest.raises(SystemExit):
        claims.main(["no_such_claim"])
