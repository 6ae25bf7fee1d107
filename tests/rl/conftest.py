"""Toys for online training: a two-layer model in a folder, short problems, and a quick way to train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from online_runs import REWARDS, config_of
from rectune.records import RLSummary
from rectune.rl.rl_trainer import train_rl
from toys import save_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a short run in float32, without `out`."""
    folder = tmp_path_factory.mktemp("toy")
    save_toy(folder / "model")
    problems = [{"prompt": f"{n} and {n % 7}?", "answer": str(n % 7), "grader": "exact"} for n in range(12)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    (folder / "rewards.py").write_text(REWARDS)
    return {
        "model": str(folder / "model"),
        "problems": str(folder / "problems.jsonl"),
        "reward": f"{folder / 'rewards.py'}:even",
        "max_steps": 5,
        "problems_per_step": 2,
        "num_samples": 4,
        "max_new_tokens": 12,
        "tokens_per_micro_batch": 128,
        "learning_rate": 3e-3,
        "dtype": "float32",
    }


Run = Callable[..., RLSummary]


@pytest.fixture
def run(toy: dict[str, Any], tmp_path: Path) -> Run:
    """Train the toy: `run("name", resume=False, **settings)`; `reward` may be a function of the toy's file."""

    def start(name: str = "run", *, resume: bool = False, **settings: Any) -> RLSummary:
        return train_rl(config_of(toy, tmp_path / name, **settings), resume=resume)

    return start
