"""docs/quickstart.md, followed word for word."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raypref.demo.population import judge, load_bank
from tests.conftest import REPOSITORY
from tests.pages import Terminal

PAGE = (REPOSITORY / "docs/quickstart.md").read_text()
USERS, COMPARISONS = 300, 20

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_page_leads_from_a_trl_dataset_to_a_scored_request(tmp_path: Path) -> None:
    with (tmp_path / "prefs.jsonl").open("w") as file:
        for row in judge(load_bank(), USERS, COMPARISONS, seed=3):
            file.write(json.dumps({"annotator": row.pop("user_id"), **row}) + "\n")
    script = "set -e\n" + "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    printed = Terminal(tmp_path).run(script, timeout_s=800)
    rows = {
        name: list(map(float, re.findall(r"0\.\d+", line)))
        for line in printed.splitlines()
        if (name := line.split()[0] if line.strip() else "") in ("bt", "vrf")
    }
    # Unseen users after 16 comparisons: what is personal is worth something.
    assert rows["vrf"][-1] > rows["bt"][-1] + 0.03, printed
    answers = [match.start() for match in re.finditer(r'\{"object":"raypref', printed)]
    learned, scored = (json.JSONDecoder().raw_decode(printed, start)[0] for start in answers)
    assert learned["shots"] == 1
    [row] = scored["data"]
    assert (row["user"], row["shots"], row["cold"]) == ("zoe", 1, False)
    assert len(row["mean"]) == len(row["std"]) == 2
