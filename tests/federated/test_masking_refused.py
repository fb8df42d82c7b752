from __future__ import annotations

import re
from dataclasses import replace

import pytest

from raypref.errors import AggregationError
from raypref.federated.masking import Client, Session, Shares
from tests.federated.rounds import SESSION, SIZE, Round


def test_one_vector_a_round_is_masked_and_shares_are_sent_once() -> None:
    round = Round()
    roster = round.enrol()
    inboxes = round.route(roster)
    round.masked(inboxes)
    for id, client in round.clients.items():
        with pytest.raises(AggregationError, match="Two vectors"):
            client.mask(round.vectors[id], inboxes[id])
        with pytest.raises(AggregationError, match="twice in one round"):
            client.share(roster)


def test_a_changed_or_misdirected_message_stops_the_client_that_reads_it() -> None:
    round = Round()
    inboxes = round.route(round.enrol())
    reader, sender, other = list(round.clients)[:3]
    sealed = inboxes[reader][sender]
    for wrong in (
        sealed[:-1] + bytes([sealed[-1] ^ 1]),
        inboxes[reader][other],
        inboxes[sender][reader],
        b"",
    ):
        with pytest.raises(AggregationError, match="was changed"):
            round.clients[reader].mask(round.vectors[reader], inboxes[reader] | {sender: wrong})
    assert round.clients[reader].mask(round.vectors[reader], inboxes[reader])


@pytest.mark.parametrize(
    "other", [{"run": "other"}, {"round": 4}, {"bound": 4.0}, {"threshold": 4}, {"size": SIZE + 1}]
)
def test_messages_of_another_session_are_refused(other: dict[str, object]) -> None:
    round = Round()
    stranger_id, reader = list(round.clients)[:2]
    stranger = Client(stranger_id, replace(SESSION, **other))
    round.clients[stranger_id] = stranger
    inboxes = round.route(round.enrol())
    with pytest.raises(AggregationError, match="another round"):
        round.clients[reader].mask(round.vectors[reader], inboxes[reader])


def test_too_few_and_too_many_are_refused_at_every_step_of_a_client() -> None:
    round = Round()
    ids = list(round.clients)
    roster = {id: round.clients[id].advertise() for id in ids}
    refused = re.escape("it takes 3 to 5. Nothing was revealed")
    with pytest.raises(AggregationError, match=refused):
        round.clients[ids[0]].share({id: roster[id] for id in ids[:2]})
    with pytest.raises(AggregationError, match=refused):
        round.clients[ids[0]].share(roster | {99: roster[ids[1]]})
    inboxes = round.route(round.enrol())
    inbox = inboxes[ids[0]]
    with pytest.raises(AggregationError, match=refused):
        round.clients[ids[0]].mask(round.vectors[ids[0]], {ids[1]: inbox[ids[1]]})
    round.masked(inboxes)
    with pytest.raises(AggregationError, match=refused):
        round.clients[ids[0]].unmask(ids[:2])


def test_what_does_not_fit_the_round_is_refused() -> None:
    round = Round()
    roster = round.enrol()
    ids = list(roster)
    client, vector = round.clients[ids[0]], round.vectors[ids[0]]
    with pytest.raises(AggregationError, match="roster does not have the keys"):
        client.share(roster | {ids[0]: roster[ids[1]]})
    sealed = {id: round.clients[id].share(roster) for id in ids}
    with pytest.raises(AggregationError, match=f"Client {ids[0]} did not share"):
        round.server.route(sealed | {ids[0]: {ids[1]: b""}})
    with pytest.raises(AggregationError, match="Client 99 did not share"):
        round.server.route({id: sealed[id] for id in ids[1:]} | {99: dict.fromkeys(ids, b"")})
    inboxes = round.server.route(sealed)
    with pytest.raises(AggregationError, match="shape"):
        client.mask(vector[1:], inboxes[ids[0]])
    with pytest.raises(AggregationError, match="only up to ±2"):
        client.mask(vector + 9, inboxes[ids[0]])
    with pytest.raises(AggregationError, match="advertised no keys"):
        client.mask(vector, {99 if id == ids[1] else id: data for id, data in inboxes[ids[0]].items()})
    vectors = round.masked(inboxes)
    with pytest.raises(AggregationError, match="shared no secrets"):
        round.server.collect({99 if id == ids[0] else id: data for id, data in vectors.items()})
    with pytest.raises(AggregationError, match="has 8 bytes"):
        round.server.collect(vectors | {ids[0]: bytes(8)})
    survivors = round.server.collect({id: vectors[id] for id in ids[1:]})
    with pytest.raises(AggregationError, match="no clients of it"):
        round.clients[ids[1]].unmask([*survivors, 99])
    revealed = round.revealed(survivors)
    with pytest.raises(AggregationError, match=f"Client {ids[1]} did not reveal"):
        round.server.unmask(revealed | {ids[1]: Shares({}, {})})
    assert round.server.unmask(revealed).tobytes() == round.plain(survivors).tobytes()


@pytest.mark.parametrize("part", ["seeds", "keys"])
def test_changed_shares_are_noticed(part: str) -> None:
    round = Round()
    gone, first, *_ = round.clients
    survivors = round.server.collect(round.masked(round.route(round.enrol()), {gone}))
    revealed = round.revealed(survivors)
    changed = {id: bytes(16) for id in getattr(revealed[first], part)}
    with pytest.raises(AggregationError, match=r"mask was left on it|mask key were changed"):
        round.server.unmask(revealed | {first: replace(revealed[first], **{part: changed})})


def test_a_majority_of_at_least_two_must_stay() -> None:
    assert [Session.of_majority("run", 0, n, 1, 1.0).threshold for n in (2, 3, 4, 5)] == [2, 2, 3, 3]
    for clients, threshold in ((1, 1), (4, 2), (3, 4), (0, 0)):
        with pytest.raises(ValueError, match="cannot aggregate"):
            replace(SESSION, clients=clients, threshold=threshold)
