"""The last parts of the page: settings that differ, environment, cost. The data are put together in `facts.py`."""

from __future__ import annotations

from collections.abc import Sequence

from rectune.reporting.parts import Data, Section, Table


def closing(data: Data) -> list[Section]:
    """The parts behind the answers."""
    return [_settings(data), _environment(data), _cost(data)]


def _settings(data: Data) -> Section:
    found = data["settings"]
    labels = list(found["seeds"])
    tables = []
    if len(labels) > 1:
        rows = [[name, *(values[label] for label in labels)] for name, values in found["differ"].items()]
        tables.append(
            Table(["setting", *labels], [*rows, ["seeds", *found["seeds"].values()]], text=1 + len(labels))
        )
    if found["same"]:
        same = [[name, value] for name, value in found["same"].items()]
        tables.append(
            Table(["setting", "value"], same, text=2, folded=f"{len(same)} settings that are the same")
        )
    text = [
        "All runs have the same settings." if len(labels) > 1 and not found["differ"] else "",
        *data["choices"],
    ]
    return Section(
        "settings", "Settings", "Settings that differ", text=[line for line in text if line], tables=tables
    )


def _environment(data: Data) -> Section:
    found = data["environment"]
    tables = []
    if found["differ"]:
        rows = [
            [name, value, _some(where)]
            for name, values in found["differ"].items()
            for value, where in values.items()
        ]
        tables.append(Table(["differs", "value", "in"], rows, text=3))
    if found["same"]:
        same = [[name, value] for name, value in found["same"].items()]
        tables.append(Table(["what", "value"], same, text=2, folded=f"{len(same)} entries that are the same"))
    text = ["Not all runs had the same environment; a difference between them can come from that too."]
    return Section(
        "environment", "Environment", "Environment", text=text if found["differ"] else [], tables=tables
    )


def _some(where: Sequence[str]) -> str:
    return ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")


def _cost(data: Data) -> Section:
    rows = [
        [
            one["label"], "-" if one["seed"] is None else str(one["seed"]), one["state"], f"{one['steps']:,}",
            _time(one["seconds"]), _time(one["step_seconds"]), "-" if not one["tokens"] else f"{one['tokens']:,.0f}",
            "-" if not one["tokens_per_second"] else f"{one['tokens_per_second']:,.0f}",
            "-" if not one["peak_memory_mib"] else f"{one['peak_memory_mib'] / 1024:.2f} GiB",
        ]
        for one in data["cost"]
    ]  # fmt: skip
    bold = set()
    if len(rows) > 1:
        bold = {len(rows)}
        costs = data["cost"]
        whole = [one["seconds"] for one in costs]
        steps, step_seconds, tokens = (
            sum(one[name] or 0 for one in costs) for name in ("steps", "step_seconds", "tokens")
        )
        most = max(one["peak_memory_mib"] or 0 for one in costs)
        rows.append([
            "all", "", "", f"{steps:,}", _time(None if None in whole else sum(whole)), _time(step_seconds),
            f"{tokens:,.0f}", "", f"{most / 1024:.2f} GiB",
        ])  # fmt: skip
    head = ["model", "seed", "state", "steps", "time", "time of steps", "tokens", "tokens/s", "peak memory"]
    return Section(
        "cost",
        "Cost",
        "Cost",
        tables=[Table(head, rows, text=3, bold=bold)] if rows else [],
        caveats=[
            "Time is from a run's beginning to its end, with loading, hold-out passes and saving; a finished run that "
            "went on from a checkpoint has the time up to it in it. Sampling and grading of evaluations come on top."
        ],
    )


def _time(seconds: float | None) -> str:
    if not seconds:
        return "-"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
