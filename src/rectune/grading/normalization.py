r"""What an answer says: one spelling of the same LaTeX, exact numbers, units and money, the letter of a choice.

Plain text, no sympy, linear time.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "⁄": "/", "∕": "/", "·": r"\cdot ", "⋅": r"\cdot ",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ", "∞": r"\infty ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "∨": r" \lor ", "∧": r" \land ",
    "％": "%", "，": ",", "：": ":", "（": "(", "）": ")", "…": r"\ldots ", "√": r"\sqrt ", "\x00": " ",
    "½": r" \frac{1}{2}", "⅓": r" \frac{1}{3}", "⅔": r" \frac{2}{3}", "¼": r" \frac{1}{4}", "¾": r" \frac{3}{4}",
    "⅕": r" \frac{1}{5}", "⅖": r" \frac{2}{5}", "⅗": r" \frac{3}{5}", "⅘": r" \frac{4}{5}", "⅙": r" \frac{1}{6}",
    "⅚": r" \frac{5}{6}", "⅛": r" \frac{1}{8}", "⅜": r" \frac{3}{8}", "⅝": r" \frac{5}{8}", "⅞": r" \frac{7}{8}",
    **dict.fromkeys("\u00a0\u2009\u202f\u2007\u200a", " "), **dict.fromkeys("\u200b\u2060\ufeff", ""),
    **{chr(ord("０") + i): str(i) for i in range(10)},
})  # fmt: skip
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "₀₁₂₃₄₅₆₇₈₉₋₊ₙ"
_PLACED = str.maketrans(_RAISED + _LOWERED, "0123456789-+n" * 2)
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|log|ln|exp|lcm|gcd"
_GREEK = "alpha|beta|gamma|delta|theta|lambda|omega|sigma|phi|pi"
_SCALES = (("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
_ROUGHLY = "approximately|approx\\.?|about|around|roughly|nearly"
_REPLACE = [(re.compile(pattern), new) for pattern, new in [
    (r"\\(?:boxed|fbox)\s*(?=\{)", ""), (r"\{,\}|,\s*\\!\s*", ","),
    (r"\\(?:left|right|[bB]ig+[lr]?)(?![a-zA-Z])|\\(?:displaystyle|textstyle|limits|bf|rm|it|large|Large|small)"
     r"(?![a-zA-Z])|\\(?:text)?color\s*\{[^{}]*\}|\\!", ""),
    (r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])", "|"),
    (r"\{:\}|\\colon(?![a-zA-Z])", ":"),
    (r"\\[dtc]frac", r"\\frac"), (r"\{\s*([^{}]+?)\s*\\over\s+([^{}]+?)\s*\}", r"\\frac{\1}{\2}"),
    (r"\{\s*([^{}]+?)\s*\\choose\s+([^{}]+?)\s*\}", r"\\binom{\1}{\2}"), (r"\\log_\{?e\}?(?![a-zA-Z])", r"\\ln "),
    (r"\\lg(?![a-zA-Z])", r"\\log_{10} "), (r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
    *((rf"(?<=\d)\s*\\text\s*\{{\s*{word}\b\s*", rf" \\times 10^{{{power}}} \\text{{") for word, power in _SCALES),
    *((rf"(?<=\d)\s*{word}\b", rf" \\times 10^{{{power}}} ") for word, power in _SCALES),
    (rf"\\(?:operatorname\*?|mathrm|text|rm)\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
    (r"\\(?:mbox|textbf|textit|textrm|texttt|textsf|textnormal|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|emph"
     r"|underline|operatorname\*?)\s*\{", r"\\text{"),
    (r"(\d)\s*\^\s*(?:\{\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}|\{\s*(?:st|nd|rd|th)\s*\}"
     r"|\\text\s*\{\s*(?:st|nd|rd|th)\s*\})|(\d)\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|(\d)(?:st|nd|rd|th)\b",
     r"\1\2\3"),
    (r"\\text\s*\{\s*([eij])\s*\}", r"\1"), (r"\\text\s*\{\s*([-+\d.,:/%\s]*)\s*\}", r" \1 "),
    (r"\\geqslant(?![a-zA-Z])|\\geq(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\leqslant(?![a-zA-Z])|\\leq(?![a-zA-Z])|<=", r"\\le "),
    (r"\\neq(?![a-zA-Z])|\\not\s*=|!=", r"\\ne "), (r"\\lt(?![a-zA-Z])", "<"), (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:overline|overrightarrow|triangle)\s*(\{[A-Z]{2,3}\}|[A-Z]{3}\b)", r"\1"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\lbrack(?![a-zA-Z])", "["), (r"\\rbrack(?![a-zA-Z])", "]"),
    (r"\\langle(?![a-zA-Z])", "("), (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\\{\s*\\\}|\\varnothing(?![a-zA-Z])|^\s*\{\s*\}\s*$", r"\\emptyset "),
    (r"(?i)^\W*(?:\\text\s*\{\s*)?(?:the )?(?:empty set|no solutions?)[\s.}]*$", r"\\emptyset"),
    (r"(?i)^\W*(?:\\text\s*\{\s*)?(?:DNE|does not exist)[\s.}]*$", r"\\text{does not exist}"),
    (rf"(?i)^\s*(?:\\(?:approx|simeq|sim)(?![a-zA-Z])|\\text\s*\{{\s*(?:{_ROUGHLY})\s*\}}|(?:{_ROUGHLY})\b)\s*", ""),
    (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})\s*(?:\\text\s*\{\s*)?C\b\s*\}?|°\s*C\b", r"\\text{ celsius}"),
    (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})\s*(?:\\text\s*\{\s*)?F\b\s*\}?|°\s*F\b", r"\\text{ fahrenheit}"),
    (r"\\?(?:%|\bpercent(?:age)?\b|\\text\s*\{\s*percent\s*\})", "%"),
    (r"(?<![a-zA-Z\\])(infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
    (rf"(?<![a-zA-Z\\])(sqrt|sec(?=\s*[(^\\]|\s*[a-z]\b)|{_FUNCTIONS}|{_GREEK})(?![a-zA-Z])", r"\\\1 "),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\sqrt\s+(\d+)", r"\\sqrt{\1}"), (r"\\sqrt(\d)", r"\\sqrt{\1}"),
    (r"\^\s*(-\d+|\d\d+)", r"^{\1}"),
]]  # fmt: skip
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
"""Words in LaTeX."""
_CALLS = {
    "sqrt": (r"\sqrt{", "}"), "cbrt": (r"\sqrt[3]{", "}"), "abs": ("|", "|"), "factorial": ("(", ")!"),
    "floor": (r"\lfloor ", r"\rfloor "), "ceil": (r"\lceil ", r"\rceil "), "ceiling": (r"\lceil ", r"\rceil "),
}  # fmt: skip
_CALL = re.compile(rf"(?<![a-zA-Z\\])\\?({'|'.join(sorted(_CALLS, key=len, reverse=True))})\s*(?=\()")
_SPACES = re.compile(r"(?:(?<!\\)\\[,;:> ]|\\q?quad(?![a-zA-Z])|[~\s])+")
_DEGREES = re.compile(
    r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|°|\\degree(?![a-zA-Z])|\s*(?:\\text\s*\{\s*)?\bdegrees?\b(?:\s*\})?"
)
_CASES = re.compile(r"\\begin\{cases\}([^&]*)\\end\{cases\}")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
_OR, _AND = (
    re.compile(
        rf",?\s*(?:\\text\s*\{{\s*,?\s*{word}\s*\}}|(?<![a-zA-Z\\]){word}(?![a-z])|(?<=\d){word}(?=[a-z]\s*=))\s*"
    )
    for word in ("or", "and")
)
_DECORATION = re.compile(r"^\s*=\s*|\\[()\[\]](?=\s*$)|^\s*\\[()\[\]]|^\*\*|\*\*$")
_DOLLAR = "\x01"


def normalize_answer(answer: str, *, radians: bool = False) -> str:
    r"""One spelling of an answer: spacing and font commands, degrees (unless in `radians`) and full stops gone.

    `\dfrac12` becomes `\frac{1}{2}`, `\text{...}` around words and units stays, `$` is money.
    """
    answer = _CASES.sub(lambda match: ", ".join(re.split(r"\\\\", match[1])), answer)
    answer = re.sub(f"[{_RAISED}]+", lambda m: f"^{{{m.group().translate(_PLACED)}}}", answer)
    answer = re.sub(f"[{_LOWERED}]+", lambda m: f"_{{{m.group().translate(_PLACED)}}}", answer)
    answer = answer.translate(_UNICODE).replace(r"\$", _DOLLAR)
    if re.fullmatch(r"[^$]*\$\s*[-\d.][^$]*", answer):  # alone before a number: money, not mathematics
        answer = answer.replace("$", _DOLLAR)
    answer = _DECORATION.sub("", answer.replace("$", "").strip()).replace("**", "^").replace(_DOLLAR, "$")
    answer = _SPACES.sub(" ", answer)
    for pattern, new in _REPLACE:
        answer = pattern.sub(new, answer)
    answer = _without_calls(answer)
    related = _RELATION.search(answer)
    answer = _OR.sub(r" \\lor " if related else ", ", answer)
    answer = _AND.sub(r" \\land " if related else ", ", answer)
    degree = r"\\cdot\\frac{\\pi}{180}" if radians or _TRIGONOMETRIC.search(answer) else ""
    answer = _DEGREES.sub(degree, answer)
    answer = re.sub(r"\s+", " ", answer.strip().rstrip(".,;:").removesuffix("\\").strip())
    return _unwrapped(answer)


def _without_calls(answer: str) -> str:
    r"""With `\sqrt{2}` for `sqrt(2)`, and so on for the functions that LaTeX writes around their argument."""
    for _ in range(20):
        if not (call := _CALL.search(answer)) or (length := closing(answer[call.end() :])) < 0:
            break
        before, after = _CALLS[call[1]]
        inside, rest = answer[call.end() + 1 : call.end() + length], answer[call.end() + length + 1 :]
        answer = f"{answer[: call.start()]}{before}{inside}{after}{rest}"
    return answer


def _unwrapped(answer: str) -> str:
    """Without braces around all of it, or parentheses around a number."""
    if numeric := re.fullmatch(r"\\text\s*\{([^{}]*\d[^{}]*)\}", answer):
        answer = numeric[1].strip()
    while answer.startswith("{") and answer.endswith("}") and closing(answer) == len(answer) - 1:
        answer = answer[1:-1].strip()
    return re.sub(r"^[(\[]\s*([-+]?[\d.,/]*\d)\s*[)\]]$", lambda m: m[0] if "," in m[1] else m[1], answer)


def closing(answer: str) -> int:
    """Where the bracket that opens `answer` closes; -1 where it does not."""
    depth = 0
    for i, char in enumerate(answer):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return i
    return -1


class Number(NamedTuple):
    r"""An exact value.

    Attributes:
        step: The last decimal place that it is written to, 0 where it is no decimal.
        ongoing: More places would follow, as in `0.333\ldots`.
    """

    value: Fraction
    step: Fraction = Fraction(0)
    ongoing: bool = False


_PLAIN = re.compile(
    r"([-+]?)\s*(\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?: \d{3})+|\d{1,3}(?:\.\d{3}){2,}|\d*)"
    r"(?:\.(\d*)(?:\\(?:overline|bar|dot)\s*\{(\d+)\}|\((\d+)\))?)?(?:[eE]([-+]?\d{1,3}))?\s*(%?)"
)
_FRACTION = re.compile(
    r"([-+]?)\s*(?:(\d+)\s*(?=\\)|(\d+)\s+(?=\d))?(?:\\frac\{\s*([-+]?\d+)\s*\}\{\s*([-+]?\d+)\s*\}|(\d+)\s*/\s*(\d+))\s*%?"
)
_SCIENTIFIC = re.compile(
    r"(?:(?<=\d)\s*(?:\\times|\\cdot|\*|x)\s*|(?<![\w.}\)])(?=10\s*\^))10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d))(?=\s*%?$)"
)
_SPELLED = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
MAX_DIGITS = 2000
"""Characters of the longest answer that is read as a number or given to sympy."""


def read_number(answer: str) -> Number | None:
    """A normalised integer, decimal, percentage, fraction or mixed number; None for anything else.

    A percentage is its number without the sign. Thousands separators, powers of ten, repeating decimals and the words
    for numbers below a hundred are understood.
    """
    if len(answer) > MAX_DIGITS:
        return None
    answer = answer.strip()
    if (ongoing := re.sub(r"(?<=\.\d\d)(\d*)\s*\\ldots\s*$", r"\1", answer)) != answer:
        number = read_number(ongoing)
        return number and number._replace(ongoing=True)
    answer = _SCIENTIFIC.sub(
        lambda m: f"{'' if m.start() and answer[m.start() - 1].isdigit() else 1}e{m[1] or m[2]}", answer
    )
    if (match := _PLAIN.fullmatch(answer)) and (match[2] or match[3] or match[4] or match[5]):
        return _decimal(*match.groups())
    if (match := _FRACTION.fullmatch(answer)) and (bottom := int(match[5] or match[7])):
        whole, top = int(match[2] or match[3] or 0), int(match[4] or match[6])
        return Number((whole + Fraction(top, bottom)) * (-1 if match[1] == "-" else 1))
    tens, _, ones = TEXT.sub(r"\1", answer).strip().lower().partition("-")
    if tens not in _SPELLED or (ones and not 0 < _SPELLED.get(ones, 0) < 10 <= _SPELLED[tens] // 2):
        return None
    return Number(Fraction(_SPELLED[tens] + _SPELLED.get(ones, 0)))


def _decimal(
    sign: str,
    whole: str,
    places: str | None,
    over: str | None,
    bracketed: str | None,
    power: str | None,
    _: str,
) -> Number:
    places = places or ""
    value = Fraction(f"0{re.sub('[, .]', '', whole)}.{places}0")
    step = Fraction(1, 10 ** len(places)) if places else Fraction(0)
    if repeated := over or bracketed:
        value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(places))
        step = Fraction(0)
    scale = Fraction(10) ** int(power or 0)
    return Number((-value if sign == "-" else value) * scale, step * scale)


_QUALIFIER = re.compile(
    r"(?<=\S)[\s,]*(?:\\text\s*\{[\s,]*|(?<=[\s,]))(?:for (?:any|all|every|some|each)|where|such that)\b.*$",
    re.DOTALL,
)


def split_qualifier(answer: str) -> tuple[str, str]:
    r"""An answer and what it says of its letters: `f(x)=cx` and `\text{for any constant } c`."""
    match = _QUALIFIER.search(answer)
    return (answer[: match.start()].rstrip(" ,"), match.group()) if match else (answer, "")


def split_top(answer: str, separators: str = ",;") -> list[str]:
    """`answer` cut at separators outside all brackets; no empty parts. Intervals may mix ( and ]."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(answer):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char in separators and depth <= 0:
            parts.append(answer[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, answer[start:]] if part.strip()]


