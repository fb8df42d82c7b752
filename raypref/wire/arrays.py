"""Arrays of floats in JSON: as numbers, or as base64 of little-endian float16 or float32."""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import pybase64
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

DTypeName = Literal["float16", "float32"]

Size = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Encoded(BaseModel):
    """An array as base64: a quarter of the bytes of numbers in JSON, and no rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base64: str = Field(description="Little-endian values, row by row.")
    dtype: DTypeName = Field(default="float32", description="Of the values.")
    shape: tuple[Size, ...] = Field(
        default=(), max_length=2, description="[D] or [N, D]; may be left out of a vector."
    )

    @model_validator(mode="after")
    def _check(self) -> Encoded:
        # Checked here, so that a bad array is refused with its place in the request.
        array = self.array()
        if not np.isfinite(array).all():
            raise ValueError("holds values that are not finite")
        return self

    @cached_property
    def _data(self) -> bytes:
        try:
            return pybase64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("not valid base64") from error

    def array(self) -> np.ndarray:
        """Return the array, read-only, in its own dtype."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        if len(self._data) % dtype.itemsize:
            raise ValueError(f"{len(self._data)} bytes are no whole number of {self.dtype} values")
        array = np.frombuffer(self._data, dtype)
        if self.shape and math.prod(self.shape) != array.size:
            raise ValueError(f"{array.size} values do not fill the shape {list(self.shape)}")
        return array.reshape(self.shape or -1)

    @classmethod
    def of(cls, array: np.ndarray) -> Encoded:
        """Encode an array; float16 stays, every other type becomes float32."""
        return cls.model_construct(**next(encoded_rows(array[None])))


def encoded_rows(array: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the fields of `Encoded` for each row: in an answer of many, models would cost more than bytes."""
    dtype: DTypeName = "float16" if array.dtype == np.float16 else "float32"
    shape = array.shape[1:]
    little = np.dtype(dtype).newbyteorder("<")
    size = little.itemsize * math.prod(shape)
    # All rows in one call, each filled up to whole groups of three bytes.
    filler = -size % 3
    rows = np.zeros((len(array), size + filler), np.uint8)
    rows[:, :size] = np.ascontiguousarray(array, little).view(np.uint8).reshape(len(array), size)
    width = (size + filler) // 3 * 4
    text = np.frombuffer(bytearray(pybase64.b64encode(rows.data)), np.uint8).reshape(len(array), width)
    text[:, width - filler :] = ord("=")
    whole = str(text.data, "ascii")
    for row in range(len(array)):
        yield {"base64": whole[row * width : (row + 1) * width], "dtype": dtype, "shape": shape}


Vector = Annotated[list[FiniteFloat], Field(min_length=1, max_length=65_536, fail_fast=True)] | Encoded
"""One array (D): numbers or `Encoded`."""


def vector(value: list[float] | Encoded) -> np.ndarray:
    """Return a vector (D) as float16 where it came so, otherwise as float32.

    Raises:
        ValueError: it has another number of axes, no values, or a value that float32 cannot hold.
    """
    array = value.array() if isinstance(value, Encoded) else _float32(value)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"must be one vector, this has the shape {list(array.shape)}")
    return array


def _float32(values: list[float]) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.asarray(values, np.float32)
    if not np.isfinite(array).all():
        raise ValueError("holds a value that float32 cannot hold")
    return array
