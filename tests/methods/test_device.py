"""Every method on a GPU: it says what it says on a CPU, and learns."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

from raypref.methods import METHODS
from raypref.methods.base import MethodConfig, RewardModel
from raypref.train.loop import start, train, validate
from raypref.types import Dims
from tests.methods.contract import DIM, USERS, built, episodes, pairs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

GPU = torch.device("cuda")
VARIANTS = {"solver": ("adam", "adamw", "sgd"), "variant": ("released",)}


def configs() -> Iterator[MethodConfig]:
    """Every method as it is, and as published."""
    for method in METHODS:
        yield method()
        for field, values in VARIANTS.items():
            if field in method.model_fields:
                known = get_args(method.model_fields[field].annotation)
                yield from (method.model_validate({field: value}) for value in values if value in known)


def name(config: MethodConfig) -> str:
    given = config.model_dump()
    return "-".join(str(given[key]) for key in ("type", *VARIANTS) if key in given)


each = pytest.mark.parametrize("config", list(configs()), ids=name)


def says(model: RewardModel, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """All that a model says of some users and items."""
    context, target = pairs(0).to(device), pairs(1, comparisons=5).to(device)
    chosen, rejected = model.item(target.chosen_BPD), model.item(target.rejected_BPD)
    evidence = model.encode(context)
    user = model.infer(evidence, context.mask_BP)
    yield from (("item", chosen), ("evidence", evidence), ("user", user))
    values = {"reward": model.reward(chosen, user), "margin": model.margin(chosen, rejected, user)}
    values |= {"landscape": model.landscape(user), "latent": model.latent(evidence, context.mask_BP)}
    for what, value in values.items():
        parts = vars(value) if value is not None else {}
        yield from ((f"{what}.{key}", part) for key, part in parts.items() if part is not None)
    doubt = model.doubt(chosen, rejected, user)
    if doubt is not None:
        yield "doubt", doubt


@each
def test_a_gpu_says_what_a_cpu_says(config: MethodConfig) -> None:
    model = built(config)
    there = copy.deepcopy(model).to(GPU)
    there.settle([pairs(100, USERS).to(GPU)])
    with torch.no_grad():
        expected = dict(says(model, torch.device("cpu")))
        found = dict(says(there, GPU))
    assert found.keys() == expected.keys()
    for what, value in found.items():
        assert value.device.type == "cuda", what
        torch.testing.assert_close(
            value.cpu(), expected[what], rtol=1e-3, atol=1e-4, msg=lambda text, what=what: f"{what}: {text}"
        )


@each
@pytest.mark.parametrize("bfloat16", [False, True])
def test_it_learns_on_a_gpu(config: MethodConfig, bfloat16: bool) -> None:
    torch.manual_seed(0)
    model = config.build(Dims(DIM, USERS))
    model.fit_scale(torch.randn(500, DIM))
    model = model.to(GPU)
    model.prime([episodes(0, config).to(GPU)])
    recipe = config.recipe.model_copy(update={"steps": 60})
    state = start(model, recipe)
    steps = train(state, [episodes(0, config)] * recipe.steps, recipe, seed=0, bfloat16=bfloat16)
    losses = [step.loss for step in steps]
    assert sum(losses[-10:]) < sum(losses[:10])
    held_out = validate([model], [[episodes(2, config)]])
    assert 0 < held_out.nll < float("inf")
    for what, tensor in model.state_dict().items():
        assert tensor.device.type == "cuda", what
        assert bool(torch.isfinite(tensor).all()), what
