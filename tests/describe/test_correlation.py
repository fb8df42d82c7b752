from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raypref.describe.axes import principal_axes
from raypref.describe.correlation import (
    center,
    correlate,
    discoveries,
    rank_features,
    standardised_ranks,
)
from raypref.describe.features import FEATURES, measure, words
from raypref.errors import InputError
from tests.describe.world import PROMPTS, RESPONSES, write_texts

GROUP_N = np.repeat(np.arange(PROMPTS), RESPONSES)


def feature(text: str, name: str) -> float:
    return measure([text])[0, [each.name for each in FEATURES].index(name)]


@pytest.mark.parametrize("clustered", [False, True])
def test_random_bases_have_no_names(clustered: bool) -> None:
    """The law: almost no random basis is named, also where a prompt decides what is long and liked."""
    rng = np.random.default_rng(0)
    _, responses, _ = write_texts()
    order_N = (
        np.lexsort(([len(text) for text in responses], GROUP_N)) if clustered else np.arange(len(GROUP_N))
    )
    ranks = rank_features(measure([responses[at] for at in order_N]), GROUP_N)
    assert len(ranks.feature_A) > 3
    named = significant = 0
    for _ in range(100):
        score_KN = rng.normal(size=(5, len(GROUP_N)))
        if clustered:
            slope_KN = rng.normal(size=(5, PROMPTS))[:, GROUP_N]
            score_KN = 0.5 * score_KN + slope_KN * (np.arange(len(GROUP_N)) % RESPONSES - 3.5)
        found, names = correlate(center(score_KN, GROUP_N), ranks)
        named += sum(name != "unnamed" for name in names)
        significant += any(each.significant for part in found for each in part)
    assert named <= 10
    assert significant <= 12


def test_intervals_cover_the_truth_and_agree_with_spearman() -> None:
    rng = np.random.default_rng(1)
    _, responses, _ = write_texts()
    value_NA = measure(responses)
    ranks = rank_features(value_NA, np.zeros(len(responses), int))
    score_N = rng.normal(size=len(responses)) + 0.01 * value_NA[:, 0]
    (found, *_), _ = correlate(score_N[None], ranks)
    for each in found:
        at = [one.name for one in FEATURES].index(each.name)
        assert each.rho == pytest.approx(stats.spearmanr(score_N, value_NA[:, at]).statistic, abs=1e-3)
        assert each.low < each.rho < each.high
    missed = 0
    for _ in range(200):
        (found, *_), _ = correlate(rng.normal(size=(1, len(responses))), ranks)
        one = next(each for each in found if each.name == "characters")
        missed += not one.low <= 0 <= one.high
    assert missed <= 20


def test_a_feature_that_hardly_varies_is_not_tested() -> None:
    _, responses, _ = write_texts()
    names = [FEATURES[at].name for at in rank_features(measure(responses), GROUP_N).feature_A]
    assert "characters" in names
    assert "code_blocks" not in names
    one = ["```\ncode\n```", *responses[1:]]
    assert "code_blocks" not in [FEATURES[at].name for at in rank_features(measure(one), GROUP_N).feature_A]


def test_a_name_does_not_say_one_thing_twice() -> None:
    _, responses, _ = write_texts()
    value_NA = measure(responses)
    ranks = rank_features(value_NA, GROUP_N)
    marks_N = value_NA[:, [each.name for each in FEATURES].index("exclamations")]
    length_N = value_NA[:, 0]
    score_KN = np.stack([length_N, length_N / length_N.std() - marks_N / marks_N.std()])
    _, names = correlate(center(score_KN, GROUP_N), ranks)
    assert names[0] == "longer"
    assert set(names[1].split(", ")) == {"longer", "fewer exclamation marks"}


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    p = np.random.default_rng(2).uniform(size=(4, 10)) ** 3
    assert np.array_equal(discoveries(p).ravel(), stats.false_discovery_control(p, axis=None) <= 0.05)
    assert not discoveries(np.ones((2, 3))).any()
    assert discoveries(np.zeros((0, 3))).shape == (0, 3)


def test_ranks_share_ties() -> None:
    value_N = np.array([3.0, 1.0, 3.0, 2.0])
    ranks_N = stats.rankdata(value_N)
    assert standardised_ranks(value_N) == pytest.approx((ranks_N - ranks_N.mean()) / ranks_N.std())
    assert not standardised_ranks(np.ones(4)).any()


def test_axes_take_rewards_apart_exactly_and_do_not_see_rotations() -> None:
    rng = np.random.default_rng(3)
    item_NK, user_UK = rng.normal(size=(len(GROUP_N), 3)), rng.normal(size=(50, 3)) * [3, 2, 1] + [1, 0, 0]
    axes = principal_axes((user_UK @ item_NK.T).astype(np.float32), GROUP_N)
    assert axes.common
    assert len(axes.share_K) == 4
    assert axes.share_K.sum() + axes.rest == pytest.approx(1)
    assert axes.score_KN.var(1) == pytest.approx(np.ones(4), abs=1e-4)
    centered_KN = center(item_NK.T, GROUP_N)
    variance_U = (user_UK @ centered_KN).var(1)
    personal_U = ((user_UK - user_UK.mean(0)) @ centered_KN).var(1)
    assert axes.share_K[1:].sum() == pytest.approx(personal_U.mean() / variance_U.mean(), rel=1e-4)
    mixed_KK = rng.normal(size=(3, 3))
    rotated_UN = (user_UK @ np.linalg.inv(mixed_KK)) @ (mixed_KK @ item_NK.T)
    assert principal_axes(rotated_UN.astype(np.float32), GROUP_N).score_KN == pytest.approx(
        axes.score_KN, abs=1e-3
    )
    with pytest.raises(InputError, match="same reward"):
        principal_axes(np.ones((5, len(GROUP_N)), np.float32), GROUP_N)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("characters", "abc d", 5),
        ("words", "It’s one, two; 3 four.", 4),
        ("sentence_words", "One two three. Four!\nFive six", 2),
        ("variety", "a b a b", 0.5),
        ("questions", "Why? Who??", 3),
        ("exclamations", "No!!", 2),
        ("numbers", "In 1999 it was 3.5 or 1,000", 3),
        ("list_items", "- a\n* b\n2. c\nd - e", 3),
        ("markdown", "# Head\n**bold** and `code` [link](url)", 4),
        ("code_blocks", "x\n```py\na\n```\ny\n```\nb\n```", 2),
        ("first_person", "I think we are", 50),
        ("second_person", "You're your own", 200 / 3),
        ("hedges", "Perhaps it might", 200 / 3),
        ("formality", "The establishment doesn't care", 0),
        ("formality", "The dog's information", 100 / 3),
        ("politeness", "Thank you", 50),
        ("refusal", "I'm sorry, but I cannot help.", 1),
        ("refusal", "I can help.", 0),
    ],
)
def test_features_count_what_they_say(name: str, text: str, value: float) -> None:
    assert feature(text, name) == pytest.approx(value)


def test_texts_without_words_have_features() -> None:
    assert np.isfinite(measure(["", "...", "123", "日本語"])).all()
    assert words("Don’t STOP") == ("don't", "stop")
