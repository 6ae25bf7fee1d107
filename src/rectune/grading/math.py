r"""Are two mathematical answers the same? Structure here, single expressions by their values, the rest by math-verify.

Lists, sets, tuples, intervals, unions and matrices are taken apart here, because math-verify compares sets in
sympy's order of their elements, and orders differ between 1/3 and 0.333333. What is left, one expression
against one, is decided by equal spelling, by exact rational arithmetic, by `values.py`, or by math-verify (gold first).

Runs inside the worker processes of `pool.py`: nothing here bounds time or memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from typing import Any

from math_verify import verify
from sympy import Eq, Rational, Set
from sympy.core.relational import Relational

from rectune.grading.final_answer import RULES, found_answers
from rectune.grading.normalization import (
    MAX_DIGITS,
    TEXT,
    Number,
    choice_letter,
    closing,
    names_choices,
    normalize_answer,
    read_number,
    split_choice,
    split_qualifier,
    split_top,
    split_unit,
    unit_ratio,
)
from rectune.grading.values import RELATIVE, read, same_equation, same_region, same_value
from rectune.records import Grade

_SYMBOL = r"[A-Za-z](?:_\{?[\w\\ ]+\}?|_\\text\s*\{[^{}]*\})?'*"
_NAME = re.compile(
    rf"({_SYMBOL}(?:\s*:\s*{_SYMBOL})+|{_SYMBOL}(?:\s*\(\s*(?:[a-z]|\d+|[A-Z])\s*\))?"
    rf"|\\(?:angle|triangle|overline|text)\s*\{{?\s*[A-Za-z ]+\}}?"
    rf"|\|?[A-Z]{{2,3}}\|?|[a-z](?:[-+ ]{{0,3}}[a-z]){{1,9}}"
    r"|\(\s*(?:[a-z]|\\[a-z]+)(?:\s*,\s*(?:[a-z]|\\[a-z]+))+\s*\))"
    r"\s*(?:=|\\in(?![a-z]))\s*(?=\S)"
)
_CALL = re.compile(r"([A-Za-z])\s*\(\s*([a-z])\s*\)")
_WORDS = re.compile(r"\(?\s*\\text\s*\{[^{}]*\}\s*\)?|\([A-Za-z]\)|[A-Za-z]|[A-Za-z][a-z]+(?: [A-Za-z]+)*")
_MATRIX = re.compile(
    r"\(?\s*\\begin\{([pbvB]?matrix|array)\}(?:\{[lcr|]+\})?((?:(?!\\begin).)*)\\end\{\1\}\s*\)?", re.DOTALL
)
_BASE = re.compile(r"([\dA-F]+)\s*(?:_\s*\{?\s*\(?\s*(?:\\text\s*\{\s*)?(\d+|[a-z]+)\s*\}?\s*\)?\s*\}?"
                   r"|(?:\\text\s*\{)?\s*\(?(?:in )?base\s*\}?\s*(\d+|[a-z]+)\)?\s*\}?)")  # fmt: skip
_CLOCK = re.compile(
    r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:\\text\s*\{\s*)?([ap])?\.?(?:m\b)?\.?\s*\}?", re.IGNORECASE
)
_RADIANS = re.compile(r"\\pi(?![a-zA-Z])|π|\bpi\b|\\arc|\brad")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"({'|'.join(_MONTHS)})[a-z]*\.?"
_DATE = re.compile(rf"(?:{_MONTH} (\d{{1,2}})|(\d{{1,2}})(?: of)? {_MONTH}),?(?: (\d{{4}}))?", re.IGNORECASE)
_RATIO = re.compile(r"[^:,=]+(?::[^:,=]+)+")
_BRACKETS = {"(": ")]", "[": ")]"}
_OPPOSED = {"yes", "no", "on", "true", "false"}
_EXACT = Fraction(0)
Same = Callable[[str, str], bool]
"""Whether two parts of answers are the same."""


class Unreadable(Exception):
    """The model's answer cannot be read as mathematics."""


