from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from raypref.methods import PReFConfig
from raypref.methods.factors import factorise, name
from raypref.methods.fewshot import expected_gain, laplace_covariance
from raypref.methods.pref import FactorModel, PReF
from raypref.types import Dims, Episodes, Pairs
from tests.methods.contract import DIM, Contract, built, pairs
from tests.methods.small_population import SmallPopulation, accuracy, fit


class TestPReF(Contract):
    config = PReFConfig()


class TestPublishedPReF(Contract):
    config = PReFConfig(solver="sgd", bases=3)

    @pytest.mark.slow
    def test_beats_bt_on_unseen_users_of_a_planted_population(
        self, small_population: SmallPopulation, bt_accuracy: dict[int, float]
    ) -> None:
        """As published there is no prior: few comparisons leave a user near a random draw, below BT."""
        model = fit(self.config, small_population)
        figures = {shots: accuracy(model, small_population, shots) for shots in (0, 1, 8)}
        assert figures[0] >= bt_accuracy[0] - 0.01, figures
        assert 0.5 < figures[1] < bt_accuracy[0] < figures[8], figures


def opposite(config: PReFConfig) -> tuple[PReF, torch.Tensor, torch.Tensor]:
    """Users, and the users who made every comparison the other way round."""
    model, context = built(config), pairs(0)
    assert isinstance(model, PReF)
    with torch.no_grad():
        users = [model.infer(model.encode(each), each.mask_BP) for each in (context, context.swap())]
    return model, users[0], users[1]


def test_under_the_zero_prior_swapped_comparisons_make_the_opposite_user() -> None:
    model, user_BZ, mirrored_BZ = opposite(PReFConfig(prior="zero"))
    bases = model.config.bases
    assert torch.equal(mirrored_BZ[:, :bases], -user_BZ[:, :bases])
    assert torch.equal(mirrored_BZ[:, bases:], user_BZ[:, bases:])
    with torch.no_grad():
        forth, back = model(pairs(1), user_BZ), model(pairs(1), mirrored_BZ)
    assert torch.equal(forth.mean_BN, -back.mean_BN)
    assert float(forth.mean_BN.abs().min()) > 0


def test_under_the_fitted_prior_opposite_users_share_the_population() -> None:
    model, user_BZ, mirrored_BZ = opposite(PReFConfig())
    bases = model.config.bases
    assert not torch.allclose(mirrored_BZ[:, :bases], -user_BZ[:, :bases], atol=1e-3)


@pytest.mark.parametrize("solver", ["posterior", "sgd"])
def test_forgetting_a_comparison_is_exact(solver: str) -> None:
    model = built(PReFConfig.model_validate({"solver": solver}))
    mask, kept = torch.ones(4, 6), [0, 1, 3, 4, 5]
    mask[:, 2] = 0.0
    with torch.no_grad():
        evidence = model.encode(pairs(0))
        never = model.infer(evidence[:, kept], torch.ones(4, 5))
        torch.testing.assert_close(model.infer(evidence, mask), never, rtol=1e-5, atol=1e-6)


def test_a_user_nothing_is_known_of_has_the_populations_reward() -> None:
    model, target = built(PReFConfig()), pairs(1)
    assert isinstance(model, PReF)
    with torch.no_grad():
        users = model.infer(torch.zeros(4, 0, model.config.bases), torch.zeros(4, 0))
        torch.testing.assert_close(model(target, users).mean_BN, model.encode(target) @ model.center_K)


def test_the_published_solver_finds_the_logistic_regression() -> None:
    model = PReFConfig(solver="sgd", bases=2, adapt_steps=20_000, adapt_lr=0.1).build(Dims(DIM, 1))
    evidence = torch.randn(1, 60, 2, generator=torch.Generator().manual_seed(0))
    user = model.infer(evidence, torch.ones(1, 60))[0].requires_grad_()
    loss = F.softplus(-(evidence[0] @ user)).mean()
    (gradient,) = torch.autograd.grad(loss, [user])
    assert float(gradient.detach().abs().max()) < 1e-5


