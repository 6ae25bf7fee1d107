"""The paper's figures beside ours: difference, and whether it is within noise. At mini scale only the order compares.

Noise at full scale: the root of the sum of squares of half our 95 % interval and of the paper's own run-to-run spread
(`paper.run_spread`). At mini scale model and task are others, so what is put side by side is each arm's gain over the
arm that the recipe compares with; ours with the paired interval, in domain and out of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rectune.reproduction.paper import PaperRow, PaperTable, run_spread

Table = list[dict[str, Any]]


def beside_full(table: PaperTable, model: str, verdict: Mapping[str, Any]) -> Table:
    """A row for each arm and benchmark, and one for their average, in points."""
    benchmarks = verdict["benchmarks"]
    labels = list(dict.fromkeys(label for one in benchmarks.values() for label in one["arms"]))
    rows: Table = []
    for label in labels:
        paper = table.row(model, label)
        ours = {name: one["arms"][label] for name, one in benchmarks.items() if label in one["arms"]}
        for name, arm in ours.items():
            figure = paper.values.get(name) if paper else None
            rows.append(_beside(label, name, figure, arm, run_spread(name)))
        if paper and paper.average is not None and set(ours) == set(paper.values):
            rows.append(
                _beside(label, "average", paper.average, average(list(ours.values())), run_spread(None))
            )
    return rows


def average(arms: list[Mapping[str, float]]) -> dict[str, float]:
    """The mean over benchmarks, each counting once, with its interval: half-widths as of independent benchmarks."""
    mean = sum(arm["mean"] for arm in arms) / len(arms)
    half = math.sqrt(sum(((arm["high"] - arm["low"]) / 2) ** 2 for arm in arms)) / len(arms)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _beside(
    label: str, benchmark: str, paper: float | None, ours: Mapping[str, float], spread: float | None
) -> dict[str, Any]:
    mean, low, high = (100 * ours[name] for name in ("mean", "low", "high"))
    row: dict[str, Any] = {"arm": label, "benchmark": benchmark, "paper": paper}
    row |= {"ours": mean, "low": low, "high": high, "difference": None, "noise": None, "within_noise": None}
    if paper is not None:
        noise = math.hypot((high - low) / 2, spread or 0.0)
        row |= {"difference": mean - paper, "noise": noise, "within_noise": abs(mean - paper) <= noise}
    return row


def beside_mini(table: PaperTable, model: str, against: str, verdict: Mapping[str, Any]) -> Table:
    """A row for each arm and domain: ours, and the gain over `against` in the paper and here, in points.

    `agrees` is None where either gain is missing or ours is within noise (not shown after Holm's correction).
    """
    rows: Table = []
    reference = table.row(model, against)
    for domain, view in _views(verdict):
        for label, arm in view["arms"].items():
            paper = table.row(model, label)
            gain = _gain(paper, reference)
            ours = _pair(view["pairs"], label, against)
            shown = bool(ours and ours["shown"])
            rows.append(
                {
                    "arm": label,
                    "domain": domain,
                    "ours": 100 * arm["mean"],
                    "low": 100 * arm["low"],
                    "high": 100 * arm["high"],
                    "greedy": None if arm["greedy"] is None else 100 * arm["greedy"],
                    "paper": _figure(paper),
                    "paper_gain": gain,
                    "gain": ours["difference"] if ours else None,
                    "gain_low": ours["low"] if ours else None,
                    "gain_high": ours["high"] if ours else None,
                    "within_noise": not shown if ours else None,
                    "agrees": ours["difference"] * gain > 0 if ours and shown and gain is not None else None,
                }
            )
    return rows


def _views(verdict: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """In domain and out of it, each over all of its benchmarks."""
    found = []
    for domain in ("in", "out"):
        own = [one for one in verdict["benchmarks"].values() if one["domain"] == domain]
        view = verdict["domains"].get(domain) or (own[0] if own else None)
        if view:
            found.append((domain, view))
    return found


def _figure(row: PaperRow | None) -> float | None:
    if row is None:
        return None
    return row.average if row.average is not None else sum(row.values.values()) / len(row.values)


def _gain(row: PaperRow | None, reference: PaperRow | None) -> float | None:
    a, b = _figure(row), _figure(reference)
    return None if a is None or b is None or row == reference else a - b


def _pair(pairs: list[dict[str, Any]], label: str, against: str) -> dict[str, Any] | None:
    """label minus against, in points; None where they are the same."""
    for pair in pairs:
        if {pair["a"], pair["b"]} == {label, against} and label != against:
            sign = 1 if pair["a"] == label else -1
            low, high = sorted((sign * pair["low"], sign * pair["high"]))
            return {
                "difference": 100 * sign * pair["difference"],
                "low": 100 * low,
                "high": 100 * high,
                "shown": pair["shown"],
            }
    return None


def order(rows: Table, domain: str, key: str) -> list[str]:
    """Labels from the best to the worst by `paper` or `ours`; those without a figure are left out."""
    known = [row for row in rows if row["domain"] == domain and row[key] is not None]
    return [row["arm"] for row in sorted(known, key=lambda row: -row[key])]


def printable_full(rows: Table) -> Table:
    """As `print_table` takes it."""
    return [
        {
            "arm": row["arm"],
            "benchmark": row["benchmark"],
            "paper": _number(row["paper"]),
            "ours": f"{row['ours']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            "difference": _signed(row["difference"]),
            "noise": _number(row["noise"]),
            "within noise": _yes(row["within_noise"]),
        }
        for row in rows
    ]


def printable_mini(rows: Table, domain: str, against: str) -> Table:
    """As `print_table` takes it, for one domain."""
    return [
        {
            "arm": row["arm"],
            "ours": f"{row['ours']:.1f} [{row['low']:.1f}, {row['high']:.1f}]",
            "greedy": _number(row["greedy"], 1),
            f"ours - {against}": _signed(row["gain"], 1)
            + (f" [{row['gain_low']:+.1f}, {row['gain_high']:+.1f}]" if row["gain"] is not None else ""),
            "within noise": _yes(row["within_noise"]),
            "paper": _number(row["paper"]),
            f"paper - {against}": _signed(row["paper_gain"]),
            "same direction": _yes(row["agrees"]),
        }
        for row in rows
        if row["domain"] == domain
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
