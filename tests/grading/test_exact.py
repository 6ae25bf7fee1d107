"""The graders `exact` (normalised text) and `expression` (a calculation)."""

from __future__ import annotations

import pytest

from rectune.grading.exact import grade_exact, grade_expression


@pytest.mark.parametrize(
    ("gold", "text", "verdict"),
    [
        (["the Eiffel Tower", "Tour Eiffel"], "Eiffel tower.", "correct"),
        (["the Eiffel Tower", "Tour Eiffel"], "The answer is Tour Eiffel.", "correct"),
        (["14 December 1972 UTC", "December 1972"], r"\boxed{December 1972}", "correct"),
        ("Paris", "\n\nParis\nIt is in France.", "correct"),
        ("Paris", "Paris, France", "wrong"),
        ("Paris", "London", "wrong"),
        ("The The", "the the", "correct"),
        ("Paris", " \n ", "unparsed"),
        ("Paris", "?!", "unparsed"),
        ("Paris", "<think>Lyon?</think>\n\nParis", "correct"),
        ("Paris", "Paris\n\nUser: foo", "correct"),
        ("Paris", "The answer is **Paris**.", "correct"),
        ("Paris", "**Paris**", "correct"),
        ("Paris", "Answer: Paris", "correct"),
        ("Paris", "The answer is:\n\nParis", "correct"),
        ("Paris", "<answer>Paris</answer>", "correct"),
        ("Paris", r"\boxed{\text{Paris}}", "correct"),
        ("Paris", "Paris<|im_end|>", "correct"),
        ("Paris", "<think>Paris", "unparsed"),
        ("Paris", "Q: capital?\nThe answer is Paris.\nQ: Italy?\nThe answer is Rome.", "correct"),
        ("B", "(B) Paris", "correct"),
        ("B", "B. Paris", "correct"),
        ("B", "A. Paris", "wrong"),
        ("A", "A train", "wrong"),
        ("1912", "The answer is 1912.", "correct"),
        ("yes", "Yes.", "correct"),
        ("Mr. Smith", "The answer is Mr. Smith.", "correct"),
        ("J. K. Rowling", "The answer is J. K. Rowling.", "correct"),
        ("3.5", "The answer is 3.5.", "correct"),
    ],
)
def test_exact(gold: str | list[str], text: str, verdict: str) -> None:
    assert grade_exact(gold, text).verdict == verdict


@pytest.mark.parametrize(
    ("gold", "text", "verdict"),
    [
        ("72", "48 + 48 / 2", "correct"),
        ("72", "48 + 48 / 2 = 100", "correct"),  # the calculation counts, not the claimed result
        ("72.0", "(48 + 24)\nThat is all.", "correct"),
        ("1,072", "1,000 + 72", "correct"),
        ("72", "3 × 24", "correct"),
        ("0.33333", "1/3", "correct"),
        ("0.33", "1/3", "wrong"),
        ("72", "72.001", "wrong"),
        ("72", "71", "wrong"),
        ("72", "She has seventy-two", "unparsed"),
        ("72", "__import__('os').getpid()", "unparsed"),
        ("72", "9**9**9", "unparsed"),
        ("72", "1/0", "unparsed"),
        ("72", "", "unparsed"),
        ("12", "<think>\n40/2</think>\n48 / 4", "correct"),
        ("12", "48/4\n\nQuestion: x", "correct"),
        ("12", "48/4<|im_end|>", "correct"),
        ("12", r"\boxed{48/4}", "correct"),
        ("12", "<answer>48/4</answer>", "correct"),
        ("12", "Answer: 48/4", "correct"),
        ("12", "The answer is 48/4.", "correct"),
        ("12", "```\n48/4\n```", "correct"),
        ("12", "$48/4$", "correct"),
        ("12", "48/4 = 12", "correct"),
        ("12", "<think>48/4", "unparsed"),
        ("12", "(48/4)", "correct"),
        ("12", "48 ÷ 4", "correct"),
        ("12", "**48/4**", "correct"),
    ],
)
def test_expression(gold: str, text: str, verdict: str) -> None:
    assert grade_expression(gold, text).verdict == verdict
