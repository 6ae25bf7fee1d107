"""Tables on stdout, for people and for pipes. What goes to stderr is printed where it happens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def print_table(rows: Sequence[dict[str, Any]], *, as_json: bool = False) -> None:
    """Print rows with the same keys on stdout: as JSON, or as a table that is cut nowhere."""
    if as_json:
        import json

        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    width = None if sys.stdout.isatty() else 1000  # a file or a pipe gets one line a row
    Console(width=width, markup=False, highlight=False).print(table)
