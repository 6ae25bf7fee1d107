"""A comparison as tables for the terminal: one for each benchmark, and the choices made. Figures are `judge`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rectune.analysis.summary_text import against_base

Table = list[dict[str, str]]

DOMAINS = {"in": "in domain", "out": "out of domain"}


def tables(comparison: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """Title and rows of each table, from the content of comparison.json."""
    if comparison["sweep"]:
        yield _sweep(comparison)
    if comparison["race"]:
        yield from _race(comparison)
    n = comparison["settings"]["n"]
    for name, numbers in comparison["verdict"]["benchmarks"].items():
        domain = DOMAINS.get(numbers["domain"])
        title = f"{name}{f' ({domain})' if domain else ''}, {numbers['problems']} problems"
        beside = against_base([("", numbers)])
        yield title, [_row(label, arm, n, beside.get(label, {})) for label, arm in numbers["arms"].items()]


def _row(label: str, arm: dict[str, Any], n: int, beside: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {
        "arm": label,
        f"avg@{n}": interval(arm),
        "than base": beside[""]["verdict"] if beside else "-",
        "greedy": percent(arm["greedy"]),
        f"pass@{n}": percent(arm["pass_at"].get(str(n))),
        "stopped": percent(arm["stopped"], 0),
        "tokens": number(arm["tokens"], 0),
        "repeating": percent(arm["repeating"], 0),
        "nats a token": number(arm.get("entropy"), 2),
        "seeds": str(arm.get("seeds", "-")),
    }


def _sweep(comparison: dict[str, Any]) -> tuple[str, Table]:
    sweep = comparison["sweep"]
    title = f"Sweep: {sweep['steps']} steps, seed {sweep['seed']}, {sweep['problems']} validation problems"
    rows = [
        {
            "arm": arm["label"],
            "learning rate": f"{trial['learning_rate']:g}",
            "accuracy": interval(trial["accuracy"]),
            "": ("taken, at the edge" if arm["edge"] else "taken")
            if trial["learning_rate"] == arm["learning_rate"]
            else "",
        }
        for arm in sweep["arms"].values()
        for trial in arm["trials"]
    ]
    return title, rows


def _race(comparison: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    race = comparison["race"]
    for rung in race["rungs"]:
        rows = [
            {
                "arm": label,
                "accuracy": interval(accuracy),
                "": "leads" if label == rung["leader"] else "dropped" if label in rung["worse"] else "",
            }
            for label, accuracy in rung["accuracy"].items()
        ]
        yield f"Race: step {rung['step']}, {rung['problems']} validation problems", rows
    dropped = [arm for arm in comparison["arms"] if arm["dropped"]]
    if dropped:
        yield "Dropped", [{"arm": arm["label"], "why": arm["dropped"]["reason"]} for arm in dropped]


def interval(figures: dict[str, float]) -> str:
    """A mean with its interval, in %."""
    return f"{100 * figures['mean']:.1f} [{100 * figures['low']:.1f}, {100 * figures['high']:.1f}]"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in %, or a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
