from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypref.errors import ConfigError
from raypref.serve.config_file import applications, parse_serve_config, read_serve_config
from tests.conftest import REPOSITORY

SHIPPED = sorted((REPOSITORY / "serve_configs").glob("*.yaml"))


def small() -> dict[str, Any]:
    return {
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [
            {
                "name": "raypref",
                "route_prefix": "/",
                "import_path": "raypref.serve.app:build",
                "args": {"bundle": "bundle", "open": True, "store": "sqlite:///users.db"},
                "deployments": [
                    {"name": "Scorer", "autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
                    {"name": "Ingress", "ray_actor_options": {"num_cpus": 1}},
                ],
            }
        ],
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    config = read_serve_config(path, [])
    (application,) = applications(config)
    assert application.keys is not None
    assert not config.logging_config.enable_access_log


def test_there_are_shipped_configurations() -> None:
    assert {path.name for path in SHIPPED} >= {"local.yaml", "production.yaml"}


def test_overrides_reach_the_arguments() -> None:
    config = parse_serve_config(small(), ["bundle=other", "limits.max_in_flight=3"], "test")
    (application,) = applications(config)
    assert (str(application.bundle), application.limits.max_in_flight) == ("other", 3)


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ((), "http_option", {}, "http_option: unknown key"),
        (("http_options",), "prot", 1, "http_options.prot: unknown key"),
        (("http_options",), "port", "many", "http_options.port"),
        (("applications", 0), "route", "/", "applications.0.route: unknown key"),
        (("applications", 0, "args"), "bundel", "x", "bundel: unknown key"),
        (("applications", 0, "args"), "open", False, "raypref keys create"),
        (("applications", 0, "args"), "keys", "k.json", "contradict"),
        (("applications", 0, "args"), "keep", "ids", "items"),
        (("applications", 0, "args"), "store", "memory:", "memory: is for one replica"),
        (("applications", 0, "args"), "bundle", "hf://me/taste", "name a revision"),
        (("applications", 0, "deployments", 0), "user_config", {"bundel": "x"}, "user_config: bundel"),
        (("applications", 0, "deployments", 0), "user_config", {"bundle": "hf://me/a"}, "a revision"),
        (("applications", 0, "args"), "embed", {"engine": "vlmm"}, "args: embed"),
        (("applications", 0, "args"), "half_life_days", 0, "half_life_days"),
        (("applications", 0, "deployments", 0), "name", "Scorre", "Scorre is none of Ingress, Scorer"),
        (("applications", 0, "deployments", 0), "max_queued_request", 1, "max_queued_request: unknown key"),
        (
            ("applications", 0, "deployments", 0, "autoscaling_config"),
            "target_num_ongoing_requests_per_replica",
            2,
            "autoscaling_config.target_num_ongoing_requests_per_replica: unknown key",
        ),
        (("applications", 0, "deployments", 1, "ray_actor_options"), "num_cpu", 1, "num_cpu"),
    ],
)
def test_what_serve_would_drop_in_silence_is_refused(
    place: tuple[str | int, ...], key: str, value: object, message: str
) -> None:
    raw = copy.deepcopy(small())
    node: Any = raw
    for part in place:
        node = node[part]
    node[key] = value
    with pytest.raises(ConfigError) as refused:
        parse_serve_config(raw, [], "test")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "applications: []", "applications: {a: 1}", "a: [", "applications: [3]"]
)
def test_what_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"serve\.yaml"):
        read_serve_config(path, [])


def test_the_small_configuration_is_valid_as_it_stands() -> None:
    parse_serve_config(yaml.safe_load(yaml.safe_dump(small())), [], "test")


@pytest.mark.parametrize(("installed", "engine"), [(True, "vllm"), (False, "transformers")])
def test_text_is_embedded_by_vllm_where_it_is_installed(
    installed: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypref.serve.config.find_spec", lambda name: object() if installed else None)
    raw = small()
    raw["applications"][0]["args"]["embed"] = {}
    (application,) = applications(parse_serve_config(raw, [], "test"))
    assert application.embed is not None
    assert application.embed.engine == engine