class Unit(NamedTuple):
    """What is measured ("" for any noun) and the size in the kind's first unit.

    Sizes are converted within a kind: 5 m is 500 cm and not 5 km. Years and months are not converted to days.
    """

    kind: str
    size: Fraction = Fraction(1)


_TABLE = """
length: m meter meters metre metres =1, cm centimeter centimeters centimetre centimetres =1/100
length: mm millimeter millimeters =1/1000, dm =1/10, nm =1/1000000000, in inch inches =127/5000
length: km kilometer kilometers kilometre kilometres =1000
length: ft foot feet =381/1250, yd yard yards =1143/1250, mi mile miles =201168/125
area: acre acres =316160658/78125, hectare hectares ha =10000
volume: L l liter liters litre litres =1/1000, ml mL milliliter milliliters =1/1000000, cc =1/1000000
volume: gal gallon gallons =473176473/125000000000, qt quart quarts =473176473/500000000000
volume: pint pints =473176473/1000000000000, cup cups =473176473/2000000000000
mass: g gram grams =1, mg milligram milligrams =1/1000, kg kilogram kilograms kilo kilos =1000, tonne tonnes =1000000
mass: lb lbs pound pounds =45359237/100000, oz ounce ounces =45359237/1600000
time: s sec secs second seconds =1, ms millisecond milliseconds =1/1000, min mins minute minutes =60
time: h hr hrs hour hours =3600, day days =86400, week weeks =604800
months: month months =1, year years yr yrs =12
dollar: dollar dollars USD usd =1, cent cents =1/100
euro: euro euros EUR =1
sterling: GBP =1
yen: yen JPY =1
yuan: yuan RMB =1
rupee: rupee rupees Rs INR =1
angle: degree degrees deg =1
celsius: celsius =1
fahrenheit: fahrenheit =1
radian: radian radians rad =1
force: N newton newtons =1, kN =1000
energy: J joule joules =1, kJ =1000, eV =801088317/5000000000000000000000000000
power: W watt watts =1, kW kilowatt kilowatts =1000
pressure: Pa pascal pascals =1, kPa =1000
voltage: V volt volts =1
current: A amp amps ampere amperes =1
frequency: Hz hertz =1, kHz =1000
temperature: K kelvin =1
amount: mol mole moles =1
"""
_UNITS = {
    name: Unit(kind, Fraction(size))
    for kind, rest in (line.split(": ") for line in _TABLE.strip().splitlines())
    for names, size in (entry.rsplit(" =", 1) for entry in rest.split(", "))
    for name in names.split()
}
_SHORT = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "fps": "ft/s"}
_SYMBOLS = {
    "$": Unit("dollar"), "¢": Unit("dollar", Fraction(1, 100)), "€": Unit("euro"), "£": Unit("sterling"),
    "¥": Unit("yen"), "₹": Unit("rupee"), "Rs": Unit("rupee"), "USD": Unit("dollar"),
}  # fmt: skip
_ANY, _NEUTRAL = Unit(""), Unit("any")
UNIT = "|".join(
    sorted((*(name for name in _UNITS if name not in ("A", "in")), *_SHORT), key=len, reverse=True)
)
"""The names of units, for a regular expression."""
_TAIL = re.compile(
    r"(?<=[\d})!.])(?:\s|\\ )*(?P<text>\\text\s*\{[^{}]*\}|(?:(?<=[\s\d})!]))[A-Za-z][A-Za-z. ]*)"
    r"(?P<power>\s*\^\s*\{?[23]\}?)?"
    r"(?P<rate>\s*/\s*(?:\\text\s*\{[^{}]*\}|[A-Za-z]+)(?:\s*\^\s*\{?[23]\}?)?)?\s*$"
)
_NO_UNIT = re.compile(
    r"\b(?:is|are|was|has|have|that|the|they|it|if|for|or|and|mod|where|when|not|with|base|times|plus|minus"
    r"|i|e|st|nd|rd|th|to)\b|\d",
)


