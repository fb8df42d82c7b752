from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from raypref.methods import FedVPAConfig
from raypref.methods.fedvpa import FedVPA
from raypref.methods.peers import assign, gumbel, kl_to_peers, peer_weights
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs
from tests.methods.contract import DIM, Contract, built, episodes, pairs

CPU = torch.device("cpu")


class TestFedVPA(Contract):
    config = FedVPAConfig()


class TestFedVPL(Contract):
    """The published ablation: the prior is N(0, 1), no prototypes; a user's Gaussian is an average."""

    config = FedVPAConfig.model_validate(
        {"prior": "normal", "orthogonal": 0.0, "pooling": "mean", "base_dropout": 0.2}
    )
    gains_on_bt_at_8 = 0.0


@pytest.fixture(scope="module")
def model() -> FedVPA:
    model = built(FedVPAConfig())
    assert isinstance(model, FedVPA)
    return model


@pytest.mark.parametrize("prototypes", [1, 2, 32])
def test_prototypes_start_orthonormal(prototypes: int) -> None:
    torch.manual_seed(0)
    start_ML = FedVPAConfig(prototypes=prototypes).build(Dims(DIM, 4)).prototypes_ML.detach()
    torch.testing.assert_close(start_ML @ start_ML.mT, torch.eye(prototypes), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_gumbel_weights_are_a_distribution_over_the_others(temperature: float) -> None:
    torch.manual_seed(0)
    user_B = torch.tensor([3, 1, 3, 7])
    same_BB = user_B.unsqueeze(1) == user_B
    weight_RBC = peer_weights(torch.randn(4, 4), same_BB, gumbel(2, 4, 4, device=CPU), temperature).exp()
    torch.testing.assert_close(weight_RBC.sum(-1), torch.ones(2, 4))
    assert bool((weight_RBC[..., :4][same_BB.expand(2, -1, -1)] == 0).all())
    assert bool((weight_RBC[..., :4][~same_BB.expand(2, -1, -1)] > 0).all())
    assert bool((weight_RBC[..., 4] == 0).all())


def test_a_lone_user_has_the_standard_normal_prior() -> None:
    weight_RBC = peer_weights(torch.zeros(1, 1), torch.ones(1, 1) > 0, torch.zeros(2, 1, 1), 1.0).exp()
    assert torch.equal(weight_RBC, torch.tensor([0.0, 1.0]).expand(2, 1, 2))


def test_gumbel_noise_chooses_peers_by_their_weight() -> None:
    """Gumbel-max: the largest noisy log weight is a draw from the weights."""
    torch.manual_seed(0)
    chance = torch.tensor([0.2, 0.3, 0.5])
    chosen = (chance.log() + gumbel(20_000, 3, device=CPU)).argmax(-1)
    torch.testing.assert_close(torch.bincount(chosen) / 20_000, chance, atol=0.02, rtol=0.0)


def test_kl_vanishes_when_the_chosen_peer_is_the_user() -> None:
    torch.manual_seed(0)
    mean_BL, var_BL = torch.randn(3, 8), torch.rand(3, 8) + 0.1
    liking_BB = torch.tensor([[0.0, 60.0, 0.0], [0.0, 0.0, 60.0], [60.0, 0.0, 0.0]])
    log_weight_RBC = peer_weights(liking_BB, torch.eye(3) > 0, torch.zeros(1, 3, 3), 1.0)
    z_RBL = (mean_BL + var_BL.sqrt() * torch.randn(3, 8)).unsqueeze(0)
    order = torch.tensor([2, 0, 1])  # peer 1 of user 0 is made user 0, peer 2 of user 1 user 1, and so on
    q_RBL = mean_BL.unsqueeze(0), var_BL.unsqueeze(0)
    same = kl_to_peers(z_RBL, *q_RBL, mean_BL[order], var_BL[order], log_weight_RBC)
    torch.testing.assert_close(same, torch.zeros(1, 3), atol=1e-4, rtol=0.0)
    other = kl_to_peers(z_RBL, *q_RBL, mean_BL, var_BL, log_weight_RBC)
    assert bool((other > 1.0).all())


def test_prototypes_are_assigned_in_equal_shares() -> None:
    torch.manual_seed(0)
    prototypes_ML = torch.eye(2, 4)
    groups = torch.cat([torch.zeros(20).long(), torch.ones(20).long()])
    mean_BL = 2.0 * prototypes_ML[groups] + 0.1 * torch.randn(40, 4)
    assert torch.equal(assign(mean_BL, prototypes_ML), groups)
    # What all users share moves nobody, and neither group can take all of them.
    assert torch.equal(assign(mean_BL + 5.0 * prototypes_ML[0], prototypes_ML), groups)


@pytest.mark.parametrize("pooling", ["product", "mean"])
def test_the_variance_is_capped(pooling: str) -> None:
    model = built(FedVPAConfig.model_validate({"pooling": pooling, "max_variance": 0.25}))
    for comparisons in range(5):
        context = pairs(0, comparisons=comparisons)
        with torch.no_grad():
            var_BL = model.infer(model.encode(context), context.mask_BP).chunk(2, -1)[1]
        assert float(var_BL.max()) <= 0.25


def test_base_dropout_is_off_in_evaluation() -> None:
    model, step = built(FedVPAConfig(base_dropout=0.5)), episodes(0, FedVPAConfig())
    whole = built(FedVPAConfig(base_dropout=0.5))
    assert isinstance(whole, FedVPA)
    whole.config = FedVPAConfig(base_dropout=0.0)

    def personal(of: object, training: bool) -> torch.Tensor:
        assert isinstance(of, FedVPA)
        of.train(training)
        of.dropout.eval()
        torch.manual_seed(1)
        return of.loss(step, 0.5).parts["personal"]

    assert torch.equal(personal(model, False), personal(whole, False))
    assert not torch.equal(personal(model, True), personal(whole, True))


def test_a_target_is_no_part_of_its_own_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the label of the scored comparison leaves the latent that scores it as it was."""
    model, seen = built(FedVPAConfig()), []
    assert isinstance(model, FedVPA)
    context_RBP = torch.ones(4, 4, 6)
    context_RBP[..., 2] = 0.0
    monkeypatch.setattr("raypref.methods.fedvpa.draw_contexts", lambda *_: (context_RBP, 1.0 - context_RBP))
    weights = model.weights
    monkeypatch.setattr(model, "weights", lambda z: (seen.append(z.detach()), weights(z))[1])
    target, flipped = pairs(1), pairs(1).swap()
    first = torch.arange(6).unsqueeze(-1) == 2
    swapped = Pairs(
        torch.where(first, flipped.chosen_BPD, target.chosen_BPD),
        torch.where(first, flipped.rejected_BPD, target.rejected_BPD),
        target.mask_BP,
    )
    for batch in (target, swapped, flipped):
        torch.manual_seed(0)
        model.loss(Episodes(pairs(0, comparisons=0), batch, torch.arange(4)), 0.5)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@torch.no_grad()
def test_a_user_nothing_is_known_of_has_the_common_reward(model: FedVPA) -> None:
    context = pairs(0)
    nobody = model.infer(model.encode(context), torch.zeros_like(context.mask_BP))
    items = model.item(context.chosen_BPD)
    torch.testing.assert_close(model.reward(items, nobody).mean_BN, items[..., 0])


@torch.no_grad()
def test_a_latent_known_without_doubt_has_no_variance(model: FedVPA) -> None:
    items = model.item(pairs(1, users=2).chosen_BPD)
    reward = model.reward(items, model.prototype_users())
    assert reward.var_BN is not None
    assert float(reward.var_BN.max()) < 1e-9
    drawn = model.reward(items, torch.cat([model.prototypes_ML, torch.ones(2, 32)], -1))
    assert drawn.var_BN is not None
    assert float(drawn.var_BN.mean()) > 1e-3


@torch.no_grad()
def test_diagnostics_see_the_users_gaussians(model: FedVPA) -> None:
    context = pairs(0)
    evidence = model.encode(context)
    latent = model.latent(evidence, context.mask_BP)
    land = model.landscape(model.infer(evidence, context.mask_BP))
    assert torch.equal(latent.code_BL, land.mean_BL)
    assert land.bases_KL is not None
    assert land.bases_KL.shape == (2, 32)
    expected_B = 0.5 * (latent.var_BL + latent.mean_BL.square() - 1.0 - latent.var_BL.log()).sum(-1)
    torch.testing.assert_close(latent.kl_B, expected_B)


def opposed(step: int, users: int = 32) -> Episodes:
    """Users with an even row prefer what users with an odd row reject."""
    batch, user_B = pairs(1000 + step, users, 12), torch.arange(users)
    sign_B11 = (1.0 - 2.0 * (user_B % 2)).reshape(-1, 1, 1)
    first = ((batch.chosen_BPD - batch.rejected_BPD)[..., :1] * sign_B11) > 0
    judged = Pairs(
        torch.where(first, batch.chosen_BPD, batch.rejected_BPD),
        torch.where(first, batch.rejected_BPD, batch.chosen_BPD),
        batch.mask_BP,
    )
    return Episodes(pairs(0, users, 0), judged, user_B)


def test_switching_the_latent_switches_the_preference() -> None:
    torch.manual_seed(0)
    config = FedVPAConfig(orthogonal=1e-2)
    model = config.build(Dims(DIM, 32))
    recipe = config.recipe.model_copy(update={"steps": 150})
    for _ in train(start(model, recipe), (opposed(step) for step in range(150)), recipe, seed=0):
        pass
    model.eval()
    with torch.no_grad():
        judged = opposed(-1).target
        mean_BL = model.infer(model.encode(judged), judged.mask_BP).chunk(2, -1)[0]
        test = Pairs(*(value[:1] for value in vars(opposed(-2).target).values()))
        even, odd = (model.steer(mean_BL[group::2].mean(0, keepdim=True)) for group in (0, 1))
        assert float((model(test, even).mean_BN > 0).float().mean()) > 0.8
        assert float((model(test, odd).mean_BN < 0).float().mean()) > 0.8
        # Each prototype has become one of the two groups.
        first, second = (model(test, user.unsqueeze(0)).mean_BN for user in model.prototype_users())
        assert float((first * second < 0).float().mean()) > 0.8


@pytest.mark.parametrize("narrow", [{"rank": 40}, {"prototypes": 40}, {"hidden": 31}])
def test_a_space_too_narrow_is_refused(narrow: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="must be at least"):
        FedVPAConfig.model_validate(narrow)
