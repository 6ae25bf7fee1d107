"""Lines and tables on stdout, for people and for pipes: the one place that prints what came from data.

What goes to stderr is printed where it happens; `cli.py` makes it visible in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rectune.processes import share
from rectune.visible import visible


def print_lines(*lines: object) -> None:
    """Print lines (or JSON text, which stays the same JSON) on stdout, with nothing that a terminal would obey.

    Of several processes of one command the first one speaks.
    """
    if share()[0] > 0:
        return
    print(*map(visible, lines), sep="\n")


def print_table(rows: Sequence[dict[str, Any]], *, as_json: bool = False) -> None:
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