def split_unit(answer: str) -> tuple[str, Unit | None]:
    r"""A normalised answer without the unit at its end or the currency before it, and that unit if there is one.

    Letters that stand close to a number, as in `5m`, are variables unless they are the name of a unit of at least two
    letters; so are single words of two letters at most.
    """
    unit = None
    if money := re.match(r"([-+]?)\s*([$€£¥₹]|Rs|USD)\.?\s*(?=[-\d.])", answer):
        unit, answer = _SYMBOLS[money[2]], money[1] + answer[money.end() :]
    if re.search(r"\d\s*[$¢€£¥₹]$", answer):
        unit, answer = _SYMBOLS[answer[-1]], answer[:-1].strip()
    if not (tail := _TAIL.search(answer)):
        return answer, unit
    found = _named(tail)
    if found is None:
        return answer, unit
    if (whole := _sum(answer)) is not None:
        return whole
    bare = answer[: tail.start()].strip().removesuffix("\\").strip()
    return bare, unit or (None if found == _NEUTRAL else found)


def _sum(answer: str) -> tuple[str, Unit] | None:
    """`6 hours 30 minutes` in its first unit; None where the answer is not several numbers with units of a kind."""
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1", answer)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", plain)
    units = [_UNITS.get(name) for _, name in parts]
    if len(parts) < 2 or re.sub(r"[\s.]", "", plain) != "".join(n + u for n, u in parts).replace(".", ""):
        return None
    if not all(units) or len({unit.kind for unit in units if unit}) > 1:
        return None
    total = sum(Fraction(number) * unit.size for (number, _), unit in zip(parts, units, strict=True) if unit)
    assert units[0] is not None
    return str(total / units[0].size), units[0]


