"""What answers look like, changes between two models' answers, and how much of a difference goes with them."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations import ONE, TRIAL
from rectune.analysis.decomposition import (
    ORDER,
    THRESHOLDS,
    Answers,
    answer_features,
    answers_of,
    describe,
    find_changes,
    join_problems,
    join_seeds,
    mean_of,
    sampled_entropy,
    split_difference,
)
from rectune.records import Graded


def line(text, verdict="wrong", **more):
    fields = {"problem_id": "p", "text": text, "extracted": text, "verdict": verdict, "grader": "expression"}
    return Graded(**fields | more)


@pytest.mark.parametrize(
    ("sample", "category"),
    [
        (line("no idea", "unparsed"), "no calculation"),
        (line("7"), "no operation"),
        (line("6 - -1"), "1 operation"),
        (line("(2 + 4) * 3"), "2 operations"),
        (line("1 + 1 + 1 + 1 + 1"), "3 or more operations"),
        (line("x", grader="code", extracted=""), "1 to 5 lines"),
        (line(" ", grader="code", extracted=""), "no code"),
        (line("x", grader="code", extracted="a\n\n" * 6), "6 to 15 lines"),
        (line("x", grader="code", extracted="a\n" * 16), "16 or more lines"),
        (line("x", grader="exact", extracted="Paris"), "1 word"),
        (line("x", grader="exact", extracted="in the city of Paris"), "5 or more words"),
        (line("none", grader="math", extracted=""), "no answer"),
        (line("so 7", grader="math", extracted="7"), "an answer without a box"),
        (line("\\boxed{7}", grader="math", extracted="7"), "a box and at most 1 equation"),
        (line("a = 1, b = 2, \\boxed{7}", grader="math", extracted="7"), "a box and 2 to 4 equations"),
        (line("= " * 5 + "\\boxed{7}", grader="math", extracted="7"), "a box and 5 to 9 equations"),
        (line("= " * 10 + "\\boxed{7}", grader="math", extracted="7"), "a box and 10 or more equations"),
    ],
)
def test_categories(sample, category):
    assert answer_features(sample).category == category
    assert category in ORDER


def test_comparisons_are_no_equations():
    look = answer_features(line("x <= 3\n\nx == 3 != 4\ny = 3\n", grader="math"))
    assert (look.equations, look.steps) == (1, 3)


def test_distribution_by_hand():
    samples = {
        "a": [line("2 + 2", "correct", token_ids=[1] * 5, finish_reason="stop", logprobs=[-1.0] * 5),
              line("4", token_ids=[1], finish_reason="length", logprobs=[-3.0])],
        "b": [line("1 + 2", token_ids=[1] * 5, finish_reason="stop", logprobs=[-0.5] * 5),
              line("?", "unparsed", token_ids=[1], finish_reason="stop", logprobs=[-0.5])],
    }  # fmt: skip
    answers = answers_of(samples)
    assert answers.correct.tolist() == [[1, 0], [0, 0]]
    looks = describe(answers)
    assert looks.categories == {"no calculation": 0.25, "no operation": 0.25, "1 operation": 0.5}
    assert looks.tokens.to_dict() == {"mean": 3, "p10": 1, "p50": 3, "p90": 5}
    assert (mean_of(answers, "stopped"), looks.extracted, mean_of(answers, "repeating")) == (0.75, 0.75, 0)
    assert looks.operations == pytest.approx(2 / 3)
    assert sampled_entropy(answers) == pytest.approx((5 + 3 + 2.5 + 0.5) / 12)
    second = answers.take([1])
    assert second.category.tolist() == [["1 operation", "no calculation"]]
    assert join_seeds([second, second]).category.shape == (1, 4)
    assert join_problems([answers, second]).correct.shape == (3, 2)


def test_foreign_samples_need_no_tokens():
    answers = answers_of({"a": [line("1 + 1", "correct")]})
    assert np.isnan(answers.numbers["tokens"]).all()
    assert sampled_entropy(answers) is None
    assert describe(answers).tokens is None
    assert mean_of(answers, "stopped") is None


def test_log_probs_without_their_tokens_are_no_entropy():
    known = line("1 + 1", token_ids=[1, 2], logprobs=[-1.0, -2.0])
    answers = answers_of({"a": [line("1 + 1", logprobs=[-9.0]), known]})
    assert sampled_entropy(answers) == 1.5


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
