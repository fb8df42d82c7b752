"""What leaves a client, and what reaches it: a spy on the boundary sees every byte and every failure."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from raypref.federated.host import Host, InProcess
from raypref.federated.phases import Answer
from raypref.federated.rounds import federate
from raypref.train.shards import shared_parameters, shared_state
from tests.federated.world import begun, configured, hosted, tables_of

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Spy(InProcess):
    """Notes all messages."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.sent: list[bytes] = []
        self.own: list[bytes] = []
        self.came: list[bytes] = []
        self.phases: list[str] = []
        self.failures: list[str] = []

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        self.sent.append(common)
        self.own += own.values()
        for answer in super().ask(phase, common, own, deadline_s):
            if answer.content is None:
                self.failures.append(answer.failure)
            else:
                assert answer.failure == ""
                self.came.append(answer.content)
                self.phases.append(phase)
            yield answer


def spied(population: Path, folder: Path, method: dict[str, object]) -> tuple[Spy, set[str], set[str]]:
    """Return what was said in a run, the names of all shared tensors, and of the shared parameters."""
    config = configured(folder / "run", population, method)
    spy = Spy(hosted(config, folder / "clients"))
    server = begun(config, spy)
    for done in federate(server, spy, config.federated):
        assert not spy.failures
        assert done.found.traffic.up == sum(map(len, spy.came[-6:]))
        assert done.found.traffic.down == 6 * len(spy.sent[-1]) + sum(map(len, spy.own[-6:]))
    return spy, set(shared_state(server.model)), set(shared_parameters(server.model))


def test_only_deltas_and_256_bytes_of_statistics_leave_a_client(population: Path, tmp_path: Path) -> None:
    spy, _, parameters = spied(population, tmp_path, {"type": "fedvpa", "orthogonal": 0.01})
    assert len(spy.came) == 24
    shapes = {name: part.shape for name, part in load(spy.came[0]).items()}
    assert "delta.log_peers_UJ" not in shapes
    for content in spy.came:
        update = load(content)
        assert update.keys() == {f"delta.{name}" for name in parameters} | {"vector_Z"}
        assert {name: part.shape for name, part in update.items()} == shapes
        assert all(part.dtype == torch.float32 for part in update.values())
        # 2 · 32 floats, as in the paper (FedVPA-GP, arXiv 2605.30873).
        assert update["vector_Z"].nbytes == 256
        # Nothing hides beside the tensors: what else there is, is their names.
        assert len(content) - sum(part.nbytes for part in update.values()) < 100 * len(update)


def test_clients_are_sent_weights_and_other_clients_statistics(population: Path, tmp_path: Path) -> None:
    spy, state, _ = spied(population, tmp_path, {"type": "fedvpa", "orthogonal": 0.01})
    for content in spy.sent:
        names = load(content).keys()
        assert names == {f"weights.{name}" for name in state} | {"round", "client_C", "vector_CZ", "group_C"}
    assert {len(own) for own in spy.own} == {8}


@pytest.mark.parametrize("method", [{"type": "bt"}, {"type": "lore", "solver": "adam"}, {"type": "vrf"}])
def test_without_peers_deltas_alone_cross(
    method: dict[str, object], population: Path, tmp_path: Path
) -> None:
    spy, _, parameters = spied(population, tmp_path, method)
    assert "logits_UK" not in parameters
    for content in spy.came:
        assert load(content).keys() == {f"delta.{name}" for name in parameters}


def test_no_comparison_and_no_embedding_of_a_client_is_in_what_it_sends(
    population: Path, tmp_path: Path
) -> None:
    """No run of 16 bytes of its items' embeddings, in the types they come in, nor of its item ids."""
    config = configured(tmp_path / "run", population, rounds=1)
    spy = Spy(hosted(config, tmp_path / "clients"))
    server = begun(config, spy)
    (done,) = federate(server, spy, config.federated)
    items, tables = tables_of(config)
    learn = tables.comparisons("seen", ["train"])
    for client, content in zip(done.found.clients, spy.came, strict=True):
        own = learn.select(np.array([client]))
        for ids_M in (own.chosen_M, own.rejected_M):
            emb_MD = items.gather(ids_M)
            for emb_D in emb_MD:
                assert emb_D.tobytes()[:16] not in content
                assert emb_D.astype(np.float32).tobytes()[:16] not in content
            assert ids_M[:2].tobytes() not in content


