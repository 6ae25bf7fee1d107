"""Folders to report on: changing files of runs, and making a comparison folder of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def mark_correct(folder: Path, right: tuple[int, ...]) -> None:
    """Give the answers to these problems the verdict "correct"."""
    lines = read_lines(folder / "graded.jsonl")
    for line in lines:
        if int(line["problem_id"].rpartition("/")[2]) in right:
            line["verdict"] = "correct"
    write_lines(folder / "graded.jsonl", lines)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def comparison_record(arms: dict[str, str], seeds: tuple[int, ...] = (0,), **changes: Any) -> dict[str, Any]:
    """A comparison.json of arms (slug to label), without a verdict unless it is given."""
    compared = [
        {"objective": slug, "label": label, "slug": slug, "learning_rate": 3e-3, "dropped": None,
         "runs": {str(seed): f"runs/{slug}/seed-{seed}" for seed in seeds}}
        for slug, label in arms.items()
    ]  # fmt: skip
    return {
        "format": 1, "rectune": "0", "model": "m", "data": "d", "seeds": list(seeds), "arms": compared,
        "base": "runs/base", "benchmarks": {"sums": "out"}, "problems": {}, "validation": {}, "settings": {},
        "verdict": None, **changes,
    }  # fmt: skip


def dropped(reason: str) -> dict[str, Any]:
    """Why an arm left a race."""
    numbers = dict.fromkeys(
        ("difference", "low", "high", "p_value", "p_holm", "accuracy", "leader_accuracy"), 0.5
    )
    return {"step": 2, "reason": reason, "leader": "the dft", **numbers}


def race(reason: str) -> dict[str, Any]:
    return {
        "budget": "2h",
        "rungs": [],
        "ended": "one left",
        "survivors": [],
        "dropped": {"sft": dropped(reason)},
    }


def sweep(label: str) -> dict[str, Any]:
    """A sweep of one learning rate, the best of which lies at the edge."""
    trial = {
        "learning_rate": 0.01,
        "accuracy": {"mean": 0.5, "low": 0.1, "high": 0.9},
        "run": "sweep/dft/lr-0.01",
    }
    arm = {"label": label, "learning_rate": 0.01, "edge": True, "trials": [trial]}
    return {"steps": 2, "seed": 0, "problems": 9, "arms": {"dft": arm}}


def comparison(folder: Path, runs: Path, **changes: Any) -> Path:
    """A comparison folder of the runs."""
    for arm in ("sft", "dft", "base"):
        ignored = shutil.ignore_patterns("model", "checkpoints")
        shutil.copytree(runs / arm, folder / "runs" / arm, ignore=ignored)
    record = comparison_record({"dft": "the dft", "sft": "the sft"}, (0, 1), **changes)
    (folder / "comparison.json").write_text(json.dumps(record))
    return folder
