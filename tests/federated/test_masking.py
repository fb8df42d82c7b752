from __future__ import annotations

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raypref.errors import AggregationError
from raypref.federated.keys import KeyPair
from raypref.federated.masking import Session, add_pair_mask
from tests.federated.rounds import SIZE, Round, finish


@given(data=st.data(), clients=st.integers(2, 7), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_the_sum_is_exact_whoever_leaves_at_whichever_step(
    data: st.DataObject, clients: int, seed: int
) -> None:
    round = Round(Session.of_majority("run", 1, clients, SIZE, 2.0), seed)
    some = st.dictionaries(
        st.sampled_from(list(round.clients)), st.integers(0, 3), max_size=clients - round.session.threshold
    )
    leaves = data.draw(some)
    survivors, total = finish(round, leaves)
    assert survivors == {id for id in round.clients if leaves.get(id, 3) == 3}
    assert total.tobytes() == round.plain(survivors).tobytes()


@pytest.mark.parametrize("step", range(4))
def test_a_round_ends_at_the_step_at_which_too_few_are_left(step: int) -> None:
    round = Round()
    one, two, three, *_ = round.clients
    left = ("advertised keys", "shared their secrets", "sent a vector", "revealed shares")[step]
    with pytest.raises(AggregationError, match=f"2 clients {left}; it takes 3 to 5"):
        finish(round, {one: 0, two: step, three: step})


def test_a_masked_vector_is_uniform_and_unrelated_to_the_vector_and_to_itself_again() -> None:
    session = Session.of_majority("run", 1, clients=3, size=40_000, bound=1.0)
    vector = np.sin(np.arange(session.size) / 100)
    sent: list[bytes] = []
    for _ in range(2):
        round = Round(session)
        round.vectors = dict.fromkeys(round.clients, vector)
        sent += round.masked(round.route(round.enrol())).values()
    words = [np.frombuffer(message, np.uint64) for message in sent]
    values = [word / 2.0**64 for word in words]
    for message, value in zip(sent, values, strict=True):
        counts = np.bincount(np.frombuffer(message, np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-9
        assert abs(stats.pearsonr(value, vector).statistic) < 0.035
    for one in range(len(sent)):
        for other in range(one):
            assert abs(stats.pearsonr(values[one], values[other]).statistic) < 0.035
            difference = (words[one] - words[other]).view(np.uint8)
            assert stats.chisquare(np.bincount(difference, minlength=256)).pvalue > 1e-9


def test_a_client_is_not_unmasked_as_survivor_and_as_gone() -> None:
    round = Round()
    late, *others = round.clients
    vectors = round.masked(round.route(round.enrol()))
    round.server.collect({id: vectors[id] for id in others})
    for id in others:
        shares = round.clients[id].unmask(others)
        assert shares.seeds.keys() == set(others)
        assert shares.keys.keys() == {late}
        with pytest.raises(AggregationError, match="unmasked twice"):
            round.clients[id].unmask(round.clients)
        assert round.clients[id].unmask(others) == shares
    with pytest.raises(AggregationError, match="lack one that is asked"):
        round.clients[late].unmask(others)


def test_a_server_that_tells_clients_different_survivors_lacks_shares_of_both_secrets() -> None:
    round = Round()
    round.masked(round.route(round.enrol()))
    victim, *others = round.clients
    half = len(others) // 2
    told = {id: others if place < half else list(round.clients) for place, id in enumerate(others)}
    revealed = [round.clients[id].unmask(survivors) for id, survivors in told.items()]
    revealed.append(round.clients[victim].unmask(round.clients))
    seeds = sum(victim in shares.seeds for shares in revealed)
    keys = sum(victim in shares.keys for shares in revealed)
    assert seeds + keys == len(round.clients)
    assert min(seeds, keys) < round.session.threshold


def test_a_vector_that_comes_late_stays_under_its_own_mask() -> None:
    round = Round()
    late, *others = round.clients
    roster = round.enrol()
    vectors = round.masked(round.route(roster))
    survivors = round.server.collect({id: vectors[id] for id in others})
    revealed = round.revealed(survivors)
    assert round.server.unmask(revealed).tobytes() == round.plain(others).tobytes()
    # A curious server takes off what it can: it has learned the key of the late client's masks in pairs.
    places = sorted(round.clients)
    shares = [(places.index(id) + 1, revealed[id].keys[late]) for id in others[: round.session.threshold]]
    pair = KeyPair(Shamir.combine(shares))
    assert pair.public == roster[late].mask
    bared = np.frombuffer(vectors[late], np.uint64).copy()
    for id in others:
        add_pair_mask(bared, pair, id, late, roster[id].mask, round.session)
    with pytest.raises(AggregationError, match="larger than it can be"):
        round.session.fixed_point.decode(bared)


def test_bytes_on_the_wire() -> None:
    round = Round()
    roster = round.enrol()
    sealed = {id: round.clients[id].share(roster) for id in roster}
    inboxes = round.server.route(sealed)
    vectors = round.masked(inboxes)
    shares = round.clients[2].unmask(round.server.collect(vectors))
    n = len(roster)
    assert len(roster[2].channel + roster[2].mask) == 64
    assert [len(message) for message in sealed[2].values()] == [12 + 32 + 16] * (n - 1)
    assert [len(message) for message in inboxes[2].values()] == [60] * (n - 1)
    assert len(vectors[2]) == 8 * SIZE
    assert sum(map(len, [*shares.seeds.values(), *shares.keys.values()])) == 16 * n
