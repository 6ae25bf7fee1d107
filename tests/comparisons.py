"""A task that a two-layer model learns in twelve steps (the answer is always yes), and comparisons of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rectune.config import CompareConfig, load_config
from rectune.experiments.compare import compare, plan
from toys import save_toy

Task = dict[str, str]


def make_task(folder: Path) -> Task:
    """Model, rows and problems: `inside` has 32 in the words of the rows, `outside` 6 in other words."""
    save_toy(folder / "model")
    write(folder / "rows.jsonl", [{"prompt": f"{i}?", "completion": "yes"} for i in range(48)])
    write(folder / "inside.jsonl", [problem(f"{i}?") for i in range(100, 132)])
    write(folder / "outside.jsonl", [problem(f"and {i}?") for i in range(6)])
    names = {"model": "model", "data": "rows.jsonl", "inside": "inside.jsonl", "outside": "outside.jsonl"}
    return {key: str(folder / name) for key, name in names.items()}


def problem(question: str, answer: str = "yes") -> dict[str, str]:
    return {"prompt": question, "answer": answer, "grader": "exact"}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


SETTINGS = {
    "max_steps": 12,
    "batch_size": 8,
    "max_length": 64,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "dtype": "float32",
    "eval_split_size": 0.1,
    "save_steps": 5,
    "drift_rows": 0,
}


def config_of(task: Task, out: Path, **settings: Any) -> CompareConfig:
    return load_config(
        None,
        {"model": task["model"], "data": task["data"], "output_dir": out, **SETTINGS, **settings},
        CompareConfig,
    )


def compare_task(
    task: Task,
    out: Path,
    objectives: str = "sft,dft",
    *,
    dry_run: bool = False,
    settings: dict[str, Any] | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Compare on the task, or plan to: `how` has fields of CompareConfig in place of those of `asking`."""
    config = config_of(task, out, objectives=objectives, **(asking(task) | (settings or {}) | how))
    return plan(config) if dry_run else compare(config).to_dict()


def asking(task: Task) -> dict[str, Any]:
    """How the models are asked: few and short answers."""
    return {
        "tasks_in": [task["inside"]],
        "tasks_out": [task["outside"]],
        "num_samples": 2,
        "max_new_tokens": 6,
    }
