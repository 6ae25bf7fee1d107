"""The value of a small arithmetic expression, such as `48 + (48 / 2)`: exact, and safe on any text.

Only numbers, parentheses and `+ - * /` count; everything else (names, calls, powers, text) has no value.
Finding the expression in a model's answer, and comparing its value with the gold one, is left to the graders.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_LENGTH = 200
"""Characters of the longest expression that is looked at; bounds depth, digits and time."""
MAX_MAGNITUDE = 10**15
"""Largest absolute value of any intermediate result."""

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate_expression(text: str) -> Fraction | None:
    """The exact value of `text`, or None where it is not such an expression, divides by zero or is too large.

    Decimals are exact too: `0.1 + 0.2` is 3/10. Never raises, whatever the text.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH or not re.fullmatch(r"[0-9.+\-*/() ]+", text):
        return None
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ZeroDivisionError, ValueError):
        return None


def _value(node: ast.expr, text: str) -> Fraction:
    """The value of one node; ValueError where it has none."""
    if isinstance(node, ast.Constant):
        value = Fraction(ast.get_source_segment(text, node) or "")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _value(node.operand, text)
        value = -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        value = _BINARY[type(node.op)](_value(node.left, text), _value(node.right, text))
    else:
        raise ValueError("not arithmetic")
    if abs(value) > MAX_MAGNITUDE:
        raise ValueError("too large")
    return value
