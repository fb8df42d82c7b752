from __future__ import annotations

import pytest
import torch

from raypref.federated.groups import group
from raypref.methods import BTConfig, FedVPAConfig
from raypref.methods.fedvpa import FedVPA
from raypref.types import Dims

UNKNOWN = torch.full((40,), -1)


def model(prototypes: int = 2) -> FedVPA:
    torch.manual_seed(0)
    return FedVPAConfig(prototypes=prototypes).build(Dims(16, 1))


def vectors(of: FedVPA, group_J: torch.Tensor, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """User vectors about the prototype of each group."""
    random = torch.Generator().manual_seed(seed)
    mean = of.prototypes_ML.detach()[group_J]
    mean = mean + 0.1 * torch.randn(mean.shape, generator=random) + shift
    return torch.cat([mean, torch.full_like(mean, 0.05)], -1)


@pytest.mark.parametrize("prototypes", [2, 3, 5])
def test_clusters_have_the_name_of_their_prototype(prototypes: int) -> None:
    of = model(prototypes)
    group_J = torch.arange(40) % prototypes
    assert torch.equal(group(of, vectors(of, group_J), UNKNOWN), group_J)


def test_groups_are_of_about_equal_size_whatever_users_share() -> None:
    of, group_J = model(), torch.arange(40) % 2
    found = group(of, vectors(of, group_J, shift=2.0), UNKNOWN)
    assert torch.equal(found, group_J)
    alike = group(of, vectors(of, torch.zeros(40, dtype=torch.int64)), UNKNOWN)
    assert 14 <= int(alike.sum()) <= 26


def test_groups_keep_their_prototype_from_round_to_round() -> None:
    """Where prototypes say nothing, clusters are found from where they were."""
    of, group_J = model(), torch.arange(40) % 2
    turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    at = vectors(of, group_J)
    at[:, :32] = at[:, :32] @ turned
    before = group(of, at, UNKNOWN)
    assert torch.equal(before, group_J) or torch.equal(before, 1 - group_J)
    again = vectors(of, group_J, seed=2)
    again[:, :32] = again[:, :32] @ turned
    assert torch.equal(group(of, again, before), before)


def test_there_are_no_groups_without_prototypes_or_with_too_few_users() -> None:
    assert torch.equal(group(BTConfig().build(Dims(16, 1)), torch.zeros(40, 0), UNKNOWN), UNKNOWN)
    of = model(3)
    few = vectors(of, torch.tensor([0, 1]))
    assert torch.equal(group(of, few, UNKNOWN[:2]), UNKNOWN[:2])
