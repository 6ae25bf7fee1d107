"""What single answers look like, and their distribution, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rectune.analysis.decomposition import (
    ORDER,
    answer_features,
    answers_of,
    describe,
    join_problems,
    join_seeds,
    mean_of,
    sampled_entropy,
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
