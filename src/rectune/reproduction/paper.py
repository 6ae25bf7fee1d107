"""What the paper found: its tables as data, their known errors, and how far two of its own runs lie apart.

The figures are in `recipes/paper/figures.json`; ours are put beside them in `beside.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from rectune.reproduction.recipe import recipe_folder

ROUNDING = 0.011
"""Points by which a printed average may differ from that of the printed figures, which are rounded too."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a table, in %.

    Attributes:
        model: The end of its hub id.
        arm: As in the recipe.
        values: Benchmark to figure.
        average: Over them, recomputed where the printed one does not add up; None for tables without.
        printed: As it is printed.
        note: What to know about it.
    """

    model: str
    arm: str
    values: Mapping[str, float]
    average: float | None
    printed: float | None
    note: str


@dataclass(frozen=True)
class PaperTable:
    """One table; figures have no rows, since the paper prints no numbers for them."""

    title: str
    unit: str
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]

    def row(self, model: str, arm: str) -> PaperRow | None:
        """The row of a model (its hub id or the end of it; the last model's for another) and an arm."""
        of_arm = [row for row in self.rows if row.arm == arm]
        same = [row for row in of_arm if row.model == model.rpartition("/")[2]]
        found = same or of_arm
        return found[-1] if found else None


@cache
def figures() -> dict[str, Any]:
    """The content of figures.json."""
    found: dict[str, Any] = json.loads((recipe_folder() / "figures.json").read_text("utf-8"))
    return found


def paper_table(name: str) -> PaperTable:
    """The table or figure that a recipe is about."""
    record = figures()["tables"][name]
    rows = tuple(_row(row, record["columns"]) for row in record["rows"])
    wrong = [
        f"the average of {row.model} {row.arm} is printed as {row.printed:.2f}; its figures give {row.average:.2f}, "
        "which is used here"
        for row in rows
        if row.printed is not None and row.average is not None and abs(row.printed - row.average) > ROUNDING
    ]
    return PaperTable(record["title"], record["unit"], rows, (*wrong, *record["notes"]))


def _row(record: Mapping[str, Any], columns: list[str]) -> PaperRow:
    values = dict(zip(columns, record["values"], strict=True))
    printed = record.get("average")
    return PaperRow(
        record["model"],
        record["arm"],
        values,
        record.get("recomputed", printed),
        printed,
        record.get("note", ""),
    )


def run_spread(benchmark: str | None) -> float | None:
    """Half of a 95 % range for one run of the paper, in points, from the two pairs of runs that it did twice.

    With sd the root mean square of the two differences, divided by sqrt(2): 1.96 sd. Two differences say little, but
    the paper has no others.

    Args:
        benchmark: None for the average over all five; None is returned for others than these.
    """
    repeated = figures()["repeated"]
    columns = repeated["columns"]
    differences = []
    for pair in repeated["pairs"]:
        gaps = [b - a for a, b in zip(pair["first"], pair["second"], strict=True)]
        if benchmark is None:
            differences.append(sum(gaps) / len(gaps))
        elif benchmark in columns:
            differences.append(gaps[columns.index(benchmark)])
        else:
            return None
    return 1.96 * math.sqrt(sum(gap**2 for gap in differences) / len(differences) / 2)