def test_under_masks_keys_sealed_shares_and_a_hidden_update_cross(population: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "run", population, masking=True, rounds=1)
    spy = Spy(hosted(config, tmp_path / "clients"))
    (done,) = federate(begun(config, spy), spy, config.federated)
    names = {str(client) for client in done.found.clients}
    # A majority of six takes the masks off.
    assert spy.phases == ["keys"] * 6 + ["shares"] * 6 + ["train"] * 6 + ["unmask"] * 4
    for phase, content in zip(spy.phases, spy.came, strict=True):
        if phase == "keys":
            assert len(content) == 64
        elif phase == "shares":
            parts = load(content)
            assert len(parts) == 5
            assert parts.keys() < names
            # A nonce of 12 bytes, two shares of 16, and a tag of 16.
            assert {part.nbytes for part in parts.values()} == {60}
        elif phase == "train":
            assert load(content).keys() == {"masked", "vector_Z"}
        else:
            parts = load(content)
            assert parts.keys() == {f"seed.{name}" for name in names}
            assert {part.nbytes for part in parts.values()} == {16}


class SpilledError(Exception):
    """Has all that a client knows in its text."""


@pytest.mark.parametrize("masking", [False, True])
def test_of_a_failure_its_kind_alone_leaves_a_client(
    masking: bool, population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the error's text holds, in whichever phase it comes."""

    def spill(*anything: object) -> bytes:
        raise SpilledError(f"{anything} 0.123456")

    config = configured(tmp_path / "run", population, masking=masking, rounds=1)
    for phase in ("keys", "shares", "train", "unmask") if masking else ("train",):
        spy = Spy(hosted(config, tmp_path / f"clients-{phase}"))
        monkeypatch.setitem(spy._host._phases, phase, spill)
        (done,) = federate(begun(config, spy), spy, config.federated)
        assert spy.failures == ["SpilledError"] * 6
        assert set(done.found.failures.values()) == {"SpilledError"}


def test_a_number_that_cannot_be_masked_is_not_told(
    population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypref.federated.aggregation.BOUND", 1e-5)
    config = configured(tmp_path / "run", population, masking=True, rounds=1)
    spy = Spy(hosted(config, tmp_path / "clients"))
    (done,) = federate(begun(config, spy), spy, config.federated)
    assert spy.failures == ["AggregationError"] * 6
    assert done.found.trouble.startswith("Round 0: 0 clients sent a vector")


def test_rows_of_clients_stay_in_their_own_table(population: Path, tmp_path: Path) -> None:
    spy, _, _ = spied(population, tmp_path, {"type": "fedvpa", "orthogonal": 0.01})
    files = sorted((tmp_path / "clients").glob("bucket-*.sqlite"))
    spy._host._rows.close()
    kept: list[dict[str, torch.Tensor]] = []
    for path in files:
        with sqlite3.connect(path) as file:
            # In the first round there are no peers to choose from yet.
            kept += [load(row[0]) for row in file.execute("SELECT kept FROM clients WHERE round > 0")]
        file.close()
    assert len(kept) > 6
    for rows in kept:
        assert rows.keys() == {"log_peers_UJ", *(f"moments.log_peers_UJ.{name}" for name in MOMENTS)}
        chosen = rows["log_peers_UJ"][rows["log_peers_UJ"] != 0]
        data = chosen[:2].numpy().tobytes()
        assert len(data) == 8
        assert not any(data in content for content in spy.came + spy.sent)
