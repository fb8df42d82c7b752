from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypref.checkpoint import Bundle
from raypref.config import RunConfig
from raypref.errors import ConfigError, InputError
from raypref.evaluate.protocol import evaluate
from raypref.federated.host import InProcess
from raypref.federated.messages import Broadcast
from raypref.federated.phases import Answer
from raypref.federated.rounds import federate
from raypref.federated.run import closed, finished
from tests.federated.world import (
    FEDVPA,
    SEEN,
    Failing,
    assert_equal,
    begun,
    configured,
    hosted,
    tables_of,
    trained,
    weights,
)


@pytest.fixture
def config(population: Path, tmp_path: Path) -> RunConfig:
    return configured(tmp_path / "run", population)


def test_rounds_repeat(config: RunConfig, tmp_path: Path) -> None:
    first, rounds = trained(config, tmp_path / "first")
    second, again = trained(config, tmp_path / "second")
    assert_equal(weights(first), weights(second))
    assert [done.found.clients for done in rounds] == [done.found.clients for done in again]
    assert [done.round for done in rounds] == [1, 2, 3, 4]
    assert all(len(done.found.clients) == done.sampled == 6 for done in rounds)
    assert all(done.epsilon == math.inf for done in rounds)


def test_a_run_goes_on_after_the_last_closed_round_with_the_same_result(
    config: RunConfig, tmp_path: Path
) -> None:
    whole, _ = trained(config, tmp_path / "whole")
    for stop in (1, 3):
        folder = tmp_path / f"stopped-{stop}"
        transport = InProcess(hosted(config, folder / "clients"))
        server = begun(config, transport)
        for done in closed(server, transport, config, folder):
            if done.round == stop:
                break
        # The next round had begun: some of its clients have already kept what they have.
        common = server.broadcast().to_bytes()
        own = {
            client: server.since(client).to_bytes(8, "big", signed=True)
            for client in server.sample().tolist()
        }
        some = dict(list(own.items())[:3])
        answers = list(transport.ask("train", common, some, 60.0))
        assert [answer.failure for answer in answers] == ["", "", ""]
        transport._host._rows.close()
        transport = InProcess(hosted(config, folder / "clients"))
        server = begun(config, transport)
        rest = list(closed(server, transport, config, folder))
        assert [done.round for done in rest] == list(range(stop + 1, 5))
        assert_equal(weights(server), weights(whole))
        assert not list(closed(server, transport, config, folder))


def test_a_client_that_fails_changes_nothing_else(config: RunConfig, tmp_path: Path) -> None:
    """Its round is that of the others, and its own next round is that of one who was not asked."""
    one = RunConfig.model_validate(
        config.model_dump() | {"federated": config.federated.model_dump() | {"rounds": 1}}
    )
    _, rounds = trained(one, tmp_path / "whole")
    lost = rounds[0].found.clients[2]
    transport = Failing(hosted(one, tmp_path / "failing"), {1: {lost}})
    server = begun(one, transport)
    (done,) = federate(server, transport, one.federated)
    assert done.found.clients == [client for client in rounds[0].found.clients if client != lost]
    assert done.found.failures == {lost: "made to fail"}
    assert (done.sampled, done.late) == (6, 0)
    assert server.since(lost) == -1
    alone = Failing(hosted(one, tmp_path / "never"), {1: {lost}}, silent=True)
    other = begun(one, alone)
    (late,) = federate(other, alone, one.federated)
    assert late.late == 1
    assert_equal(weights(server), weights(other))


def test_a_round_closes_at_its_quorum(population: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "run", population, rounds=1, quorum=0.5)
    server, (done,) = trained(config, tmp_path / "clients")
    assert len(done.found.clients) == 3
    assert done.late == 3
    assert done.said() == "round 1: 3 of 6 clients counted, 3 late"
    assert [server.since(client) for client in done.found.clients] == [0, 0, 0]


def test_a_round_closes_at_its_deadline(population: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "run", population, rounds=1, deadline_s=0.25, local_steps=1)

    class Slow(InProcess):
        def ask(
            self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float
        ) -> Iterator[Answer]:
            assert deadline_s == 0.25
            yield from list(super().ask(phase, common, own, 60.0))[:2]

    transport = Slow(hosted(config, tmp_path / "clients"))
    server = begun(config, transport)
    (done,) = federate(server, transport, config.federated)
    assert (len(done.found.clients), done.late) == (2, 4)


def test_rounds_in_which_nobody_comes_through_end_with_an_error_that_says_why(
    config: RunConfig, tmp_path: Path
) -> None:
    everybody = set(range(1000))
    config = config.model_copy(update={"federated": config.federated.model_copy(update={"rounds": 9})})
    transport = Failing(
        hosted(config, tmp_path / "clients"), {2: everybody, 4: everybody, 5: everybody, 6: everybody}
    )
    server = begun(config, transport)
    rounds = federate(server, transport, config.federated)
    next(rounds)
    before = weights(server)
    empty = next(rounds)
    assert (empty.found.clients, empty.failed, empty.step) == ([], 6, 0.0)
    assert empty.found.trouble == "made to fail"
    assert_equal(weights(server), before)
    assert len(next(rounds).found.clients) == 6
    assert [next(rounds).failed for _ in range(2)] == [6, 6]
    with pytest.raises(InputError, match=r"rounds 4 to 6: nothing could be added up; made to fail"):
        next(rounds)


