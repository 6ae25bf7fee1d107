"""Graders without sympy: `exact` compares normalised text, `expression` the value of a calculation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from rectune.grading.answers import normalize_answer, plain_number
from rectune.grading.choices import choice_letter, split_choice
from rectune.grading.expression import evaluate_expression
from rectune.grading.final_answer import extract_answer, final_part, phrase_text
from rectune.grading.verdicts import Graded

DECIMAL_TOLERANCE = Fraction(1, 10_000)
"""Largest relative difference from a gold number that is written with a decimal point."""


def grade_exact(gold: str | Sequence[str], text: str) -> Graded:
    r"""Equality up to case, articles (a, an, the), punctuation and spacing; any one of several golds counts.

    The answer is what is in `<answer>` tags or the last `\boxed{}`, else what follows "the answer is", else the
    first line with words. Where the gold answer is the letter of a choice, the letter before a choice's text counts.
    """
    said = final_part(text)
    answer = extract_answer(said, ["boxed"]) or phrase_text(said) or _first_line(said)
    if not (words := plain_words(answer)):
        return Graded("unparsed", answer)
    golds = [gold] if isinstance(gold, str) else gold
    letter, _ = split_choice(normalize_answer(answer))
    same = words in [plain_words(one) for one in golds] or letter in [
        choice_letter(one) or None for one in golds
    ]
    return Graded("correct" if same else "wrong", answer)


def _first_line(text: str) -> str:
    lines = (line.strip(" *`$\t") for line in text.splitlines() if not line.lstrip().startswith("```"))
    return next((line for line in lines if line), "")


def plain_words(text: str) -> str:
    """Lower case, only letters and digits, no articles; text that is nothing but articles is kept."""
    words = re.sub(r"\\(?:text\w*|math\w+)\s*\{|[^\w\s]|_", "", text.casefold()).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def grade_expression(gold: str | Sequence[str], text: str) -> Graded:
    """The model writes a calculation such as `(48 / 2) + 48`; its exact value must be the gold number.

    Read is the first line with words, behind "the answer is" and up to its first `=`. Where the gold number has a
    decimal point, values within `DECIMAL_TOLERANCE` of it count, so that 1/3 is the 0.33333 that a data set prints.
    """
    said = final_part(text)
    line = _first_line(said)
    answer = (extract_answer(said, ["boxed"]) or phrase_text(line) or line).partition("=")[0].strip()
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
