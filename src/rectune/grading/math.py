r"""Are two mathematical answers the same? Structure here, single expressions by math-verify.

Lists, sets, tuples, intervals, unions and matrices are taken apart here, because math-verify compares sets in
sympy's order of their elements, and orders differ between 1/3 and 0.333333. What is left, one expression
against one, is decided by equal spelling, by exact rational arithmetic, or by math-verify (gold first).

Runs inside the worker processes of `pool.py`: nothing here bounds time or memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from rectune.grading.answers import (
    MAX_DIGITS,
    RULES,
    extract_answer,
    normalize_answer,
    plain_number,
    split_top,
)
from rectune.grading.verdicts import Graded

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we bound the time ourselves

_LATEX = [LatexExtractionConfig()]
_NAME = re.compile(r"([A-Za-z](?:_\{?[\w\\ ]+\}?)?(?:\([a-z]\))?)\s*(?:=|\\in(?![a-z]))\s*(?=\S)([^=]+)")
_WORDS = re.compile(r"\(?\s*\\text\s*\{[^{}]*\}\s*\)?|\([A-Za-z]\)|[A-Za-z]|[A-Za-z][a-z]+(?: [A-Za-z]+)*")
_MATRIX = re.compile(r"\\begin\{([pbvB]?matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}", re.DOTALL)
_BASE = re.compile(r"(\d+)\s*_\s*\{?\s*(\d+)\s*\}?")
_BRACKETS = {"(": ")]", "[": ")]"}


class Unreadable(Exception):
    """The model's answer cannot be read as mathematics."""


def grade_math(gold: str | Sequence[str], text: str, extra: Mapping[str, Any] | None = None) -> Graded:
    r"""Grade the words of a model against a gold answer.

    Args:
        gold: The answer as its source prints it. A list of several: any one of them counts, or all together
            in any order where `extra["multiple"]` says so.
        extra: `tolerance` (largest absolute difference), `multiple`, and `extract` (names of extraction
            rules, in order). OlympiadBench's `error` and `is_multiple_answer` mean the first two.
    """
    extra = extra or {}
    golds = [gold] if isinstance(gold, str) else list(gold)
    multiple = bool(extra.get("multiple", extra.get("is_multiple_answer", False)))
    tolerance = extra.get("tolerance", extra.get("error")) or 0
    answer = extract_answer(text, extra.get("extract", RULES))
    if not answer:
        return Graded("unparsed", "")
    if multiple:
        golds = [", ".join(golds)]
    try:
        right = any(
            same_answer(one, answer, multiple=multiple, tolerance=Fraction(str(tolerance))) for one in golds
        )
    except Unreadable:
        return Graded("unparsed", answer)
    return Graded("correct" if right else "wrong", answer)


def same_answer(gold: str, answer: str, *, multiple: bool = False, tolerance: Fraction = Fraction(0)) -> bool:
    """Whether `answer` equals `gold`. `multiple`: commas separate answers, never thousands.

    Raises:
        Unreadable: `answer` is no mathematics at all, though `gold` is.
    """
    left, right = _tidy(gold), _tidy(answer)
    if left.replace(" ", "") == right.replace(" ", ""):
        return bool(left)
    if len(right) > MAX_DIGITS:
        if re.fullmatch(r"[-+]?[\d,.]+", right):
            return False
        raise Unreadable
    return _same(left, right, tolerance, depth=5, lists=multiple)


def _tidy(answer: str) -> str:
    if len(answer) > 50 * MAX_DIGITS:
        return answer
    answer = normalize_answer(answer)
    return normalize_answer(answer[7:-1]) if re.fullmatch(r"\\boxed\{[^{}]*\}", answer) else answer


def _same(gold: str, answer: str, tolerance: Fraction, depth: int, lists: bool = False) -> bool:
    """`same_answer` on normalised answers, down to `depth` levels of brackets."""
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return True
    if not (lists and "," in gold) and (decided := _same_number(gold, answer, tolerance)) is not None:
        return decided
    if depth == 0:
        return _same_expression(gold, answer, tolerance)
    if (bare := _without_names(gold, answer)) != (gold, answer):
        return _same(*bare, tolerance, depth - 1, lists)
    golds, answers = _elements(gold, lists), _elements(answer, lists)
    if len(golds) == 1 and len(answers) > 1 and (inner := _bracketed(gold)):
        return gold[0] + gold[-1] == "()" and _all_same(split_top(inner), answers, tolerance, depth)
    if len(golds) > 1 or len(answers) > 1:
        return _same_unordered(golds, answers, tolerance, depth)
    if (inner := _bracketed(gold)) and (other := _bracketed(answer)):
        same_kind = gold[0] == answer[0] and gold[-1] == answer[-1]
        return same_kind and _all_same(split_top(inner), split_top(other), tolerance, depth)
    if r"\cup" in gold and r"\cup" in answer:
        return _same_unordered(gold.split(r"\cup"), answer.split(r"\cup"), tolerance, depth)
    if (rows := _matrix(gold)) and (other_rows := _matrix(answer)):
        return list(map(len, rows)) == list(map(len, other_rows)) and _all_same(
            list(chain(*rows)), list(chain(*other_rows)), tolerance, depth
        )
    if (words := _words(gold)) or _words(answer):
        if words == _words(answer):
            return True
        if len(words) > 3 or (words and r"\text" in gold):  # shorter words may be products: ab is ba
            return False
        if len(_words(answer)) > 3:
            raise Unreadable
    return _same_expression(gold, answer, tolerance)


