"""The gallery: what the page knows before anybody looks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from raypref import cli
from raypref.checkpoint import Bundle
from raypref.config import RunConfig
from raypref.errors import ConfigError, InputError
from raypref.explore.gallery import Gallery, make_gallery
from raypref.explore.run import prepare
from raypref.serve.app import make_app
from raypref.serve.config import ServeConfig
from raypref.serve.config_file import read_serve_config
from raypref.serve.keys import create_key
from raypref.serve.pages import HEADERS, PAGE_FILES
from raypref.serve.scorer import Scorer
from tests.explore.world import PROMPTS, RESPONSES, grow, text
from tests.serve.world import LocalRemote


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return grow(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def gallery(config: RunConfig) -> Gallery:
    return make_gallery(config, config.bundle_dir)


def test_questions_are_the_inputs_texts_by_item(gallery: Gallery) -> None:
    assert len(gallery.questions) == PROMPTS
    for question in gallery.questions:
        assert len(question.responses) == RESPONSES
        for shown in question.responses:
            assert (question.prompt, shown.text) == text(shown.item)


def test_the_map_places_people_where_the_method_does(gallery: Gallery, config: RunConfig) -> None:
    held = gallery.population
    assert held is not None
    bundle = Bundle.load(config.bundle_dir)
    assert len(held.users) == bundle.users.num_rows
    axes_L2 = np.array(held.axes).T
    np.testing.assert_allclose(axes_L2.T @ axes_L2, np.eye(2), atol=1e-9)
    bases = bundle.info.method.model_dump()["bases"]
    mean_BL = np.array(bundle.users["vector"].to_pylist())[:, :bases]
    expected = (mean_BL - np.array(held.center)) @ axes_L2
    np.testing.assert_allclose(np.array(held.users), expected, atol=1e-5)
    assert held.ellipses is not None
    assert all(0 < one.minor <= one.major for one in held.ellipses)


def test_it_is_the_same_every_time(gallery: Gallery, config: RunConfig) -> None:
    assert make_gallery(config, config.bundle_dir) == gallery


def test_without_texts_there_is_nothing_to_show(config: RunConfig, tmp_path: Path) -> None:
    silent = config.model_copy(update={"input": config.input.model_copy(update={"path": None})})
    with pytest.raises(ConfigError, match=r"name them with input\.path"):
        make_gallery(silent, config.bundle_dir)
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"user_id": "a", "prompt": "p", "chosen": "x", "rejected": "y"}) + "\n")
    other = config.model_copy(update={"input": config.input.model_copy(update={"path": file})})
    with pytest.raises(InputError, match="no prompt has two responses"):
        make_gallery(other, config.bundle_dir)


def test_the_command_refuses_before_anything_starts(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(
            [
                "explore",
                str(tmp_path),
                "--set",
                f"dir={config.dir}",
                "--set",
                f"input.path={config.input.path}",
            ]
        )
        == 2
    )
    assert "no bundle here" in capsys.readouterr().err


async def _ask(app: object, *asked: tuple[str, dict[str, str]]) -> list[httpx.Response]:
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [await client.get(path, headers=headers) for path, headers in asked]


def test_the_page_asks_for_a_key_before_it_shows_people(config: RunConfig, tmp_path: Path) -> None:
    service = prepare(config, config.bundle_dir, "memory:", 8000, texts=False)
    args = read_serve_config(service, []).applications[0].args
    key = create_key(tmp_path / "keys.json", "me")
    held = ServeConfig.model_validate({**args, "open": False, "keys": str(tmp_path / "keys.json")})
    app = make_app(held.settings, LocalRemote(Scorer(held.settings, held.bundle)), None)
    bearer = {"Authorization": f"Bearer {key}"}
    paths = [(path, {}) for path in PAGE_FILES]
    *pages, refused, given = asyncio.run(
        _ask(app, *paths, ("/explore/gallery.json", {}), ("/explore/gallery.json", bearer))
    )
    for page, (_, kind) in zip(pages, PAGE_FILES.values(), strict=True):
        assert (page.status_code, page.headers["content-type"]) == (200, kind)
        assert {name: page.headers[name] for name in HEADERS} == HEADERS
    assert refused.status_code == 401
    assert Gallery.model_validate_json(given.content).questions
    without = ServeConfig.model_validate({name: value for name, value in args.items() if name != "explore"})
    app = make_app(without.settings, LocalRemote(Scorer(without.settings, without.bundle)), None)
    assert [answer.status_code for answer in asyncio.run(_ask(app, ("/explore", {})))] == [404]


def test_the_page_asks_nobody_else_for_anything() -> None:
    from importlib.resources import files

    folder = files("raypref.serve") / "page"
    for name, _ in PAGE_FILES.values():
        found = (folder / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in found
        assert "https:" not in found
        assert "innerHTML" not in found