def test_rubbish_from_a_client_is_its_failure_alone(config: RunConfig, tmp_path: Path) -> None:
    class Rubbish(InProcess):
        def ask(
            self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float
        ) -> Iterator[Answer]:
            for number, answer in enumerate(super().ask(phase, common, own, deadline_s)):
                yield Answer(answer.client, b"rubbish") if number == 1 else answer

    transport = Rubbish(hosted(config, tmp_path / "clients"))
    server = begun(config, transport)
    done = next(federate(server, transport, config.federated))
    assert len(done.found.clients) == 5
    assert "no safetensors" in next(iter(done.found.failures.values()))


def test_a_round_that_lost_clients_says_of_what(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Losing(InProcess):
        def ask(
            self, phase: str, common: bytes, own: Mapping[int, bytes], deadline_s: float
        ) -> Iterator[Answer]:
            number = Broadcast.from_bytes(common).round
            for place, answer in enumerate(super().ask(phase, common, own, deadline_s)):
                if number == 1 and place in (0, 3):
                    yield Answer(answer.client, None, "DivergedError")
                elif number == 1 and place == 1:
                    yield Answer(answer.client, b"rubbish")
                elif number == 2:
                    yield Answer(answer.client, None, "DroppedOutError")
                elif (number, place) != (1, 5):
                    yield answer

    transport = Losing(hosted(config, tmp_path / "clients"))
    rounds = list(federate(begun(config, transport), transport, config.federated))
    assert caplog.messages == [
        "round 2: 2 of 6 clients counted, 1 failed of CorruptError, 2 failed of DivergedError, 1 late",
        "round 3: 0 of 6 clients counted, 6 failed of DroppedOutError; nothing could be added up: "
        "DroppedOutError",
    ]
    assert rounds[0].said() == "round 1: 6 of 6 clients counted"


@pytest.mark.slow
def test_drop_outs_are_rehearsed_and_training_goes_on(population: Path, tmp_path: Path) -> None:
    def accuracy(drop_out: float) -> float:
        config = configured(
            tmp_path / "run", population, rounds=40, clients=8, local_steps=6, drop_out=drop_out
        )
        server, rounds = trained(config, tmp_path / f"clients-{drop_out}")
        failed = sum(len(done.found.failures) for done in rounds)
        assert failed == sum(done.sampled - len(done.found.clients) for done in rounds)
        assert 0.6 * drop_out <= failed / (40 * 8) <= 1.4 * drop_out
        items, tables = tables_of(config)
        found = evaluate(server.model, items, tables, config.evaluate)
        return next(c.accuracy_per_user.mean for c in found.cells if c.key == "unseen/cold/16")

    assert accuracy(0.3) >= accuracy(0.0) - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("method", [FEDVPA, {"type": "vrf", "bases": 4, "latent": 8}, {"type": "lore"}])
def test_clients_learn_more_together_than_one_reward_for_all(
    method: dict[str, Any], population: Path, tmp_path: Path
) -> None:
    def accuracy(of: dict[str, Any]) -> dict[str, float]:
        config = configured(tmp_path / "run", population, of, rounds=60, clients=8, local_steps=6)
        server, _ = trained(config, tmp_path / str(of["type"]))
        items, tables = tables_of(config)
        found = evaluate(server.model, items, tables, config.evaluate)
        return {cell.key: cell.accuracy_per_user.mean for cell in found.cells}

    bt, personal = accuracy({"type": "bt"}), accuracy(method)
    assert personal["unseen/cold/0"] >= bt["unseen/cold/0"] - 0.03, (bt, personal)
    assert personal["unseen/cold/16"] >= bt["unseen/cold/16"] + 0.03, (bt, personal)


def test_the_bundle_is_one_like_any_other(config: RunConfig, tmp_path: Path) -> None:
    server, _ = trained(config, tmp_path / "clients")
    items, tables = tables_of(config)
    finished(config, server, tables).save(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.info.federated
    assert bundle.info.users == SEEN
    assert bundle.info.steps == 12
    assert_equal(bundle.model.state_dict(), server.model.state_dict())
    names = tables.users["user_id"].to_pylist()
    assert bundle.users["user_id"].to_pylist() == [names[client] for client in server.known.client_C.tolist()]
    vectors = np.array(bundle.users["vector"].to_pylist(), np.float32)
    assert np.array_equal(vectors, server.known.vector_CZ.numpy())
    assert set(bundle.users["comparisons"].to_pylist()) == {0}
    assert len(evaluate(bundle.model, items, tables, config.evaluate).cells) == 3


@pytest.mark.parametrize(
    ("options", "count"), [({"weights": "size"}, 30), ({"weights": "size", "masking": True}, 0)]
)
def test_the_bundle_says_how_many_comparisons_clients_have_where_they_told(
    options: dict[str, Any], count: int, population: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path / "run", population, rounds=1, **options)
    server, _ = trained(config, tmp_path / "clients")
    users = finished(config, server, tables_of(config)[1]).users
    assert users["comparisons"].to_pylist() == [count] * 6


@pytest.mark.parametrize(
    ("federated", "message"),
    [
        ({"quorum": 0.0}, "quorum"),
        ({"drop_out": 1.0}, "drop_out"),
        ({"privacy": {"clip": 0.0}}, "clip"),
        ({"privacy": {}, "weights": "size"}, "weights: uniform"),
        ({"masking": True, "tell_loss": True}, "tell_loss"),
        ({"epochs": 3}, "unknown key"),
    ],
)
def test_what_cannot_be_is_refused(federated: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, tmp_path, **federated)