def _same_number(gold: str, answer: str, tolerance: Fraction) -> bool | None:
    """Decides two plain numbers; None where one is none. A percentage may be written as its fraction."""
    if (base := _BASE.fullmatch(gold)) or _BASE.fullmatch(answer):
        other = _BASE.fullmatch(answer)
        if base and (other or answer.isdigit()):
            return base[1] == (other[1] if other else answer) and (not other or base[2] == other[2])
        return False
    left, right = plain_number(gold), plain_number(answer)
    if left is None or right is None:
        return None
    scales = {Fraction(1)}
    if gold.endswith("%") and not answer.endswith("%"):
        scales.add(Fraction(100))
    if answer.endswith("%") and not gold.endswith("%"):
        scales.add(Fraction(1, 100))
    inexact = "." in gold or "." in answer
    return any(_close(left, right * scale, tolerance, inexact) for scale in scales)


def _close(gold: Fraction, answer: Fraction, tolerance: Fraction, inexact: bool) -> bool:
    """Equal; or within the tolerance; or, where one is a decimal, the same to six decimals and 0.1 %."""
    difference = abs(gold - answer)
    if tolerance:
        return difference <= tolerance
    return difference == 0 or (inexact and difference <= min(Fraction(5, 10**7), abs(gold) / 1000))


def _without_names(gold: str, answer: str) -> tuple[str, str]:
    r"""Both without a leading `x =` or `x \in`, unless they name different things."""
    left, right = _NAME.fullmatch(gold), _NAME.fullmatch(answer)
    if left and right and left[1].replace(" ", "") != right[1].replace(" ", ""):
        return gold, answer
    return (left[2] if left else gold), (right[2] if right else answer)


def _elements(answer: str, lists: bool) -> list[str]:
    r"""The answers in a list or a set: cut at commas, `\pm` written out, names kept once."""
    if answer.startswith(r"\{") and answer.endswith(r"\}") and answer.count(r"\{") == 1:
        answer = answer[2:-2]
    parts = [answer] if not lists and plain_number(answer) is not None else split_top(answer)
    named = [_NAME.fullmatch(part) for part in parts]
    if len({name[1] for name in named if name}) == 1:  # of several names it matters which has which value
        parts = [name[2] if name else part for name, part in zip(named, parts, strict=True)]
    signs = [
        [part] if part.count(r"\pm") != 1 else [part.replace(r"\pm", "+"), part.replace(r"\pm", "-")]
        for part in parts
    ]
    return list(chain(*signs))


def _same_unordered(golds: list[str], answers: list[str], tolerance: Fraction, depth: int) -> bool:
    """Whether each gold has its own equal answer, in any order, and no answer is left over."""
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for gold in golds:
        match = next((a for a in left if _same(gold.strip(), a.strip(), tolerance, depth - 1)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _all_same(golds: list[str], answers: list[str], tolerance: Fraction, depth: int) -> bool:
    return len(golds) == len(answers) and all(
        _same(g, a, tolerance, depth - 1) for g, a in zip(golds, answers, strict=True)
    )


def _bracketed(answer: str) -> str:
    """What is inside the brackets of one tuple or interval of at least two parts, else ""."""
    if len(answer) < 5 or answer[-1] not in _BRACKETS.get(answer[0], ""):
        return ""
    depth = 0
    for i, char in enumerate(answer):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and i < len(answer) - 1:
            return ""
    inner = answer[1:-1]
    return inner if len(split_top(inner)) > 1 else ""


def _matrix(answer: str) -> list[list[str]]:
    if not (match := _MATRIX.fullmatch(answer.strip())):
        return []
    rows = [row.split("&") for row in match[2].split(r"\\") if row.strip()]
    return [[cell.strip() for cell in row] for row in rows]


def _words(answer: str) -> str:
    """The words of an answer that is nothing but words, or a letter; else ""."""
    if not _WORDS.fullmatch(answer):
        return ""
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", answer).strip().strip("().").strip()
    return " ".join(bare.split()).casefold() if len(bare) > 1 else bare


def _same_expression(gold: str, answer: str, tolerance: Fraction) -> bool:
    """math-verify's verdict on one expression against one."""
    parsed = _parsed(answer.replace("%", r"\%"))
    if not parsed or isinstance(parsed[0], str):
        raise Unreadable
    golds = _parsed(gold.replace("%", r"\%"))
    if tolerance and golds and not isinstance(golds[0], str):
        try:
            return bool(abs(golds[0].evalf() - parsed[0].evalf()) <= float(tolerance))
        except (TypeError, AttributeError):  # a relation or a set: has no distance
            return False
    return bool(verify(golds, parsed, allow_set_relation_comp=True, timeout_seconds=None))


@lru_cache(maxsize=256)
def _parsed(answer: str) -> list[Any]:
    """math-verify's reading: a sympy expression, then its text; only the text where it is not mathematics."""
    return list(parse(f"${answer}$", _LATEX, parsing_timeout=None))