class Shared:
    """Planted users of K tastes who judge the same pairs, and the pairs of others to test on."""

    BASES: ClassVar[int] = 3

    def __init__(self, users: int = 150, comparisons: int = 60, pool: int = 200) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.bases_DK = torch.randn(DIM, self.BASES, generator=self.random) / DIM**0.5
        self.weights_UK = 4.0 * torch.randn(users, self.BASES, generator=self.random)
        left_ND, right_ND = torch.randn(2, pool, DIM, generator=self.random)
        at_BP = torch.rand(users, pool, generator=self.random).argsort(1)[:, :comparisons]
        margin_BP = self.margin(left_ND[at_BP] - right_ND[at_BP])
        wins_BP = torch.rand(margin_BP.shape, generator=self.random) < torch.sigmoid(margin_BP)
        self.pairs = self.judged(left_ND[at_BP], right_ND[at_BP], wins_BP)
        fresh_BPD, other_BPD = torch.randn(2, users, 40, DIM, generator=self.random)
        self.test = self.judged(fresh_BPD, other_BPD, self.margin(fresh_BPD - other_BPD) > 0)

    def margin(self, delta_BPD: torch.Tensor) -> torch.Tensor:
        return (delta_BPD @ self.bases_DK @ self.weights_UK.unsqueeze(-1)).squeeze(-1)

    def judged(self, left_BPD: torch.Tensor, right_BPD: torch.Tensor, wins_BP: torch.Tensor) -> Pairs:
        wins_BP1 = wins_BP.unsqueeze(-1)
        chosen_BPD = torch.where(wins_BP1, left_BPD, right_BPD)
        return Pairs(chosen_BPD, torch.where(wins_BP1, right_BPD, left_BPD), torch.ones(wins_BP.shape))

    def seen(self) -> list[Episodes]:
        users = torch.arange(len(self.weights_UK)).split(32)
        parts = zip(*(value.split(32) for value in vars(self.pairs).values()), strict=True)
        return [Episodes(self.pairs, Pairs(*part), user_B) for part, user_B in zip(parts, users, strict=True)]

    def accuracy(self, model: FactorModel) -> float:
        """Of the seen users' weights as they stand, on items that nobody judged."""
        weights_UK = model.rows_UK + model.center_K
        margin_BP = (model.encode(self.test) @ weights_UK.unsqueeze(-1)).squeeze(-1)
        return float((margin_BP > 0).float().mean())


@pytest.mark.parametrize("solver", ["posterior", "sgd"])
@torch.no_grad()
def test_shared_pairs_start_training_near_the_planted_factors(solver: str) -> None:
    planted = Shared()
    torch.manual_seed(1)
    config = PReFConfig.model_validate({"solver": solver, "bases": planted.BASES})
    model = config.build(Dims(DIM, len(planted.weights_UK)))
    assert isinstance(model, FactorModel)
    drawn = planted.accuracy(model)
    model.prime(planted.seen())
    assert 0.4 < drawn < 0.6
    assert planted.accuracy(model) > 0.8


