"""Fenced blocks of a model's words, paired line by line as CommonMark pairs them, with what models do beyond it.

CommonMark: a fence is a line of three or more backticks or tildes behind at most blanks, quote or list marks; it is
closed by a line of at least as many of the same character and nothing else. Beyond it: a fence inside a
triple-quoted string belongs to the program; a fence with a language inside an open block without one opens
another block; the closing fence of a list item may stand at the margin; HTML tags around a block do not hide it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_FENCE = re.compile(
    r"(?P<lead>(?:[ \t]*(?:>|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t])))*[ \t]*)(?P<marks>`{3,}|~{3,})(?P<info>.*)"
)
_PYTHON = re.compile(r"\W*(?:i?py(?:thon)?[\d.]*|pycon|sage)(?![a-z])|\S*\.py\b", re.IGNORECASE)
_QUOTES = re.compile(r"#.*|\"\"\"|'''|\\.|(?P<one>[\"'])(?:\\.|(?!(?P=one)).)*(?:(?P=one)|$)")


class Block(NamedTuple):
    """One fenced block: its info string, its lines, and whether a closing fence ends it."""

    info: str
    code: str
    closed: bool

    @property
    def is_python(self) -> bool | None:
        """Whether it says that it is Python; None where it says nothing."""
        return bool(_PYTHON.match(self.info)) if self.info.strip(" {}.") else None


def fenced_blocks(text: str, depth: int = 0) -> list[Block]:
    """All blocks of `text`, in order; the last one may be open. Linear in its length.

    A block of another language around blocks of Python, as of a whole answer in Markdown, gives way to these.
    """
    lines = text.splitlines()
    blocks: list[Block] = []
    start = 0
    while start < len(lines):
        opening = _opening(lines[start])
        start += 1
        if opening is None:
            continue
        end = _closing(lines, start, opening)
        code = "\n".join(_unquoted(lines[start:end], opening["lead"]))
        block = Block(opening["info"].strip(), code, end < len(lines) and not _opens(lines[end]))
        inner = [] if block.is_python or depth > 1 else fenced_blocks(code, depth + 1)
        blocks += inner if any(one.is_python for one in inner) else [block]
        start = end if end < len(lines) and _opens(lines[end]) else end + 1
    return blocks


def before_first_fence(text: str) -> str:
    """What stands in front of the first line that is a fence: the program, where only its end is fenced."""
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if _opening(line.rstrip("\r\n"))), len(lines))
    return "".join(lines[:first])


def _opening(line: str) -> re.Match[str] | None:
    match = _FENCE.fullmatch(line)
    return None if match is None or (match["marks"][0] == "`" and "`" in match["info"]) else match


def _opens(line: str) -> bool:
    """Whether a line can only open a block: it names a language."""
    match = _opening(line)
    return match is not None and bool(match["info"].strip())


def _closing(lines: list[str], start: int, opening: re.Match[str]) -> int:
    """The line that ends the block: a closing fence, or one that opens the next; beyond the last if there is none."""
    python = Block(opening["info"], "", True).is_python
    first = None
    quote = ""
    for number in range(start, len(lines)):
        ends = _ends(lines[number], opening, python)
        if ends and not quote:
            return number
        first = number if ends and first is None else first
        if python is not False:
            quote = _quote_after(lines[number], quote)
    return len(lines) if first is None else first  # a string that never ends hides no fence


def _ends(line: str, opening: re.Match[str], python: bool | None) -> bool:
    match = _opening(line)
    if match is None or match["marks"][0] != opening["marks"][0]:
        return False
    deeper = len(match["lead"].expandtabs()) - len(opening["lead"].expandtabs())
    if deeper > 3 or len(match["marks"]) < len(opening["marks"]):
        return False
    info = match["info"].strip()
    if python:
        return len(info.split()) != 1  # words behind a closing fence
    return not info or bool(_PYTHON.match(info))


def _quote_after(line: str, quote: str) -> str:
    """The triple quote that is open behind `line`, given the one that was open before it."""
    at = 0
    while at < len(line):
        if quote:
            end = line.find(quote, at)
            if end < 0:
                return quote
            at, quote = end + 3, ""
        match = _QUOTES.search(line, at)
        if match is None:
            return ""
        at = match.end()
        quote = match.group() if match.group() in ('"""', "'''") else ""
    return quote


def _unquoted(lines: list[str], lead: str) -> Iterator[str]:
    """Lines without the indentation, and the quote marks, of the block's fence."""
    width = len(re.sub(r"[^\s>]", " ", lead).expandtabs()) if ">" not in lead else 0
    for line in lines:
        if ">" in lead:
            yield re.sub(r"^[ \t]*>[ \t]?", "", line)
        else:
            line = line.expandtabs() if line[:1] == "\t" and width else line
            yield line[min(width, len(line) - len(line.lstrip(" "))) :]
