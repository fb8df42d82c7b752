"""What a margin is worth: accuracy, likelihood, calibration, and their uncertainty over users.

Everything is computed from the logit of P(chosen over rejected), one number a comparison, named
`logit_M`. A number that is not finite raises ValueError: no metric turns an unknown into a score.
`Reliability`, `Ranking` and `Spread` are sums, so that a population of any size is measured batch by
batch: the tally of two batches is the sum of their tallies. `Spread` and `mutual_information` are of
users' latents, not of margins. Letters beyond the legend: M comparisons, X levels of uncertainty,
Q bins, C coverages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BOOTSTRAP_CELLS = 2**22
"""Most random counts that a bootstrap holds at once."""

DROPPED_BITS = 13
"""Low bits of a float32 uncertainty that `Ranking` ignores: levels stand 0.1 % apart."""

LEVELS = 2 ** (31 - DROPPED_BITS)


@dataclass(frozen=True)
class Estimate:
    """A mean over users and its bootstrap interval; of one user the interval has no width."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ReliabilityBin:
    """The comparisons whose confidence lies in one interval."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence of the bin, max(p, 1−p)."""
    accuracy: float
    """Share of them that the model judges as the user did; a tie counts half."""


@dataclass(frozen=True)
class UncertaintyBin:
    """The comparisons between two quantiles of the model's own uncertainty."""

    count: float
    uncertainty: float
    """Mean uncertainty of the bin."""
    accuracy: float


def finite(value_M: ArrayLike, what: str = "value") -> Floats:
    """Return the values as float64.

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    value_M = np.asarray(value_M, dtype=np.float64)
    bad_M = ~np.isfinite(value_M)
    if bad_M.any():
        first = int(np.flatnonzero(bad_M)[0])
        raise ValueError(f"{int(bad_M.sum())} of {value_M.size} {what}s are not finite, first number {first}")
    return value_M


def hits(logit_M: ArrayLike) -> NDArray[np.bool_]:
    """Return whether the model prefers what the user chose: logit > 0, so a tie is wrong."""
    return finite(logit_M, "logit") > 0


def nll(logit_M: ArrayLike) -> Floats:
    """Return −log σ(logit) of each comparison, nats."""
    return np.logaddexp(0.0, -finite(logit_M, "logit"))


def confidence(logit_M: ArrayLike) -> Floats:
    """Return max(p, 1−p) = σ(|logit|) of each comparison."""
    return 1.0 / (1.0 + np.exp(-np.abs(finite(logit_M, "logit"))))


def mean_per_user(value_M: ArrayLike, user_M: ArrayLike) -> tuple[Ints, Floats]:
    """Return the users that have comparisons, ascending, and each one's mean value."""
    value_M, user_M = finite(value_M), np.asarray(user_M, dtype=np.int64)
    user_U, index_M = np.unique(user_M, return_inverse=True)
    sum_U = np.bincount(index_M, weights=value_M, minlength=user_U.size)
    return user_U, sum_U / np.bincount(index_M, minlength=user_U.size)


def accuracy_per_user(logit_M: ArrayLike, user_M: ArrayLike) -> float:
    """Return mean_u mean_{m of u} [logit_m > 0]: every user weighs the same."""
    return float(mean_per_user(hits(logit_M), user_M)[1].mean())