def grade_math(gold: str | Sequence[str], text: str, extra: Mapping[str, Any] | None = None) -> Grade:
    r"""Grade the words of a model against a gold answer.

    Args:
        gold: The answer as its source prints it. A list of several: any one of them counts, or all together
            in any order where `extra["multiple"]` says so.
        extra: `tolerance` (largest absolute difference), `multiple`, `unit` (of a gold answer without one) and
            `extract` (names of extraction rules, in order). OlympiadBench's `error` and `is_multiple_answer`
            mean the first two.
    """
    extra = extra or {}
    golds = [gold] if isinstance(gold, str) else list(gold)
    multiple = bool(extra.get("multiple", extra.get("is_multiple_answer", False)))
    tolerance = extra.get("tolerance", extra.get("error")) or 0
    if multiple:
        golds = [", ".join(golds)]
    if not (answer := _answer(golds, text, extra.get("extract", RULES))):
        return Grade("unparsed", "")
    unit = str(extra.get("unit") or "").strip()
    golds = [f"{right} {unit}" if unit and not split_unit(_tidy(right))[1] else right for right in golds]
    try:
        is_right = any(
            same_answer(right, answer, multiple=multiple, tolerance=Fraction(str(tolerance)))
            for right in golds
        )
    except Unreadable:
        return Grade("unparsed", answer)
    return Grade("correct" if is_right else "wrong", answer)


def _answer(golds: list[str], text: str, rules: Sequence[str]) -> str:
    """The answer found in `text`; where the gold one is a choice, the first that names a choice."""
    if not all(choice_letter(normalize_answer(candidate)) for candidate in golds):
        return next(found_answers(text, rules), "")
    found = list(found_answers(text, [*rules[:-1], "choice", *rules[-1:]] if rules is RULES else rules))
    return next(
        (candidate for candidate in found if names_choices(_tidy(candidate))), found[0] if found else ""
    )


def same_answer(gold: str, answer: str, *, multiple: bool = False, tolerance: Fraction = _EXACT) -> bool:
    """Whether `answer` equals `gold`. `multiple`: commas separate answers, never thousands.

    Raises:
        Unreadable: `answer` is no mathematics at all, though `gold` is.
    """
    left, right = _tidy(gold, other=answer), _tidy(answer, other=gold)
    if _spelled_alike(left, right):
        return bool(left)
    if len(right) > MAX_DIGITS:
        if re.fullmatch(r"[-+]?[\d,.]+", right):
            return False
        raise Unreadable
    (left, condition), (right, other_condition) = split_qualifier(left), split_qualifier(right)
    if condition and other_condition and re.findall(r"\d+", condition) != re.findall(r"\d+", other_condition):
        return False
    (letter, value), (chosen, content) = split_choice(left), split_choice(right)
    if choice_letter(left) and chosen:
        return letter == chosen
    if letter and value and chosen:
        return letter == chosen and (not content or _same(value, content, tolerance, 5, multiple))
    if letter and value:
        left = value
    elif chosen and content:
        right = content
    return _same(left, right, tolerance, depth=5, lists=multiple)


def _tidy(answer: str, other: str = "") -> str:
    """A normalised answer, its degrees in radians where the `other` answer is in radians."""
    if len(answer) > 50 * MAX_DIGITS:
        return answer
    return normalize_answer(answer, radians=_RADIANS.search(other[:MAX_DIGITS]) is not None)


def _spelled_alike(gold: str, answer: str) -> bool:
    gold, answer = (TEXT.sub(r"\1", side).replace(" ", "") for side in (gold, answer))
    return gold == answer


