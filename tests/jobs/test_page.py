from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from page import HEAT_SHOTS, heat, write_page

from tests.jobs.synthetic import result

RESULTS = {"planted-noisy": result("planted-noisy"), "polis-warm": result("polis-warm", "warm")}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    claim = {
        "claim": "Nobody claims this",
        "source": "a paper",
        "command": "python x.py",
        "holds": "partly",
        "reading": "3 < 4.",
        "conditions": {"one": True, "two": False},
        "figures": {
            "width": 8,
            "users": [10, 100],
            "parameters": {"LoRe": [40, 400], "raypref lore": [9, 9]},
        },
    }
    folder = tmp_path_factory.mktemp("page")
    (folder / "claims_6_parameters.json").write_text(json.dumps(claim))
    write_page(RESULTS, folder / "methods.html")
    return (folder / "methods.html").read_text()


def test_every_part_is_there(page: str) -> None:
    for part in ("claims", "curves", "heat", "cost", "latents", "how"):
        assert f'<h2 id="{part}">' in page
    assert page.count("<svg") == 2 * len(RESULTS) + 1
    assert "◐ partly" in page
    assert "1 of 2 conditions" in page
    assert "3 &lt; 4." in page
    assert "pal on planted-noisy, seed 0, failed: it &lt;broke&gt;" in page
    assert "7 of 16" in page
    assert "1,234" in page
    # 40 µs alone and at once: infer_seconds is of all users.
    assert "<td>40</td><td>40.00</td>" in page


def test_it_needs_no_network(page: str) -> None:
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r"<!--.*?-->", "", page))
    assert "<script" not in page
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_heat_shows_the_sign_and_the_size_of_a_difference() -> None:
    rows = heat(RESULTS, ["bt", "vrf", "vpl-released", "pal"], HEAT_SHOTS[-1])
    vrf, released = rows["vrf"][0], rows["vpl-released"][0]
    assert vrf is not None
    assert released is not None
    assert (vrf.verdict, released.verdict) == ("better", "worse")
    assert vrf.strength > released.strength > 0
    assert rows["pal"] == [None, None]
    few = heat(RESULTS, ["vrf"], 1)["vrf"][0]
    assert few is not None
    assert few.verdict == "open"
    assert few.strength == 0


def test_without_claims_there_is_no_such_part(tmp_path: Path) -> None:
    write_page(RESULTS, tmp_path / "methods.html")
    assert '<h2 id="claims">' not in (tmp_path / "methods.html").read_text()
