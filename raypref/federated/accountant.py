"""What differential privacy rounds of noisy averaging give, computed by Google's `dp-accounting`."""

from __future__ import annotations

import math
from functools import cached_property

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
)

INTERVAL = 3e-4
"""Of the grid of privacy losses, nats. Losses are rounded up, so ε is never too small; where it is above 0.1,
it is at most about 1 % too large."""


class Accountant:
    """The privacy of rounds that take each client with probability q and add Gaussian noise to the sum.

    Neighbours are two runs of which one has a client more. The accountant composes privacy loss distributions
    (Koskela et al. 2020, arXiv 1906.03049; Doroshenko et al. 2022, arXiv 2207.04380), which is tighter than
    Rényi divergences, and takes about a second at first and a tenth for each number of rounds; more where the
    noise multiplier is below 0.3.
    """

    def __init__(self, sampling_probability: float, noise_multiplier: float, delta: float) -> None:
        """Account for one run.

        Args:
            sampling_probability: q, of each client in each round on its own: clients_per_round / clients.
            noise_multiplier: standard deviation of the noise on the sum over the norm that updates are
                clipped to; 0 for no noise.
            delta: δ, the probability with which ε may fail; well below 1 / clients.

        Raises:
            ValueError: a number is out of range.
        """
        _check(sampling_probability, delta)
        if not 0 <= noise_multiplier < math.inf:
            raise ValueError(f"The noise multiplier must be 0 or more and finite, not {noise_multiplier}.")
        self._probability = sampling_probability
        self._multiplier = noise_multiplier
        self._delta = delta
        self._epsilons = {0: 0.0}

    def epsilon(self, rounds: int) -> float:
        """Return ε, nats, at δ after so many rounds whose result was published; infinite without noise."""
        if rounds not in self._epsilons:
            self._epsilons[rounds] = self._composed(rounds)
        return self._epsilons[rounds]

    def _composed(self, rounds: int) -> float:
        if self._multiplier == 0:
            return math.inf
        return float(self._round.self_compose(rounds).get_epsilon_for_delta(self._delta))

    @cached_property
    def _round(self) -> PrivacyLossDistribution:
        return from_gaussian_mechanism(
            self._multiplier, sampling_prob=self._probability, value_discretization_interval=INTERVAL
        )


def calibrate(sampling_probability: float, rounds: int, epsilon: float, delta: float) -> float:
    """Return the least noise multiplier that makes so many rounds (ε, δ)-private, at most 1e-4 too large.

    It takes seconds for an ε up to 10, and minutes for one of hundreds.

    Args:
        sampling_probability: q, of each client in each round on its own.
        rounds: at least 1.
        epsilon: ε, nats, above 0.
        delta: δ.

    Raises:
        ValueError: a number is out of range.
    """
    _check(sampling_probability, delta)
    if not (rounds >= 1 and 0 < epsilon < math.inf):
        raise ValueError(f"No noise gives ε = {epsilon} after {rounds} rounds: both must be above 0.")

    def run(noise_multiplier: float) -> dp_accounting.DpEvent:
        sum_of_updates = dp_accounting.GaussianDpEvent(noise_multiplier)
        one_round = dp_accounting.PoissonSampledDpEvent(sampling_probability, sum_of_updates)
        return dp_accounting.SelfComposedDpEvent(one_round, rounds)

    return float(
        dp_accounting.calibrate_dp_mechanism(
            lambda: PLDAccountant(value_discretization_interval=INTERVAL), run, epsilon, delta, tol=1e-4
        )
    )


def _check(sampling_probability: float, delta: float) -> None:
    if not 0 < sampling_probability <= 1:
        raise ValueError(f"A client's sampling probability must be in (0, 1], not {sampling_probability}.")
    if not 0 < delta < 1:
        raise ValueError(f"δ must be in (0, 1), not {delta}.")
