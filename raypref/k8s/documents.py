"""YAML of manifests, read more strictly than YAML's readers do: no key twice, no bombs, one kind of error."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import yaml

from raypref.errors import ConfigError

MOST = 200_000
"""Values in a document, each anchor counted wherever it is referred to: more is a bomb, not a manifest."""


class _Loader(yaml.SafeLoader):
    """Takes no key twice: of two, YAML's readers keep the last, in silence. Dates stay text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in held if tag != "tag:yaml.org,2002:timestamp"]
        for first, held in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_all(text: str) -> list[Any]:
    """Return the documents of a YAML stream, but for empty ones.

    Raises:
        ConfigError: it is no YAML, a key stands twice, anchors make it too large.
    """
    found: list[Any] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is not None and _size(node, {}) > MOST:
                raise ConfigError(f"cannot be read as YAML (more than {MOST} values).")
            found.append(loader.construct_document(node))
    except RecursionError as error:
        raise ConfigError("cannot be read as YAML (it is nested too deep).") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot be read as YAML ({error}).") from error
    return [document for document in found if document is not None]


def load(text: str) -> Any:
    """Return the only document of a text; None if it is empty.

    Raises:
        ConfigError: as `load_all`, or there are several.
    """
    found = load_all(text)
    if len(found) > 1:
        raise ConfigError(f"holds {len(found)} YAML documents; one is read.")
    return found[0] if found else None


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of values below a node, counted as often as they are referred to."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST  # what holds itself has no end
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = cast("list[yaml.Node]", node.value)
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]