def _same(gold: str, answer: str, tolerance: Fraction, depth: int, lists: bool = False) -> bool:
    """`same_answer` on normalised answers, down to `depth` levels of brackets."""
    if _spelled_alike(gold, answer):
        return True
    if not (lists and "," in gold) and (decided := _same_number(gold, answer, tolerance)) is not None:
        return decided
    if depth == 0:
        return _same_expression(gold, answer, tolerance)
    same = partial(_same, tolerance=tolerance, depth=depth - 1)
    if r"\approx" in gold or r"\approx" in answer:
        exact, _, rest = answer.partition(r"\approx")  # the decimal behind it counts only behind a name
        exact = rest if re.fullmatch(rf"\s*(?:{_SYMBOL})?\s*", exact) else exact
        return any(same(side, exact, lists=lists) for side in gold.split(r"\approx") if side.strip())
    if (decided := same_region(gold, answer)) is not None:
        return decided
    for decide in (_same_dates, _same_clock_or_ratio, _same_equations):
        if (decided := decide(gold, answer, same)) is not None:
            return decided
    gold, answer = (re.sub(r"\s*\\l(?:or|and)(?![a-zA-Z])\s*", ", ", side) for side in (gold, answer))
    if (bare := _without_names(gold, answer)) != (gold, answer):
        return same(*bare, lists=lists)
    (number, unit), (other, other_unit) = split_unit(gold), split_unit(answer)
    numbers = [read_number(side) for side in (number, other)]  # such as $32,348, which is no list
    if not all(numbers) and (decided := _same_structure(gold, answer, same, lists)) is not None:
        return decided
    if (number, other) != (gold, answer):
        if any(
            measure and measure.kind and side.endswith("%")
            for measure, side in ((unit, answer), (other_unit, gold))
        ):
            return False
        ratio = unit_ratio(unit, other_unit)
        return ratio is not None and same(number, _scaled(other, ratio))
    if (words := _words(gold)) or _words(answer):
        if words == _words(answer):
            return True
        longest = max(len(words), len(_words(answer)))  # shorter words may be products: ab is ba
        if words and (longest > 3 or words in _OPPOSED or r"\text" in gold):
            return False
        if longest > 3:
            raise Unreadable
    return _same_expression(gold, answer, tolerance)


def _scaled(answer: str, ratio: Fraction) -> str:
    if ratio == 1:
        return answer
    if (number := read_number(answer)) is not None and not answer.endswith("%"):
        return str(number.value * ratio)
    return rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}} \cdot ({answer})"


def _same_number(gold: str, answer: str, tolerance: Fraction) -> bool | None:
    """Decides two plain numbers; None where one is none. A percentage may be written as its fraction."""
    if (decided := _same_in_base(gold, answer)) is not None:
        return decided
    left, right = read_number(gold), read_number(answer)
    if left is None or right is None:
        return None
    scales = {Fraction(1)}
    if gold.endswith("%") and not answer.endswith("%"):
        scales.add(Fraction(100))
    if answer.endswith("%") and not gold.endswith("%"):
        scales = {Fraction(1, 100)} | (
            scales if left.value.denominator == 1 or abs(left.value) > 1 else set()
        )
    return any(
        _close(left, Number(right.value * s, right.step * s, right.ongoing), tolerance) for s in scales
    )


def _close(gold: Number, answer: Number, tolerance: Fraction) -> bool:
    """Equal; or within the tolerance; or one is the other rounded, and no more than `RELATIVE` away from it.

    Decimals of at least six places may also differ by a millionth of their size, as calculators do.
    """
    difference, size = abs(gold.value - answer.value), max(abs(gold.value), abs(answer.value))
    if tolerance:
        return difference <= tolerance
    if difference == 0 or not (gold.step or answer.step):
        return difference == 0
    rounded = gold.step != answer.step and difference < max(gold.step, answer.step)
    if rounded and (gold.ongoing or answer.ongoing or difference <= RELATIVE * size):
        return True
    finest = min(gold.step or answer.step, answer.step or gold.step)
    return finest <= Fraction(1, 10**6) and difference <= size / 10**6


def _same_in_base(gold: str, answer: str) -> bool | None:
    """A gold answer's base may be left out; one that the answer adds must be ten."""
    if "_" not in gold + answer and "base" not in gold + answer:
        return None
    read = []
    for side in (gold, answer):
        match = _BASE.fullmatch(side)
        base = read_number(match[2] or match[3]) if match else None
        read.append((match[1], base.value) if match and base else None)
    left, right = read
    if left and right:
        return left == right
    if left:
        return left[0] == answer if re.fullmatch(r"[\dA-F]+", answer) else None
    return right == (gold, Fraction(10)) if right else None


