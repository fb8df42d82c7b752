from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypref import files
from raypref.config import FederatedConfig, PrivacyConfig
from raypref.errors import ConfigError, CorruptError, InputError
from raypref.federated.aggregation import Collected
from raypref.federated.layout import Layout
from raypref.federated.messages import Update
from raypref.federated.server import Server
from raypref.methods import BTConfig, FedVPAConfig
from raypref.train.shards import shared_parameters
from raypref.types import Dims

CLIENTS = np.array([2, 3, 5, 7, 11, 13, 17, 19])


def server(vectors: bool = False, **options: Any) -> Server:
    torch.manual_seed(0)
    method = FedVPAConfig(latent=4, rank=2, hidden=8, features=2) if vectors else BTConfig()
    return Server(method.build(Dims(6, 1)), CLIENTS, FederatedConfig(**{"clients": 4, **options}), seed=0)


def update(value: float, size: int | None = None, **more: Any) -> Update:
    return Update({"head_D": torch.full((6,), value)}, size=size, **more)


def head(of: Server) -> torch.Tensor:
    return next(iter(dict(of.model.named_parameters()).values())).detach()


NAME = next(name for name, _ in BTConfig().build(Dims(6, 1)).named_parameters())


def added(of: Server, updates: dict[int, Update]) -> Collected:
    """What the server is given when these updates came."""
    layout = Layout(shared_parameters(of.model))
    total = sum(layout.pack(one.delta, float(one.size or 1)) for one in updates.values())
    vectors = {client: one.vector_Z for client, one in updates.items() if one.vector_Z is not None}
    assert isinstance(total, np.ndarray)
    return Collected(layout.unpack(total), clients=sorted(updates), vectors=vectors)


def closed(of: Server, updates: dict[int, Update]) -> float:
    named = {
        client: Update({NAME: one.delta["head_D"]}, one.vector_Z, one.size) for client, one in updates.items()
    }
    return of.close(added(of, named))


def test_the_model_moves_by_the_mean_of_the_updates() -> None:
    of = server()
    before = head(of).clone()
    length = closed(of, {3: update(1.0), 7: update(2.0), 5: update(6.0)})
    torch.testing.assert_close(head(of) - before, torch.full((6,), 3.0))
    assert length == pytest.approx(3.0 * math.sqrt(6))
    assert of.round == 1


def test_updates_weigh_by_size_where_they_tell_it() -> None:
    of = server(weights="size")
    before = head(of).clone()
    closed(of, {3: update(1.0, 30), 7: update(5.0, 10)})
    torch.testing.assert_close(head(of) - before, torch.full((6,), 2.0))


def test_a_parameter_moves_by_the_mean_over_the_clients_that_moved_it() -> None:
    of = server(vectors=True)
    before = {name: part.detach().clone() for name, part in of.model.named_parameters()}
    first = {"common_D": torch.ones(6), "heads_RD": torch.ones(2, 6)}
    of.close(added(of, {3: Update(first), 5: Update({"common_D": 3.0 * torch.ones(6)})}))
    moved = {name: part.detach() - before[name] for name, part in of.model.named_parameters()}
    torch.testing.assert_close(moved["common_D"], torch.full((6,), 2.0))
    torch.testing.assert_close(moved["heads_RD"], torch.ones(2, 6))
    assert not any(bool(part.any()) for name, part in moved.items() if name not in first)


def test_who_is_sampled_is_a_function_of_seed_and_round() -> None:
    of, again = server(), server()
    drawn = []
    for _ in range(20):
        sample = of.sample()
        assert np.array_equal(sample, again.sample())
        assert len(np.unique(sample)) == 4
        assert set(sample) <= set(CLIENTS.tolist())
        drawn.append(sample)
        closed(of, {3: update(0.0)})
        closed(again, {3: update(0.0)})
    assert len({tuple(sample) for sample in drawn}) > 10
    assert set(np.concatenate(drawn)) == set(CLIENTS.tolist())
    assert len(server(clients=100).sample()) == len(CLIENTS)


