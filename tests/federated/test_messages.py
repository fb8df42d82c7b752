from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from raypref.errors import CorruptError
from raypref.federated.messages import Broadcast, PeerList, Update

PEERS = PeerList(torch.tensor([3, 5, 9]), torch.randn(3, 4), torch.tensor([0, 1, -1]))


def test_a_broadcast_arrives_as_it_was_sent() -> None:
    sent = Broadcast(7, {"a.b": torch.randn(2, 3), "scale": torch.tensor(2.0)}, PEERS)
    came = Broadcast.from_bytes(sent.to_bytes())
    assert came.round == 7
    assert came.peers is not None
    for name, part in sent.weights.items():
        assert torch.equal(part, came.weights[name])
    for name, part in vars(PEERS).items():
        assert torch.equal(part, vars(came.peers)[name])


def test_peers_are_left_out_where_there_are_none() -> None:
    assert Broadcast.from_bytes(Broadcast(0, {"a": torch.zeros(1)}, None).to_bytes()).peers is None


@pytest.mark.parametrize("optional", [{}, {"vector_Z": torch.randn(4), "size": 45, "loss": 0.5}])
def test_an_update_arrives_as_it_was_sent(optional: dict[str, object]) -> None:
    sent = Update({"a": torch.randn(3), "b": torch.randn(2, 2)}, **optional)  # type: ignore[arg-type]
    came = Update.from_bytes(sent.to_bytes())
    assert came.delta.keys() == sent.delta.keys()
    assert all(torch.equal(part, came.delta[name]) for name, part in sent.delta.items())
    assert (came.size, came.loss) == (sent.size, sent.loss)
    assert (came.vector_Z is None) == (sent.vector_Z is None)


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", save({"other": torch.zeros(1)})])
def test_rubbish_is_no_broadcast(rubbish: bytes) -> None:
    with pytest.raises(CorruptError, match="message between server and client"):
        Broadcast.from_bytes(rubbish)


@pytest.mark.parametrize("rubbish", [b"", Update({"a": torch.ones(5)}).to_bytes()[:-3]])
def test_rubbish_is_no_update(rubbish: bytes) -> None:
    with pytest.raises(CorruptError, match="message between server and client"):
        Update.from_bytes(rubbish)


def test_a_client_is_no_peer_of_its_own() -> None:
    others = PEERS.but(5)
    assert others.client_C.tolist() == [3, 9]
    assert torch.equal(others.vector_CZ, PEERS.vector_CZ[[0, 2]])
    assert PEERS.group_of(5) == 1
    assert PEERS.group_of(9) == PEERS.group_of(4) == -1
