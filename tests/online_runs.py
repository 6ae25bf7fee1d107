"""Settings and reward functions of short RL runs, and the task of short RFT runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rectune.config import RLConfig, load_config
from rectune.training.trainer import train
from toys import save_toy

REWARDS = '''
"""Rewards for tests."""

import math


def length(prompt, text, answer, extra):
    return -abs(len(text) - int(answer)) / 10


def even(prompt, text, answer, extra):
    """1 for an even number of characters: neither always nor never earned by a model that has learnt nothing."""
    return len(text) % 2 == 0


def same(prompt, text, answer, extra):
    return 1


def raises(prompt, text, answer, extra):
    raise KeyError("no such thing")


def nan(prompt, text, answer, extra):
    return math.nan


def none(prompt, text, answer, extra):
    return None


def infinite(prompt, text, answer, extra):
    return math.inf


def several(prompt, text, answer, extra):
    return [1.0, 2.0]


def words(prompt, text, answer, extra):
    return "1.0"


def from_third(prompt, text, answer, extra, _calls=[]):
    """Fails at its 17th call: the third step of eight answers."""
    _calls.append(text)
    if len(_calls) == 17:
        raise ValueError("the service is gone")
    return len(text) % 2


not_a_function = 3
'''


def config_of(toy: dict[str, Any], out: Path, **settings: Any) -> RLConfig:
    """`reward` may be the name of a function in `REWARDS`; dots in names are written as two underscores."""
    if f"def {settings.get('reward')}(" in REWARDS:
        settings["reward"] = toy["reward"].replace("even", settings["reward"])
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(None, {**toy, "output_dir": out, **named}, RLConfig)


def yes_no_task(folder: Path) -> dict[str, Any]:
    """Settings of a short RFT run without `output_dir`: a model that says yes or no, right half of the time."""
    said = ("yes", "no", "yes!", "no!")
    rows = [{"prompt": f"{n} odd?", "completion": said[n * n % 7 % 4]} for n in range(64)]
    problems = [
        {"prompt": f"{n} odd?", "answer": "yes" if n % 2 else "no", "grader": "exact"} for n in range(12)
    ]
    for name, records in (("rows", rows), ("problems", problems)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    short = {"dtype": "float32", "eval_split_size": 0, "objective": "sft"}
    base = {
        "model": save_toy(folder / "raw"),
        "data": str(folder / "rows.jsonl"),
        "output_dir": folder / "trained",
    }
    train(load_config(None, {**short, **base, "max_steps": 40, "learning_rate": 0.01, "save_steps": 0}))
    return {
        **short, "model": str(folder / "trained" / "model"), "problems": str(folder / "problems.jsonl"),
        "max_new_tokens": 8, "grading_workers": 1, "max_steps": 4, "batch_size": 4, "learning_rate": 3e-3,
        "save_steps": 2,
    }  # fmt: skip