@torch.no_grad()
def test_without_shared_pairs_the_start_stays_random() -> None:
    model = PReFConfig().build(Dims(DIM, 4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.prime([Episodes(pairs(0), pairs(0), torch.arange(4))])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_factorisation_does_not_depend_on_the_order_of_users() -> None:
    seen = Shared(users=40, comparisons=30).seen()
    one, other = factorise(seen, 40, 3, 0.2), factorise(seen[::-1], 40, 3, 0.2)
    assert one is not None
    assert other is not None
    assert torch.equal(one.key_N, other.key_N)
    torch.testing.assert_close(one.target_NK @ one.weights_UK.mT, other.target_NK @ other.weights_UK.mT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_pair_has_one_name_in_either_order_and_every_bit_counts(dtype: torch.dtype) -> None:
    one, other = torch.randn(2, 1, 1, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    key, sign = name(Pairs(one, other, torch.ones(1, 1)))
    swapped, opposite_sign = name(Pairs(other, one, torch.ones(1, 1)))
    assert torch.equal(key, swapped)
    assert torch.equal(sign, -opposite_sign)
    one[..., 3] *= 1 + 2 * torch.finfo(dtype).eps
    assert not torch.equal(key, name(Pairs(one, other, torch.ones(1, 1)))[0])


def test_an_answer_says_most_where_it_is_open_and_the_user_unknown() -> None:
    cov = torch.diag(torch.tensor([1.0, 0.01])).unsqueeze(0)
    mean = torch.tensor([[0.0, 0.0]])
    unknown, known, long = [1.0, 0.0], [0.0, 1.0], [2.0, 0.0]
    gain = expected_gain(torch.tensor([[unknown, known, long]]), mean, cov)[0]
    torch.testing.assert_close(gain, torch.tensor([1.0, 0.01, 4.0]) / 16)
    decided = expected_gain(torch.tensor([[unknown]]), torch.tensor([[6.0, 0.0]]), cov)
    assert float(decided) < 1e-4
    assert torch.equal(expected_gain(-torch.tensor([[unknown]]), mean, cov)[0], gain[:1])


def test_information_adds_up_to_the_published_covariance() -> None:
    feature, weights = torch.randn(2, 5, 3), torch.randn(2, 3)
    cov = laplace_covariance(feature, torch.ones(2, 5), weights)
    slope = torch.sigmoid(feature @ weights.unsqueeze(-1)).squeeze(-1)
    outer = torch.einsum("bp,bpi,bpj->bij", slope * (1 - slope), feature, feature)
    torch.testing.assert_close(torch.linalg.inv(cov), 1e-3 * torch.eye(3) + outer, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def asked(active: bool, rounds: int, users: int = 400, bases: int = 4) -> list[float]:
    """Squared error of planted users' weights after each answer, asked one of 30 comparisons a round."""
    random = torch.Generator().manual_seed(0)
    model = PReFConfig(prior="zero", bases=bases).build(Dims(DIM, 1))
    assert isinstance(model, PReF)
    weights_BK = torch.randn(users, bases, generator=random)
    evidence_BPE, errors = torch.zeros(users, 0, bases), []
    for _ in range(rounds):
        candidate_BNE = 2.0 * torch.randn(users, 30, bases, generator=random)
        mask_BP = torch.ones(evidence_BPE.shape[:2])
        index_B = torch.zeros(users, dtype=torch.int64)
        if active:
            index_B = model.next_comparison(evidence_BPE, mask_BP, candidate_BNE)
        question_BE = candidate_BNE[torch.arange(users), index_B]
        agrees_B = torch.rand(users, generator=random) < torch.sigmoid((question_BE * weights_BK).sum(1))
        answer_B1E = torch.where(agrees_B.unsqueeze(1), question_BE, -question_BE).unsqueeze(1)
        evidence_BPE = torch.cat([evidence_BPE, answer_B1E], 1)
        mean_BK, _ = model.posterior(evidence_BPE, torch.ones(evidence_BPE.shape[:2]))
        errors.append(float((mean_BK - weights_BK).square().sum(1).mean()))
    return errors


def test_chosen_comparisons_teach_as_much_as_half_as_many_again_at_random() -> None:
    chosen, random = asked(active=True, rounds=12), asked(active=False, rounds=18)
    for count in (4, 8, 12):
        assert chosen[count - 1] < random[count * 3 // 2 - 1]


@torch.no_grad()
def test_the_published_solver_asks_about_what_it_has_not_heard_of() -> None:
    model = PReFConfig(solver="sgd", bases=2).build(Dims(DIM, 1))
    assert isinstance(model, FactorModel)
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    heard_BPE, candidate_BNE = torch.stack([one, other])[:, None].repeat(1, 5, 1), torch.stack([one, other])
    asked_B = model.next_comparison(heard_BPE, torch.ones(2, 5), candidate_BNE.expand(2, 2, 2))
    assert asked_B.tolist() == [1, 0]
