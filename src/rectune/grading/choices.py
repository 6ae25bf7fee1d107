"""Answers to multiple-choice questions: a letter, or a letter with the text of its choice, as in `(B) 12`."""

from __future__ import annotations

import re

from rectune.grading.answers import TEXT

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

    Several letters are no choice, nor is a letter that the text goes on to calculate with.
    """
    match = _LABELLED.fullmatch(TEXT.sub(r"\1 ", answer[:500]).strip()) if len(answer) <= 500 else None
    if not match or _NO_TEXT.match(match[4]) or _ANOTHER.match(match[4]):
        return "", answer
    return (match[1] or match[2] or match[3]).upper(), match[4].strip()
