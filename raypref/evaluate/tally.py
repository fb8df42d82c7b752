"""The running sums of one cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raypref import metrics
from raypref.config import EvaluateConfig
from raypref.evaluate.result import Cell, Collapse, SelectivePoint, Setting, Uncertainty, UserBin
from raypref.metrics import Ranking, Reliability
from raypref.schema import Cohort

COVERAGES = np.linspace(0.05, 1.0, 20)
"""Shares of the comparisons at which selective accuracy is reported."""


class Tally:
    """What a cell has seen: sums over comparisons, and four numbers a user."""

    def __init__(self, cohort: Cohort, setting: Setting, shots: int | None) -> None:
        """Start an empty cell."""
        self._cohort: Cohort = cohort
        self._setting: Setting = setting
        self._shots = shots
        self._draws = 0
        self._margin_std = True
        self._hits = 0
        self._reliability = Reliability.of([])
        self._by_spread = Ranking.of([], [])
        self._by_doubt = Ranking.of([], [])
        self._columns: list[dict[str, np.ndarray]] = []
        self._by_others: list[np.ndarray] = []

    def add(
        self,
        user_B: np.ndarray,
        had_B: np.ndarray,
        mask_BN: np.ndarray,
        logits: Sequence[np.ndarray],
        spreads: Sequence[np.ndarray | None],
    ) -> None:
        """Add a batch of users: users without a comparison in the cell do not count.

        Args:
            user_B: the users.
            had_B: training comparisons that each user has.
            mask_BN: which places hold a comparison.
            logits: logit_M of these places, one array a draw of the shots.
            spreads: the margin's standard deviation likewise; None where the method has none.
        """
        place_M = np.repeat(np.arange(len(user_B)), mask_BN.sum(1))
        sums = {name: np.zeros(len(user_B)) for name in ("accuracy", "nll", "uncertainty")}
        self._margin_std = spreads[0] is not None
        for logit_M, spread_M in zip(logits, spreads, strict=True):
            hit_M = metrics.hits(logit_M)
            doubt_M = 1.0 - metrics.confidence(logit_M)
            spread_M = doubt_M if spread_M is None else spread_M
            self._hits += int(hit_M.sum())
            self._reliability += Reliability.of(logit_M)
            self._by_spread += Ranking.of(spread_M, hit_M)
            self._by_doubt += Ranking.of(doubt_M, hit_M)
            for name, value_M in zip(sums, (hit_M, metrics.nll(logit_M), spread_M), strict=True):
                used_U, mean_U = metrics.mean_per_user(value_M, place_M)
                sums[name][used_U] += mean_U
        self._draws = len(logits)
        keep_B = mask_BN.any(1)
        columns = {name: sum_B / len(logits) for name, sum_B in sums.items()}
        columns |= {"user": user_B, "had": had_B, "comparisons": mask_BN.sum(1)}
        self._columns.append({name: column_B[keep_B] for name, column_B in columns.items()})

    def add_others(self, mask_BN: np.ndarray, logits: Sequence[np.ndarray]) -> None:
        """Add the same users' accuracy by another user's vector; batches come as `add` was given them."""
        place_M = np.repeat(np.arange(len(mask_BN)), mask_BN.sum(1))
        accuracy_B = np.zeros(len(mask_BN))
        for logit_M in logits:
            used_U, mean_U = metrics.mean_per_user(metrics.hits(logit_M), place_M)
            accuracy_B[used_U] += mean_U
        self._by_others.append(accuracy_B[mask_BN.any(1)] / len(logits))

    def close(self, config: EvaluateConfig, collapse: Collapse | None) -> tuple[Cell, pa.Table]:
        """Return the finished cell and its per-user columns, by user."""
        columns = {name: np.concatenate([part[name] for part in self._columns]) for name in self._columns[0]}
        if self._by_others:
            columns["gain"] = columns["accuracy"] - np.concatenate(self._by_others)
        order_U = np.argsort(columns["user"], kind="stable")
        columns = {name: column_U[order_U] for name, column_U in columns.items()}
        had_U, shots = columns.pop("had"), self._shots
        used_U = had_U if shots is None else np.minimum(had_U, shots)
        comparisons = int(columns["comparisons"].sum())
        cell = Cell(
            cohort=self._cohort,
            setting=self._setting,
            shots=shots,
            users=len(had_U),
            comparisons=comparisons,
            draws=self._draws,
            mean_shots=float(used_U.mean()),
            full_share=1.0 if shots is None else float((had_U >= shots).mean()),
            accuracy_per_user=_estimate(columns["accuracy"], config),
            accuracy_per_pair=self._hits / (comparisons * self._draws),
            nll=float(columns["nll"].mean()),
            ece=self._reliability.ece(),
            reliability=self._reliability.table(),
            uncertainty=self._uncertainty(columns["accuracy"], columns["uncertainty"], config),
            latent_gain=_estimate(columns["gain"], config) if "gain" in columns else None,
            collapse=collapse,
        )
        names = pa.DictionaryArray.from_arrays(np.zeros(cell.users, np.int32), [cell.key])
        return cell, pa.table({"cell": names, **{name: columns[name] for name in _USER_COLUMNS}})

    def _uncertainty(
        self, accuracy_U: np.ndarray, uncertainty_U: np.ndarray, config: EvaluateConfig
    ) -> Uncertainty:
        groups = np.array_split(np.argsort(uncertainty_U, kind="stable"), config.quantiles)
        selective = zip(COVERAGES, self._by_doubt.selective_accuracy(COVERAGES), strict=True)
        return Uncertainty(
            source="margin_std" if self._margin_std else "doubt",
            by_quantile=self._by_spread.quantiles(config.quantiles),
            by_user=[
                UserBin(
                    users=len(group),
                    uncertainty=float(uncertainty_U[group].mean()),
                    accuracy=_estimate(accuracy_U[group], config),
                )
                for group in groups
                if len(group)
            ],
            selective=[
                SelectivePoint(coverage=round(float(coverage), 6), accuracy=float(accuracy))
                for coverage, accuracy in selective
            ],
        )


_USER_COLUMNS = ("user", "comparisons", "accuracy", "nll", "uncertainty")


def _estimate(value_U: np.ndarray, config: EvaluateConfig) -> metrics.Estimate:
    return metrics.bootstrap(value_U, config.bootstrap, config.confidence, config.seeds[0])
