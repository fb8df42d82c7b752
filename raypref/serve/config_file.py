"""Read a Serve configuration and check all of it: Serve itself drops unknown keys in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from raypref.config_file import apply_override, describe
from raypref.errors import ConfigError
from raypref.serve.config import ScorerConfig, ServeConfig

BUILDER = "raypref.serve.app:build"

MAPPINGS: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "request_router_config": RequestRouterConfig,
}
"""What Serve's schema lets through as any mapping."""


def read_serve_config(path: Path, overrides: list[str]) -> ServeDeploySchema:
    """Read a Serve configuration; `a.b=c` overrides reach into the first application's `args`.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is invalid.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error}).") from error
    return parse_serve_config(raw, overrides, str(path))


def parse_serve_config(raw: Any, overrides: list[str], where: str) -> ServeDeploySchema:
    """Return the configuration that a mapping describes; see `read_serve_config`."""
    if not isinstance(raw, dict) or not isinstance(raw.get("applications"), list) or not raw["applications"]:
        raise ConfigError(f"{where}: a Serve configuration is a mapping with a list of `applications`.")
    first = raw["applications"][0]
    for override in overrides:
        apply_override(first.setdefault("args", {}), override)
    try:
        found = ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from error
    for key in _unknown(raw, found, ""):
        raise ConfigError(f"{where}: {key}: unknown key; Serve would ignore it.")
    for application in found.applications:
        if application.import_path == BUILDER:
            _check(application, where)
    return found


def applications(config: ServeDeploySchema) -> Iterable[ServeConfig]:
    """Return what the applications of ours in a checked configuration are built from."""
    for application in config.applications:
        if application.import_path == BUILDER:
            yield ServeConfig.model_validate(application.args)


def _check(application: ServeApplicationSchema, where: str) -> None:
    try:
        args = ServeConfig.model_validate(application.args)
    except ValidationError as error:
        raise ConfigError(describe(error, f"{where}: applications.{application.name}.args")) from error
    known = ["Ingress", "Scorer"] + (["Embedder"] if args.embed else [])
    for deployment in application.deployments:
        if deployment.name not in known:
            raise ConfigError(f"{where}: deployments: {deployment.name} is none of {', '.join(known)}.")
        if deployment.name == "Scorer" and args.store.startswith("memory:") and _most(deployment) != 1:
            raise ConfigError(
                f"{where}: deployments: Scorer: memory: is for one replica; use sqlite:///FILE."
            )
        if deployment.name == "Scorer" and "user_config" in deployment.model_fields_set:
            try:
                ScorerConfig.model_validate(deployment.user_config)
            except ValidationError as error:
                raise ConfigError(describe(error, f"{where}: deployments: Scorer: user_config")) from error


def _most(deployment: DeploymentSchema) -> object:
    """Return how many replicas a deployment may have, as far as its configuration says."""
    given = deployment.model_dump(exclude_unset=True)
    return given.get("num_replicas") or (given.get("autoscaling_config") or {}).get("max_replicas", 1)


def _unknown(raw: Any, parsed: Any, place: str) -> Iterator[str]:
    """Yield the keys of `raw` that have no field in what was made of it."""
    if isinstance(raw, Mapping) and isinstance(parsed, BaseModel):
        for key, value in raw.items():
            if key not in type(parsed).model_fields:
                yield f"{place}{key}"
            elif key in MAPPINGS and isinstance(value, Mapping):
                yield from (
                    f"{place}{key}.{name}" for name in value if name not in MAPPINGS[key].model_fields
                )
            else:
                yield from _unknown(value, getattr(parsed, key), f"{place}{key}.")
    elif isinstance(raw, list) and isinstance(parsed, list):
        for number, (value, item) in enumerate(zip(raw, parsed, strict=True)):
            yield from _unknown(value, item, f"{place}{number}.")
