"""Shifts of shape, and how much of a difference goes with them, on constructed answers."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations import ONE, TRIAL
from rectune.analysis.decomposition import THRESHOLDS, Answers, find_changes, split_difference


def answers(correct, category, tokens=10.0, stopped=1.0):
    correct, category = np.asarray(correct, float), np.asarray(category)
    if correct.ndim == 1:
        correct, category = correct[:, None], category[:, None]
    tokens = np.broadcast_to(np.asarray(tokens, float).reshape(-1, 1), correct.shape)
    stopped = np.broadcast_to(np.asarray(stopped, float).reshape(-1, 1), correct.shape)
    return Answers(correct, category, {"tokens": tokens, "stopped": stopped})


def of_trial(arm, benchmark):
    flat = [problem[0] for problem in TRIAL[arm][benchmark]]
    return answers(
        [right for _, right in flat], ["1 operation" if t == ONE else "2 operations" for t, _ in flat]
    )


def drawn(rng, shares, rates, problems, n=4):
    """Answers with these shares of 1 and 2 operations, right at these rates."""
    category = rng.choice(["1 operation", "2 operations"], p=shares, size=(problems, n))
    rate = np.where(category == "1 operation", *rates)
    return answers((rng.random((problems, n)) < rate).astype(float), category)


def test_mix_and_rate_by_hand():
    a = answers([1, 1, 0, 0, 1], ["x", "x", "x", "x", "y"])  # x: 4 of 5 at 0.5, y: 1 of 5 at 1
    b = answers([0, 0, 0, 1, 0], ["x", "x", "y", "y", "y"])  # x: 2 of 5 at 0, y: 3 of 5 at 1/3
    split = split_difference(a, b, a.category, b.category)
    mix = (0.8 - 0.4) * (0.5 + 0) / 2 + (0.2 - 0.6) * (1 + 1 / 3) / 2
    rate = (0.5 - 0) * (0.8 + 0.4) / 2 + (1 - 1 / 3) * (0.2 + 0.6) / 2
    assert split.mix == pytest.approx(mix)
    assert split.rate == pytest.approx(rate)
    assert split.mix + split.rate == pytest.approx(0.6 - 0.2)
    assert split.low <= split.mix <= split.high
    assert split.categories[0].to_dict() == {
        "name": "x",
        "a": 0.8,
        "b": 0.4,
        "accuracy_a": 0.5,
        "accuracy_b": 0.0,
    }


def test_only_the_mix_or_only_the_rate():
    rng = np.random.default_rng(0)
    equal_rates = [drawn(rng, shares, (0.8, 0.1), 3000) for shares in ((0.9, 0.1), (0.2, 0.8))]
    split = split_difference(*equal_rates, *(x.category for x in equal_rates))
    assert split.mix == pytest.approx(0.7 * 0.7, abs=0.02)
    assert split.rate == pytest.approx(0, abs=0.02)
    equal_shares = [drawn(rng, (0.5, 0.5), rates, 3000) for rates in ((0.8, 0.3), (0.2, 0.3))]
    split = split_difference(*equal_shares, *(x.category for x in equal_shares))
    assert split.mix == pytest.approx(0, abs=0.02)
    assert split.rate == pytest.approx(0.3, abs=0.02)


def test_the_interval_of_the_mix_holds_the_truth():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(100):
        a, b = drawn(rng, (0.8, 0.2), (0.6, 0.2), 80), drawn(rng, (0.3, 0.7), (0.5, 0.1), 80)
        split = split_difference(a, b, a.category, b.category)
        hits += split.low <= 0.5 * 0.4 <= split.high
    assert 88 <= hits <= 100


def test_a_category_of_one_side_counts_with_the_mix():
    a, b = answers([1, 1], ["x", "x"]), answers([0, 0], ["y", "y"])
    split = split_difference(a, b, a.category, b.category)
    assert (split.mix, split.rate) == (1, 0)
    assert split.categories[0].accuracy_b is None


def test_what_won_svamp_in_the_trials_is_named():
    a, b = of_trial("dft", "svamp"), of_trial("sft", "svamp")
    (shift,) = find_changes(a, b, ("dft", "sft"))
    assert shift.kind == "shape"
    assert shift.explains
    assert shift.mix + shift.rate == pytest.approx(0.165)
    assert shift.sentence.startswith(
        "88 % of dft's answers have 1 operation, 7 % of sft's: of the 16.5 points between them 15.8 (interval "
    )
    assert "go with this change, 0.7 are left within answers of equal shape" in shift.sentence
    (mirrored,) = find_changes(b, a, ("sft", "dft"))
    assert mirrored.mix == pytest.approx(-shift.mix)
    assert "of the 16.5 points between them 15.8" in mirrored.sentence


def test_a_change_that_does_not_explain_says_so():
    rng = np.random.default_rng(2)
    a, b = drawn(rng, (0.9, 0.1), (0.9, 0.9), 400), drawn(rng, (0.3, 0.7), (0.3, 0.3), 400)
    (shift,) = find_changes(a, b, ("dft", "sft"))
    assert not shift.explains
    assert shift.rate == pytest.approx(0.6, abs=0.05)
    against, plain = drawn(rng, (0.9, 0.1), (0.4, 0.9), 400), drawn(rng, (0.1, 0.9), (0.0, 0.5), 400)
    (shift,) = find_changes(against, plain, ("dft", "sft"))
    assert shift.mix < 0 < shift.rate
    assert "this change alone goes with -" in shift.sentence
    assert not shift.explains


def test_a_mix_that_may_be_nothing_explains_nothing():
    """All of a small difference goes with the shape, but over 40 problems it could as well be none."""
    a = answers([1] * 12 + [0] * 18 + [1] * 3 + [0] * 7, ["1 operation"] * 30 + ["2 operations"] * 10)
    b = answers([1] * 4 + [0] * 6 + [1] * 9 + [0] * 21, ["1 operation"] * 10 + ["2 operations"] * 30)
    (shift,) = find_changes(a, b)
    assert (shift.mix, shift.rate) == pytest.approx((0.05, 0))
    assert shift.low < 0 < shift.high
    assert not shift.explains


def test_a_change_between_models_that_are_never_right():
    a, b = answers([0] * 30, ["x"] * 30), answers([0] * 30, ["y"] * 30)
    (shift,) = find_changes(a, b)
    assert shift.sentence.endswith("of b's: accuracy does not go with this")
    assert not shift.explains


def test_small_changes_and_chance_are_not_named():
    rng = np.random.default_rng(3)
    line = THRESHOLDS["shape"]
    a, b = (
        drawn(rng, (0.5 + line / 3, 0.5 - line / 3), (0.5, 0.5), 2000),
        drawn(rng, (0.5, 0.5), (0.5, 0.5), 2000),
    )
    assert find_changes(a, b) == []
    named = sum(
        bool(find_changes(*(drawn(rng, (0.5, 0.5), (0.5, 0.5), 10, n=1) for _ in range(2))))
        for _ in range(200)
    )
    assert named < 200 * 0.15  # without the second condition it is half of them
    one = answers([1], ["x"])
    assert find_changes(one, answers([0], ["y"])) == []


def test_length_and_stopping_are_named():
    rng = np.random.default_rng(4)
    right = (rng.random(200) < 0.5).astype(float)
    a = answers(right, ["x"] * 200, tokens=rng.integers(90, 110, 200))
    b = answers(right, ["x"] * 200, tokens=rng.integers(40, 60, 200))
    (shift,) = find_changes(a, b)
    assert (shift.kind, round(shift.size)) == ("length", 2)
    assert "a's answers have 100 tokens on average, b's 5" in shift.sentence
    ends = (rng.random(200) < 0.6).astype(float)
    a, b = answers(right, ["x"] * 200), answers(right * ends, ["x"] * 200, stopped=ends)
    (shift,) = find_changes(a, b)
    assert shift.kind == "stopped"
    assert shift.explains  # who is cut is wrong, and that is all of the difference
    assert shift.rate == pytest.approx(0, abs=0.05)
    assert shift.sentence.startswith("a ends 100 % of its answers by itself, b 58 %: ")
