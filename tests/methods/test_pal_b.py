from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from raypref.methods import BTConfig, PALBConfig, PALConfig
from raypref.methods.base import MethodConfig, RewardModel
from raypref.methods.pal_b import PALB, Ideal, PublishedPALB
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs
from tests.methods.contract import DIM, Contract, built, pairs

PUBLISHED = {"type": "pal_b", "solver": "adamw", "width": 32}
HALF = 8


@torch.no_grad()
def test_nearness_is_the_scaled_cosine_with_the_prompts_ideal() -> None:
    torch.manual_seed(0)
    ideal, emb, weights = Ideal(DIM, 5, 3), torch.randn(4, 7, DIM), torch.randn(6, 3).softmax(-1)
    response, prompt = emb[..., :8], emb[..., 8:]
    prototypes = torch.stack([network(prompt) for network in ideal.prompts])
    points = torch.einsum("sk,kbnl->bnsl", weights, prototypes)
    expected = F.cosine_similarity(points, ideal.response(response).unsqueeze(-2), dim=-1) / 0.07
    torch.testing.assert_close(ideal.nearness(ideal(emb), weights), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_scale_has_a_limit() -> None:
    torch.manual_seed(0)
    ideal, emb, weights = Ideal(DIM, 5, 3), torch.randn(50, DIM), torch.eye(3)
    cosine = 0.07 * ideal.nearness(ideal(emb), weights)
    ideal.log_scale.fill_(math.log(1e6))
    torch.testing.assert_close(ideal.nearness(ideal(emb), weights), 100.0 * cosine, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("raw", [{"type": "pal_b"}, PUBLISHED])
def test_what_is_ideal_depends_on_the_prompt(raw: dict[str, str]) -> None:
    """The same two responses to another prompt have another margin."""
    model = built(PALBConfig.model_validate(raw))
    target, other = pairs(1), pairs(2)
    moved = Pairs(
        torch.cat([target.chosen_BPD[..., :8], other.chosen_BPD[..., 8:]], -1),
        torch.cat([target.rejected_BPD[..., :8], other.chosen_BPD[..., 8:]], -1),
        target.mask_BP,
    )
    context = pairs(0)
    with torch.no_grad():
        user = model.infer(model.encode(context), context.mask_BP)
        change = model(moved, user).mean_BN - model(target, user).mean_BN
    assert float(change.abs().median()) > 0.01


def test_the_published_solver_has_its_own_defaults() -> None:
    config = PALBConfig.model_validate({"type": "pal_b", "solver": "adamw"})
    assert (config.prototypes, config.width, config.recipe.lr) == (2, 512, 1e-4)
    model = config.build(Dims(DIM, 4))
    groups = list(model.parameter_groups(config.recipe))
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 5e-3, 0.1])
    grouped = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert grouped == sum(parameter.numel() for parameter in model.parameters())


def test_both_solvers_need_prompts() -> None:
    assert PALBConfig().needs_prompts
    assert not PALConfig().needs_prompts
    assert isinstance(PALBConfig().build(Dims(DIM, 4)), PALB)
    assert isinstance(PALBConfig.model_validate(PUBLISHED).build(Dims(DIM, 4)), PublishedPALB)


def prompted(users: int, comparisons: int, random: torch.Generator) -> Pairs:
    """Two camps: what is ideal to one is a rotation of the prompt, to the other the opposite."""
    rotation = torch.linalg.qr(torch.randn(HALF, HALF, generator=torch.Generator().manual_seed(5)))[0]
    maps, camp = torch.stack([rotation, -rotation]), torch.arange(users) % 2
    prompt = torch.randn(users, comparisons, HALF, generator=random)
    ideal = F.normalize(torch.einsum("uij,upj->upi", maps[camp], prompt), dim=-1)
    first, second = torch.randn(2, users, comparisons, HALF, generator=random)
    gap = 6.0 * (F.cosine_similarity(ideal, first, dim=-1) - F.cosine_similarity(ideal, second, dim=-1))
    wins = (torch.rand(gap.shape, generator=random) < torch.sigmoid(gap)).unsqueeze(-1)
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    both = (torch.cat([response, prompt], -1) for response in (chosen, rejected))
    return Pairs(*both, torch.ones(users, comparisons))


def trained(config: MethodConfig, learn: Pairs) -> RewardModel:
    torch.manual_seed(0)
    recipe = config.recipe.model_copy(update={"steps": 120})
    model = config.build(Dims(2 * HALF, len(learn.mask_BP)))
    model.fit_scale(learn.chosen_BPD.flatten(0, 1))
    nothing = Pairs(*(value[:, :0] for value in vars(learn).values()))
    batch = Episodes(nothing, learn, torch.arange(len(learn.mask_BP)))
    for _ in train(start(model, recipe), (batch for _ in range(recipe.steps)), recipe, seed=0):
        pass
    model.settle([learn])
    return model.eval()


@torch.no_grad()
def accuracy(model: RewardModel, users: Pairs, shots: int) -> float:
    context, test = (
        Pairs(*(value[:, part] for value in vars(users).values())) for part in (slice(0, 16), slice(16, None))
    )
    mask = context.mask_BP * (torch.arange(16) < shots)
    user = model.infer(model.encode(context), mask)
    return float((model(test, user).logit_BN() > 0).float().mean())


class TestPALB(Contract):
    config = PALBConfig()

    @pytest.mark.slow
    def test_beats_bt_on_unseen_users_of_a_planted_population(  # type: ignore[override]
        self,
    ) -> None:
        """Where what is ideal depends on the prompt; the contract's own population has no prompts."""
        random = torch.Generator().manual_seed(0)
        learn, unseen = prompted(100, 24, random), prompted(100, 46, random)
        found = {
            name: [accuracy(trained(config, learn), unseen, shots) for shots in (0, 16)]
            for name, config in {"bt": BTConfig(), "a": PALConfig(), "b": self.config}.items()
        }
        assert found["b"][0] > found["bt"][0] - 0.01, found
        assert found["b"][1] > max(found["bt"] + found["a"]) + 0.1, found
        assert found["b"][1] > found["b"][0] + 0.1, found


class TestPublishedPALB(Contract):
    config = PALBConfig.model_validate({**PUBLISHED, "recipe": {"lr": 1e-3}})

    @pytest.mark.slow
    def test_beats_bt_on_unseen_users_of_a_planted_population(  # type: ignore[override]
        self,
    ) -> None:
        """As published it fits the users it trains on, and gains nothing on others from so few."""
        learn = prompted(100, 24, torch.Generator().manual_seed(0))
        model = trained(self.config, learn)
        assert isinstance(model, PublishedPALB)
        with torch.no_grad():
            own = model(learn, torch.softmax(model.logits_UK, -1))
        assert float((own.mean_BN > 0).float().mean()) > 0.53
