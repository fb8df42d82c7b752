"""The pages' switch of preferences: one model under many vectors, in Python and over HTTP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raypref.checkpoint import Bundle
from raypref.client import Client
from raypref.data.items import ItemTable
from raypref.data.tables import Comparisons
from raypref.federated.run import finished
from raypref.methods.fedvpa import FedVPA
from raypref.serve.config import ServeConfig
from raypref.types import Pairs
from tests.conftest import REPOSITORY
from tests.federated.world import FEDVPA, configured, tables_of, trained
from tests.serve.world import listening

PAGE = (REPOSITORY / "docs/federated.md").read_text()


def example() -> str:
    block = PAGE.split("<!-- switching -->")[1].split("<!-- end of switching -->")[0]
    return block.strip().removeprefix("```python\n").removesuffix("\n```")


def test_the_example_runs(
    population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path / "run", population)
    server, _ = trained(config, tmp_path / "clients")
    finished(config, server, tables_of(config)[1]).save(tmp_path / "runs/federated/bundle")
    monkeypatch.chdir(tmp_path)
    exec(compile(example(), "federated.md", "exec"), {})
    assert capsys.readouterr().out.count("tensor([[") == 4


def test_a_service_scores_by_a_prototype_a_client_and_the_mean_of_clients(
    population: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path / "run", population)
    server, _ = trained(config, tmp_path / "clients")
    items, tables = tables_of(config)
    finished(config, server, tables).save(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    model = bundle.model
    assert isinstance(model, FedVPA)
    model.requires_grad_(False)
    clients_CZ = torch.tensor(bundle.users["vector"].to_pylist())
    mean_1Z = model.steer(clients_CZ.chunk(2, -1)[0].mean(0, keepdim=True))
    users_UZ = torch.cat([model.prototype_users(), clients_CZ[:1], mean_1Z])
    emb_ND = items.gather(np.arange(5))
    wanted_UN = model.reward(model.item(torch.from_numpy(emb_ND)[None]), users_UZ).mean_BN
    serving = ServeConfig.model_validate({"bundle": tmp_path / "bundle", "store": "memory:", "open": True})
    with listening(serving) as address, Client(address) as service:
        found_UN = np.concatenate([service.score(emb_ND, vector=user_Z.numpy()).mean for user_Z in users_UZ])
        (unknown_N,) = service.score(emb_ND).mean
    np.testing.assert_allclose(found_UN, wanted_UN.numpy(), rtol=1e-4, atol=1e-4)
    for first in range(len(users_UZ)):
        for second in range(first):
            assert not np.allclose(found_UN[first], found_UN[second], atol=1e-3), (first, second)
        assert not np.allclose(found_UN[first], unknown_N, atol=1e-3)


@pytest.mark.slow
def test_another_vector_is_another_preference(population: Path, tmp_path: Path) -> None:
    """Unseen users agree with the prototype of their group, and with the clients of it, not the other's."""
    config = configured(tmp_path / "run", population, FEDVPA, rounds=60, clients=8, local_steps=6)
    server, _ = trained(config, tmp_path / "clients")
    model = server.model
    assert isinstance(model, FedVPA)
    model.requires_grad_(False).eval()
    items, tables = tables_of(config)
    test = tables.comparisons("unseen", ["cold"])
    known = tables.comparisons("unseen", ["train"])
    own = [_vector(model, items, known, place) for place in range(len(known.user_U))]
    means = torch.stack(own).chunk(2, -1)[0]
    near = (means @ model.prototypes_ML.mT).argmax(1)
    switched = [
        [_accuracy(model, items, test, place, model.prototype_users()[which]) for which in (0, 1)]
        for place in range(len(test.user_U))
    ]
    own_accuracy = float(np.mean([switched[place][int(near[place])] for place in range(len(near))]))
    others = float(np.mean([switched[place][1 - int(near[place])] for place in range(len(near))]))
    assert own_accuracy > others + 0.05, (own_accuracy, others)


def _pairs(items: ItemTable, part: Comparisons, place: int) -> Pairs:
    rows = slice(int(part.offsets[place]), int(part.offsets[place + 1]))
    chosen, rejected = (
        torch.from_numpy(items.gather(ids[rows]))[None] for ids in (part.chosen_M, part.rejected_M)
    )
    return Pairs(chosen, rejected, torch.ones(1, chosen.shape[1]))


def _vector(model: FedVPA, items: ItemTable, part: Comparisons, place: int) -> torch.Tensor:
    pairs = _pairs(items, part, place)
    return model.infer(model.encode(pairs), pairs.mask_BP)[0]


def _accuracy(model: FedVPA, items: ItemTable, part: Comparisons, place: int, user_Z: torch.Tensor) -> float:
    return float((model(_pairs(items, part, place), user_Z[None]).mean_BN > 0).float().mean())
