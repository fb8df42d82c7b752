"""The page before services that differ: other methods, keys, new text, another model than the gallery's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypref import files
from raypref.config import RunConfig
from raypref.data.rows import Text
from raypref.explore.gallery import make_gallery
from raypref.schema import Embedder
from raypref.serve.config import ServeConfig
from raypref.serve.keys import create_key
from tests.explore.conftest import quiet, settled
from tests.explore.world import DIM, another, embeddings, grow
from tests.serve.world import embedder_of, listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Open = Callable[..., str]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return grow(tmp_path_factory.mktemp("world"))


class Texts:
    """Makes the vector of an item of the world from its text, and of any other text something."""

    async def embed(self, items: Sequence[tuple[Text | None, Text]]) -> tuple[np.ndarray, Embedder]:
        known = embeddings()
        rows = [str(response).removeprefix("Answer ").partition(",")[0] for _, response in items]
        return np.stack([known[int(row)] for row in rows]), await self.describe()

    async def describe(self) -> Embedder:
        return embedder_of(DIM).model_copy(update={"template": "{prompt}\n\n{response}"})


@pytest.fixture
def service(config: RunConfig, tmp_path: Path) -> Iterator[Open]:
    """Start the service of a bundle, with the gallery of it or of another, on a port of this process."""
    with ExitStack() as stack:

        def start(
            run: RunConfig, gallery_of: RunConfig | None = None, embedder: Any = None, **args: Any
        ) -> str:
            shown = gallery_of or run
            gallery = make_gallery(shown, shown.bundle_dir).model_dump_json()
            files.write_text(tmp_path / "gallery.json", gallery)
            held = ServeConfig.model_validate(
                {"bundle": run.bundle_dir, "items": run.items_dir, "store": "memory:"}
                | {"open": "keys" not in args, "explore": tmp_path / "gallery.json", **args}
            )
            return stack.enter_context(listening(held, embedder))

        yield start


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    assert wrong == []


@pytest.mark.parametrize(
    "method", [{"type": "bt"}, {"type": "dpl"}, {"type": "lore", "bases": 2, "solver": "adam"}]
)
def test_a_method_without_a_posterior_has_a_page_too(
    method: dict[str, Any], config: RunConfig, service: Open, page: Any
) -> None:
    run = another(config, method["type"], **method, recipe={"steps": 20})
    page.goto(f"{service(run)}/explore")
    settled(page, "Nothing is known of you yet.")
    asked: set[str] = set()
    for count in range(3):
        asked.add(page.locator("#first").inner_text() + page.locator("#second").inner_text())
        assert "Drawn at random" in page.locator("#why").inner_text()
        page.keyboard.press("1")
        settled(page, f"{count + 1} answer{'s' if count else ''} so far.")
    assert len(asked) == 3
    if method["type"] != "lore":
        assert page.locator("#leanings").inner_text() == "This model says the same of everybody."
        assert page.locator("#map-text").inner_text() == "This method has no map of people."
    page.locator("#show-all").click()
    assert page.locator("#certain-text").inner_text() == "This method does not say how well it knows people."
    assert page.locator("#certain-table").is_hidden()
    assert page.locator("#drift").is_hidden()
    assert page.locator("#bases article").count() >= 1


def test_a_key_is_asked_for_and_kept_in_the_tab(
    config: RunConfig, service: Open, page: Any, tmp_path: Path
) -> None:
    key = create_key(tmp_path / "keys.json", "me")
    page.goto(f"{service(config, keys=str(tmp_path / 'keys.json'))}/explore")
    page.locator("#key").wait_for()
    assert page.locator("#me").is_hidden()
    page.locator("#key").fill("wrong")
    page.keyboard.press("Enter")
    quiet(page)
    assert page.locator("#key").is_visible()
    page.locator("#key").fill(key)
    page.keyboard.press("Enter")
    settled(page, "Nothing is known of you yet.")
    prompts = page.locator("#ranked option").count()
    page.reload()
    settled(page, "Nothing is known of you yet.")
    assert page.locator("#key").is_hidden()
    assert page.locator("#ranked option").count() == prompts
    assert key not in page.content()


def test_a_text_of_ones_own_is_scored_among_the_answers(config: RunConfig, service: Open, page: Any) -> None:
    address = service(config, embedder=Texts(), embed={"model": "test"})
    page.goto(f"{address}/explore")
    settled(page, "Nothing is known of you yet.")
    for count in range(4):
        page.keyboard.press("1")
        settled(page, f"{count + 1} answer{'s' if count else ''} so far.")
    page.locator("#ranked").select_option("0")
    quiet(page)
    ranked = [int(item.get_attribute("data-item")) for item in page.locator("#ranking li").all()]
    for place, item in enumerate(ranked):
        page.locator("#text").fill(f"Answer {item}, on its own.")
        page.get_by_role("button", name="Score it").click()
        quiet(page)
        said = page.locator("#text-score span").inner_text()
        # As good as itself, so it beats those behind it; rounding may let it beat itself.
        assert any(
            said.startswith(f"You would like it better than {len(ranked) - place - off} of") for off in (0, 1)
        )
        # Its score is the one that it has among the answers, with what that is known to within.
        shown = page.locator("#ranking li strong").nth(place).inner_text()
        assert re.fullmatch(r"[+−]\d+\.\d\d ± \d+\.\d\d", shown)
        assert page.locator("#text-score strong").inner_text() == shown
        assert page.locator("#text-score svg .span").count() == 1


def test_a_gallery_of_another_model_is_told(config: RunConfig, service: Open, page: Any) -> None:
    other = another(config, "other", type="lore", bases=2, recipe={"steps": 30})
    page.goto(f"{service(config, gallery_of=other)}/explore")
    settled(page, "Nothing is known of you yet.")
    assert page.locator("#stale").is_visible()
