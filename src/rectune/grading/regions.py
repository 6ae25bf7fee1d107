r"""Sets of real numbers however they are written: `x > 3`, `(3, \infty)`, `\{x | x > 3\}`, `x \ne 2`, `|x| < 1`."""

from __future__ import annotations

import re
from typing import Any

from sympy import FiniteSet, Intersection, Interval, Rational, Reals, Set, Union, oo
from sympy.sets.sets import Complement

from rectune.grading.answers import read_number, split_top
from rectune.grading.values import read_expression, same_value

_SIGN = r"<|>|\\(?:le|ge|ne)(?![a-zA-Z])"
REGION = re.compile(rf"{_SIGN}|\\\}}\s*\\cup\s*\\\{{|\\setminus|\\backslash|\\mathbb\s*\{{?R\}}?|all real")
"""What an answer has that is a set of numbers and no interval or list."""
_BUILDER = re.compile(
    r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:[|:,]|\\text\s*\{[^{}]*\})\s*(.*)\\\}",
    re.DOTALL,
)
_SIGNED = re.compile(r"\\mathbb\s*\{?R\}?\s*[\^_]\s*\{?\s*(\+|-|\*|\\ast|<|>|\\[lg]e)\s*0?\s*\}?")
_HALVES = {"+": ">", "-": "<", "*": r"\ne", r"\ast": r"\ne"}
_MEMBER = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*(.*)", re.DOTALL)
_INTERVAL = re.compile(r"([(\[])(.*)([)\]])", re.DOTALL)
_OPPOSITE = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])(?!R\b|e\b)[a-zA-Z](?![a-zA-Z])")


def same_region(gold: str, answer: str) -> bool | None:
    """Whether two normalised answers are the same set of real numbers; None where one of them is not seen to be one."""
    left, right = _region(gold), _region(answer)
    if left is None or right is None:
        return None
    names = [set(_VARIABLE.findall(one)) for one in (gold, answer)]
    if all(names) and names[0] != names[1]:
        return False
    pieces = [sorted(_pieces(one), key=lambda piece: float(piece[0])) for one in (left, right)]
    return len(pieces[0]) == len(pieces[1]) and all(
        one[2:] == other[2:] and all(_equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))
        for one, other in zip(*pieces, strict=True)
    )


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other or same_value(one, other))


def _pieces(region: Set) -> list[tuple[Any, Any, bool, bool]]:
    """Start, end and whether they are left out, of each interval; a point is an interval of length 0."""
    if isinstance(region, Union):
        return [piece for one in region.args for piece in _pieces(one)]
    if isinstance(region, FiniteSet):
        return [(point, point, False, False) for point in region.args]
    if region is Reals or region == Interval(-oo, oo):
        return [(-oo, oo, True, True)]
    return [(region.start, region.end, region.left_open, region.right_open)] if region != FiniteSet() else []


def _region(answer: str) -> Set | None:
    try:
        region = _read(answer.strip(), depth=6)
    except (TypeError, ValueError, NotImplementedError):
        return None
    known = (Interval, FiniteSet, Union)
    if region is None or isinstance(region, (*known, type(Reals))) or region == FiniteSet():
        return (
            None
            if isinstance(region, Union) and not all(isinstance(a, known) for a in region.args)
            else region
        )
    return None


def _read(answer: str, depth: int) -> Set | None:
    if depth == 0 or len(answer) > 300:
        return None
    if builder := _BUILDER.fullmatch(answer) or _MEMBER.fullmatch(answer):
        return _read(builder[builder.lastindex or 1].strip(), depth - 1)
    for pattern, combine in (
        (r"\\lor(?![a-zA-Z])|\\cup(?![a-zA-Z])", Union),
        (r"\\land(?![a-zA-Z])|\\cap(?![a-zA-Z])", Intersection),
        (r"\\setminus(?![a-zA-Z])|\\backslash(?![a-zA-Z])", Complement),
    ):
        if len(parts := re.split(pattern, answer)) > 1:
            regions = [_read(part.strip(" ,"), depth - 1) for part in parts]
            return None if any(one is None for one in regions) else combine(*regions)
    if signed := _SIGNED.fullmatch(answer):
        return _read(rf"x {_HALVES.get(signed[1], signed[1])} 0", depth - 1)
    if re.fullmatch(r"\\mathbb\s*\{?R\}?|(?:\\text\s*\{)?\s*all reals?(?: numbers?)?\s*\}?", answer):
        return Reals
    if (excluded := re.fullmatch(r"(.*\\ne)(?![a-zA-Z])([^<>=]*)", answer)) and len(
        split_top(excluded[2])
    ) > 1:
        return _several([_read(excluded[1] + " " + one, depth - 1) for one in split_top(excluded[2])], True)
    if len(parts := split_top(answer)) > 1 and all(re.search(_SIGN, part) for part in parts):
        return _several([_read(part, depth - 1) for part in parts], r"\ne" in answer)
    return _simple(answer)


