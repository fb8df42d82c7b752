from __future__ import annotations

import numpy as np
import pytest

from raypref.errors import AggregationError
from raypref.federated.keys import BLOCK, KeyPair, add_words, derive, seal, unseal, words

KEY = bytes(range(32))


def test_words_are_aes_256_in_counter_mode() -> None:
    # Blocks 0 and 1 under the key of zeros: in test case 13 of the GCM specification, H and the tag.
    known = "dc95c078a2408989ad48a21492842087" + "530f8afbc74536b9a963b4f1c4cb738b"
    assert words(bytes(32), 4).tobytes().hex() == known


def test_words_are_added_and_subtracted_modulo_2_to_64_over_any_number_of_blocks() -> None:
    size = 2 * BLOCK + 3
    total = np.full(size, 2**64 - 1, np.uint64)
    add_words(total, KEY)
    assert (total + np.uint64(1) == words(KEY, size)).all()
    assert (words(KEY, size)[: BLOCK + 1] == words(KEY, BLOCK + 1)).all()
    add_words(total, KEY, subtract=True)
    assert (total == 2**64 - 1).all()


def test_contexts_give_unrelated_keys() -> None:
    assert len({derive(KEY), derive(KEY, b"ab"), derive(KEY, b"a", b"b"), derive(KEY, b"ab", b"")}) == 4


def test_two_agree_on_a_key_and_others_do_not() -> None:
    one, two, three = (KeyPair(bytes([number]) * 16) for number in range(3))
    assert one.agree(two.public, b"round 1") == two.agree(one.public, b"round 1")
    assert one.agree(two.public, b"round 1") != one.agree(two.public, b"round 2")
    assert one.agree(three.public, b"round 1") != one.agree(two.public, b"round 1")


@pytest.mark.parametrize("bad", [bytes(32), b"short"])
def test_what_is_no_public_key_is_refused(bad: bytes) -> None:
    with pytest.raises(AggregationError, match="no public key"):
        KeyPair(bytes(16)).agree(bad)


def test_a_changed_message_is_refused_wherever_it_was_changed() -> None:
    sealed = seal(KEY, b"message", b"to you")
    assert unseal(KEY, sealed, b"to you") == b"message"
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(AggregationError, match="was changed"):
            unseal(KEY, changed, b"to you")
    for key, message, associated in (
        (bytes(32), sealed, b"to you"),
        (KEY, sealed, b"to me"),
        (KEY, sealed[:-1], b"to you"),
        (KEY, b"", b"to you"),
    ):
        with pytest.raises(AggregationError, match="was changed"):
            unseal(key, message, associated)
