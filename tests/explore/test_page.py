"""The explorer in a real browser, before a real service."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from raypref.config import RunConfig
from tests.conftest import terminal_signals
from tests.explore.conftest import quiet, settled
from tests.explore.world import another, embeddings, grow, tastes
from tests.serve.chaos.service import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

RUNS, ANSWERS = 20, 10


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`raypref explore` as a process, with a bundle of a planted world."""
    folder = tmp_path_factory.mktemp("explore")
    config: RunConfig = grow(folder)
    earlier = another(config, "earlier", type="bt", recipe={"steps": 10}).bundle_dir
    [port] = free_ports(1)
    command = [sys.executable, "-m", "raypref", "explore", "--port", str(port), "--set", f"dir={config.dir}"]
    command += ["--against", str(earlier)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--set", f"input.path={config.input.path}"],
            stdout=log,
            stderr=log,
            env={**environment, "OMP_NUM_THREADS": "1"},
            preexec_fn=terminal_signals,
        )
    try:
        deadline_s = time.monotonic() + 120
        while b"listening on 127.0.0.1" not in (folder / "log").read_bytes():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline_s, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A person's tab; whatever goes wrong in it fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "response",
        lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None,
    )
    page.goto(f"{address}/explore")
    settled(page, "Nothing is known of you yet.")
    yield page
    context.close()
    assert wrong == []


def answered(page: Any, count: int) -> None:
    settled(page, f"{count} answer{'s' if count > 1 else ''} so far.")


def test_answers_tighten_the_map_and_are_taken_back(page: Any, address: str) -> None:
    name = page.locator("#name").inner_text()
    before = float(page.locator("#map").get_attribute("data-major"))
    page.locator("#first").click()
    answered(page, 1)
    page.keyboard.press("2")
    answered(page, 2)
    page.keyboard.press("ArrowLeft")
    answered(page, 3)
    assert float(page.locator("#map").get_attribute("data-major")) < before
    assert httpx.get(f"{address}/v1/users/{name}").json()["shots"] == 3
    page.keyboard.press("u")
    answered(page, 2)
    prompt = page.locator("#prompt").inner_text(), page.locator("#first").inner_text()
    page.keyboard.press("s")
    quiet(page)
    assert (page.locator("#prompt").inner_text(), page.locator("#first").inner_text()) != prompt
    page.reload()
    answered(page, 2)
    page.locator("#forget").click()
    page.get_by_role("button", name="Keep them").click()
    answered(page, 2)
    page.locator("#forget").click()
    page.locator("#sure").get_by_role("button", name="Forget me").click()
    settled(page, "You are forgotten. This tab has a new name.")
    assert httpx.get(f"{address}/v1/users/{name}").json()["cold"]
    assert page.locator("#name").inner_text() != name


def test_it_fits_a_phone_and_has_no_barrier(page: Any, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.keyboard.press("1")
    answered(page, 1)
    for width, height in ((1280, 900), (360, 740)):
        page.set_viewport_size({"width": width, "height": height})
        for view in ("#show-all", "#show-me"):
            page.locator(view).click()
            page.screenshot(path=tmp_path / f"{width}{view[1:]}.png", full_page=True)
            assert (tmp_path / f"{width}{view[1:]}.png").stat().st_size > 10_000
            for shown in (page.locator("html"), *page.locator("section:visible").all()):
                assert shown.evaluate("element => element.scrollWidth <= element.clientWidth")
            found = Axe().run(page).response["violations"]
            assert [one for one in found if one["impact"] in ("serious", "critical")] == []
        for button in page.get_by_role("button").all():
            if button.is_visible():
                assert button.bounding_box()["height"] >= 44


def test_the_population_is_shown(page: Any) -> None:
    page.locator("#show-all").click()
    assert page.locator("#all-map .user").count() > 50
    assert page.locator("#certain .bar").count() == 16
    assert page.locator("#certain .self-mark").count() == 1
    assert "The line is you" in page.locator("#certain-text").inner_text()
    page.locator("#certain-table summary").click()
    counts = [int(row.inner_text()) for row in page.locator("#certain-rows td:last-child").all()]
    assert sum(counts) == page.locator("#all-map .user").count()
    assert page.locator("#drift-text").inner_text().startswith("Since earlier@")
    assert page.locator("#matches tr").count() == page.locator("#bases article").count()
    assert page.locator("#rose li").count() == page.locator("#fell li").count() == 3
    assert page.locator("#stale").is_hidden()
    assert page.locator("#bases article").count() >= 2
    held = json.loads(page.request.get(f"{page.url}/gallery.json").text())["description"]["bases"]
    for article, basis in zip(page.locator("#bases article").all(), held, strict=True):
        telling = [feature["name"] for feature in basis["features"] if feature["significant"]]
        names = article.locator(":scope > table td:first-child").all_inner_texts()
        assert names == telling
        assert article.locator("details td").count() == 2 * len(basis["contrasts"])
    assert page.locator("#bases details").count() >= 2
    page.locator("#bases summary").first.click()
    assert page.locator("#bases details td").first.is_visible()
    assert page.locator("#me").is_hidden()


def test_ten_answers_find_what_planted_people_prefer(page: Any) -> None:
    """In nine of ten runs what the page puts first, of a question of our choice, is what the person wants."""
    emb_ND = embeddings()[:, :2].astype(float)
    right = 0
    for run, taste in enumerate(tastes(RUNS, 11)):
        for count in range(ANSWERS):
            shown = [
                int(re.findall(r"\d+", page.locator(side).inner_text())[0]) for side in ("#first", "#second")
            ]
            page.keyboard.press("1" if emb_ND[shown[0]] @ taste > emb_ND[shown[1]] @ taste else "2")
            answered(page, count + 1)
        page.locator("#ranked").select_option(str(run))
        quiet(page)
        items = [int(item.get_attribute("data-item")) for item in page.locator("#ranking li").all()]
        right += items[0] == max(items, key=lambda item: emb_ND[item] @ taste)
        page.locator("#forget").click()
        page.locator("#sure").get_by_role("button", name="Forget me").click()
        settled(page, "You are forgotten. This tab has a new name.")
    assert right >= 0.9 * RUNS, f"{right} of {RUNS}"


def test_the_last_answer_is_taken_back_after_a_reload_too(page: Any, address: str) -> None:
    for count in range(6):
        page.keyboard.press("1")
        answered(page, count + 1)
    kept = f"{address}/v1/users/{page.locator('#name').inner_text()}/export"
    before = sorted(httpx.get(kept).json()["comparisons"], key=lambda one: one["timestamp"])
    page.reload()
    answered(page, 6)
    sides = [page.locator(side).inner_text() for side in ("#first", "#second")]
    shown = {int(re.findall(r"\d+", side)[0]) for side in sides}
    assert shown not in [{one["chosen"]["item"], one["rejected"]["item"]} for one in before]
    page.keyboard.press("u")
    answered(page, 5)
    left = {one["event_id"] for one in httpx.get(kept).json()["comparisons"]}
    assert left == {one["event_id"] for one in before[:-1]}


def test_it_works_over_plain_http_from_another_machine(address: str, browser: Any) -> None:
    """What browsers give to https alone, the page does without."""
    page = browser.new_page()
    page.goto(f"{address.replace('127.0.0.1', 'elsewhere.example')}/explore")
    assert not page.evaluate("isSecureContext")
    settled(page, "Nothing is known of you yet.")
    page.keyboard.press("1")
    answered(page, 1)
    page.close()
