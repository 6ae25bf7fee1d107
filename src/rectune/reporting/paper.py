"""What a reproduction puts beside the paper's figures, as a part of the page; `rectune reproduce` makes the tables.

They are in its comparison.json, under `paper`: `tables` (lists of rows of text with the same keys) and `notes`.
"""

from __future__ import annotations

from typing import Any

from rectune.reporting.grouping import short
from rectune.reporting.parts import Data, Section, Table
from rectune.reporting.read import Found

_MOST = 200  # rows of a table


def beside(found: Found) -> dict[str, Any]:
    """`tables`, each `header` and `rows` of text, and `notes`, of all reproductions; empty without one."""
    tables, notes = [], dict[str, None]()
    for _, record in found.comparisons:
        said = record.get("paper")
        said = said if isinstance(said, dict) else {}
        tables += [table for rows in _list(said.get("tables")) if (table := _table(rows))]
        notes |= dict.fromkeys(short(str(note), 500) for note in _list(said.get("notes")))
    return {"tables": tables, "notes": list(notes)}


def section(data: Data) -> Section:
    """The part of the page."""
    found = data["paper"]
    tables = [Table(one["header"], one["rows"], text=2) for one in found["tables"]]
    return Section("paper", "Beside the paper", "Beside the paper", tables=tables, caveats=found["notes"])


def _table(rows: object) -> dict[str, Any] | None:
    records = [row for row in _list(rows) if isinstance(row, dict)][:_MOST]
    header = [str(name) for name in records[0]] if records else []
    if not header:
        return None
    return {
        "header": header,
        "rows": [[short(str(row.get(name, "-"))) for name in header] for row in records],
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
