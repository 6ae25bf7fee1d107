"""`evaluate_expression`: exact values, and no value for anything that is not plain arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectune.grading.exact import MAX_LENGTH, evaluate_expression


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48 + (48 / 2)", 72),
        ("2-3*4", -10),
        ("-(2 - 5)", 3),
        ("0.1 + 0.2", Fraction(3, 10)),
        (".5*10", 5),
        ("5. + 1", 6),
        ("1/3", Fraction(1, 3)),
        (" 7 ", 7),
    ],
)
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
