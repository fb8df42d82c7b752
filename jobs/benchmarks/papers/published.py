"""The methods as their authors published them, and as they come by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from raypref.methods import AnyMethod
from raypref.methods.base import MethodConfig

Method = Mapping[str, Any]

PUBLISHED: dict[str, Method] = {
    "lore": {"type": "lore", "solver": "adam"},
    "pal": {"type": "pal", "solver": "adamw"},
    "pref": {"type": "pref", "solver": "sgd"},
    "vpl": {"type": "vpl", "variant": "released"},
    "spl": {"type": "spl", "variant": "released"},
}


def config_of(method: Method) -> MethodConfig:
    """Return the complete configuration that a sparse one names."""
    return TypeAdapter[MethodConfig](AnyMethod).validate_python(dict(method))
