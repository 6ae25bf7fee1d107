"""What a page is made of: sections of sentences, tables and figures, and numbers as they are written in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Data = Mapping[str, Any]


@dataclass
class Table:
    """Rows of text. `text` leading columns are words, the others numbers; `bold` rows stand out; `folded` is a summary
    behind which the table is hidden at first."""

    header: list[str]
    rows: list[list[str]]
    text: int = 1
    bold: set[int] = field(default_factory=set)
    folded: str = ""


@dataclass
class Section:
    """A part of the page. `figures` are pairs of SVG and caption, `legend` says whether lines need one,
    `wide` whether figures and tables stand two in a row instead of three and one."""

    key: str
    name: str  # in the list of parts
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)
    legend: bool = False
    wide: bool = False

    def __bool__(self) -> bool:
        return bool(self.text or self.tables or self.figures)


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
