r"""Whether two expressions, equations or sets of real numbers are the same, by their values.

math-verify compares numbers to so many decimals, so that to it all tiny numbers are equal, and symbolic expressions
by `simplify`. Here rational numbers are compared exactly, other numbers to 30 significant digits, and expressions with
variables at a few points. Sets of real numbers are compared however they are written: `x > 3`, `(3, \infty)`,
`\{x | x > 3\}`, `x \ne 2`, `|x| < 1`. What has no value (functions without a definition) is not judged.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse
from sympy import (
    Abs,
    Add,
    And,
    Derivative,
    Dummy,
    Eq,
    Expr,
    FiniteSet,
    Float,
    I,
    Integral,
    Intersection,
    Interval,
    Limit,
    Mul,
    Pow,
    Product,
    Rational,
    Set,
    Sum,
    Symbol,
    UnevaluatedExpr,
    Union,
    binomial,
    factorial,
    fraction,
    nan,
    oo,
    together,
    zoo,
)
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.sets.sets import Complement

from rectune.grading.normalization import split_top

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we bound the time ourselves

_LATEX = [LatexExtractionConfig()]
MAX_BITS = 200_000
"""Bits of the largest numerator or denominator that is worked out exactly."""
DIGITS, MAX_DIGITS = 30, 1000
"""Digits to which numbers are compared, and to which it is made sure that equal digits are no accident."""
RELATIVE = Fraction(1, 10_000)
"""Largest relative difference of a rounded decimal from what it was rounded from."""
_POINTS = (0.7316, -1.3791, 2.2673, 3.1871, -0.4129, 1.8437, -2.7713, 5.3391, 4.6173, 0.2871)
_ENOUGH = 4
_UNPROBED = (Sum, Product, Integral, Limit, Derivative)

_SIGN = r"<|>|\\(?:le|ge|ne)(?![a-zA-Z])"
_REGION = re.compile(rf"{_SIGN}|\\\}}\s*\\cup\s*\\\{{|\\setminus|\\backslash|\\mathbb\s*\{{?R\}}?|all real")
"""What an answer has that is a set of numbers and no interval or list."""
_BUILDER = re.compile(
    r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:[|:,]|\\text\s*\{[^{}]*\})\s*(.*)\\\}",
    re.DOTALL,
)
_SIGNED = re.compile(r"\\mathbb\s*\{?R\}?\s*[\^_]\s*\{?\s*(\+|-|\*|\\ast|<|>|\\[lg]e)\s*0?\s*\}?")
_HALVES = {"+": ">", "-": "<", "*": r"\ne", r"\ast": r"\ne"}
_MEMBER = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*(.*)", re.DOTALL)
_REALS = re.compile(r"\\mathbb\s*\{?R\}?|(?:\\text\s*\{)?\s*all reals?(?: numbers?)?\s*\}?")
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])(?!R\b|e\b)[a-zA-Z](?![a-zA-Z])")


def same_value(gold: Any, answer: Any, step: Fraction = Fraction(0)) -> bool | None:
    """Whether two expressions are equal; None where their values do not decide that.

    Args:
        gold: A sympy object, not necessarily evaluated.
        answer: Another.
        step: The last decimal place of the one that is a decimal: values that differ by less, and by at most
            `RELATIVE` of their size, are equal.
    """
    if not isinstance(gold, Expr) or not isinstance(answer, Expr) or gold.is_Matrix or answer.is_Matrix:
        return None
    gold, answer = _imaginary(gold), _imaginary(answer)
    if gold.free_symbols or answer.free_symbols:
        return _same_function(*_without_functions(gold, answer))
    real, other = _with_real_roots(gold), _with_real_roots(answer)
    if (real, other) != (gold, answer) and _same_constant(real, other, step):
        return True
    return _same_constant(gold, answer, step)


def _same_constant(gold: Any, answer: Any, step: Fraction) -> bool | None:
    left, right = _rational(gold), _rational(answer)
    if left is not None and right is not None and not step and not gold.has(Float) and not answer.has(Float):
        return left == right
    return _same_number(gold, answer, step)


def same_equation(gold: Eq, answer: Eq) -> bool | None:
    """Whether two equations describe the same curve: one is a constant multiple of the other.

    None where that is undecided.
    """
    left, right = (_imaginary(side.lhs - side.rhs) for side in (gold, answer))
    left, right = _without_functions(*(fraction(together(side))[0] for side in (left, right)))
    symbols = left.free_symbols | right.free_symbols
    if not symbols or left.has(*_UNPROBED) or right.has(*_UNPROBED):
        return None
    if left.free_symbols != right.free_symbols:
        return False
    values = [(_at(left, point), _at(right, point)) for point in _points(symbols)]
    ratios = [value / other for value, other in values if value is not None and other]
    if len(ratios) < _ENOUGH:
        return None
    return ratios[0] != 0 and all(_close(ratio, ratios[0]) for ratio in ratios)


def _imaginary(expression: Any) -> Any:
    """With the letter i as the imaginary unit."""
    letters = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
    return expression.subs(dict.fromkeys(letters, I)) if letters else expression


def _with_real_roots(expression: Any) -> Any:
    """With the real value of odd roots of negative numbers, which to sympy are complex."""
    return expression.replace(_is_odd_root, lambda root: -Pow(-root.base, root.exp))


def _is_odd_root(expression: Any) -> bool:
    if not isinstance(expression, Pow) or expression.base.is_negative is not True:
        return False
    power = _rational(expression.exp)
    return power is not None and power.denominator > 1 and power.denominator * power.numerator % 2 == 1


def _without_functions(*expressions: Any) -> tuple[Any, ...]:
    """With a variable for each application of an undefined function, such as f(x)."""
    calls = {call for expression in expressions for call in expression.atoms(AppliedUndef)}
    names = {call: Dummy(f"f{i}") for i, call in enumerate(sorted(calls, key=str))}
    return tuple(expression.xreplace(names) for expression in expressions)


def _rational(expression: Any) -> Fraction | None:
    """The exact value of arithmetic on rational numbers; None for anything else, or where it is too large."""
    if isinstance(expression, Rational):
        return Fraction(int(expression.p), int(expression.q)) if expression.q else None
    if isinstance(expression, Float):
        return Fraction(str(expression))
    values = [_rational(argument) for argument in expression.args]
    if not values or any(value is None for value in values):
        return None
    return _combined(expression, [value for value in values if value is not None])


def _combined(expression: Any, values: list[Fraction]) -> Fraction | None:
    result = None
    if isinstance(expression, Add):
        result = sum(values, Fraction(0))
    elif isinstance(expression, Mul):
        result = math.prod(values, start=Fraction(1))
    elif isinstance(expression, UnevaluatedExpr):
        result = values[0]
    elif isinstance(expression, Pow):
        base, exponent = values
        if exponent.denominator == 1 and (base or exponent > 0) and abs(exponent) * _bits(base) <= MAX_BITS:
            result = base ** int(exponent)
    elif isinstance(expression, factorial) and values[0].denominator == 1 and 0 <= values[0] <= 10_000:
        result = Fraction(math.factorial(int(values[0])))
    elif isinstance(expression, binomial) and all(v.denominator == 1 and 0 <= v <= 10_000 for v in values):
        result = Fraction(math.comb(int(values[0]), int(values[1])))
    return result if result is not None and _bits(result) <= MAX_BITS else None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _number(expression: Any, **options: Any) -> Any:
    """The value to `DIGITS` digits; 0 where all of them cancel; None where there is none."""
    try:
        value = expression.evalf(DIGITS, **options)
        real, imaginary = value.as_real_imag()
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, KeyError):
        return None
    if value.has(nan, zoo, oo) or not all(part.is_number and (part.is_Float or part.is_Rational)
                                          for part in (real, imaginary)):  # fmt: skip
        return None
    parts = [0 if part.is_Float and part._prec < 10 else part for part in (real, imaginary)]
    return parts[0] + I * parts[1]


def _close(value: Any, other: Any, relative: float = 1e-20) -> bool:
    return bool(Abs(value - other) <= relative * max(Abs(value), Abs(other)))


def _same_number(gold: Any, answer: Any, step: Fraction) -> bool | None:
    if gold == answer:
        return True
    left, right = _number(gold), _number(answer)
    if left is None or right is None:
        return None
    difference = Abs(left - right)
    largest = max(Abs(left), Abs(right))
    if step and left.is_real and right.is_real:
        return bool(difference < Rational(step) and difference <= Rational(RELATIVE) * largest)
    if gold.has(Float) or answer.has(Float):
        return bool(difference <= 1e-6 * largest)
    if difference > 10.0 ** (5 - DIGITS) * largest:
        return False
    if gold.has(*_UNPROBED) or answer.has(*_UNPROBED):
        return True  # 1000 digits of an integral take too long
    rest = (gold - answer).evalf(10, maxn=MAX_DIGITS)  # digits agree where a tiny number is added, too
    return not (rest.is_number and rest != 0 and all(part._prec > 5 for part in rest.atoms(Float)))


def _points(symbols: Any, *, whole: bool = False) -> list[Mapping[Symbol, float]]:
    """Ten points, some of whose coordinates are negative; or five of whole positive numbers."""
    ordered = list(enumerate(sorted(symbols, key=lambda symbol: symbol.name)))
    if whole:
        return [{symbol: i + 2 * j for j, symbol in ordered} for i in range(1, 6)]
    count = len(_POINTS)
    return [{symbol: _POINTS[(i + 3 * j) % count] + 0.01 * j for j, symbol in ordered} for i in range(count)]


def _at(expression: Any, point: Mapping[Symbol, float]) -> Any:
    """The real value at a point; None where it has none."""
    value = _number(expression, subs=point)
    return value if value is not None and value.is_real else None


def _same_function(gold: Any, answer: Any) -> bool | None:
    """Equal where both are real: at positive points at least, and nowhere different at them."""
    if gold.has(*_UNPROBED) or answer.has(*_UNPROBED):
        return None
    for whole in (False, True):  # (-1)^n is real at whole numbers only
        agreed, doubtful = 0, False
        for point in _points(gold.free_symbols | answer.free_symbols, whole=whole):
            left, right = _at(gold, point), _at(answer, point)
            if left is None or right is None:
                continue
            if _close(left, right):
                agreed += 1
            elif min(point.values()) > 0:
                return False
            else:
                doubtful = True
        if agreed or doubtful:
            return None if doubtful or agreed < _ENOUGH else True
    return None


@lru_cache(maxsize=256)
def read(answer: str) -> list[Any]:
    """math-verify's reading: a sympy expression, then its text; only the text where it is not mathematics."""
    return list(parse(f"${answer}$", _LATEX, parsing_timeout=None))


