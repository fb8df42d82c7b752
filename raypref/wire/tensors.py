"""Bulk requests and answers as safetensors: the arrays as tensors, all else as JSON in the metadata.

A request's metadata holds under `request` the JSON of the same request without its arrays. The tensors, each
optional, float16 or float32, are:

- `candidates` (N, D), `baseline` (D) and `vector` (Z), each in the place of the request's field of that name;
- `chosen` and `rejected` (P, D), the items of the request's `pairs` where it has that field, otherwise of its
  `comparisons`, in order; that list may be left out, and its entries leave out `chosen` and `rejected`.

An answer's metadata holds under `answer` the JSON of all but its arrays. The answer to `POST /v1/score` has
the tensors `mean`, `std` (where the method has one) and `probability` (U, N), `version` and `shots` (U,
int64), `cold` and `degraded` (U, uint8), and in its JSON `users` in the place of `data`.

Arrays are never copied on arrival: they are views of the body.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors.numpy import save

from raypref.wire.arrays import Encoded
from raypref.wire.errors import WireError
from raypref.wire.invalid import refusal_of
from raypref.wire.requests import Bulk, Item, Request

MEDIA_TYPE = "application/vnd.raypref.safetensors"

MAX_HEADER_BYTES = 16 * 2**20
MAX_CANDIDATES = 65_536
MAX_PAIRS = 4096

_FLOATS = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_ANSWERS = {**_FLOATS, "I64": np.dtype("<i8"), "U8": np.dtype("u1")}

AnyRequest = TypeVar("AnyRequest", bound=Request)

_NOTHING = Encoded(base64="")
_ITEM = Item(embedding=_NOTHING)
_BULK = Bulk(embeddings=_NOTHING)


class _Entry(BaseModel):
    """What the header says of a tensor."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=8)]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=2, max_length=2)]


_ENTRIES = TypeAdapter(Annotated[dict[str, _Entry], Field(max_length=16)])
_METADATA = TypeAdapter(Annotated[dict[str, str], Field(max_length=16)], config=ConfigDict(strict=True))


