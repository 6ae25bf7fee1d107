"""Lines and tables on stdout and messages on stderr, for people and for pipes: nothing that a terminal would obey.

Progress bars are left to those who make progress; the last line of a command that fails, to `cli/app.py`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from rectune.errors import visible
from rectune.runtime.distributed import share


def print_lines(*lines: object) -> None:
    """Print lines (or JSON text, which stays the same JSON) on stdout, with nothing that a terminal would obey.

    Of several processes of one command the first one speaks.
    """
    if share()[0] > 0:
        return
    print(*map(visible, lines), sep="\n")


def print_table(rows: Sequence[Mapping[str, object]], *, as_json: bool = False) -> None:
    """Print rows with the same keys on stdout: as JSON, or as a table that is cut nowhere."""
    if as_json:
        import json

        print_lines(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if share()[0] > 0:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in rows[0] if rows else ():
        table.add_column(visible(column), overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row.values()))
    width = None if sys.stdout.isatty() else 1000  # a file or a pipe gets one line a row
    Console(width=width, markup=False, highlight=False, emoji=False).print(table)


def messages() -> logging.Handler:
    """A handler that puts a command's log on stderr, each decision once."""
    handler = _StderrHandler()
    handler.setFormatter(_Visible("%(message)s"))
    handler.addFilter(_Once())
    return handler


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the moment: a progress bar puts itself in its place, and moves on for a message."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        pass


class _Visible(logging.Formatter):
    """Messages name what is in data, which may hold what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Once(logging.Filter):
    """Lets a decision be said once: a comparison loads the same model and rows many times."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        known = record.levelno <= logging.INFO and message in self.said
        self.said.add(message)
        return not known
