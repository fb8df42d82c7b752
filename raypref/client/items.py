"""What callers may hand in, and the checks of it before anything is sent."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from raypref.errors import InputError
from raypref.wire.arrays import Encoded, vector
from raypref.wire.requests import Item, Message

Model = TypeVar("Model", bound=BaseModel)

Text = str | Sequence[Mapping[str, str]] | Sequence[Message]
"""Plain text, or chat messages with `role` and `content`."""


class SupportsArray(Protocol):
    """Anything that NumPy can read, such as a tensor in the machine's memory."""

    def __array__(self) -> np.ndarray:
        """Return its values."""
        ...


ItemLike = Text | int | np.ndarray | SupportsArray | Item
"""A response: its text, its embedding (D), or the id of a registered item."""

Candidates = np.ndarray | SupportsArray | Sequence[ItemLike]
"""Items: one array of embeddings (N, D), one of item ids (N), or a sequence of any items."""


VectorLike = np.ndarray | SupportsArray | Encoded
"""A user's vector (Z)."""


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt that could be compared."""

    chosen: ItemLike
    rejected: ItemLike
    prompt: Text = ""
    """Of both, where they are text."""


@dataclass(frozen=True)
class Comparison(Pair):
    """One judgement of a user; its id and time are fixed here, so that sending it again is harmless."""

    weight: float = 1.0
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    timestamp: float = field(default_factory=time.time)
    """When the user compared, seconds since 1970."""


def embedding(value: Any, where: str, axes: int = 1) -> np.ndarray:
    """Return an array as float16 where it is that, otherwise as float32.

    Raises:
        InputError: not an array of finite numbers with this many axes, or empty.
    """
    try:
        given = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: NumPy cannot read it ({error}).") from error
    if given.dtype.kind not in "fiu":
        raise InputError(f"{where}: holds {given.dtype}, not numbers. Give an array of floats.")
    if given.ndim != axes or not given.size:
        raise InputError(f"{where}: has the shape {list(given.shape)}, not {['[D]', '[N, D]'][axes - 1]}.")
    with np.errstate(over="ignore"):
        array = given if given.dtype == np.float16 else given.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: holds values that are not finite in {array.dtype}. Nothing was sent.")
    return array


def item(value: Any, where: str) -> Item | np.ndarray:
    """Return an item in its wire form, or its embedding (D).

    Raises:
        InputError: it is no item.
    """
    if isinstance(value, Item):
        return value if value.embedding is None else vector(value.embedding)
    if isinstance(value, bool | np.bool_):
        raise InputError(f"{where}: is a bool. Give text, an embedding or an item's id.")
    if isinstance(value, Integral):
        return made(Item, where, item=int(value))
    if hasattr(value, "__array__") and not isinstance(value, str):
        return embedding(value, where)
    return made(Item, where, text=value)


def candidates(value: Any) -> list[Item | np.ndarray] | np.ndarray:
    """Return candidates in their wire form, as one array (N, D) where all of them are embeddings.

    Raises:
        InputError: one is no item, or embeddings differ in width.
    """
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind not in "iu":
            return embedding(array, "candidates", axes=2)
        if array.ndim != 1:
            raise InputError(f"candidates: item ids with the shape {list(array.shape)}, not [N].")
        return [made(Item, "candidates", item=int(one)) for one in array]
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        raise InputError("candidates: give an array or a list with at least one item.")
    items = [item(one, f"candidates[{n}]") for n, one in enumerate(value)]
    return stacked(items, "candidates")


def stacked(items: list[Item | np.ndarray], where: str) -> list[Item | np.ndarray] | np.ndarray:
    """Return items as one array (N, D) where all of them are embeddings, otherwise as they are.

    Raises:
        InputError: embeddings differ in width.
    """
    arrays = [one for one in items if isinstance(one, np.ndarray)]
    if len({len(array) for array in arrays}) > 1:
        widths = sorted({len(array) for array in arrays})
        raise InputError(f"{where}: embeddings of different widths {widths}. All come from one embedder.")
    return np.stack(arrays) if len(arrays) == len(items) else items


def made(kind: type[Model], where: str, **values: Any) -> Model:
    """Return a part of a request, checked by the rules that the service has.

    Raises:
        InputError: a value breaks a rule; the message has places and rules, no values.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise InputError(f"{place}: {first['msg']}. Nothing was sent.") from None
