"""Mathematical answers: extraction, exact numbers, and the data sets' own gold answers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.grading.exact import MAX_LENGTH, evaluate_expression
from rectune.grading.final_answer import extract_answer
from rectune.grading.math import Unreadable, _same_expression, grade_math
from rectune.grading.normalization import normalize_answer, read_number, split_top


@pytest.mark.parametrize(
    ("text", "rules", "answer"),
    [
        (r"\boxed{1} #### 2", ("boxed", "hash"), "1"),
        (r"\boxed{1} #### 2", ("hash", "boxed"), "2"),
        ("the answer is 3 of 4", ("number",), "4"),
        (r"\boxed{\{1, 2\}}", ("boxed",), r"\{1, 2\}"),
        (r"\boxed{5} or $\boxed{6}$", ("boxed",), "5, 6"),
        (r"a } b \boxed{7} {", ("boxed",), "7"),
    ],
)
def test_extraction_follows_the_order_of_rules(text: str, rules: tuple[str, ...], answer: str) -> None:
    assert extract_answer(text, rules) == answer


def test_plain_numbers_are_exact() -> None:
    for same in (["1,234.5", r"1234\frac{1}{2}", "2469/2"], ["0.1", "1/10", "1e-1"]):
        assert len({number.value for number in map(read_number, same) if number}) == 1
    nothing = ["", ".", "-", "1,23", "x", "1/0", "1e9999", "1.2.3"]
    assert [read_number(text) for text in nothing] == [None] * len(nothing)


def test_cutting_at_commas_respects_brackets() -> None:
    assert split_top(r"(1,2], \{3,4\}; \frac{5,6}{7}") == ["(1,2]", r"\{3,4\}", r"\frac{5,6}{7}"]


DATA = Path(__file__).parents[3] / "shared" / "data"


def _golds(name: str) -> list[tuple[str, dict[str, object]]]:
    """The gold answers of a data set with what its grader needs beyond them."""
    if not DATA.is_dir():
        pytest.skip("the data sets are not beside the repository")
    if name == "svamp":
        return [(str(row["Answer"]), {}) for row in json.loads((DATA / "svamp/SVAMP.json").read_text())]
    rows = [json.loads(line) for line in (DATA / name / "test.jsonl").read_text().splitlines()]
    if name == "gsm8k":
        return [(row["answer"].rpartition("#### ")[2], {}) for row in rows]
    if name == "math500":
        return [(row["answer"], {}) for row in rows]
    keys = ("error", "is_multiple_answer")
    return [(row["final_answer"][0], {key: row[key] for key in keys}) for row in rows]


@pytest.mark.parametrize(
    ("name", "count"), [("math500", 500), ("olympiadbench", 675), ("gsm8k", 1319), ("svamp", 1000)]
)
@pytest.mark.parametrize("form", [r"So it is $\boxed{%s}$.", "Therefore\n#### %s", "The answer is %s."])
def test_every_gold_answer_is_correct_against_itself(name: str, count: int, form: str) -> None:
    exceptions = json.loads((Path(__file__).parent / "gold_exceptions.json").read_text())
    known = {row["gold"] for row in exceptions if row["form"] == form}
    golds = _golds(name)
    assert len(golds) == count
    failed = {gold for gold, extra in golds if grade_math(gold, form % gold, extra).verdict != "correct"}
    assert failed <= known


@pytest.mark.parametrize(("name", "unreadable"), [("math500", 0), ("olympiadbench", 3)])
def test_mathematics_alone_finds_gold_answers_equal_to_themselves(name: str, unreadable: int) -> None:
    """Equal spelling answers the test above; here math-verify has to read and compare each gold answer."""
    failed = 0
    for gold, _ in _golds(name):
        spelling = normalize_answer(gold)
        try:
            assert _same_expression(spelling, spelling, Fraction(0)), gold
        except Unreadable:
            failed += 1
    assert failed == unreadable


# --- `evaluate_expression`: exact values, and none for anything that is not plain arithmetic ---


@pytest.mark.parametrize(("text", "value"), [
    ("48 + (48 / 2)", 72), ("2-3*4", -10), ("-(2 - 5)", 3), ("0.1 + 0.2", Fraction(3, 10)), (".5*10", 5), ("5. + 1", 6),
    ("1/3", Fraction(1, 3)), (" 7 ", 7),
])  # fmt: skip
def test_arithmetic_has_its_exact_value(text: str, value: Fraction | int) -> None:
    assert evaluate_expression(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "2 **8", "7 // 2", "1/0", "1/(2-2)", "x + 1", "__import__('os')", "1e9", "0x10", "1_000", "2 +",
        "(1", "1 2", "(1)(2)", "1, 2", "9" * 16, "99999999*99999999", "1\n+1", "٣ + 1", "\x00", "(" * 199,
        "+".join(["1"] * MAX_LENGTH),
    ],
)  # fmt: skip
def test_anything_else_has_no_value(text: str) -> None:
    assert evaluate_expression(text) is None


@given(st.text("0123456789.+-*/() ", max_size=MAX_LENGTH))
def test_never_raises(text: str) -> None:
    value = evaluate_expression(text)
    assert value is None or isinstance(value, Fraction)
