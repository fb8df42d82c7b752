from __future__ import annotations

import pytest
from embed import steady, texts


def test_texts_are_distinct_and_the_same_every_time() -> None:
    assert texts(500) == texts(500)
    assert len(set(texts(500))) == 500
    assert all(len(text) > 20 for text in texts(500))


def test_the_rate_leaves_out_the_start_and_counts_the_end() -> None:
    # 256 texts every 2 s after 30 s of start; the engine's last 512 come at once as it drains.
    arrived = [(30.0 + 2 * part, 256) for part in range(10)] + [(48.5, 256), (48.6, 256)]
    assert steady(arrived, 48.6) == pytest.approx(128.0)
    assert steady(arrived, 48.6 + 24.0) == pytest.approx(64.0)
    with pytest.raises(ValueError, match="too few"):
        steady([(0.0, 600)], 1.0)
