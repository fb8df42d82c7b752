from __future__ import annotations

import pytest
import torch

from raypref.methods.flow import Autoregressive, PairedFlow

LATENT, CONTEXT = 5, 3


def flow(split: bool = True, layers: int = 2) -> PairedFlow:
    torch.manual_seed(0)
    return PairedFlow(LATENT, CONTEXT, layers, split).double()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("split", [True, False])
def test_log_determinant_is_that_of_autograds_jacobian(split: bool) -> None:
    model = flow(split)
    z, odd, even = draw(4, LATENT), draw(4, CONTEXT), draw(4, CONTEXT)
    _, log_det = model(z, odd, even)
    for row in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, row=row: model(one[None], odd[row : row + 1], even[row : row + 1])[0][0], z[row]
        )
        assert isinstance(jacobian, torch.Tensor)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[row])


def test_a_net_never_sees_its_own_coordinate_or_a_later_one() -> None:
    rank = torch.tensor([3, 0, 4, 1, 2])
    net = Autoregressive(rank, CONTEXT, bias=True).double()
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z, draw(CONTEXT)), draw(LATENT))
    assert isinstance(jacobian, torch.Tensor)
    later = rank.unsqueeze(0) >= rank.unsqueeze(1)
    assert bool((jacobian[later] == 0).all())
    assert bool((jacobian[~later] != 0).any())


def test_every_coordinate_hears_the_context() -> None:
    net = Autoregressive(torch.arange(LATENT), CONTEXT, bias=True).double()
    for parameter in net.parameters():
        parameter.data.abs_()
    nothing = torch.zeros(LATENT, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda c: net(nothing, c), draw(CONTEXT).abs())
    assert isinstance(jacobian, torch.Tensor)
    assert bool((jacobian != 0).all())


def test_nothing_is_not_shifted() -> None:
    end, _ = flow()(torch.zeros(2, LATENT).double(), torch.zeros(2, CONTEXT).double(), draw(2, CONTEXT))
    assert torch.equal(end, torch.zeros_like(end))


def test_context_does_not_cross_where_it_is_split() -> None:
    z, odd, even, other = draw(2, LATENT), draw(2, CONTEXT), 2.0 * draw(2, CONTEXT), 3.0 * draw(2, CONTEXT)
    split, joint = flow(layers=1), flow(split=False, layers=1)
    # One layer's scale alone makes the determinant: the odd part must not reach it.
    assert torch.equal(split(z, odd, even)[1], split(z, other, even)[1])
    assert not torch.equal(joint(z, odd, even)[1], joint(z, other, even)[1])


def test_no_layers_are_the_identity() -> None:
    z = draw(2, LATENT)
    end, log_det = flow(layers=0)(z, draw(2, CONTEXT), draw(2, CONTEXT))
    assert torch.equal(end, z)
    assert torch.equal(log_det, torch.zeros(2).double())
