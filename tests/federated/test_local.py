from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raypref.checkpoint import build
from raypref.config import RunConfig
from raypref.data.tables import Comparisons
from raypref.errors import CorruptError
from raypref.federated.local import local_items, local_round, vector
from raypref.federated.messages import Broadcast, PeerList, Update
from raypref.methods.base import RewardModel
from raypref.train.shards import own_rows, shared_parameters, shared_state
from raypref.types import Dims
from tests.federated.world import configured, tables_of

CLIENT = 5


class Bench:
    """One client, and what it is sent."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.items, tables = tables_of(config)
        self.learn = tables.comparisons("seen", ["train"]).select(np.array([CLIENT]))
        self.model = build(config.method, Dims(self.items.width, 1), 0)
        self.model.fit_scale(torch.from_numpy(self.items.sample(200, 0)))
        self.fresh = own_rows(self.model)
        size = vector(self.model, self.learn, self.items.gather).shape[0]
        random = torch.Generator().manual_seed(1)
        self.peers = PeerList(
            torch.tensor([1, CLIENT, 9]),
            torch.rand(3, size, generator=random) + 0.01,
            torch.tensor([0, 1, 0]),
        )
        self.sent = {name: part.clone() for name, part in shared_state(self.model).items()}

    def broadcast(self, number: int = 0, peers: PeerList | None = None) -> Broadcast:
        return Broadcast(
            number, self.sent, peers if peers is not None or not self.model.peers else self.peers
        )

    def round(
        self,
        broadcast: Broadcast,
        kept: dict[str, torch.Tensor] | None = None,
        learn: Comparisons | None = None,
        client: int = CLIENT,
    ) -> tuple[Update, dict[str, torch.Tensor]]:
        return local_round(
            self.model,
            broadcast,
            client,
            learn or self.learn,
            self.items.gather,
            kept or self.fresh,
            self.config,
        )


@pytest.fixture
def bench(population: Path, tmp_path: Path) -> Bench:
    return Bench(configured(tmp_path, population))


def same(first: Update, second: Update) -> bool:
    return all(torch.equal(part, second.delta[name]) for name, part in first.delta.items())


def test_a_round_repeats_whatever_came_between(bench: Bench) -> None:
    first, kept = bench.round(bench.broadcast(2))
    bench.round(bench.broadcast(3), client=8)
    second, again = bench.round(bench.broadcast(2))
    assert same(first, second)
    assert all(torch.equal(part, again[name]) for name, part in kept.items())


@pytest.mark.parametrize("change", [{"client": 8}, {"number": 1}])
def test_clients_and_rounds_draw_for_themselves(bench: Bench, change: dict[str, int]) -> None:
    first, _ = bench.round(bench.broadcast())
    other = bench.broadcast(change.get("number", 0))
    second, _ = bench.round(other, client=change.get("client", CLIENT))
    assert not same(first, second)


def test_an_update_is_how_far_the_shared_parameters_moved(bench: Bench) -> None:
    update, kept = bench.round(bench.broadcast())
    moved = shared_parameters(bench.model)
    assert update.delta.keys() == moved.keys()
    assert "log_peers_UJ" not in update.delta
    for name, part in update.delta.items():
        torch.testing.assert_close(part, moved[name].detach() - bench.sent[name])
    assert any(bool(part.any()) for part in update.delta.values())
    assert bool((kept["log_peers_UJ"] != bench.fresh["log_peers_UJ"]).any())


def test_the_rows_of_a_client_go_on_where_they_were_with_their_moments(bench: Bench) -> None:
    _, kept = bench.round(bench.broadcast(0))
    assert float(kept["moments.log_peers_UJ.step"]) == 3.0
    _, then = bench.round(bench.broadcast(1), kept)
    assert float(then["moments.log_peers_UJ.step"]) == 6.0
    _, anew = bench.round(bench.broadcast(1))
    assert not torch.equal(then["log_peers_UJ"], anew["log_peers_UJ"])


def test_an_update_says_what_the_run_wants_and_no_more(
    bench: Bench, population: Path, tmp_path: Path
) -> None:
    update, _ = bench.round(bench.broadcast())
    assert update.size is None
    assert update.loss is None
    told = Bench(configured(tmp_path, population, weights="size", tell_loss=True))
    update, _ = told.round(told.broadcast())
    assert update.size == len(told.learn)
    assert update.loss is not None
    assert 0.0 < update.loss < 20.0
    none = Bench(configured(tmp_path, population, {"type": "vrf", "bases": 4, "latent": 8}))
    update, kept = none.round(none.broadcast())
    assert update.vector_Z is None
    assert not kept


def test_the_vector_is_the_clients_own_after_its_steps(bench: Bench) -> None:
    update, _ = bench.round(bench.broadcast())
    assert update.vector_Z is not None
    assert torch.equal(update.vector_Z, vector(bench.model, bench.learn, bench.items.gather))
    assert update.vector_Z.shape == (16,)


def test_peers_and_groups_change_the_steps_and_a_client_is_no_peer_of_itself(bench: Bench) -> None:
    first, _ = bench.round(bench.broadcast())
    peers = bench.peers
    own = replace(peers, vector_CZ=peers.vector_CZ * torch.tensor([[1.0], [3.0], [1.0]]))
    assert same(first, bench.round(bench.broadcast(peers=own))[0])
    other = replace(peers, vector_CZ=peers.vector_CZ * torch.tensor([[3.0], [1.0], [1.0]]))
    assert not same(first, bench.round(bench.broadcast(peers=other))[0])
    regrouped = replace(peers, group_C=torch.tensor([0, 0, 0]))
    assert not same(first, bench.round(bench.broadcast(peers=regrouped))[0])
    others_group = replace(peers, group_C=torch.tensor([1, 1, 1]))
    assert same(first, bench.round(bench.broadcast(peers=others_group))[0])


def test_the_first_round_has_no_peers(bench: Bench) -> None:
    nobody = PeerList(bench.peers.client_C[:0], bench.peers.vector_CZ[:0], bench.peers.group_C[:0])
    update, kept = bench.round(bench.broadcast(peers=nobody))
    assert all(bool(torch.isfinite(part).all()) for part in update.delta.values())
    assert torch.equal(kept["log_peers_UJ"], bench.fresh["log_peers_UJ"])


def test_a_broadcast_of_another_model_is_refused(bench: Bench) -> None:
    sent = {name: part for name, part in bench.sent.items() if name != "scale"}
    with pytest.raises(CorruptError, match="broadcast"):
        bench.round(Broadcast(0, sent, bench.peers))
    with pytest.raises(CorruptError, match=f"what client {CLIENT} kept"):
        bench.round(bench.broadcast(), {"log_peers_UJ": torch.zeros(1, 3)})


def test_items_are_looked_up_once(bench: Bench) -> None:
    asked: list[int] = []

    def gather(ids_N: np.ndarray) -> np.ndarray:
        asked.append(len(ids_N))
        return bench.items.gather(ids_N)

    local = local_items(bench.learn, gather)
    ids_N = np.concatenate([bench.learn.chosen_M, bench.learn.rejected_M])
    assert np.array_equal(local(ids_N), bench.items.gather(ids_N))
    assert asked == [len(np.unique(ids_N))]
    assert local(np.zeros(2, np.int64)).shape == (2, bench.items.width)


def test_every_kind_of_method_takes_part(population: Path, tmp_path: Path) -> None:
    for method in (
        {"type": "bt"},
        {"type": "lore"},
        {"type": "lore", "solver": "adam"},
        {"type": "vrf"},
        {"type": "pref"},
        {"type": "vpl"},
        {"type": "spl"},
        {"type": "pal"},
        {"type": "dpl"},
    ):
        bench = Bench(configured(tmp_path, population, method))
        update, kept = bench.round(bench.broadcast())
        assert isinstance(bench.model, RewardModel)
        assert any(bool(part.any()) for part in update.delta.values()), method
        assert all(bool(torch.isfinite(part).all()) for part in update.delta.values()), method
        assert set(bench.model.user_rows) <= kept.keys(), method