def _named(tail: re.Match[str]) -> Unit | None:
    """The unit of a match of `_TAIL`; None where it is none."""
    text = tail["text"]
    plain = not text.startswith("\\")
    words = re.sub(r"\\text\s*\{|\}", "", text).strip(" .")
    if not words or _NO_UNIT.search(words) or len(words.split()) > 5:
        return None
    spaced = tail.group().startswith((" ", "\\ "))
    if plain and len(words) == 1 and not (spaced and words in "mgshLNJWVK") and not tail["rate"]:
        return None
    if re.fullmatch(r"(?:square |cubic |sq\.? )?units?", words):
        return _NEUTRAL
    unit = _unit(words, tail["power"] or "", tail["rate"] or "")
    if unit is None and plain and max(map(len, words.split())) < 3:
        return None
    return unit or _ANY


def _unit(words: str, power: str = "", rate: str = "") -> Unit | None:
    words, _, below = _SHORT.get(words, words).partition("/")
    if not below and " per " in f" {words} ":
        words, _, below = words.partition(" per ")
    if below and power:  # the power behind m/s is that of the seconds
        below, power = below + re.sub(r"[\s{}]", "", power), ""
    if not below and rate:
        below = re.sub(r"\\text\s*\{|[{}]|^\s*/", "", rate).strip()
    exponent = int(re.sub(r"\D", "", power) or 1)
    for word, times in (("square", 2), ("sq.", 2), ("sq", 2), ("cubic", 3), ("cu", 3)):
        if words.startswith(f"{word} "):
            words, exponent = words[len(word) :].strip(), times
    first, _, raised = words.split()[0].partition("^") if words.split() else ("", "", "")
    exponent = int(raised) if raised.isdigit() else exponent
    if first in ("degree", "degrees") and words.split()[-1].lower() in ("celsius", "c", "fahrenheit", "f"):
        first = {"c": "celsius", "f": "fahrenheit"}[words.split()[-1].lower()[0]]
    unit = _UNITS.get(first) or _UNITS.get(first.lower() if len(first) > 2 else "")
    if unit is None:
        return None
    kind = {"length2": "area", "length3": "volume"}.get(f"{unit.kind}{exponent}", unit.kind)
    unit = Unit(kind if exponent == 1 or kind != unit.kind else f"{kind}^{exponent}", unit.size**exponent)
    under = _unit(below.strip()) if below else None
    return Unit(f"{unit.kind}/{under.kind}", unit.size / under.size) if under else unit