def _several(regions: list[Set | None], excluded: bool) -> Set | None:
    """Conditions parted by commas: all hold, or, where that is impossible, one of them does."""
    if any(one is None for one in regions):
        return None
    common = Intersection(*regions)
    return Union(*regions) if common == FiniteSet() and not excluded else common


def _simple(answer: str) -> Set | None:
    if answer == r"\emptyset":
        return FiniteSet()
    if answer.startswith(r"\{") and answer.endswith(r"\}"):
        points = [_number(part) for part in split_top(answer[2:-2])]
        return None if not points or any(point is None for point in points) else FiniteSet(*points)
    if (brackets := _INTERVAL.fullmatch(answer)) and len(ends := split_top(brackets[2], ",")) == 2:
        low, high = map(_number, ends)
        return (
            None
            if low is None or high is None
            else Interval(low, high, brackets[1] == "(", brackets[3] == ")")
        )
    signs = re.findall(_SIGN, answer)
    sides = [side.strip() for side in re.split(_SIGN, answer)]
    if len(signs) == 1:
        return _relation(sides[0], signs[0], sides[1]) or _relation(sides[1], _OPPOSITE[signs[0]], sides[0])
    if len(signs) == 2:
        below = _relation(sides[1], _OPPOSITE[signs[0]], sides[0])
        above = _relation(sides[1], signs[1], sides[2])
        return None if below is None or above is None else Intersection(below, above)
    return None


def _relation(side: str, sign: str, bound: str) -> Set | None:
    """The numbers whose linear expression, or its absolute value, is on one side of a bound."""
    limit = _number(bound)
    absolute = re.fullmatch(r"\|([^|]*)\|", side)
    expression = read_expression(absolute[1] if absolute else side)
    if limit is None or expression is None or len(expression.free_symbols) != 1:
        return None
    (variable,) = expression.free_symbols
    slope = expression.diff(variable).doit()
    start = expression.subs(variable, 0).doit()
    if slope.free_symbols or slope == 0:
        return None
    if not absolute:
        turned = sign if slope > 0 else _OPPOSITE[sign]
        return _half((limit - start) / slope, turned)
    ends = sorted([(limit - start) / slope, (-limit - start) / slope])
    inner = sign in ("<", r"\le")
    if sign == r"\ne" or limit.is_infinite or limit <= 0:
        return None
    parts = (_half(ends[1], sign), _half(ends[0], _OPPOSITE[sign]))
    return Intersection(*parts) if inner else Union(*parts)


def _half(limit: Any, sign: str) -> Set:
    if sign == r"\ne":
        return Complement(Reals, FiniteSet(limit))
    open_ = sign in "<>"
    return Interval(-oo, limit, True, open_) if sign in ("<", r"\le") else Interval(limit, oo, open_, True)


def _number(text: str) -> Any:
    """A real number or an infinity; None for anything else."""
    plain = re.sub(r"\s", "", text)
    if plain in (r"\infty", r"+\infty", r"-\infty"):
        return -oo if plain[0] == "-" else oo
    if (number := read_number(text.strip())) is not None and not text.strip().endswith("%"):
        return Rational(number.value.numerator, number.value.denominator)
    value = read_expression(text)
    if value is None or value.free_symbols or not (value := value.doit()).is_real:
        return None
    return value
