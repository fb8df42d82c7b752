from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raypref.methods import LoReConfig, PReFConfig
from raypref.methods import fewshot as solver
from raypref.methods.lore import LoRe
from raypref.types import Dims
from tests.methods.contract import DIM, built

BASES = 4


def drawn(users: int, comparisons: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    feature_BPK = torch.randn(users, comparisons, BASES, generator=random)
    weight_BP = 0.5 + torch.rand(users, comparisons, generator=random)
    mask_BP = weight_BP * (torch.rand(users, comparisons, generator=random) > 0.2)
    return torch.randn(users, comparisons, generator=random), feature_BPK, mask_BP


def prior(particles: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(9)
    root_KK = 0.2 * torch.randn(BASES, BASES, generator=random)
    return torch.randn(particles, BASES, generator=random), root_KK @ root_KK.mT + 0.02 * torch.eye(BASES)


def one_user_in_doubles(
    common_P: Tensor, feature_PK: Tensor, mask_P: Tensor, weights_SK: Tensor, kernel_KK: Tensor
) -> tuple[Tensor, Tensor]:
    """The mixture's posterior as its formula says, particle by particle."""
    common, feature, mask = common_P.double(), feature_PK.double(), mask_P.double()
    kernel = kernel_KK.double()
    mean, cov = torch.zeros(BASES).double(), torch.eye(BASES).double()
    xi = (common.square() + feature.square().sum(-1)).sqrt()
    for _ in range(8):
        lam = mask * torch.tanh(xi / 2) / (4 * xi)
        cov = torch.linalg.inv(
            torch.eye(BASES).double() + 2 * torch.einsum("p,pk,pl->kl", lam, feature, feature)
        )
        mean = cov @ torch.einsum("p,pk->k", 0.5 * mask - 2 * lam * common, feature)
        xi = ((common + feature @ mean).square() + torch.einsum("pk,kl,pl->p", feature, cov, feature)).sqrt()
    lam = mask * torch.tanh(xi / 2) / (4 * xi)
    within = torch.linalg.inv(
        torch.linalg.inv(kernel) + 2 * torch.einsum("p,pk,pl->kl", lam, feature, feature)
    )
    moved, score = [], []
    for weight in weights_SK.double():
        margin = common + feature @ weight
        gradient = (mask * torch.sigmoid(-margin)) @ feature
        moved.append(weight + within @ gradient)
        score.append((mask * F.logsigmoid(margin)).sum() + 0.5 * gradient @ within @ gradient)
    moved_SK, chance_S = torch.stack(moved), torch.softmax(torch.stack(score), 0)
    center = chance_S @ moved_SK
    return center, within + torch.einsum("s,sk,sl->kl", chance_S, moved_SK - center, moved_SK - center)


def test_the_posterior_under_particles_is_its_formula() -> None:
    common, feature, mask = drawn(6, 5)
    weights, kernel = prior(20)
    mean, cov = solver.mixture_posterior(common, feature, mask, weights, kernel, 8)
    for user in range(6):
        expected = one_user_in_doubles(common[user], feature[user], mask[user], weights, kernel)
        torch.testing.assert_close(mean[user].double(), expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cov[user].double(), expected[1], rtol=1e-4, atol=1e-5)


def test_users_beyond_one_piece_are_solved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    common, feature, mask = drawn(50, 6)
    weights, kernel = prior(30)
    whole = solver.mixture_posterior(common, feature, mask, weights, kernel, 4)
    likely = solver.log_likelihood(common, feature, mask, weights)
    monkeypatch.setattr(solver, "PARTICLE_NUMBERS", 6 * 30 * 7)
    parts = solver.mixture_posterior(common, feature, mask, weights, kernel, 4)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(solver.log_likelihood(common, feature, mask, weights), likely)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 1e12, 1e18])
def test_huge_comparisons_that_nearly_agree_leave_a_posterior(size: float) -> None:
    """In float32 the prior's precision of 1 is rounded away beside them, and the precision is singular."""
    random = torch.Generator().manual_seed(1)
    direction = F.normalize(torch.randn(1, 1, BASES, generator=random), dim=-1)
    feature = size * (direction + 1e-3 * torch.randn(40, 6, BASES, generator=random))
    common, mask = torch.zeros(40, 6), torch.ones(40, 6)
    weights, kernel = prior(16)
    found = {
        "gaussian": solver.gaussian_posterior(common, feature, mask, 8),
        "mixture": solver.mixture_posterior(common, feature, mask, weights, kernel, 8),
    }
    for name, (mean, cov) in found.items():
        assert bool(torch.isfinite(mean).all()), name
        assert bool(torch.isfinite(cov).all()), name
        assert bool((cov.diagonal(dim1=-2, dim2=-1) >= 0).all()), name
        # They say which way the user leans.
        assert bool(((feature @ mean.unsqueeze(-1)).squeeze(-1).sum(1) > 0).all()), name
    alone = solver.gaussian_posterior(common[:1], feature[:1], mask[:1], 8)
    torch.testing.assert_close(alone[0][0], found["gaussian"][0][0], rtol=1e-4, atol=1e-5)


def test_the_variance_across_a_huge_comparison_is_still_the_priors() -> None:
    feature = torch.zeros(1, 2, BASES)
    feature[0, :, 0] = 1e7
    _, cov = solver.gaussian_posterior(torch.zeros(1, 2), feature, torch.ones(1, 2), 8)
    torch.testing.assert_close(cov[0, 1:, 1:], torch.eye(BASES - 1))
    assert float(cov[0, 0, 0]) < 1e-5


@pytest.mark.parametrize("config", [LoReConfig(bases=BASES), PReFConfig(), PReFConfig(solver="sgd", bases=3)])
def test_sound_comparisons_of_huge_features_leave_no_user_without_a_vector(
    config: LoReConfig | PReFConfig,
) -> None:
    model = built(config)
    random = torch.Generator().manual_seed(3)
    chosen = 1e7 * torch.randn(30, 4, DIM, generator=random)
    rejected = chosen + 1e4 * torch.randn(30, 4, DIM, generator=random)
    with torch.no_grad():
        evidence, mask = model.evidence(chosen, rejected), torch.ones(30, 4)
        users = model.infer(evidence, mask)
        assert bool(torch.isfinite(users).all())
        for comparison in range(4):
            assert bool(torch.isfinite(model.infer(evidence[:, [comparison]], mask[:, :1])).all())


def test_what_is_not_a_number_is_not_hidden() -> None:
    model = LoReConfig(bases=BASES).build(Dims(DIM, 4))
    assert isinstance(model, LoRe)
    evidence = torch.zeros(2, 3, 1 + BASES)
    evidence[0, 1, 2] = torch.nan
    users = model.infer(evidence, torch.ones(2, 3))
    assert bool(users[0].isnan().any())
    assert bool(torch.isfinite(users[1]).all())