def _same_clock_or_ratio(gold: str, answer: str, same: Same) -> bool | None:
    """Times of day are equal as times, ratios as ratios, and a ratio of two may be a fraction."""
    gold, answer = (
        re.sub(r"(?<=\d)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(?=\d)", ":", side) for side in (gold, answer)
    )
    if ":" not in gold + answer or "=" in gold + answer:
        return None
    clock, other = _CLOCK.fullmatch(gold), _CLOCK.fullmatch(answer)
    if clock and other:
        return bool(_times(clock) & _times(other))
    parts = [side.split(":") if _RATIO.fullmatch(side) else [side] for side in (gold, answer)]
    if len(parts[0]) == len(parts[1]):
        numbers = [[read_number(part) for part in side] for side in parts]
        left, right = ([number.value for number in side if number and number.value] for side in numbers)
        if len(left) == len(right) == len(parts[0]):
            return all(g * right[0] == a * left[0] for g, a in zip(left, right, strict=True))
        return _all_same(parts[0], parts[1], same)
    for (top, *rest), single in ((parts[0], parts[1]), (parts[1], parts[0])):
        if len(rest) == 1 and len(single) == 1 and re.search(r"/|\\frac|\.", single[0]):
            return same(rf"\frac{{{top.strip()}}}{{{rest[0].strip()}}}", single[0])
    return False


def _same_dates(gold: str, answer: str, same: Same) -> bool | None:
    """Two dates: the same month and day, and the same year if both have one."""
    first, second = _date(gold), _date(answer)
    if first is None or second is None:
        return None
    return first[:2] == second[:2] and (first[2] == second[2] or None in (first[2], second[2]))


def _date(answer: str) -> tuple[int, int, str | None] | None:
    if not (match := _DATE.fullmatch(" ".join(TEXT.sub(r" \1 ", answer).split()))):
        return None
    return _MONTHS.index((match[1] or match[4]).lower()), int(match[2] or match[3]), match[5]


def _times(clock: re.Match[str]) -> set[tuple[int, ...]]:
    """Times of day that are meant, on a clock of 24 hours; without a.m. or p.m. it may be either."""
    hour, minute, second = (int(part or 0) for part in clock.groups()[:3])
    half = (clock[4] or "").lower()
    hours = {hour % 12 + 12 * (half == "p")} if half else {hour}
    if not half and hour <= 12:
        hours |= {hour % 12, hour % 12 + 12}
    return {(hour, minute, second) for hour in hours}


def _same_equations(gold: str, answer: str, same: Same) -> bool | None:
    """Two equations of one curve. Equations that give one name a value are compared by their values."""
    sides = [len(split_top(side, "=")) for side in (gold, answer)]
    if sides != [2, 2] or len(split_top(gold)) + len(split_top(answer)) > 2:
        return None
    (name, _), (other, _) = _named(gold), _named(answer)
    if name and other and _same_name(name, other):
        return None
    left, right = map(read, _cases_apart(gold, answer))
    if not (left and right and isinstance(left[0], Eq) and isinstance(right[0], Eq)):
        return None
    return same_equation(left[0], right[0])


def _same_name(gold: str, answer: str) -> bool:
    """Names up to spaces and the variable of a function; y is the value of any function."""
    names = {re.sub(r"\s", "", _CALL.sub(r"\1()", name)) for name in (gold, answer)}
    return len(names) == 1 or ("y" in names and any(name.endswith("()") for name in names))


