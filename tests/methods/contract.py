"""What every method must do. A method's test inherits it and supplies its configurations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch

from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, library_versions
from raypref.methods import BTConfig
from raypref.methods.base import MethodConfig, RewardModel
from raypref.schema import Embedder
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs
from tests.methods.small_population import SmallPopulation, accuracy, fit

DIM, USERS = 16, 20


def pairs(seed: int, users: int = 4, comparisons: int = 6) -> Pairs:
    random = torch.Generator().manual_seed(seed)
    shape = (users, comparisons, DIM)
    return Pairs(
        torch.randn(shape, generator=random),
        torch.randn(shape, generator=random),
        torch.ones(users, comparisons),
    )


def episodes(seed: int, config: MethodConfig) -> Episodes:
    context = pairs(seed, comparisons=min(6, config.recipe.context[1]))
    return Episodes(context, pairs(seed + 1), torch.arange(4))


def built(config: MethodConfig, seed: int = 0) -> RewardModel:
    """A model whose parameters and priors are not at their special starting values."""
    torch.manual_seed(seed)
    model = config.build(Dims(DIM, USERS))
    model.fit_scale(torch.randn(500, DIM))
    state = start(model, config.recipe.model_copy(update={"steps": 8}))
    for _ in train(state, (episodes(i, config) for i in range(8)), config.recipe, seed=seed):
        pass
    model.eval()
    model.settle([pairs(100, USERS)])
    return model


class Contract:
    """Inherit, and set `config`."""

    config: ClassVar[MethodConfig]
    gains_on_bt_at_8: ClassVar[float] = 0.02

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> RewardModel:
        return built(cls.config)

    @torch.no_grad()
    def infer(self, model: RewardModel, context: Pairs) -> torch.Tensor:
        return model.infer(model.encode(context), context.mask_BP)

    def test_the_method_says_what_it_is_and_where_it_is_published(self) -> None:
        method = type(self.config)
        assert "__doc__" in vars(method)
        idea = (method.__doc__ or "").splitlines()[0]
        assert 20 < len(idea) <= 110
        assert idea.endswith(".")
        assert re.search(r"(19|20)\d\d|\d{4}\.\d{5}", method.citation)
        for name, field in method.model_fields.items():
            assert not field.is_required(), name
            assert name in ("type", "recipe") or (field.description or "").endswith("."), name

    @torch.no_grad()
    def test_posteriors_are_those_of_users(self, model: RewardModel) -> None:
        context = pairs(0)
        evidence = model.encode(context)
        latent = model.latent(evidence, context.mask_BP)
        if latent is None:
            assert type(model).latent is RewardModel.latent
            return
        assert latent.kl_B.shape == (4,)
        assert latent.code_BL.shape[0] == 4
        assert latent.mean_BL.shape == latent.var_BL.shape
        assert bool((latent.var_BL > 0).all())
        assert all(bool(torch.isfinite(value).all()) for value in vars(latent).values())
        alone = model.latent(evidence[:1], context.mask_BP[:1])
        for name, value in vars(alone).items():
            torch.testing.assert_close(value[0], vars(latent)[name][0], rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_shapes(self, model: RewardModel) -> None:
        context, target = pairs(0), pairs(1, comparisons=5)
        item = model.item(target.chosen_BPD)
        evidence = model.encode(context)
        user = self.infer(model, context)
        assert item.shape[:2] == (4, 5)
        assert evidence.shape[:2] == (4, 6)
        assert user.shape[0] == 4
        assert user.ndim == 2
        reward, margin = model.reward(item, user), model(target, user)
        for value in (reward, margin):
            assert value.mean_BN.shape == (4, 5)
            assert bool(torch.isfinite(value.mean_BN).all())
            assert (value.var_BN is not None) == model.uncertain
            if value.var_BN is not None:
                assert value.var_BN.shape == (4, 5)
                assert bool((value.var_BN >= 0).all())
            assert bool(((value.probability_BN() >= 0) & (value.probability_BN() <= 1)).all())

    @torch.no_grad()
    def test_who_is_put_where_somebody_stands_stands_there(self, model: RewardModel) -> None:
        user, target = self.infer(model, pairs(0)), pairs(1, comparisons=5)
        land = model.landscape(user)
        if land is None:
            assert type(model).steer is RewardModel.steer
            return
        steered = model.steer(land.mean_BL)
        assert steered is not None
        assert steered.shape == user.shape
        found = model.landscape(steered)
        assert found is not None
        torch.testing.assert_close(found.mean_BL, land.mean_BL)
        margin = model(target, steered)
        assert bool(torch.isfinite(margin.mean_BN).all())
        if land.bases_KL is not None and torch.equal(land.bases_KL, torch.eye(len(land.bases_KL))):
            for wrong in (land.bases_KL[:1] + 0.1, land.bases_KL[:1] - 0.1):
                with pytest.raises(ValueError, match="sum to 1"):
                    model.steer(wrong)
            return
        doubt = model.doubt(model.item(target.chosen_BPD), model.item(target.rejected_BPD), steered)
        assert (doubt is not None) == model.uncertain
        if doubt is not None:
            torch.testing.assert_close(doubt, torch.zeros_like(doubt), rtol=0, atol=1e-6)

    def test_items_and_comparisons_take_any_leading_shape(self, model: RewardModel) -> None:
        batch = pairs(0)
        flat = model.item(batch.chosen_BPD.reshape(-1, DIM))
        torch.testing.assert_close(flat, model.item(batch.chosen_BPD).reshape(24, -1))
        evidence = model.evidence(batch.chosen_BPD.reshape(-1, DIM), batch.rejected_BPD.reshape(-1, DIM))
        torch.testing.assert_close(evidence, model.encode(batch).reshape(evidence.shape))

    def test_a_user_alone_equals_that_user_in_a_batch(self, model: RewardModel) -> None:
        context = pairs(0)
        together = self.infer(model, context)
        for user in range(4):
            part = Pairs(*(value[user : user + 1] for value in vars(context).values()))
            torch.testing.assert_close(self.infer(model, part)[0], together[user], rtol=1e-4, atol=1e-5)

    def test_padding_never_leaks(self, model: RewardModel) -> None:
        context = pairs(0)
        rubbish = 1e3 * torch.ones(4, 3, DIM)
        padded = Pairs(
            torch.cat([context.chosen_BPD, rubbish], 1),
            torch.cat([context.rejected_BPD, -rubbish], 1),
            torch.cat([context.mask_BP, torch.zeros(4, 3)], 1),
        )
        torch.testing.assert_close(
            self.infer(model, padded), self.infer(model, context), rtol=1e-4, atol=1e-5
        )

    def test_the_order_of_comparisons_does_not_matter(self, model: RewardModel) -> None:
        context = pairs(0)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        shuffled = Pairs(*(value[:, order] for value in vars(context).values()))
        torch.testing.assert_close(
            self.infer(model, shuffled), self.infer(model, context), rtol=1e-4, atol=1e-5
        )

    def test_no_comparisons_give_the_populations_answer(self, model: RewardModel) -> None:
        context = pairs(0)
        nothing = Pairs(context.chosen_BPD, context.rejected_BPD, torch.zeros_like(context.mask_BP))
        empty = Pairs(*(value[:, :0] for value in vars(context).values()))
        users = self.infer(model, nothing)
        assert bool(torch.isfinite(users).all())
        torch.testing.assert_close(users, users[:1].expand_as(users))
        torch.testing.assert_close(self.infer(model, empty), users)
        assert bool(torch.isfinite(model(pairs(1), users).mean_BN).all())

    @torch.no_grad()
    def test_the_margin_changes_sign_when_a_comparison_is_swapped(self, model: RewardModel) -> None:
        user, target = self.infer(model, pairs(0)), pairs(1)
        forth, back = model(target, user), model(target.swap(), user)
        torch.testing.assert_close(forth.mean_BN, -back.mean_BN, rtol=1e-4, atol=1e-5)
        if forth.var_BN is not None and back.var_BN is not None:
            torch.testing.assert_close(forth.var_BN, back.var_BN, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_cut_equals_uncut(self, model: RewardModel) -> None:
        """Items once and evidence once, gathered by index, against one forward pass a comparison."""
        context, target = pairs(0), pairs(1, comparisons=5)
        items = torch.cat([target.chosen_BPD.reshape(-1, DIM), target.rejected_BPD.reshape(-1, DIM)])
        item_NF = model.item(items)
        evidence = model.evidence(
            context.chosen_BPD.reshape(-1, DIM), context.rejected_BPD.reshape(-1, DIM)
        ).reshape(4, 6, -1)
        users = model.infer(evidence, context.mask_BP)
        reward = model.reward(item_NF.reshape(2, 4, 5, -1)[0], users).mean_BN
        other = model.reward(item_NF.reshape(2, 4, 5, -1)[1], users).mean_BN
        for user in range(4):
            alone = Pairs(*(value[user : user + 1] for value in vars(context).values()))
            vector = model.infer(model.encode(alone), alone.mask_BP)
            for comparison in range(5):
                one = Pairs(
                    *(value[user : user + 1, comparison : comparison + 1] for value in vars(target).values())
                )
                uncut = model(one, vector).mean_BN[0, 0]
                cut = reward[user, comparison] - other[user, comparison]
                torch.testing.assert_close(cut, uncut, rtol=1e-3, atol=1e-4)

    def test_saved_and_loaded_is_bit_equal(self, model: RewardModel, tmp_path: Path) -> None:
        embedder = Embedder(
            model="m", revision="r", pooling="mean", normalised=False, template="t", max_length=1, dim=DIM
        )
        info = BundleInfo(
            method=self.config,  # type: ignore[arg-type]
            dim=DIM,
            users=USERS,
            embedder=embedder,
            data_fingerprint="f",
            steps=8,
            metrics={},
            versions=library_versions(),
        )
        Bundle(model, info, pa.table({n: [] for n in BUNDLE_USERS_SCHEMA.names}, BUNDLE_USERS_SCHEMA)).save(
            tmp_path / "bundle"
        )
        loaded = Bundle.load(tmp_path / "bundle")
        assert loaded.info == info
        user, again = self.infer(model, pairs(0)), self.infer(loaded.model, pairs(0))
        assert torch.equal(user, again)
        assert torch.equal(model(pairs(1), user).mean_BN, loaded.model(pairs(1), again).mean_BN)

    def test_settling_twice_changes_nothing(self, model: RewardModel) -> None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.settle([pairs(100, USERS)])
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_a_fixed_seed_repeats(self) -> None:
        first, second = built(self.config, seed=3), built(self.config, seed=3)
        for name, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name

    def test_every_parameter_gets_a_gradient(self) -> None:
        torch.manual_seed(0)
        model = self.config.build(Dims(DIM, 4))
        model.loss(episodes(0, self.config), 0.5).total.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert not parameter.numel() or bool((parameter.grad != 0).any()), name

    def test_loss_parts_are_finite_numbers(self, model: RewardModel) -> None:
        loss = model.loss(episodes(0, self.config), 0.5)
        assert loss.total.ndim == 0
        assert all(part.ndim == 0 and bool(torch.isfinite(part)) for part in loss.parts.values())
        assert not any(part.requires_grad for part in loss.parts.values())

    @pytest.mark.slow
    def test_beats_bt_on_unseen_users_of_a_planted_population(
        self, small_population: SmallPopulation, bt_accuracy: dict[int, float]
    ) -> None:
        model = fit(self.config, small_population)
        figures: dict[int, Any] = {shots: accuracy(model, small_population, shots) for shots in (0, 1, 8)}
        assert figures[0] >= bt_accuracy[0] - 0.01, figures
        assert figures[1] >= bt_accuracy[0] - 0.005, figures
        if not isinstance(self.config, BTConfig):
            assert figures[8] >= bt_accuracy[0] + self.gains_on_bt_at_8, figures
