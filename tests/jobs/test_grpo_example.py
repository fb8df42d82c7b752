"""The example of GRPO: rewards rise, and two users' policies part ways."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


def example(*arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("trl")
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs/examples/grpo.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_each_policy_goes_where_its_user_wants_it() -> None:
    done = example("--seed", "7", "--steps", "40")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {
        line.split()[0]: line.split()
        for line in done.stdout.splitlines()
        if line.startswith(("loud", "calm"))
    }
    words = {
        "loud": {"fast", "bright", "wild", "sharp", "bold", "noisy"},
        "calm": {"quiet", "slow", "soft", "still", "warm", "gentle"},
    }
    for user, (_, first, last, *said) in rows.items():
        assert float(last) > float(first) + 2, done.stdout
        assert set(said) <= words[user], done.stdout
    distance = re.search(r"total variation of what they say: ([\d.]+)", done.stdout)
    assert distance is not None
    assert float(distance[1]) > 0.8


def test_a_policy_that_has_not_moved_is_a_failure() -> None:
    done = example("--steps", "1")
    assert done.returncode == 1
    assert "the policies stayed alike" in done.stderr
