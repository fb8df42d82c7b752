"""The messages of secure aggregation as bytes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from raypref.errors import CorruptError
from raypref.federated.keys import PUBLIC_BYTES
from raypref.federated.masking import PublicKeys, Session, Shares
from raypref.federated.messages import named, tensors_of

SEED, KEY = "seed.", "key."


@dataclass(frozen=True)
class Masked:
    """What a client sends instead of an update."""

    numbers: bytes
    """Its numbers under masks, 8 bytes each."""
    vector_Z: Tensor | None
    """Its user vector, as in an update."""

    def to_bytes(self) -> bytes:
        """Return it as it is sent."""
        tensors = {"masked": _bytes(self.numbers)}
        if self.vector_Z is not None:
            tensors["vector_Z"] = self.vector_Z.contiguous()
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Masked:
        """Read what was sent; CorruptError if it is none."""
        tensors = tensors_of(data)
        if "masked" not in tensors:
            raise CorruptError("a masked update lacks its numbers.")
        return cls(_of(tensors["masked"]), tensors.get("vector_Z"))


def read_session(data: bytes) -> Session:
    """Read the session whose `context` this is."""
    return Session(**json.loads(data))


def write_keys(keys: PublicKeys) -> bytes:
    """Return a client's public keys."""
    return keys.channel + keys.mask


def read_keys(data: bytes) -> PublicKeys:
    """Read what `write_keys` wrote; CorruptError if it is none."""
    if len(data) != 2 * PUBLIC_BYTES:
        raise CorruptError(f"two public keys have {2 * PUBLIC_BYTES} bytes, not {len(data)}.")
    return PublicKeys(data[:PUBLIC_BYTES], data[PUBLIC_BYTES:])


def write_by_client(parts: Mapping[int, bytes]) -> bytes:
    """Return bytes for or of several clients."""
    return save({str(client): _bytes(part) for client, part in parts.items()})


def read_by_client(data: bytes) -> dict[int, bytes]:
    """Read what `write_by_client` wrote; CorruptError if it is none."""
    return _numbered(tensors_of(data))


def write_shares(shares: Shares) -> bytes:
    """Return what a survivor reveals."""
    parts = {f"{SEED}{client}": _bytes(part) for client, part in shares.seeds.items()}
    return save(parts | {f"{KEY}{client}": _bytes(part) for client, part in shares.keys.items()})


def read_shares(data: bytes) -> Shares:
    """Read what `write_shares` wrote; CorruptError if it is none."""
    tensors = tensors_of(data)
    return Shares(_numbered(named(tensors, SEED)), _numbered(named(tensors, KEY)))


def write_clients(clients: Collection[int]) -> bytes:
    """Return numbers of clients."""
    return np.array(sorted(clients), "<i8").tobytes()


def read_clients(data: bytes) -> list[int]:
    """Read what `write_clients` wrote."""
    return np.frombuffer(data, "<i8").tolist()


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _of(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _numbered(tensors: Mapping[str, Tensor]) -> dict[int, bytes]:
    try:
        return {int(name): _of(part) for name, part in tensors.items()}
    except ValueError as error:
        raise CorruptError(f"a message names no client ({error}).") from error
