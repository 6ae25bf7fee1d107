r"""Units of measurement and money at an answer's end: which kind, and how large.

A unit that one side leaves out does not matter, nor do nouns ("12 apples"); of two known units the kind must be the
same, and sizes are converted: 5 m is 500 cm and not 5 km. Years and months are not converted to days.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """What is measured ("" for any noun) and the size in the kind's first unit."""

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
