"""Requests on their way to bytes: arrays as base64 in JSON, or, where they are large, as safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raypref.client import items
from raypref.errors import InputError
from raypref.wire import requests as wire
from raypref.wire.arrays import Encoded
from raypref.wire.tensors import MEDIA_TYPE, pack_request

BULK_BYTES = 1 << 20
"""Arrays that are larger together travel as safetensors."""

JSON = "application/json"

_ELSEWHERE = Encoded.model_construct(base64="", dtype="float32", shape=())
"""Stands for an array that travels as a tensor while the rest of the request is checked."""


@dataclass(frozen=True)
class Body:
    """A request's bytes and their type."""

    content: bytes
    media_type: str


@dataclass(frozen=True)
class _Pairs:
    rows: list[dict[str, Any]]
    chosen: list[wire.Item | np.ndarray] | np.ndarray
    rejected: list[wire.Item | np.ndarray] | np.ndarray

    def entries(self, elsewhere: bool) -> list[dict[str, Any]]:
        return [
            {**row, "chosen": _item(chosen, elsewhere), "rejected": _item(rejected, elsewhere)}
            for row, chosen, rejected in zip(self.rows, self.chosen, self.rejected, strict=True)
        ]


class Draft:
    """A request that is being put together: small things as they are, arrays aside."""

    def __init__(self, **fields: Any) -> None:
        """Begin with what needs no conversion; None is left out."""
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._arrays: dict[str, np.ndarray] = {}
        self._pairs: dict[str, _Pairs] = {}

    def candidates(self, value: items.Candidates) -> int:
        """Take the candidates; return how many there are."""
        taken = items.candidates(value)
        if isinstance(taken, np.ndarray):
            self._arrays["candidates"] = taken
        else:
            self._fields["candidates"] = [_item(one) for one in taken]
        return len(taken)

    def item(self, name: str, value: items.ItemLike) -> None:
        """Take one item."""
        taken = items.item(value, name)
        if isinstance(taken, np.ndarray):
            self._arrays[name] = taken
        else:
            self._fields[name] = taken

    def vector(self, value: items.VectorLike) -> None:
        """Take a user's vector, as an array or as export gives it."""
        array = value.array() if isinstance(value, Encoded) else value
        self._arrays["vector"] = items.embedding(array, "vector")

    def pairs(self, name: str, values: Sequence[items.Pair], kind: type[items.Pair]) -> None:
        """Take comparisons, or pairs that could be.

        Raises:
            InputError: there are none, or one of them is something else, or embeddings differ in width.
        """
        values = list(values)
        if not values or not all(isinstance(value, kind) for value in values):
            raise InputError(f"{name}: give a list with at least one {kind.__name__}, and nothing else.")
        sides: list[list[wire.Item | np.ndarray]] = [
            [items.item(getattr(pair, side), f"{name}[{n}].{side}") for n, pair in enumerate(values)]
            for side in ("chosen", "rejected")
        ]
        items.stacked(sides[0] + sides[1], name)
        # A comparison may be asked about like any pair; only as one does it carry its id and time.
        told = ("prompt", "event_id", "timestamp", "weight") if kind is items.Comparison else ("prompt",)
        rows = [{key: getattr(pair, key) for key in told} for pair in values]
        self._pairs[name] = _Pairs(rows, items.stacked(sides[0], name), items.stacked(sides[1], name))

    def body(self, kind: type[wire.Request]) -> Body:
        """Check the request by the service's own rules and return its bytes.

        Raises:
            InputError: it breaks one.
        """
        self._check_widths()
        # The format has one place for pairs; what a request brings beside them stays in its JSON.
        aside = "pairs" if "pairs" in self._pairs else "comparisons"
        sides = self._sides(aside)
        tensors = self._arrays | sides
        bulk = sum(array.nbytes for array in tensors.values()) > BULK_BYTES
        fields = dict(self._fields)
        for name, array in self._arrays.items():
            fields[name] = _placed(name, _ELSEWHERE if bulk else Encoded.of(array))
        for name, pairs in self._pairs.items():
            fields[name] = pairs.entries(elsewhere=bulk and bool(sides) and name == aside)
        request = items.made(kind, "request", **fields)
        if not bulk:
            return Body(request.model_dump_json(exclude_defaults=True).encode(), JSON)
        without: dict[str, Any] = dict.fromkeys(self._arrays, True)
        if sides:
            without[aside] = {"__all__": {"chosen", "rejected"}}
        rest = request.model_dump(mode="json", exclude_defaults=True, exclude=without)
        return Body(pack_request(rest, tensors), MEDIA_TYPE)

    def _sides(self, name: str) -> dict[str, np.ndarray]:
        pairs = self._pairs.get(name)
        if pairs and isinstance(pairs.chosen, np.ndarray) and isinstance(pairs.rejected, np.ndarray):
            return {"chosen": pairs.chosen, "rejected": pairs.rejected}
        return {}

    def _check_widths(self) -> None:
        widths = {name: array.shape[-1] for name, array in self._arrays.items() if name != "vector"}
        for name, pairs in self._pairs.items():
            given = [one for one in (*pairs.chosen, *pairs.rejected) if isinstance(one, np.ndarray)]
            if given:
                widths[name] = len(given[0])
        if len(set(widths.values())) > 1:
            raise InputError(f"embeddings of different widths {widths}: all come from one embedder.")


def _item(value: wire.Item | np.ndarray, elsewhere: bool = False) -> wire.Item:
    if isinstance(value, wire.Item):
        return value
    return wire.Item(embedding=_ELSEWHERE if elsewhere else Encoded.of(value))


def _placed(name: str, encoded: Encoded) -> object:
    if name == "candidates":
        return wire.Bulk(embeddings=encoded)
    return encoded if name == "vector" else wire.Item(embedding=encoded)
