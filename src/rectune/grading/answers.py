r"""Finding the answer in a model's words, and writing answers in one form. Plain text, no sympy, linear time.

Extraction goes through named rules in a fixed order and takes the first that finds something:

| rule | finds |
|---|---|
| `boxed` | the last complete `\boxed{}`, braces balanced; "and", "or", commas join several |
| `hash` | what follows the last `####` on its line (GSM8K) |
| `phrase` | what follows the last "the answer is", "answer:" on its line |
| `number` | the last number, fraction or percentage in the text |

Whether two answers are the same is in `math.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

RULES = ("boxed", "hash", "phrase", "number")
"""All rules, in the order used by every benchmark that does not say otherwise."""

_NUMBER = (
    r"(?:(?<![\w.)}\]])[-−])?[$€£¥]?\s?(?:\\[dt]?frac\{[-\d.]+\}\{[-\d.]+\}"
    r"|\d+\s*/\s*\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)(?:\s*\\?%)?"
)
_LAST_NUMBER = re.compile(_NUMBER)
_FIRST_NUMBER = re.compile(rf"\s*(?:about |approximately |\\)?({_NUMBER})(?![\w^({{\\*+])")
_REASON = re.compile(r",?\s+(?:because|since|as|so|which|where|after|when|in|not)\b")
_PROSE = re.compile(r"(?<!\\)\b(?:that|the|they|she|he|it|is|are|has|have|will|there)\b", re.IGNORECASE)
_PHRASE = re.compile(
    r"\banswers?\b(?:[^.:=\n]{0,60}?\s(?:is|are)\b\s*:?|\s*[:=])\**[^\S\n]*([^\n]*)", re.IGNORECASE
)
_MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s*([-\d./]+|[A-Za-z])")
_BETWEEN_BOXES = re.compile(r"[\s$,;.]*(?:\\?\)?\s*(?:and|or)\b)?[\s$,;]*(?:\\\()?\s*")


def extract_answer(text: str, rules: Iterable[str] = RULES) -> str:
    """The answer in `text` by the first of `rules` that finds one, else "". Not yet normalised."""
    for rule in rules:
        if found := _RULES[rule](text).strip():
            return found
    return ""


def _boxed(text: str) -> str:
    boxes: list[tuple[int, int, int]] = []  # start of the command, start and end of its content
    open_braces: list[tuple[int, int] | None] = []
    for token in _BOX_TOKEN.finditer(text):
        word = token.group()
        if word.endswith("{") and word != r"\{":
            open_braces.append((token.start(), token.end()) if len(word) > 1 else None)
        elif word == "}" and open_braces and (start := open_braces.pop()):
            while boxes and boxes[-1][0] > start[0]:
                boxes.pop()
            boxes.append((*start, token.start()))
    if not boxes:
        return bare[-1] if (bare := _BARE_BOX.findall(text)) else ""
    contents = [text[boxes[-1][1] : boxes[-1][2]]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        between = text[before[2] + 1 : after[0]]
        if len(between) > 40 or not _BETWEEN_BOXES.fullmatch(between):
            break
        contents.append(text[before[1] : before[2]])
    return ", ".join(dict.fromkeys(reversed(contents)))


def _hash(text: str) -> str:
    return text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else ""


def phrase_text(text: str) -> str:
    """What follows the last "the answer is" up to the end of its sentence, else ""."""
    found = ""
    for match in _PHRASE.finditer(text):
        found = match.group(1).strip() or found
    return re.split(r"\.\s", found)[0].strip(" *").removesuffix(".")


def _phrase(text: str) -> str:
    found = phrase_text(text)
    if math := _MATH.search(found):
        whole = re.sub(r"\b(?:and|or)\b|[\s,;.]", "", _MATH.sub("", found))
        return found if not whole else next(group for group in math.groups() if group)
    found = _REASON.split(found)[0]
    if (number := _FIRST_NUMBER.match(found)) and re.match(
        r"\s+[A-Za-z]{2,}(?!.*[\d\\])", found[number.end() :]
    ):
        return number.group(1)
    return _number(found) if _PROSE.search(found) else found.replace(r"\boxed{", "")


def _number(text: str) -> str:
    found = ""
    for match in _LAST_NUMBER.finditer(text):
        found = match.group()
    return found


_RULES = {"boxed": _boxed, "hash": _hash, "phrase": _phrase, "number": _number}

_UNICODE = str.maketrans({"−": "-", "–": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "π": r"\pi ",
                          "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "％": "%",
                          "\u00a0": " ",
                          "²": "^2", "³": "^3", "√": r"\sqrt ", "\x00": " "})  # fmt: skip
_REPLACE = [(re.compile(pattern), new) for pattern, new in [
    (r"\\(?:left|right|[bB]ig+[lr]?)(?![a-zA-Z])|\\(?:displaystyle|limits)(?![a-zA-Z])", ""),
    (r"\{,\}|,\s*\\!\s*", ","),
    (r"(?<!\\)\\[!,;:> ]|\\q?quad(?![a-zA-Z])|~", " "),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(?:mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|operatorname\*?)\s*\{", r"\\text{"),
    (r"\\(?:geqslant|geq)(?![a-zA-Z])", r"\\ge"),
    (r"\\(?:leqslant|leq)(?![a-zA-Z])", r"\\le"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\langle(?![a-zA-Z])", "("), (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s*\b(?:and|or)\b", ", "),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})(?:\s*[CF]\b)?|°(?:\s*[CF]\b)?|\\degree(?![a-zA-Z])", ""),
    (r"(?<=\d)\s*(?:\\text\s*\{\s*)?degrees?(?:\s*\})?", ""),
    (r"\\?(?:%|\bpercent(?:age)?\b|\\text\s*\{\s*percent\s*\})", "%"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
]]  # fmt: skip
_UNIT = re.compile(
    r"(?<=[\d})!])\s*(?:\\text\s*\{[^{}]*\}|(?<![a-zA-Z])(?:cm|mm|km|kg|ft|mi|lbs?|hrs?|mins?|mph|kmh|km/h|am|pm)\b"
    r"|(?:(?<=\s)|(?<=\d))(?!(?:sqrt|sin|cos|tan|log|infty|cup|times|base|mod)\b)[a-zA-Z]{3,}[a-zA-Z ]*"
    r"(?:(?:per|/)\s*[a-zA-Z]+)?)\s*(?:\^\s*\{?[23]\}?)?\s*$"
)

_DECORATION = re.compile(r"\\\$|[$€£¥]|\\[()\[\]](?=\s*$)|^\s*\\[()\[\]]|\bUSD\b|^\*\*|\*\*$")


def normalize_answer(answer: str) -> str:
    r"""One spelling of an answer: dollar signs, spacing commands, units, degrees and full stops gone.

    `\dfrac12` becomes `\frac{1}{2}`, `\text{...}` around words stays for `math.py`, a percent sign as `%`.
    """
    answer = answer.translate(_UNICODE).strip()
    answer = _DECORATION.sub("", answer).replace("**", "^")
    for pattern, new in _REPLACE:
        answer = pattern.sub(new, answer)
    answer = answer.strip().rstrip(".,;:").strip()
    answer = _UNIT.sub("", answer).strip()
    return re.sub(r"\s+", " ", answer)


_PLAIN = re.compile(r"([-+]?)\s*(\d{1,3}(?:,\d{3})+|\d*)(\.\d*)?(?:e([-+]?\d{1,3}))?(%?)")
_FRACTION = re.compile(
    r"([-+]?)\s*(?:(\d+)\s*(?=\\)|(\d+)\s+(?=\d))?(?:\\frac\{\s*([-+]?\d+)\s*\}\{\s*([-+]?\d+)\s*\}|(\d+)\s*/\s*(\d+))"
)
_SCIENTIFIC = re.compile(
    r"(?<=\d)\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d))$"
)
MAX_DIGITS = 2000
"""Characters of the longest answer that is read as a number or given to sympy."""


def plain_number(answer: str) -> Fraction | None:
    """The exact value of a normalised integer, decimal, percentage, fraction or mixed number; else None.

    A percentage is its number without the sign. Thousands separators and powers of ten are understood.
    """
    if len(answer) > MAX_DIGITS:
        return None
    answer = _SCIENTIFIC.sub(lambda m: f"e{m[1] or m[2]}", answer.strip())
    if (match := _PLAIN.fullmatch(answer)) and (match[2] or (match[3] or ".") != "."):
        digits = f"{match[1]}0{match[2].replace(',', '')}{(match[3] or '').rstrip('.')}"
        return Fraction(digits) * Fraction(10) ** int(match[4] or 0)
    if match := _FRACTION.fullmatch(answer):
        whole, top = int(match[2] or match[3] or 0), int(match[4] or match[6])
        if bottom := int(match[5] or match[7]):
            return (whole + Fraction(top, bottom)) * (-1 if match[1] == "-" else 1)
    return None


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
