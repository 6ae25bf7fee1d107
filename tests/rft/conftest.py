"""A model that says yes or no, as often right as wrong, and problems to ask it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rectune.config import RFTConfig, load_config
from rectune.experiments.rft import RFTResult, train_rft
from rectune.training.trainer import train
from toys import save_toy

Run = Callable[..., RFTResult]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a short RFT run, without `output_dir`."""
    folder = tmp_path_factory.mktemp("asked")
    save_toy(folder / "raw")
    said = ("yes", "no", "yes!", "no!")
    rows = [{"prompt": f"{n} odd?", "completion": said[n * n % 7 % 4]} for n in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = {"model": str(folder / "raw"), "dtype": "float32", "eval_split_size": 0, "save_steps": 0}
    settings = {
        "data": str(folder / "rows.jsonl"),
        "max_steps": 40,
        "learning_rate": 0.01,
        "objective": "sft",
    }
    train(load_config(None, {**short, **settings, "output_dir": folder / "trained"}))
    problems = [
        {"prompt": f"{n} odd?", "answer": "yes" if n % 2 else "no", "grader": "exact"} for n in range(12)
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return {
        **short,
        "model": str(folder / "trained" / "model"),
        "problems": str(folder / "problems.jsonl"),
        "max_new_tokens": 8,
        "grading_workers": 1,
        "max_steps": 4,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "save_steps": 2,
        "objective": "sft",
    }


@pytest.fixture
def run(asked: dict[str, Any], tmp_path: Path) -> Run:
    """An RFT run: `run("name", resume=False, **settings)`."""

    def start(name: str = "run", *, resume: bool = False, **settings: Any) -> RFTResult:
        config = load_config(None, {**asked, "output_dir": tmp_path / name, **settings}, RFTConfig)
        return train_rft(config, resume=resume)

    return start
