"""Graders without sympy: `exact` compares normalised text, `expression` the value of a calculation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from rectune.grading.answers import extract_answer, normalize_answer, phrase_text, plain_number
from rectune.grading.expression import evaluate_expression
from rectune.grading.verdicts import Graded

DECIMAL_TOLERANCE = Fraction(1, 10_000)
"""Largest relative difference from a gold number that is written with a decimal point."""


def grade_exact(gold: str | Sequence[str], text: str) -> Graded:
    r"""Equality up to case, articles (a, an, the), punctuation and spacing; any one of several golds counts.

    The answer is the last `\boxed{}`, else what follows "the answer is", else the first line with words.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    answer = extract_answer(text, ["boxed"]) or phrase_text(text) or (lines[0] if lines else "")
    if not (words := _words(answer)):
        return Graded("unparsed", answer)
    golds = [gold] if isinstance(gold, str) else gold
    return Graded("correct" if words in [_words(one) for one in golds] else "wrong", answer)


def _words(text: str) -> str:
    """Lower case, only letters and digits, no articles; text that is nothing but articles is kept."""
    words = re.sub(r"[^\w\s]|_", "", text.casefold()).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def grade_expression(gold: str | Sequence[str], text: str) -> Graded:
    """The model writes a calculation such as `(48 / 2) + 48`; its exact value must be the gold number.

    Read is the first line with words, up to its first `=`. Where the gold number has a decimal point, values
    within `DECIMAL_TOLERANCE` of it count, so that 1/3 is the 0.33333 that a data set prints.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    answer = (extract_answer(text, ["boxed"]) or (lines[0] if lines else "")).partition("=")[0].strip()
    plain = re.sub(r"(?<=\d),(?=\d{3})|[$]", "", answer.replace("×", "*").replace("÷", "/").replace("−", "-"))
    value = evaluate_expression(plain.strip(" ."))
    if value is None:
        return Graded("unparsed", answer)
    golds = [gold] if isinstance(gold, str) else gold
    return Graded("correct" if any(_equals(value, one) for one in golds) else "wrong", answer)


def _equals(value: Fraction, gold: str) -> bool:
    number = plain_number(normalize_answer(gold))
    if number is None:
        return False
    return abs(value - number) <= (abs(number) * DECIMAL_TOLERANCE if "." in gold else 0)
