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


def comparison(folder: Path, runs: Path, **changes: Any) -> Path:
    """A comparison folder of the runs, without a verdict unless it is given."""
    arms = [
        {"label": f"the {arm}", "slug": arm, "name": arm, "settings": {}, "learning_rate": 3e-3, "dropped": None,
         "runs": {str(seed): f"runs/{arm}/seed-{seed}" for seed in (0, 1)}}
        for arm in ("dft", "sft")
    ]  # fmt: skip
    for arm in ("sft", "dft", "base"):
        ignored = shutil.ignore_patterns("model", "checkpoints")
        shutil.copytree(runs / arm, folder / "runs" / arm, ignore=ignored)
    record = {"format": 1, "arms": arms, "benchmarks": {"sums": "out"}, "verdict": None, **changes}
    (folder / "comparison.json").write_text(json.dumps(record))
    return folder
