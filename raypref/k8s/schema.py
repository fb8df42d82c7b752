"""Fields, held against the API server's schemas: KubeRay's from its CRDs, Kubernetes' own where installed.

An API server drops a field that its schema does not know, in silence; here objects are closed.
"""

from __future__ import annotations

import copy
import gzip
import re
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import yaml
from jsonschema import Draft202012Validator

from raypref.errors import ConfigError
from raypref.k8s.kustomize import Manifest
from raypref.k8s.objects import Build, Finding

RULE = "schema"

Schemas = dict[tuple[str, str], dict[str, Any]]
"""JSON schemas by apiVersion and kind."""

GROUP = "ray.io/"
KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")
NATIVE = re.compile(
    r"([a-z0-9]+/)?v\d\w*|[a-z.]+(?<!gateway\.networking)(?<!snapshot\.storage)\.k8s\.io/v\d\w*"
)
"""Versions of kinds that are Kubernetes' own."""

SAFE_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it: a definition is a megabyte, ten seconds of the other's time."""


def read_crds(folder: Path) -> Schemas:
    """Read the custom resource definitions of a folder, plain or gzipped.

    Raises:
        ConfigError: there are none, or one cannot be read.
    """
    found: Schemas = {}
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yaml.gz")]):
        try:
            text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            definition = SAFE_LOADER(text).get_single_data()
            spec = definition["spec"]
            for version in spec["versions"]:
                schema = _closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
        except (OSError, EOFError, zlib.error, yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: is no custom resource definition ({error!r}).") from error
    if not found:
        raise ConfigError(f"{folder}: no custom resource definitions here (*.yaml or *.yaml.gz).")
    return found


def _closed(schema: Any) -> Any:
    """Return a schema of Kubernetes as JSON schema that allows no unknown field."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(cast("dict[str, Any]", schema))
    if closed.pop("x-kubernetes-int-or-string", False):
        kept = {name: closed[name] for name in ("pattern", "default") if name in closed}
        return {"type": ["integer", "string"], **kept}
    if closed.pop("nullable", False) and isinstance(closed.get("type"), str):
        closed["type"] = [closed["type"], "null"]
    if "properties" in closed:
        closed["properties"] = {name: _closed(part) for name, part in closed["properties"].items()}
        if not closed.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(closed.get(name), dict):
            closed[name] = _closed(closed[name])
    return closed


def check_schema(build: Build, schemas: Schemas) -> Iterator[Finding]:
    """Yield what the API server would not take, or drop."""
    for subject in build.objects:
        version, kind = str(subject.get("apiVersion")), str(subject.get("kind"))
        schema = schemas.get((version, kind))
        if version.startswith(GROUP) and version != GROUP + "v1":
            yield build.finding(subject, "apiVersion", f"{version} is gone; use ray.io/v1.", "api-version")
        elif schema is not None:
            filled = copy.deepcopy(subject)
            _fill(schema, filled)
            for error in Draft202012Validator(schema).iter_errors(filled):
                path = ".".join(str(part) for part in error.absolute_path)
                yield build.finding(subject, path, f"{error.message:.200}.", RULE)
        elif version.startswith(GROUP):
            if kind not in KINDS:
                yield build.finding(subject, "kind", f"{version} has no {kind}.", RULE)
        else:
            yield from _native(build, subject)


def _fill(schema: dict[str, Any], value: Any) -> None:
    """Set defaults, as the API server does before it validates."""
    if isinstance(value, dict):
        node = cast("dict[str, Any]", value)
        for name, part in (schema.get("properties") or {}).items():
            if name not in node and "default" in part:
                node[name] = copy.deepcopy(part["default"])
            if name in node:
                _fill(part, node[name])
        if isinstance(schema.get("additionalProperties"), dict):
            for part in node.values():
                _fill(schema["additionalProperties"], part)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for part in cast("list[Any]", value):
            _fill(schema["items"], part)


def native_schemas() -> bool:
    """Return whether objects of Kubernetes' own kinds can be held against their schemas."""
    return find_spec("kubernetes_validate") is not None


def _native(build: Build, subject: Manifest) -> Iterator[Finding]:
    if not native_schemas():
        return
    import kubernetes_validate
    from kubernetes_validate.utils import VersionNotSupportedError

    try:
        kubernetes_validate.validate(subject, kubernetes_validate.latest_version(), strict=True)
    except (kubernetes_validate.SchemaNotFoundError, VersionNotSupportedError):
        version = str(subject.get("apiVersion"))
        if NATIVE.fullmatch(version):
            yield build.finding(subject, "kind", f"{version} has no {subject.get('kind')}.", RULE)
        # Anything else is another operator's.
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        yield build.finding(subject, path, f"{error.message:.200}.", RULE)