def pack_request(request: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the body of a request; float16 stays, every other type becomes float32."""
    arrays = {
        name: np.ascontiguousarray(array, np.float16 if array.dtype == np.float16 else np.float32)
        for name, array in tensors.items()
    }
    return save(arrays, {"request": _json(request)})


def unpack_request(body: bytes, model: type[AnyRequest]) -> tuple[AnyRequest, dict[str, np.ndarray]]:
    """Return a request and its tensors, which are finite, have rows, and fit one another.

    Where a tensor stands for an array of the request, the request holds an empty `Encoded`, which no check of
    an array lets pass.

    Args:
        body: safetensors.
        model: what the request is.

    Raises:
        WireError: the body is malformed (400), or breaks a rule (422).
    """
    try:
        metadata, tensors = _parse(body, _FLOATS)
        text = metadata.get("request")
        if text is None:
            raise ValueError("its metadata has no `request`")
        fields = from_json(text, allow_inf_nan=False)
        if not isinstance(fields, dict):
            raise ValueError("`request` is no JSON object")
    except ValueError as error:
        raise WireError(400, f"The body is no safetensors request: {error}.") from error
    _check(tensors, model)
    _fill(fields, tensors, "pairs" if "pairs" in model.model_fields else "comparisons")
    try:
        return model.model_validate(fields), tensors
    except ValidationError as error:
        raise refusal_of(error) from error


def pack_answer(answer: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the body of an answer; the arrays are float16, float32, int64 or uint8."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return save(arrays, {"answer": _json(answer)})


def unpack_answer(body: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return an answer's JSON and tensors.

    Raises:
        ValueError: it is no such answer.
    """
    try:
        metadata, tensors = _parse(body, _ANSWERS)
    except WireError as error:
        raise ValueError(error.message) from error
    answer = from_json(metadata.get("answer", "null"), allow_inf_nan=False)
    if not isinstance(answer, dict):
        raise ValueError("its metadata has no `answer`")
    return answer, tensors


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _parse(body: bytes, dtypes: Mapping[str, np.dtype]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return metadata and tensors of safetensors, the tensors as views.

    The library's own reader copies all tensors and gives no metadata.

    Raises:
        ValueError: it is malformed.
        WireError: a tensor has a type that is not taken.
    """
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > len(body) - 8:
        raise ValueError("it is cut short")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"its header is larger than {MAX_HEADER_BYTES:,} bytes")
    header = from_json(body[8 : 8 + size], allow_inf_nan=False)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    try:
        metadata = _METADATA.validate_python(header.pop("__metadata__", {}))
        entries = _ENTRIES.validate_python(header)
    except ValidationError as error:
        raise ValueError(f"its header breaks the format ({error.errors()[0]['msg']})") from error
    tensors: dict[str, np.ndarray] = {}
    end = start = 8 + size
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1].data_offsets):
        dtype = dtypes.get(entry.dtype)
        if dtype is None:
            raise WireError(422, f"{_quoted(name)} is {_quoted(entry.dtype)}: send float16 or float32.")
        first, last = entry.data_offsets
        count = math.prod(entry.shape)
        # One after the other without holes, so that every byte of the body is accounted for.
        if start + first != end or last - first != count * dtype.itemsize or start + last > len(body):
            raise ValueError("its header does not fit its data")
        array = np.frombuffer(body, dtype, count, end).reshape(entry.shape)
        tensors[name] = np.require(array, requirements="A")
        end = start + last
    if end != len(body):
        raise ValueError("it has bytes that belong to no tensor")
    return metadata, tensors


def _check(tensors: Mapping[str, np.ndarray], model: type[Request]) -> None:
    fields = model.model_fields
    known = {
        name: axes for name, axes in {"candidates": 2, "baseline": 1, "vector": 1}.items() if name in fields
    }
    if "comparisons" in fields:
        known |= {"chosen": 2, "rejected": 2}
    widths: set[int] = set()
    for name, array in tensors.items():
        axes = known.get(name)
        if axes is None:
            raise WireError(422, f"{_quoted(name)} is no tensor of this request; it has {sorted(known)}.")
        if array.ndim != axes or not array.size:
            raise WireError(
                422, f"{name} has the shape {list(array.shape)}: send {axes} axes, none empty.", name
            )
        if not _finite(array):
            raise WireError(422, f"{name} holds values that are not finite.", name)
        if name != "vector":
            widths.add(array.shape[-1])
    if len(widths) > 1:
        raise WireError(422, f"The embeddings have different widths: {sorted(widths)}.")
    for name, most in (("candidates", MAX_CANDIDATES), ("chosen", MAX_PAIRS), ("rejected", MAX_PAIRS)):
        if name in tensors and len(tensors[name]) > most:
            raise WireError(422, f"{name} has {len(tensors[name]):,} rows; at most {most:,} are taken.", name)


def _fill(fields: dict[str, Any], tensors: Mapping[str, np.ndarray], pairs: str) -> None:
    """Put placeholders where the tensors belong, so that the request is checked as a whole."""
    for name, placeholder in (("candidates", _BULK), ("baseline", _ITEM), ("vector", _NOTHING)):
        if name in tensors:
            if fields.get(name) is not None:
                raise WireError(422, f"{name} stands in `request` and among the tensors; send it once.", name)
            fields[name] = placeholder
    chosen, rejected = tensors.get("chosen"), tensors.get("rejected")
    if chosen is None and rejected is None:
        return
    if chosen is None or rejected is None or len(chosen) != len(rejected):
        raise WireError(422, "chosen and rejected belong together: send as many rows of each.", "chosen")
    entries = fields.get(pairs)
    if entries is None:
        entries = [{} for _ in chosen]
    if not isinstance(entries, list) or len(entries) != len(chosen):
        raise WireError(422, f"{pairs} is to have an entry for each of the {len(chosen)} rows.", pairs)
    for entry in entries:
        if not isinstance(entry, dict) or not entry.keys().isdisjoint(("chosen", "rejected")):
            raise WireError(422, f"{pairs} has an entry with items of its own: they are the tensors.", pairs)
    fields[pairs] = [{**entry, "chosen": _ITEM, "rejected": _ITEM} for entry in entries]


def _finite(array: np.ndarray) -> bool:
    if array.dtype.itemsize == 2:
        # Eight times as fast as numpy's own check of float16: an exponent of ones is no finite number.
        return int((array.view(np.uint16) & 0x7FFF).max()) < 0x7C00
    return bool(np.isfinite(array).all())


def _quoted(name: str) -> str:
    return json.dumps(name[:40])
