"""The paper's tables as data (figures.json), their known errors, and our figures beside them.

Noise at full scale: the root of the sum of squares of half our 95 % interval and of the paper's own run-to-run spread.
At mini scale model and task are others, so what is compared is each arm's gain over the arm that the recipe compares
with; ours with the paired interval, in domain and out of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rectune.analysis.summary_text import DOMAINS
from rectune.records import Accuracy, ArmsResult, PairResult, Verdict

Rows = list[dict[str, Any]]
ROUNDING = 0.011
"""Points by which a printed average may differ from that of the printed figures, which are rounded too."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a table, in %.

    Attributes:
        model: The end of its hub id.
        arm: As in the recipe.
        values: Benchmark to figure.
        average: Over them, recomputed if the printed one does not add up; None for tables without.
        printed: As it is printed.
    """

    model: str
    arm: str
    values: Mapping[str, float]
    average: float | None
    printed: float | None

    @property
    def figure(self) -> float:
        return self.average if self.average is not None else sum(self.values.values()) / len(self.values)


@dataclass(frozen=True)
class PaperTable:
    """One table; figures have no rows, since the paper prints no numbers for them."""

    title: str
    unit: str
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]

    def row(self, model: str, arm: str) -> PaperRow | None:
        """The row of an arm and of a model (its hub id or the end of it); for another model that of the last one."""
        of_arm = [row for row in self.rows if row.arm == arm]
        same = [row for row in of_arm if row.model == model.rpartition("/")[2]]
        found = same or of_arm
        return found[-1] if found else None


@cache
def figures() -> dict[str, Any]:
    """The content of figures.json."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("figures.json").read_text("utf-8"))
    return content


def paper_table(name: str) -> PaperTable:
    """The table or figure that a recipe is about; empty for a recipe that is not the paper's."""
    record = figures()["tables"].get(name, {"title": name, "unit": "% correct", "rows": [], "notes": []})
    rows = []
    for row in record["rows"]:
        values, printed = dict(zip(record["columns"], row["values"], strict=True)), row.get("average")
        rows.append(PaperRow(row["model"], row["arm"], values, row.get("recomputed", printed), printed))
    wrong = [
        f"the average of {row.model} {row.arm} is printed as {row.printed:.2f}; its figures give {row.average:.2f}, "
        "which is used here"
        for row in rows
        if row.printed is not None and row.average is not None and abs(row.printed - row.average) > ROUNDING
    ]
    return PaperTable(record["title"], record["unit"], tuple(rows), (*wrong, *record["notes"]))


def run_spread(benchmark: str | None) -> float | None:
    """Half of a 95 % range for one run of the paper, in points, from the two pairs of runs that it did twice.

    With sd the root mean square of the two differences, divided by sqrt(2): 1.96 sd. Two differences say little, but
    the paper has no others.

    Args:
        benchmark: None for the average over all five; None is returned for others than these.
    """
    columns, pairs = figures()["repeated"]["columns"], figures()["repeated"]["pairs"]
    if benchmark is not None and benchmark not in columns:
        return None
    squares = []
    for pair in pairs:
        gaps = [b - a for a, b in zip(pair["first"], pair["second"], strict=True)]
        squares.append((sum(gaps) / len(gaps) if benchmark is None else gaps[columns.index(benchmark)]) ** 2)
    return 1.96 * math.sqrt(sum(squares) / len(squares) / 2)


def compare_full(table: PaperTable, model: str, verdict: Verdict) -> Rows:
    """A row for each arm and benchmark, and one for their average, in points."""
    labels = dict.fromkeys(label for task in verdict.benchmarks.values() for label in task.arms)
    rows: Rows = []
    for label in labels:
        paper = table.row(model, label)
        ours = {name: task.arms[label] for name, task in verdict.benchmarks.items() if label in task.arms}
        for name, arm in ours.items():
            rows.append(_row(label, name, paper.values.get(name) if paper else None, arm, run_spread(name)))
        if paper and paper.average is not None and set(ours) == set(paper.values):
            rows.append(_row(label, "average", paper.average, average(list(ours.values())), run_spread(None)))
    return rows


def average(arms: Sequence[Accuracy]) -> Accuracy:
    """The mean over benchmarks, each counting once; its interval takes them as independent."""
    mean = sum(arm.mean for arm in arms) / len(arms)
    half = math.sqrt(sum(((arm.high - arm.low) / 2) ** 2 for arm in arms)) / len(arms)
    return Accuracy(mean=mean, low=mean - half, high=mean + half)


def _row(
    label: str, benchmark: str, paper: float | None, ours: Accuracy, spread: float | None
) -> dict[str, Any]:
    mean, low, high = 100 * ours.mean, 100 * ours.low, 100 * ours.high
    row: dict[str, Any] = {
        "arm": label,
        "benchmark": benchmark,
        "paper": paper,
        "ours": mean,
        "low": low,
        "high": high,
    }
    if paper is None:
        return row | {"difference": None, "noise": None, "within_noise": None}
    noise = math.hypot((high - low) / 2, spread or 0.0)
    return row | {"difference": mean - paper, "noise": noise, "within_noise": abs(mean - paper) <= noise}


def compare_mini(table: PaperTable, model: str, against: str, verdict: Verdict) -> Rows:
    """A row for each arm and domain: ours, and the gain over `against` in the paper and here, in points.

    `agrees` is None if either gain is missing or ours is within noise (not shown after Holm's correction).
    """
    rows: Rows = []
    reference = table.row(model, against)
    for domain in DOMAINS:
        tasks = [task for task in verdict.benchmarks.values() if task.domain == domain]
        view: ArmsResult | None = verdict.domains.get(domain) or (tasks[0] if tasks else None)
        for label, arm in view.arms.items() if view else ():
            paper = table.row(model, label)
            known = paper is not None and reference is not None and paper != reference
            gain = paper.figure - reference.figure if known and paper and reference else None
            ours = _gain(view.pairs, label, against) if view else None
            row: dict[str, Any] = {
                "arm": label, "domain": domain, "ours": 100 * arm.mean, "low": 100 * arm.low, "high": 100 * arm.high,
                "greedy": None if arm.greedy is None else 100 * arm.greedy, "paper": paper.figure if paper else None,
                "paper_gain": gain, "gain": None, "gain_low": None, "gain_high": None, "within_noise": None,
                "agrees": None,
            }  # fmt: skip
            if ours:
                difference, low, high, shown = ours
                row |= {"gain": difference, "gain_low": low, "gain_high": high, "within_noise": not shown}
                row["agrees"] = difference * gain > 0 if shown and gain is not None else None
            rows.append(row)
    return rows


def _gain(pairs: Sequence[PairResult], label: str, against: str) -> tuple[float, float, float, bool] | None:
    """label minus against with its interval, in points, and whether it is shown; None if they are the same."""
    for pair in pairs:
        if {pair.a, pair.b} == {label, against} and label != against:
            sign = 100 if pair.a == label else -100
            low, high = sorted((sign * pair.low, sign * pair.high))
            return sign * pair.difference, low, high, pair.shown
    return None


def order(rows: Rows, domain: str, key: str) -> list[str]:
    """Labels from the best to the worst by `paper` or `ours`; those without a figure are left out."""
    known = [row for row in rows if row["domain"] == domain and row[key] is not None]
    return [row["arm"] for row in sorted(known, key=lambda row: -row[key])]