def accuracy_per_pair(logit_M: ArrayLike) -> float:
    """Return mean_m [logit_m > 0]: every comparison weighs the same."""
    return float(hits(logit_M).mean())


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins over [½, 1]; tallies of batches add up.

    The label of a comparison is whether the model sides with the user, so P(chosen) = p and
    P(rejected) = 1−p are one prediction of confidence max(p, 1−p). A tie predicts ½ and is neither
    right nor wrong: it counts half here, though it is wrong for `hits`.
    """

    count_Q: Floats
    confidence_Q: Floats
    """Sum of confidences."""
    right_Q: Floats
    """Number of comparisons judged as the user did."""

    @classmethod
    def of(cls, logit_M: ArrayLike, bins: int = 10) -> Reliability:
        """Tally comparisons."""
        logit_M = finite(logit_M, "logit")
        confidence_M = confidence(logit_M)
        bin_M = np.minimum(((confidence_M - 0.5) * 2 * bins).astype(np.int64), bins - 1)
        right_M = np.heaviside(logit_M, 0.5)
        tally_Q = [
            np.bincount(bin_M, weights=weight_M, minlength=bins).astype(np.float64)
            for weight_M in (np.ones_like(logit_M), confidence_M, right_M)
        ]
        return cls(*tally_Q)

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.count_Q + other.count_Q,
            self.confidence_Q + other.confidence_Q,
            self.right_Q + other.right_Q,
        )

    def ece(self) -> float:
        """Return the expected calibration error Σ_q n_q/n · |accuracy_q − confidence_q|."""
        return float(np.abs(self.right_Q - self.confidence_Q).sum() / self.count_Q.sum())

    def table(self) -> list[ReliabilityBin]:
        """Return the bins that hold a comparison."""
        edges = np.linspace(0.5, 1.0, len(self.count_Q) + 1)
        return [
            ReliabilityBin(
                low=float(edges[q]),
                high=float(edges[q + 1]),
                count=int(self.count_Q[q]),
                confidence=float(self.confidence_Q[q] / self.count_Q[q]),
                accuracy=float(self.right_Q[q] / self.count_Q[q]),
            )
            for q in np.flatnonzero(self.count_Q)
        ]


@dataclass(frozen=True)
class Ranking:
    """Hits by the model's own uncertainty, at a fixed ladder of levels; tallies of batches add up.

    Comparisons of one level have no order: wherever a cut falls inside a level, it takes the level's
    mean accuracy, so no result depends on the order of the comparisons.
    """

    count_X: Ints
    hits_X: Ints

    @classmethod
    def of(cls, uncertainty_M: ArrayLike, hit_M: ArrayLike) -> Ranking:
        """Tally comparisons; an uncertainty is at least 0."""
        value_M = finite(uncertainty_M, "uncertainty").astype(np.float32)
        if (value_M < 0).any():
            raise ValueError("an uncertainty is negative")
        level_M = (np.abs(value_M).view(np.uint32) >> DROPPED_BITS).astype(np.int64)
        hit_M = np.asarray(hit_M, dtype=np.bool_)
        return cls(np.bincount(level_M, minlength=LEVELS), np.bincount(level_M[hit_M], minlength=LEVELS))

    def __add__(self, other: Ranking) -> Ranking:
        return Ranking(self.count_X + other.count_X, self.hits_X + other.hits_X)

    def _below(self, count_C: Floats) -> tuple[Floats, Floats]:
        """Return hits and summed uncertainty of the `count_C` most certain comparisons."""
        used = np.flatnonzero(self.count_X)
        middle = ((used.astype(np.uint32) << DROPPED_BITS) + (1 << (DROPPED_BITS - 1))).astype(np.uint32)
        value_X = middle.view(np.float32).astype(np.float64)
        count_X = np.concatenate([[0], np.cumsum(self.count_X[used])])
        hits_X = np.concatenate([[0], np.cumsum(self.hits_X[used])])
        sum_X = np.concatenate([[0.0], np.cumsum(self.count_X[used] * value_X)])
        return np.interp(count_C, count_X, hits_X), np.interp(count_C, count_X, sum_X)

    def selective_accuracy(self, coverage_C: ArrayLike) -> Floats:
        """Return the accuracy among the most certain share of the comparisons, for each share in (0, 1]."""
        count_C = np.asarray(coverage_C, dtype=np.float64) * self.count_X.sum()
        return self._below(count_C)[0] / count_C

    def quantiles(self, bins: int) -> list[UncertaintyBin]:
        """Return the accuracy of each of `bins` equal shares, the most certain first."""
        edges = np.linspace(0, float(self.count_X.sum()), bins + 1)
        hits_C, sum_C = self._below(edges)
        count_Q, hits_Q, sum_Q = np.diff(edges), np.diff(hits_C), np.diff(sum_C)
        return [
            UncertaintyBin(float(count), float(total / count), float(right / count))
            for count, total, right in zip(count_Q, sum_Q, hits_Q, strict=True)
        ]


@dataclass(frozen=True)
class Spread:
    """How much each unit of a code differs between users; tallies of batches add up.

    Sums of squares about the mean, joined by the update of Chan, Golub and LeVeque (1979): no digits are
    lost where the mean is far from 0.
    """

    count: int
    mean_L: Floats
    square_L: Floats
    """Sum over users of squared deviations from the mean."""

    @classmethod
    def of(cls, code_UL: ArrayLike) -> Spread:
        """Tally the codes of users."""
        code_UL = finite(code_UL, "code")
        mean_L = code_UL.sum(0) / max(1, len(code_UL))
        return cls(len(code_UL), mean_L, np.square(code_UL - mean_L).sum(0))

    def __add__(self, other: Spread) -> Spread:
        count, gap_L = self.count + other.count, other.mean_L - self.mean_L
        share = other.count / max(1, count)
        return Spread(
            count,
            self.mean_L + share * gap_L,
            self.square_L + other.square_L + self.count * share * np.square(gap_L),
        )

    def active_units(self, threshold: float) -> int:
        """Return how many units vary over users by a variance above the threshold (SPL, arXiv 2603.12595)."""
        return int((self.square_L > threshold * self.count).sum())


def mutual_information(mean_UL: ArrayLike, var_UL: ArrayLike, samples: int = 8, seed: int = 0) -> float:
    """Return an estimate in nats of what a latent tells of its user, from diagonal Gaussian posteriors.

    I(u; z) = mean_u E_{z ~ q_u}[log q_u(z) − log mean_v q_v(z)], never above log U: U users can be told apart
    by log U nats. All pairs of users are compared, so give it a sample of a large population.

    Args:
        mean_UL: mean of each user's posterior.
        var_UL: its variance, above 0.
        samples: draws of each user's latent.
        seed: of the draws.
    """
    center_UL, var_UL = finite(mean_UL, "mean"), finite(var_UL, "variance")
    if (var_UL <= 0).any():
        raise ValueError("a variance is not positive")
    center_UL = center_UL - center_UL.mean(0)
    rng, users = np.random.default_rng(seed), np.arange(len(center_UL))
    # −2·log q_v(z) without L·log 2π, as two matrix products: Σ_l z²/σ² − 2·z·μ/σ² + (μ²/σ² + log σ²).
    std_UL, precision_UL, log_U = np.sqrt(var_UL), 1.0 / var_UL, np.log(var_UL).sum(1)
    weighted_UL = center_UL * precision_UL
    constant_U = (center_UL * weighted_UL).sum(1) + log_U
    total = 0.0
    for _ in range(samples):
        noise_UL = rng.standard_normal(std_UL.shape)
        z_UL = center_UL + std_UL * noise_UL
        energy_UU = np.square(z_UL) @ precision_UL.T - 2.0 * z_UL @ weighted_UL.T + constant_U
        own_U = np.square(noise_UL).sum(1) + log_U
        energy_UU[users, users] = own_U
        best_U = energy_UU.min(1)
        mixture_U = best_U - 2.0 * np.log(np.exp(-0.5 * (energy_UU - best_U[:, None])).mean(1))
        total += 0.5 * float((mixture_U - own_U).mean())
    return total / samples


def bootstrap(value_U: ArrayLike, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean over users with the percentile interval of resampling users.

    Users with equal values are exchangeable, so a resample is one multinomial draw over the distinct
    values: the same distribution as drawing users one by one, and cheap where accuracies repeat.
    For a paired difference of two models pass the differences of the same users.
    """
    value_U = finite(value_U)
    if value_U.size == 0:
        raise ValueError("no users to average over")
    value_X, count_X = np.unique(value_U, return_counts=True)
    rng = np.random.default_rng(seed)
    block = max(1, BOOTSTRAP_CELLS // value_X.size)
    means = [
        rng.multinomial(value_U.size, count_X / value_U.size, size=min(block, resamples - first)) @ value_X
        for first in range(0, resamples, block)
    ]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(means) / value_U.size, [tail, 1.0 - tail])
    return Estimate(float(value_U.mean()), float(low), float(high))
