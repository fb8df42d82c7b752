"""A real browser, and when a page in it has done what it was asked."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

ARGS = ["--no-sandbox", "--host-resolver-rules=MAP elsewhere.example 127.0.0.1"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for a module: while Playwright runs, nothing else in this thread may run an event loop."""
    program = shutil.which("chromium")
    if program is None:
        message = "chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        yield browser
        browser.close()


def settled(page: Any, status: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(status, timeout=30_000)


def quiet(page: Any) -> None:
    """Wait until the page has done what it was asked."""
    from playwright.sync_api import expect

    expect(page.locator("body")).not_to_have_attribute("aria-busy", "true", timeout=30_000)