def same_region(gold: str, answer: str) -> bool | None:
    """Whether two normalised answers are the same set of real numbers; None where one of them is not seen to be one."""
    if not (_REGION.search(gold) or _REGION.search(answer)):
        return None
    try:
        left, right = _pieces(_region(gold.strip())), _pieces(_region(answer.strip()))
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None
    if left is None or right is None:
        return None
    names = [set(_VARIABLE.findall(piece)) for piece in (gold, answer)]
    if all(names) and names[0] != names[1]:
        return False
    return len(left) == len(right) and all(
        piece[2:] == other[2:]
        and all(a == b or same_value(a, b) for a, b in zip(piece[:2], other[:2], strict=True))
        for piece, other in zip(left, right, strict=True)
    )


def _pieces(region: Set | None) -> list[tuple[Any, Any, bool, bool]] | None:
    """Start, end and whether they are left out, of each interval; a point is an interval of length 0."""
    pieces = []
    for part in region.args if isinstance(region, Union) else [region]:
        if isinstance(part, Interval):
            pieces.append((part.start, part.end, part.left_open, part.right_open))
        elif isinstance(part, FiniteSet):
            pieces += [(point, point, False, False) for point in part.args]
        elif part != FiniteSet():
            return None
    return sorted(pieces, key=lambda piece: float(piece[0]))


