from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.errors import CorruptError
from raypref.federated.aggregation import Collected
from raypref.federated.host import InProcess
from raypref.federated.layout import Layout
from raypref.federated.phases import KEYS, SHARES, TRAIN, UNMASK, Answer
from raypref.federated.rounds import federate
from raypref.federated.run import started
from tests.federated.world import assert_equal, begun, configured, hosted, trained, weights

SHAPES = {"b": torch.zeros(2, 3), "a": torch.zeros(4)}


def test_an_update_is_a_vector_and_a_sum_of_vectors_is_a_sum_of_updates() -> None:
    layout = Layout(SHAPES)
    whole = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}
    part = {"b": torch.full((2, 3), 0.5)}
    assert layout.pack(whole, 1.0).shape == (layout.size,) == (12,)
    found = layout.unpack(layout.pack(whole, 2.0) + layout.pack(part, 4.0))
    torch.testing.assert_close(found.total["a"], 2.0 * torch.arange(4.0).double())
    torch.testing.assert_close(found.total["b"], torch.full((2, 3), 4.0).double())
    assert found.weight == {"a": 2.0, "b": 6.0}


@pytest.mark.parametrize("delta", [{"c": torch.zeros(4)}, {"a": torch.zeros(5)}])
def test_an_update_of_another_model_is_refused(delta: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CorruptError, match="does not fit the model"):
        Layout(SHAPES).pack(delta, 1.0)


def both(population: Path, folder: Path, **federated: Any) -> list[dict[str, torch.Tensor]]:
    """Return the weights that the same run ends in, in the open and under masks."""
    found = []
    for masking in (False, True):
        config = configured(folder / "run", population, masking=masking, **federated)
        server, rounds = trained(config, folder / f"clients-{masking}")
        assert not any(done.found.trouble for done in rounds)
        found.append(weights(server))
    return found


@pytest.mark.parametrize("options", [{}, {"weights": "size"}])
def test_masks_change_no_bit_of_the_sum(options: dict[str, str], population: Path, tmp_path: Path) -> None:
    assert_equal(*both(population, tmp_path, **options))


def test_masks_of_those_that_drop_out_come_off(population: Path, tmp_path: Path) -> None:
    assert_equal(*both(population, tmp_path, drop_out=0.2, clients=10, rounds=3))


class Wire(InProcess):
    """Notes what clients send, and loses whom it is told to in a phase."""

    def __init__(self, config: RunConfig, folder: Path, lost: Mapping[str, int] | None = None) -> None:
        super().__init__(hosted(config, folder))
        self.came: dict[str, list[bytes]] = {KEYS: [], SHARES: [], TRAIN: [], UNMASK: []}
        self._lost = lost or {}

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        lost = list(own)[: self._lost.get(phase, 0)]
        for answer in super().ask(phase, common, own, deadline_s):
            if answer.client in lost:
                yield Answer(answer.client, None, f"lost in {phase}")
            else:
                self.came[phase].append(answer.content or b"")
                yield answer


def one_round(config: RunConfig, wire: Wire) -> tuple[Collected, dict[str, torch.Tensor]]:
    server = begun(config, wire)
    done = next(federate(server, wire, config.federated))
    return done.found, weights(server)


@pytest.mark.parametrize("phase", [KEYS, SHARES, TRAIN, UNMASK])
def test_a_client_may_leave_in_any_phase(phase: str, population: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "run", population, masking=True, clients=8, rounds=1)
    found, _ = one_round(config, Wire(config, tmp_path / "clients", {phase: 2}))
    assert found.sum is not None
    assert len(found.clients) == (8 if phase == UNMASK else 6)
    assert set(found.failures.values()) == {f"lost in {phase}"}


@pytest.mark.parametrize("phase", [KEYS, SHARES, TRAIN, UNMASK])
def test_nothing_is_added_where_too_few_stay(phase: str, population: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "run", population, masking=True, clients=8, rounds=1)
    wire = Wire(config, tmp_path / "clients", {phase: 4})
    before = weights(begun(config, wire))
    found, after = one_round(config, wire)
    assert found.sum is None
    assert (found.clients, found.vectors) == ([], {})
    assert "4 clients" in found.trouble
    assert_equal(before, after)