def _named(answer: str) -> tuple[str, str]:
    r"""The name that `x =`, `x \in`, `f(x) =` give to what follows, and that; ("", answer) where there is none.

    Of a chain of equations the last part counts, so that `3 + 11 = 14` is 14.
    """
    rest = split_top(answer, "=")[1:]
    if match := _NAME.match(answer):
        return match[1], rest[-1] if rest else answer[match.end() :].strip()
    if (
        len(rest) == 1
        and re.fullmatch(_SYMBOL, rest[0])
        and not re.search(r"[a-zA-Z]", answer.partition("=")[0])
    ):
        return rest[0], answer.partition("=")[0].strip()  # 16 = x
    if rest and not re.search(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", re.sub(r"\\[a-zA-Z]+", "", answer)):
        return "", rest[-1]
    return "", answer


def _without_names(gold: str, answer: str) -> tuple[str, str]:
    r"""Both without a leading `x =` or `x \in`, unless they name different things."""
    gold, answer = (_named(side)[1] if _named(side)[0].startswith("(") else side for side in (gold, answer))
    if (len(split_top(gold)) > 1 and "=" in gold.partition(",")[2]) or "=" in answer.partition(",")[2]:
        return gold, answer  # a list in which each has its name
    (left, bare), (right, other) = _named(gold), _named(answer)
    if left and right and not _same_name(left, right):
        return gold, answer
    if (call := _CALL.fullmatch(left)) and (called := _CALL.fullmatch(right)) and call[2] != called[2]:
        other = re.sub(rf"(?<![a-zA-Z\\]){called[2]}(?![a-zA-Z])", call[2], other)
    return bare, other


def _same_structure(gold: str, answer: str, same: Same, lists: bool) -> bool | None:
    """Decides lists, sets, tuples, intervals, unions and matrices; None where neither is one."""
    golds, answers = _elements(gold, lists), _elements(answer, lists)
    inner, other = _bracketed(gold), _bracketed(answer)
    if inner and len(answers) > 1:
        is_list = gold[0] + gold[-1] == "()" and not answer.startswith(r"\{")
        return is_list and _all_same(split_top(inner), _by_name(answers), same)
    if other and len(golds) > 1:
        if answer[0] + answer[-1] == "()" and all(_named(part)[0] for part in golds):
            return _all_same(_by_name(golds), split_top(other), same)
        if answer[0] + answer[-1] == "[]" and not gold.startswith(r"\{"):  # as programs print a list
            answers = split_top(other)
    if len(golds) > 1 or len(answers) > 1:
        return _same_unordered(golds, answers, same)
    rows, other_rows = _matrix(gold), _matrix(answer)
    if rows and other_rows:
        alike = list(map(len, rows)) == list(map(len, other_rows))
        return alike and _all_same(list(chain(*rows)), list(chain(*other_rows)), same)
    if (inner := inner or _vector(rows)) and (other := other or _vector(other_rows)):
        same_kind = rows or other_rows or (gold[0] == answer[0] and gold[-1] == answer[-1])
        return bool(same_kind) and _all_same(split_top(inner), split_top(other), same)
    if r"\cup" in gold and r"\cup" in answer:
        return _same_unordered(gold.split(r"\cup"), answer.split(r"\cup"), same)
    if (golds, answers) != ([gold], [answer]):  # a set of one
        return bool(golds and answers) and same(golds[0], answers[0])
    return None


def _by_name(parts: list[str]) -> list[str]:
    """Parts such as `y = 3`, `x = 2` in the order of their names; others as they stand."""
    names = [_named(part)[0] for part in parts]
    return [part for _, part in sorted(zip(names, parts, strict=True))] if all(names) else parts


def _elements(answer: str, lists: bool) -> list[str]:
    r"""The answers in a list or a set: cut at commas, `\pm` written out, names kept once."""
    is_set = answer.startswith(r"\{") and answer.endswith(r"\}") and answer.count(r"\{") == 1
    if is_set and len(answer) > 4:
        answer = answer[2:-2]
    parts = [answer] if not lists and read_number(answer) is not None else split_top(answer)
    if is_set or all(part.startswith("(") for part in parts):  # points: twice the same is once
        parts = list({part.replace(" ", ""): part for part in parts}.values())
    named = [_named(part) for part in parts]
    names = [name for name, _ in named]
    distinct = len(dict.fromkeys(names))
    if all(names) and 1 < distinct < len(names) and names == names[:distinct] * (len(names) // distinct):
        return [  # p = 5, q = 2; p = 7, q = 2
            f"({', '.join(parts[i : i + distinct])})" for i in range(0, len(parts), distinct)
        ]
    if len({name for name in names if name}) == 1:  # of several names it matters which has which value
        parts = [value for _, value in named]
    signs = [
        [part] if part.count(r"\pm") != 1 else [part.replace(r"\pm", "+"), part.replace(r"\pm", "-")]
        for part in parts
    ]
    return list(chain(*signs))


def _same_unordered(golds: list[str], answers: list[str], same: Same) -> bool:
    """Whether each gold has its own equal answer, in any order, and no answer is left over."""
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for gold in golds:
        match = next((a for a in left if same(gold.strip(), a.strip())), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _all_same(golds: list[str], answers: list[str], same: Same) -> bool:
    return len(golds) == len(answers) and all(same(g, a) for g, a in zip(golds, answers, strict=True))


def _bracketed(answer: str) -> str:
    """What is inside the brackets of one tuple or interval of at least two parts, else ""."""
    if len(answer) < 5 or answer[-1] not in _BRACKETS.get(answer[0], ""):
        return ""
    if closing(answer) < len(answer) - 1:
        return ""
    inner = answer[1:-1]
    return inner if len(split_top(inner)) > 1 else ""


def _matrix(answer: str) -> list[list[str]]:
    if not (match := _MATRIX.fullmatch(answer.strip())):
        return []
    rows = [row.split("&") for row in match[2].split(r"\\") if row.strip()]
    return [[cell.strip() for cell in row] for row in rows]


def _vector(rows: list[list[str]]) -> str:
    """The elements of a matrix of one row or one column, in a line."""
    return ", ".join(chain(*rows)) if len(rows) == 1 or all(len(row) == 1 for row in rows) else ""


def _words(answer: str) -> str:
    """The words of an answer that is nothing but words, or a letter; else ""."""
    if not _WORDS.fullmatch(answer):
        return ""
    bare = TEXT.sub(r"\1", answer).strip().strip("().").strip()
    bare = re.sub(r"^(?:the|an?)\s+(?=\S)", "", bare, flags=re.IGNORECASE)
    return " ".join(bare.split()).casefold() if len(bare) > 1 else bare


def _same_expression(gold: str, answer: str, tolerance: Fraction) -> bool:
    """One expression against one: by value, else math-verify's verdict."""
    if r"\ldots" in gold + answer:
        return False  # a pattern has no value
    gold, answer = _cases_apart(gold, answer)
    parsed = _parsed(answer)
    if not parsed or isinstance(parsed[0], str):
        raise Unreadable
    golds = _parsed(gold)
    if golds and not isinstance(golds[0], str):
        if isinstance(golds[0], Relational) != isinstance(parsed[0], Relational) and not isinstance(
            golds[0], Set
        ):
            return False  # math-verify would take a side of 2x = 12 for the answer
        if tolerance:
            try:
                return bool(abs(golds[0].evalf() - parsed[0].evalf()) <= float(tolerance))
            except (TypeError, AttributeError):  # a relation or a set: has no distance
                return False
        steps = [number.step for number in map(read_number, (gold, answer)) if number]
        if (decided := same_value(golds[0], parsed[0], max(steps, default=_EXACT))) is not None:
            return decided
    return bool(verify(golds, parsed, allow_set_relation_comp=True, timeout_seconds=None))


def _parsed(answer: str) -> list[Any]:
    """As `read`; plain numbers exactly, which math-verify would take 1e-5 for a product."""
    if "%" not in answer and (number := read_number(answer)) is not None:
        return [Rational(number.value.numerator, number.value.denominator)]
    return read(answer.replace("%", r"\%"))


def _cases_apart(gold: str, answer: str) -> tuple[str, str]:
    """Both with other letters for capitals that also stand small, and for an index i, which math-verify mistakes."""
    letters = set(re.sub(r"\\[a-zA-Z]+", "", gold + answer))
    clashing = sorted(
        letter for letter in letters if letter.isascii() and letter.isupper() and letter.lower() in letters
    )
    if re.search(r"\\(?:sum|prod)\s*_\s*\{\s*i\s*=", gold + answer):
        clashing.append("i")
    spare = [letter for letter in "qvwuzyxkmnlprstabcgh" if not {letter, letter.upper()} & letters]
    new = dict(zip(clashing, spare, strict=False))
    left, right = (
        re.sub(r"\\[a-zA-Z]+|[A-Zi]", lambda m: new.get(m[0], m[0]), side) for side in (gold, answer)
    )
    return left, right
