from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from raypref.config import HTTPConfig, RunConfig, VLLMConfig
from raypref.config_file import load_config, parse_config
from raypref.errors import ConfigError
from raypref.methods import METHODS
from raypref.methods.base import MethodConfig
from tests.conftest import REPOSITORY


def parse(*overrides: str, **raw: Any) -> RunConfig:
    return parse_config(raw, list(overrides), "test")


def test_an_empty_configuration_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert load_config(tmp_path / "run.yaml", []) == load_config(None, []) == RunConfig()


def test_overrides_reach_nested_sections_and_are_yaml() -> None:
    config = parse(
        "train.seed=7",
        "train.use_gpu=true",
        "evaluate.shots=[0, 4]",
        "input.path=~",
        "method.recipe.lr=1e-2",
        "embed.template='{prompt} = {response}'",
        "embed.revision='123'",
        method={"type": "bt"},
    )
    assert (config.train.seed, config.train.use_gpu, config.evaluate.shots) == (7, True, (0, 4))
    assert config.input.path is None
    assert config.method.recipe.lr == 0.01
    assert config.embed.template == "{prompt} = {response}"
    assert config.embed.revision == "123"


def test_the_last_override_wins_over_the_file_and_the_others(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {seed: 1, workers: 2}\n")
    config = load_config(tmp_path / "run.yaml", ["train.seed=2", "train.seed=3"])
    assert (config.train.seed, config.train.workers) == (3, 2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.sede=1"], "test: train.sede: unknown key"),
        (["method.recipe.rate=1"], "method.vrf.recipe.rate: unknown key"),
        (["tarin.seed=1"], "test: tarin: unknown key"),
        (["method.type=nobody"], "method"),
        (["embed.engine=nobody"], "embed"),
        (["train.workers=0", "train.patience=-1"], "train.workers"),
        (["train.seed=one"], "train.seed"),
        (["evaluate.seeds=[]"], "evaluate.seeds"),
        (["prepare.unseen_share=1"], "prepare.unseen_share"),
        (["prepare.warm_share=0.6", "prepare.valid_share=0.4"], "something to train on"),
        (["embed.template=no place"], "{response}"),
        (["embed.concurrency=[4, 2]"], "min <= max"),
        (["embed.engine=http"], "embed.http.url"),
        (["train.seed"], "write it as a.b=value"),
        (["=1"], "write it as a.b=value"),
        (["train..seed=1"], "write it as a.b=value"),
        (["train.seed={"], "not YAML"),
        (["dir=run", "dir.x=1"], "dir is a value, not a section"),
    ],
)
def test_a_mistake_is_named_with_its_path(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(*overrides)
    assert said in str(error.value)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse(train={"workers": 0, "sede": 1}, nonsense=2)
    assert sorted(line.split(": ")[1] for line in str(error.value).splitlines()) == [
        "nonsense",
        "train.sede",
        "train.workers",
    ]


@pytest.mark.parametrize(
    "text", ["- 1\n", "words", "3", "a: b: c", "{", "\x00", "!!python/object:os.system x"]
)
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml", [])


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe\xfa")])
def test_what_is_no_text_is_refused(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(tmp_path / "run.yaml", [])


@pytest.mark.parametrize("method", METHODS)
def test_a_partial_recipe_keeps_the_rest_of_the_vetted_one(method: type[MethodConfig]) -> None:
    vetted = method().recipe
    name = method.model_fields["type"].default
    config = parse(f"method.type={name}", "method.recipe.steps=3")
    assert config.method.recipe == vetted.model_copy(update={"steps": 3})
    assert parse(f"method.type={name}", "method.recipe={}").method.recipe == vetted
    assert type(config.method) is method


def test_a_recipe_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.vrf\.recipe"):
        parse("method.recipe=3")


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Return a model and every model that its fields name, at any depth."""
    found = {model}
    waiting = [field.annotation for field in model.model_fields.values()]
    while waiting:
        one = waiting.pop()
        if get_origin(one) is not None or isinstance(one, UnionType):
            waiting += get_args(one)
        elif isinstance(one, type) and issubclass(one, BaseModel) and one not in found:
            found |= sections(one)
    return found


def test_every_section_is_frozen_and_refuses_unknown_keys() -> None:
    assert len(sections(RunConfig)) >= 13
    for section in sections(RunConfig):
        assert section.model_config.get("frozen"), section
        assert section.model_config.get("extra") == "forbid", section
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().train.seed = 1


def test_every_setting_explains_itself() -> None:
    silent = [
        f"{section.__name__}.{name}"
        for section in sections(RunConfig)
        for name, field in section.model_fields.items()
        if not field.description
        # A section is explained by its own docstring; a discriminator names its model.
        and not sections_of(field.annotation)
        and name not in ("type", "engine")
    ]
    assert silent == []
    assert all(section.__doc__ for section in sections(RunConfig))


def sections_of(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(sections_of(part) for part in get_args(annotation))


def test_absolute_leaves_no_path_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse("dir=here", "tables=/elsewhere/tables", "input.path=data.jsonl")
    found = config.absolute()
    assert found.dir == tmp_path / "here"
    assert found.items_dir == tmp_path / "here" / "items"
    assert found.tables_dir == Path("/elsewhere/tables")
    assert found.bundle_dir == tmp_path / "here" / "bundle"
    assert found.report_dir == tmp_path / "here" / "report"
    assert found.absolute() == found
    assert config.dir == Path("here")


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "jobs/configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_a_configuration_survives_its_resolved_form(path: Path) -> None:
    config = load_config(path, [])
    resolved = config.model_dump_json()
    assert RunConfig.model_validate_json(resolved) == config
    assert parse_config(yaml.safe_load(resolved), [], "resolved") == config
    assert parse_config(json.loads(resolved), [], "resolved").model_dump_json() == resolved


@pytest.mark.parametrize(
    "embed",
    [
        {"engine": "http", "url": "http://x/v1", "dim": 8, "api_key_env": "KEY"},
        {"engine": "vllm", "engine_kwargs": {"a": [1, {"b": None}]}, "dtype": "bfloat16"},
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_engine_and_method_survives_its_resolved_form(
    embed: dict[str, Any], method: type[MethodConfig]
) -> None:
    config = parse(embed=embed, method={"type": method.model_fields["type"].default})
    assert isinstance(config.embed, HTTPConfig | VLLMConfig)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