def unit_ratio(gold: Unit | None, answer: Unit | None) -> Fraction | None:
    """By what to multiply the answer's number to have it in the gold answer's unit; None where kinds differ."""
    if gold is None or answer is None or gold == answer or not (gold.kind or answer.kind):
        return Fraction(1)
    return answer.size / gold.size if gold.kind == answer.kind else None


_LETTER = re.compile(r"\(?([A-J])\)?")
_LABELLED = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?"
    r"(?:\(([A-Ja-j])\)\s*[.:]?|\[([A-J])\]|([A-Ja-j])(?:[).:](?=\s|$|[^\d\s.])|(?=$)|(?=\s*,?\s+(?:because|since|is)\b)))\s*(.*)",
    re.DOTALL | re.IGNORECASE,
)
_NO_TEXT = re.compile(r"[+*/=^_<>|]|-\s|\\(?:cdot|times|cup|cap|le|ge|ne|in|to)\b")
_SEVERAL = re.compile(r"\(?[A-J]\)?\s*(?:[,;/&]|and\b|or\b|\\lor\b|\\land\b)\s*\(?[A-J]\b")
_ANOTHER = re.compile(r"(?:[,;/&]|and\b|or\b|\\lor\b|\\land\b)\s*\(?[A-J]\b", re.IGNORECASE)


def names_choices(answer: str) -> bool:
    """Whether a normalised answer is a choice, or several, as in `A or B`."""
    return bool(split_choice(answer)[0] or _SEVERAL.match(TEXT.sub(r"\1 ", answer[:500]).strip()))


def choice_letter(answer: str) -> str:
    """The letter of a normalised answer that is a choice's letter and nothing else, else ""."""
    match = _LETTER.fullmatch(TEXT.sub(r"\1", answer).strip().rstrip(".)")) if len(answer) < 20 else None
    return match[1] if match else ""


def split_choice(answer: str) -> tuple[str, str]:
    """The letter and the text of a normalised answer such as `(B) 12`, `B. 12` or `B`; ("", answer) otherwise.

    Several letters are no choice, nor is a letter that the text then calculates with.
    """
    match = _LABELLED.fullmatch(TEXT.sub(r"\1 ", answer[:500]).strip()) if len(answer) <= 500 else None
    if not match or _NO_TEXT.match(match[4]) or _ANOTHER.match(match[4]):
        return "", answer
    return (match[1] or match[2] or match[3]).upper(), match[4].strip()
