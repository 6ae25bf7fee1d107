"""`--dry-run` counts what the run then reads: rows dropped and cut, a hold-out share or file, pairs, a limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.training.dry_run import plan
from rectune.training.trainer import train
from reported import read_lines, write_lines
from training_runs import metrics

CASES: dict[str, dict[str, Any]] = {
    "share": {},
    "seed": {"seed": 3, "num_train_epochs": 1.5, "max_steps": None},
    "limit": {"max_train_samples": 17, "max_steps": None},
    "file": {"eval_data": "kept.jsonl", "max_steps": None},
    "cut": {"max_length": 30, "max_steps": None},
    "batch": {"batch_size": 64, "max_steps": 3},
    "pairs": {"data": "pairs.jsonl", "objective": "dpo", "max_train_samples": 20, "max_steps": None},
    "pairs cut": {"data": "pairs.jsonl", "objective": "dpo", "max_length": 28, "max_steps": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_what_the_run_reports(
    toy: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    rows = [{"prompt": f"{n}?", "completion": "!" * (1 + n % 9)} for n in range(11)]
    long = [{"prompt": "how long is this? " * 3, "completion": "no target is left of it"}]
    pairs = [
        {"prompt": f"{n}?", "chosen": "a" * (1 + n % 9), "rejected": "b" * (1 + n % 5)} for n in range(30)
    ]
    write_lines(tmp_path / "kept.jsonl", rows)
    write_lines(tmp_path / "rows.jsonl", [*read_lines(Path(toy["data"])), *long])
    write_lines(tmp_path / "pairs.jsonl", [*pairs, {**long[0], "chosen": "yes", "rejected": "no"}])
    settings = {**toy, "data": "rows.jsonl", "output_dir": tmp_path / "run", "drift_rows": 0, **CASES[case]}
    for key in ("data", "eval_data"):
        if str(settings.get(key)).endswith(".jsonl"):
            settings[key] = str(tmp_path / settings[key])
    config = load_config(None, {key: value for key, value in settings.items() if value is not None})
    planned = plan(config)
    caplog.clear()
    with caplog.at_level("INFO", "rectune"):
        result = train(config)
    said = re.search(r"rows: ([\d,]+) to train on, ([\d,]+) held out", caplog.text)
    assert said is not None
    assert (planned["rows"], planned["holdout_rows"]) == tuple(int(n.replace(",", "")) for n in said.groups())
    lines = metrics(tmp_path / "run", "train")
    assert (planned["steps"], planned["steps"]) == (len(lines), result.steps)
    assert planned["tokens_to_train_on"] == sum(line["tokens"] for line in lines)
    assert planned["tokens_per_step"] == round(planned["tokens_to_train_on"] / result.steps)
    if case in ("limit", "file", "pairs") and "pairs" not in case:
        assert planned["supervised_tokens"] == sum(line["supervised"] for line in lines)  # one epoch