def _region(answer: str, depth: int = 6) -> Set | None:
    if depth == 0 or len(answer) > 300:
        return None
    if builder := _BUILDER.fullmatch(answer) or _MEMBER.fullmatch(answer):
        return _region(builder[builder.lastindex or 1].strip(), depth - 1)
    for pattern, combine in (
        (r"\\lor(?![a-zA-Z])|\\cup(?![a-zA-Z])", Union),
        (r"\\land(?![a-zA-Z])|\\cap(?![a-zA-Z])", Intersection),
        (r"\\setminus(?![a-zA-Z])|\\backslash(?![a-zA-Z])", Complement),
    ):
        if len(parts := re.split(pattern, answer)) > 1:
            regions = [_region(part.strip(" ,"), depth - 1) for part in parts]
            return None if None in regions else combine(*regions)
    if signed := _SIGNED.fullmatch(answer):
        return _region(rf"x {_HALVES.get(signed[1], signed[1])} 0", depth - 1)
    if _REALS.fullmatch(answer):
        return Interval(-oo, oo)
    parts = split_top(answer)
    excluded = re.fullmatch(r"(.*\\ne)(?![a-zA-Z])([^<>=]*)", answer)
    if excluded and len(points := split_top(excluded[2])) > 1:  # x \ne 2, 3
        parts = [f"{excluded[1]} {point}" for point in points]
    if len(parts) > 1 and all(re.search(_SIGN, part) for part in parts):
        regions = [_region(part, depth - 1) for part in parts]
        if None in regions:
            return None
        common = Intersection(*regions)  # where conditions exclude each other, one of them holds
        return Union(*regions) if common == FiniteSet() and r"\ne" not in answer else common
    return _simple(answer)


def _simple(answer: str) -> Set | None:
    """What math-verify reads as a set of numbers, or as a relation on one variable."""
    if answer == r"\emptyset":
        return FiniteSet()
    parsed = read(answer)[0] if answer else None
    if isinstance(parsed, Set | Relational | And) and not isinstance(parsed, Eq):
        parsed = parsed.xreplace({number: Rational(str(number)) for number in parsed.atoms(Float)})
        region = parsed if isinstance(parsed, Set) else parsed.as_set()
        return None if region.free_symbols else region
    return None
