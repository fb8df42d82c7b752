from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypref.methods.projection import PIECE_NUMBERS, project, project_difference

DIM, HEADS = 24, 5


def drawn(seed: int, rows: int, offset: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Two blocks of embeddings around a common offset, heads, a centre and a scale."""
    random = torch.Generator().manual_seed(seed)
    center_D = offset * torch.randn(DIM, generator=random)
    first, second = (center_D + torch.randn(rows, DIM, generator=random) for _ in range(2))
    heads_FD = DIM**-0.5 * torch.randn(HEADS, DIM, generator=random)
    return first.to(dtype), second.to(dtype), heads_FD, center_D, torch.tensor(1.7)


def exact(emb_ND: torch.Tensor, heads_FD: torch.Tensor, center_D: torch.Tensor, scale: torch.Tensor):
    return (emb_ND.double() - center_D.double()) / scale.double() @ heads_FD.double().mT


@settings(deadline=None)
@given(
    st.integers(0, 2**20),
    st.integers(0, 40),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_products_are_those_of_standardised_embeddings(
    seed: int, rows: int, offset: float, dtype: torch.dtype
) -> None:
    first, second, heads, center, scale = drawn(seed, rows, offset, dtype)
    one, other = exact(first, heads, center, scale), exact(second, heads, center, scale)
    tolerance = 2e-6 * (1.0 + offset)
    found = project(first, heads, center, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), one, rtol=0, atol=tolerance)
    difference = project_difference(first, second, heads, scale)
    torch.testing.assert_close(difference.double(), one - other, rtol=0, atol=4e-6)
    assert torch.equal(project_difference(second, first, heads, scale), -difference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pieces_are_the_whole(dtype: torch.dtype) -> None:
    rows = 3 * PIECE_NUMBERS // DIM + 5
    emb, _, heads, center, scale = drawn(0, rows, 1.0, dtype)
    whole = project(emb, heads, center, scale)
    torch.testing.assert_close(whole[-7:], project(emb[-7:], heads, center, scale))
    folded = emb[: rows // 3 * 3].reshape(3, rows // 3, DIM)
    torch.testing.assert_close(project(folded, heads, center, scale).flatten(0, 1), whole[: rows // 3 * 3])


def test_autocast_does_not_round_what_the_centre_takes_away() -> None:
    first, second, heads, center, scale = drawn(0, 200, 1000.0, torch.float32)
    truth = exact(first, heads, center, scale)
    with torch.autocast("cpu", torch.bfloat16):
        found, difference = (
            project(first, heads, center, scale),
            project_difference(first, second, heads, scale),
        )
        rough = project(first.bfloat16(), heads, center, scale)
    assert found.dtype == difference.dtype == rough.dtype == torch.float32
    assert float((found - truth).abs().max()) < 0.05
    apart = truth - exact(second, heads, center, scale)
    assert float((difference - apart).abs().max()) < 0.05
    # bfloat16 had lost it before.
    assert float((rough - truth).abs().max()) > 0.5
