"""Graders without sympy: `exact` compares normalised text, `expression` the value of a calculation."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from rectune.grading.final_answer import extract_answer, final_part, phrase_text
from rectune.grading.normalization import choice_letter, normalize_answer, read_number, split_choice
from rectune.records import Grade

DECIMAL_TOLERANCE = Fraction(1, 10_000)
"""Largest relative difference from a gold number that is written with a decimal point."""
MAX_LENGTH = 200
"""Characters of the longest expression that is evaluated; bounds depth, digits and time."""
MAX_MAGNITUDE = 10**15
"""Largest absolute value of any intermediate result."""
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def grade_exact(gold: str | Sequence[str], text: str) -> Grade:
    r"""Equality up to case, articles (a, an, the), punctuation and spacing; any one of several golds counts.

    The answer is what is in `<answer>` tags or the last `\boxed{}`, else what follows "the answer is", else the
    first line with words. Where the gold answer is the letter of a choice, the letter before a choice's text counts.
    """
    final = final_part(text)
    answer = extract_answer(final, ["boxed"]) or phrase_text(final) or _first_line(final)
    if not (words := plain_words(answer)):
        return Grade("unparsed", answer)
    letter, _ = split_choice(normalize_answer(answer))
    golds = [gold] if isinstance(gold, str) else gold
    same = any(words == plain_words(right) or (letter and letter == choice_letter(right)) for right in golds)
    return Grade("correct" if same else "wrong", answer)


def _first_line(text: str) -> str:
    lines = (line.strip(" *`$\t") for line in text.splitlines() if not line.lstrip().startswith("```"))
    return next((line for line in lines if line), "")


def plain_words(text: str) -> str:
    """Lower case, only letters and digits, no articles; text that is nothing but articles is kept."""
    words = re.sub(r"\\(?:text\w*|math\w+)\s*\{|[^\w\s]|_", "", text.casefold()).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def grade_expression(gold: str | Sequence[str], text: str) -> Grade:
    """The model writes a calculation such as `(48 / 2) + 48`; its exact value must be the gold number.

    The calculation is the first line with words, behind "the answer is" and up to its first `=`. Where the gold number
    has a decimal point, values within `DECIMAL_TOLERANCE` of it count: 1/3 is the 0.33333 that a data set prints.
    """
    final = final_part(text)
    line = _first_line(final)
    answer = extract_answer(final, ["boxed"]) or phrase_text(line) or line
    answer = answer.partition("=")[0].strip()
    plain = re.sub(r"(?<=\d),(?=\d{3})|[$]", "", answer.replace("×", "*").replace("÷", "/").replace("−", "-"))
    value = evaluate_expression(plain.strip(" ."))
    if value is None:
        return Grade("unparsed", answer)
    golds = [gold] if isinstance(gold, str) else gold
    return Grade("correct" if any(_equals(value, right) for right in golds) else "wrong", answer)


def _equals(value: Fraction, gold: str) -> bool:
    number = read_number(normalize_answer(gold))
    if number is None:
        return False
    return abs(value - number.value) <= (abs(number.value) * DECIMAL_TOLERANCE if "." in gold else 0)


def evaluate_expression(text: str) -> Fraction | None:
    """The exact value of numbers, parentheses and `+ - * /`; None for any other text, 1/0, or what is too large.

    Decimals are exact too: `0.1 + 0.2` is 3/10.
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
