"""Read a run's configuration: one YAML file, changed by `--set a.b=c`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raypref.config import RunConfig
from raypref.errors import ConfigError


def load_config(path: Path | None, overrides: list[str]) -> RunConfig:
    """Read a run's YAML and apply `a.b=c` overrides, whose values are YAML too.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown or a value is invalid.
    """
    return parse_config(read_mapping(path), overrides, str(path or "configuration"))


def read_mapping(path: Path | None) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; no file is an empty one.

    Raises:
        ConfigError: the file is missing, not YAML or not a mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text()) if path else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error}).") from error
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a run's configuration is a mapping, this is a {type(raw).__name__}.")
    return raw


def parse_config(raw: dict[str, Any], overrides: list[str], where: str) -> RunConfig:
    """Return the run that a mapping describes, changed by `a.b=c` overrides.

    Raises:
        ConfigError: a key is unknown or a value is invalid; the message begins with `where`.
    """
    for override in overrides:
        apply_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from error


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Change one value of a mapping as `a.b=c` says; the value is YAML.

    Raises:
        ConfigError: it does not read so.
    """
    key, separator, value = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"--set {override}: write it as a.b=value.")
    try:
        set_value(raw, key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML ({error}).") from error
    except ConfigError as error:
        raise ConfigError(f"--set {override}: {error}") from error


def set_value(raw: dict[str, Any], path: str, value: Any) -> None:
    """Change one value of a mapping, in place; `path` names it as a.b.

    Raises:
        ConfigError: the path leads through a value.
    """
    *parents, last = path.split(".")
    node = raw
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{name} is a value, not a section.")
    node[last] = value


def describe(error: ValidationError, where: str) -> str:
    """Return a validation error as lines of `where: a.b: what is wrong`."""
    lines: list[str] = []
    for problem in error.errors():
        location = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        lines.append(f"{where}: {location}: {message}")
    return "\n".join(lines)
