"""What crosses between the server and a client, as safetensors: nothing else does.

A `Broadcast` goes to all clients of a round, an `Update` comes back from each. A client's comparisons, the
rows of its own and what its optimiser knows are in neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raypref.errors import CorruptError

WEIGHTS, DELTA = "weights.", "delta."


@dataclass(frozen=True)
class PeerList:
    """The clients whose vectors the server knows, and the groups that it put them in."""

    client_C: Tensor
    """Numbers in the users table, int64."""
    vector_CZ: Tensor
    """Their user vectors, float32."""
    group_C: Tensor
    """Their groups, int64; -1 where there are none."""

    def but(self, client: int) -> PeerList:
        """Return the others."""
        others_C = self.client_C != client
        return PeerList(self.client_C[others_C], self.vector_CZ[others_C], self.group_C[others_C])

    def group_of(self, client: int) -> int:
        """Return a client's group, -1 where it is not known."""
        found = self.group_C[self.client_C == client]
        return int(found[0]) if len(found) else -1


@dataclass(frozen=True)
class Broadcast:
    """What every client of a round is sent."""

    round: int
    """Rounds closed before."""
    weights: Mapping[str, Tensor]
    """All weights and buffers of the model but the rows of users."""
    peers: PeerList | None
    """None where the method does not look at peers."""

    def to_bytes(self) -> bytes:
        """Return it as it is sent."""
        tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in self.weights.items()}
        if self.peers is not None:
            tensors |= vars(self.peers)
        return save(_contiguous({**tensors, "round": torch.tensor(self.round)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Broadcast:
        """Read what was sent.

        Raises:
            CorruptError: it is none.
        """
        tensors = tensors_of(data)
        number, weights = _take(tensors, "round"), named(tensors, WEIGHTS)
        peers = None
        if "client_C" in tensors:
            peers = PeerList(*(_take(tensors, name) for name in PeerList.__dataclass_fields__))
        return cls(int(number), weights, peers)


@dataclass(frozen=True)
class Update:
    """What a client sends back."""

    delta: Mapping[str, Tensor]
    """How its steps moved each parameter that they moved, float32."""
    vector_Z: Tensor | None = None
    """Its user vector, where the method looks at peers: 2·Z floats of a Gaussian."""
    size: int | None = None
    """Its comparisons, where updates are weighed by size."""
    loss: float | None = None
    """Of its last step, where clients are asked to tell."""

    @property
    def weight(self) -> float:
        """What it weighs in the mean of a round."""
        return 1.0 if self.size is None else float(self.size)

    def to_bytes(self) -> bytes:
        """Return it as it is sent."""
        tensors = {f"{DELTA}{name}": tensor for name, tensor in self.delta.items()}
        if self.vector_Z is not None:
            tensors["vector_Z"] = self.vector_Z
        if self.size is not None:
            tensors["size"] = torch.tensor(self.size)
        if self.loss is not None:
            tensors["loss"] = torch.tensor(self.loss)
        return save(_contiguous(tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> Update:
        """Read what was sent.

        Raises:
            CorruptError: it is none.
        """
        tensors = tensors_of(data)
        optional: dict[str, Any] = {"vector_Z": tensors.pop("vector_Z", None)}
        if "size" in tensors:
            optional["size"] = int(tensors["size"])
        if "loss" in tensors:
            optional["loss"] = float(tensors["loss"])
        return cls(named(tensors, DELTA), **optional)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_number(number: int) -> bytes:
    """Return a whole number in 8 bytes."""
    return number.to_bytes(8, "big", signed=True)


def read_number(data: bytes) -> tuple[int, bytes]:
    """Return the number that `write_number` wrote, and what comes after it."""
    return int.from_bytes(data[:8], "big", signed=True), data[8:]


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a message; CorruptError if it is none."""
    try:
        return load(data)
    except SafetensorError as error:
        raise CorruptError(f"a message between server and client is no safetensors ({error}).") from error


def _take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError:
        raise CorruptError(f"a message between server and client lacks {name}.") from None


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name begins so, without that beginning."""
    return {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