def test_with_privacy_each_client_has_a_chance_of_its_own() -> None:
    model, config = BTConfig().build(Dims(6, 1)), FederatedConfig(clients=100, privacy=PrivacyConfig())
    of, other = (Server(model, np.arange(400), config, 0, secret) for secret in (b"1" * 32, b"2" * 32))
    counts = []
    for _ in range(50):
        sample = of.sample()
        assert np.array_equal(sample, of.sample())
        assert not np.array_equal(sample, other.sample())
        counts.append(len(sample))
        of.round += 1
        other.round += 1
    assert len(set(counts)) > 5
    assert abs(np.mean(counts) - 100) < 6


def test_privacy_is_refused_where_vectors_are_sent() -> None:
    with pytest.raises(ConfigError, match="no finite ε"):
        server(vectors=True, privacy={})


def vector(value: float) -> torch.Tensor:
    return torch.cat([torch.full((4,), value), torch.full((4,), 0.05)])


def told(of: Server, *clients: int) -> None:
    of.close(added(of, {client: Update({}, vector(client / 10)) for client in clients}))


def test_vectors_are_the_latest_and_grow_old() -> None:
    of = server(vectors=True, peer_rounds=2)
    told(of, 2, 3)
    told(of, 3, 5)
    assert of.known.client_C.tolist() == [2, 3, 5]
    told(of, 7)
    assert of.known.client_C.tolist() == [2, 3, 5, 7]
    told(of, 11)
    assert of.known.client_C.tolist() == [3, 5, 7, 11]
    assert torch.equal(of.known.vector_CZ[0], vector(0.3))


def test_no_more_vectors_are_kept_than_are_sent() -> None:
    of = server(vectors=True, peers=3)
    told(of, 2, 3, 5, 7)
    told(of, 3, 11)
    assert of.known.client_C.tolist() == [7, 3, 11]


def test_clients_are_grouped_once_there_are_enough() -> None:
    of = server(vectors=True)
    told(of, 2)
    assert of.known.group_C.tolist() == [-1]
    told(of, 3, 5, 7)
    assert sorted(of.known.group_C.tolist()) == [0, 0, 1, 1]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    of = server(vectors=True)
    told(of, 2, 3, 5, 7)
    told(of, 3, 11)
    of.save(tmp_path / "state")
    again = server(vectors=True)
    again.load(tmp_path / "state")
    for name, part in of.model.state_dict().items():
        assert torch.equal(part, again.model.state_dict()[name]), name
    for name, part in vars(of.known).items():
        assert torch.equal(part, vars(again.known)[name]), name
    assert [again.since(client) for client in (2, 3, 11, 13)] == [0, 1, 1, -1]
    assert again.round == 2
    assert np.array_equal(of.sample(), again.sample())


@pytest.mark.parametrize("name", ["model.safetensors", "known.safetensors", "state.json"])
def test_a_damaged_state_is_refused(name: str, tmp_path: Path) -> None:
    of = server(vectors=True)
    told(of, 2, 3)
    of.save(tmp_path / "state")
    data = bytearray((tmp_path / "state" / name).read_bytes())
    data[-2] ^= 1
    files.write_bytes(tmp_path / "state" / name, bytes(data))
    with pytest.raises(CorruptError, match=name):
        server(vectors=True).load(tmp_path / "state")


def test_a_state_of_other_clients_or_another_model_is_refused(tmp_path: Path) -> None:
    server().save(tmp_path / "state")
    with pytest.raises(CorruptError):
        server(vectors=True).load(tmp_path / "state")
    other = Server(BTConfig().build(Dims(6, 1)), CLIENTS[:5], FederatedConfig(), 0)
    with pytest.raises(CorruptError, match=r"known\.safetensors"):
        other.load(tmp_path / "state")
    with pytest.raises(InputError):
        server().load(tmp_path / "nothing")
