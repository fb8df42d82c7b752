from __future__ import annotations

import re

import pytest
import scale

from tests.conftest import REPOSITORY

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@pytest.mark.parametrize("name", ["bytes", "seconds", "slopes"])
def test_the_page_says_what_was_measured(name: str) -> None:
    page = (REPOSITORY / "docs" / "scale.md").read_text()
    printed = page.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- end of {name} -->")[0]
    wanted = scale.page()[name]
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    found, expected = (
        [float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (printed, wanted)
    )
    # Another SQLite packs its pages a little otherwise; all else is arithmetic.
    assert found == pytest.approx(expected, rel=0.02 if name == "bytes" else 1e-9)


def test_a_store_grows_by_what_it_is_given() -> None:
    user, comparison = scale.store_bytes(1 + 2 * 384, 9, 44)
    wider_user, wider = scale.store_bytes(1 + 2 * 768, 9, 44)
    # SQLite fills its pages as far as rows fit.
    assert 2 * 2 * 384 <= wider - comparison < 1.5 * 2 * 2 * 384
    assert wider_user == pytest.approx(user, rel=0.1)
    assert 176 < user < 1000
