"""Honest timing: contestants take turns within one run, and ratios are paired round by round."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def side_by_side(
    contestants: dict[str, Callable[[], object]], *, rounds: int = 7, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; all run once per round, so that drift hits them alike."""
    for _ in range(warmup):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], unit: str) -> dict[str, dict[str, float]]:
    """Per contestant: median seconds, and median, least and largest of its ratio to `unit` in the same round."""
    table = {}
    for name, times in seconds.items():
        paired = [t / u for t, u in zip(times, seconds[unit], strict=True)]
        table[name] = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(paired),
            "low": min(paired),
            "high": max(paired),
        }
    return table


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    """Prints what `ratios` gives, and any further figures of the rows behind it."""
    known = ("seconds", "ratio", "low", "high")
    print(f"\n{title}")
    print(f"{'':34}{'seconds':>9}{'ratio':>8}   spread")
    for name, row in table.items():
        more = "".join(f"   {key.replace('_', ' ')} {row[key]:.2f}" for key in row if key not in known)
        print(
            f"{name:34}{row['seconds']:9.3f}{row['ratio']:8.2f}   {row['low']:.2f} to {row['high']:.2f}{more}"
        )


def save(name: str, figures: object) -> None:
    """Keeps the figures beside those of other machines: results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n"
    )
