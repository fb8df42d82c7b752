"""Keys of one round: derived from secrets, agreed between two, and the streams and messages they protect.

All of it is PyCryptodome's: HKDF (RFC 5869) with SHA-256, X25519 (RFC 7748), AES-256 in counter mode, which
the processor does itself, and ChaCha20-Poly1305 (RFC 8439).
"""

from __future__ import annotations

import numpy as np
from Crypto.Cipher import AES, ChaCha20_Poly1305
from Crypto.Hash import SHA256
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
from Crypto.Protocol.KDF import HKDF
from numpy.typing import NDArray

from raypref.errors import AggregationError

NONCE_BYTES, TAG_BYTES = 12, 16
PUBLIC_BYTES = 32
"""Of a public key."""

BLOCK = 8192
"""Words drawn at once: what a processor's cache holds."""
_ZEROS = bytes(8 * BLOCK)


def derive(secret: bytes, *context: bytes) -> bytes:
    """Return the key of 32 bytes that a secret gives in a context; other contexts give unrelated keys.

    Args:
        secret: at least 16 bytes that nobody can guess.
        context: what the key is for; `(b"ab",)` and `(b"a", b"b")` differ.
    """
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in context)
    return HKDF(secret, 32, b"raypref", SHA256, context=framed)


def words(key: bytes, count: int) -> NDArray[np.uint64]:
    """Return `count` uniform words of 64 bits: the AES-256-CTR stream of a key that is for nothing else."""
    drawn_G = np.zeros(count, np.uint64)
    add_words(drawn_G, key)
    return drawn_G


def add_words(total_G: NDArray[np.uint64], key: bytes, *, subtract: bool = False) -> None:
    """Add the `words` of a key to numbers in place, or subtract them, modulo 2^64."""
    cipher = AES.new(key, AES.MODE_CTR, nonce=bytes(8))
    operation = np.subtract if subtract else np.add
    for start in range(0, len(total_G), BLOCK):
        block_G = total_G[start : start + BLOCK]
        operation(block_G, np.frombuffer(cipher.encrypt(_ZEROS[: block_G.nbytes]), "<u8"), out=block_G)


class KeyPair:
    """An X25519 key pair, made from a seed of 16 bytes, as strong as the curve."""

    def __init__(self, seed: bytes) -> None:
        self._private = import_x25519_private_key(derive(seed, b"x25519"))
        self.public = self._private.public_key().export_key(format="raw")

    def agree(self, public: bytes, *context: bytes) -> bytes:
        """Return the key that this pair and the owner of a public key share in a context, and nobody else.

        Raises:
            AggregationError: it is no public key.
        """
        try:
            return key_agreement(
                static_priv=self._private,
                static_pub=import_x25519_public_key(public),
                kdf=lambda secret: derive(secret, *context),
            )
        except ValueError as error:
            raise AggregationError(f"A client advertised no public key of X25519 ({error}).") from error


def seal(key: bytes, message: bytes, associated: bytes) -> bytes:
    """Return a message encrypted and authenticated, `associated` data authenticated with it."""
    cipher = ChaCha20_Poly1305.new(key=key)
    cipher.update(associated)
    sealed, tag = cipher.encrypt_and_digest(message)
    return cipher.nonce + sealed + tag


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return what `seal` was given.

    Raises:
        AggregationError: the message, the key or the associated data are not those that were sealed.
    """
    try:
        cipher = ChaCha20_Poly1305.new(key=key, nonce=sealed[:NONCE_BYTES])
        cipher.update(associated)
        return cipher.decrypt_and_verify(sealed[NONCE_BYTES:-TAG_BYTES], sealed[-TAG_BYTES:])
    except ValueError as error:
        raise AggregationError(
            "A message between two clients was changed, or belongs to another round."
        ) from error