class Silent(Wire):
    """In every phase one more client is never heard of; a clock of its own says how long that took."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self.now_s = 0.0
        self.waited_s: dict[str, float] = {}

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        self.waited_s[phase] = deadline_s
        yield from super().ask(phase, common, dict(list(own.items())[1:]), deadline_s)
        self.now_s += deadline_s


def test_all_phases_of_a_masked_round_have_one_deadline(
    population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path / "run", population, masking=True, clients=11, rounds=1, deadline_s=80.0)
    wire = Silent(config, tmp_path / "clients")
    monkeypatch.setattr("raypref.federated.aggregation.monotonic", lambda: wire.now_s)
    found, _ = one_round(config, wire)
    assert found.sum is not None
    assert len(found.clients) == 8
    assert wire.waited_s == {KEYS: 10.0, SHARES: 10.0, TRAIN: 50.0, UNMASK: 10.0}
    # The round had its majority before that, and took no longer.
    assert wire.now_s == 70.0
    assert len(wire.came[UNMASK]) == 6


def test_nobody_is_asked_once_time_is_up(
    population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path / "run", population, masking=True, rounds=1, deadline_s=80.0)
    wire = Silent(config, tmp_path / "clients")
    monkeypatch.setattr("raypref.federated.aggregation.monotonic", lambda: 20.0 * len(wire.waited_s))
    found, _ = one_round(config, wire)
    assert found.sum is None
    assert list(wire.waited_s) == [KEYS]
    assert "0 clients shared their secrets" in found.trouble


@pytest.mark.parametrize(("quorum", "counted"), [(0.5, 5), (0.75, 6), (1.0, 8)])
def test_a_masked_round_closes_at_its_quorum_or_the_least_majority(
    quorum: float, counted: int, population: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path / "run", population, masking=True, clients=8, rounds=1, quorum=quorum)
    wire = Wire(config, tmp_path / "clients")
    found, _ = one_round(config, wire)
    assert found.sum is not None
    assert len(found.clients) == counted
    assert [len(wire.came[phase]) for phase in (KEYS, SHARES, TRAIN)] == [counted] * 3
    assert len(wire.came[UNMASK]) == 5
    assert not found.failures


class Dying(Wire):
    """The process of some clients is started anew before a phase, and knows nothing of the round."""

    def __init__(self, config: RunConfig, folder: Path, phase: str, dead: int) -> None:
        super().__init__(config, folder)
        self._anew = InProcess(hosted(config, folder))
        self._phase, self._dead = phase, dead
        self._gone: list[int] = []

    def ask(self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float) -> Iterator[Answer]:
        if phase == self._phase:
            self._gone, self._phase = list(own)[: self._dead], ""
        gone = {client: own[client] for client in self._gone if client in own and phase != KEYS}
        yield from self._anew.ask(phase, common, gone, deadline_s)
        rest = {client: payload for client, payload in own.items() if client not in gone}
        yield from super().ask(phase, common, rest, deadline_s)


@pytest.mark.parametrize("phase", [SHARES, TRAIN, UNMASK])
def test_a_process_that_dies_in_a_masked_round_loses_its_clients_secrets(
    phase: str, population: Path, tmp_path: Path
) -> None:
    """The round counts the others where they are a majority, else it is lost; the next one is whole."""
    for dead in (2, 4):
        config = configured(tmp_path / "run", population, masking=True, clients=8, rounds=2, local_steps=1)
        wire = Dying(config, tmp_path / f"clients-{dead}", phase, dead)
        server = begun(config, wire)
        first, second = federate(server, wire, config.federated)
        assert set(first.found.failures.values()) == {"LostSecretsError"}
        assert len(first.found.failures) == dead
        assert len(first.found.clients) == (0 if dead == 4 else 8 if phase == UNMASK else 6)
        wire._gone = []
        assert second.found.sum is not None


def test_the_server_sees_no_update_alone(population: Path, tmp_path: Path) -> None:
    """What a client sends is as random as the masks: equal bytes everywhere, unlike what it hides."""
    config = configured(tmp_path / "run", population, masking=True, rounds=1)
    wire = Wire(config, tmp_path / "clients")
    found, _ = one_round(config, wire)
    plain = configured(tmp_path / "run", population, rounds=1)
    open_wire = Wire(plain, tmp_path / "open")
    one_round(plain, open_wire)
    assert found.sum is not None
    assert len(wire.came[TRAIN]) == 6
    hidden = [load(content)["masked"].numpy() for content in wire.came[TRAIN]]
    size = len(hidden[0])
    for numbers, content in zip(hidden, open_wire.came[TRAIN], strict=True):
        counts = np.bincount(numbers, minlength=256)
        chi_square = float(((counts - size / 256) ** 2 / (size / 256)).sum())
        assert abs(chi_square - 255) < 6 * math.sqrt(2 * 255)
        update = {n.removeprefix("delta."): p for n, p in load(content).items() if n.startswith("delta.")}
        true_G = np.concatenate([update[name].double().numpy().ravel() for name in sorted(update)])
        seen_G = numbers.view("<i8").astype(float)[: len(true_G)]
        assert abs(np.corrcoef(true_G, seen_G)[0, 1]) < 5 / math.sqrt(len(true_G))
    assert load(wire.came[TRAIN][0]).keys() == {"masked", "vector_Z"}


def test_a_number_out_of_range_is_its_clients_failure(
    population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypref.federated.aggregation.BOUND", 1e-5)
    for masking in (False, True):
        config = configured(tmp_path / "run", population, masking=masking, rounds=1)
        found, _ = one_round(config, Wire(config, tmp_path / f"clients-{masking}"))
        assert found.sum is None
        if masking:
            # The client itself found it, and does not say what it found.
            assert set(found.failures.values()) == {"AggregationError"}
        else:
            assert all("only up to" in reason for reason in found.failures.values())
        assert len(found.failures) == 6


def test_privacy_makes_the_same_noise_again_and_none_without_the_secret(
    population: Path, tmp_path: Path
) -> None:
    method = {"type": "fedvpa", "prior": "normal", "orthogonal": 0.0}
    found = []
    for number, secret in enumerate((b"1" * 32, b"1" * 32, b"2" * 32)):
        config = configured(tmp_path / "run", population, method, privacy={"clip": 0.5, "noise": 0.8})
        wire = Wire(config, tmp_path / f"clients-{number}")
        server = started(config, ItemTable.open(config.items_dir), wire, secret)
        rounds = list(federate(server, wire, config.federated))
        found.append(weights(server))
        epsilons = [done.epsilon for done in rounds]
        assert all(np.diff(epsilons) > 0)
        assert 0.1 < epsilons[0] < epsilons[-1] < 50
        for content in wire.came[TRAIN]:
            update = load(content)
            assert all(name.startswith("delta.") for name in update)
            squared = sum(float(part.double().square().sum()) for part in update.values())
            assert squared**0.5 <= 0.5
    assert_equal(found[0], found[1])
    assert not torch.equal(found[0]["common_D"], found[2]["common_D"])


@pytest.mark.parametrize(
    "vector_Z", [None, torch.zeros(5), torch.full((16,), math.nan), torch.zeros(16).long()]
)
@pytest.mark.parametrize("masking", [False, True])
def test_a_user_vector_of_no_use_is_its_clients_failure_alone(
    vector_Z: torch.Tensor | None, masking: bool, population: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path / "run", population, masking=masking, rounds=1)

    class Spoilt(Wire):
        def ask(
            self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float
        ) -> Iterator[Answer]:
            for number, answer in enumerate(super().ask(phase, common, own, deadline_s)):
                if phase == TRAIN and number == 2:
                    tensors = load(answer.content or b"")
                    del tensors["vector_Z"]
                    more = {} if vector_Z is None else {"vector_Z": vector_Z}
                    answer = Answer(answer.client, save(tensors | more))
                yield answer

    found, after = one_round(config, Spoilt(config, tmp_path / "clients"))
    assert found.sum is not None
    assert (len(found.clients), len(found.vectors)) == (5, 5)
    assert list(found.failures.values()) == [
        "CorruptError: an update has no user vector of 16 finite numbers."
    ]
    assert all(bool(torch.isfinite(part).all()) for part in after.values())
