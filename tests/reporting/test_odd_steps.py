"""What a log hides is said in the notes: figures that are not finite, and a loss of exactly 0 (LlamaFactory#2916)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.reporting.report import report
from reported import read_lines, write_lines

CASE = Path(__file__).parent.parent / "cases" / "36-foreign-run-nan" / "trl"


def notes(folder: Path) -> list[str]:
    return [note["what"] for note in report([folder])["notes"]]


def test_another_trainers_loss_that_breaks_down(tmp_path: Path) -> None:
    found = notes(CASE)
    assert "is not finite from step 2 on (loss or grad_norm or eval_loss)" in found
    assert any(what.startswith("the loss is exactly 0.0 at step 2: ") for what in found)
    page = tmp_path / "r.html"
    assert main(["report", str(CASE), "--output", str(page)]) == 0
    assert "is not finite from step 2 on" in page.read_text()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 1.5, 1.0], []),
        ([2.0, math.nan, 1.0], ["is not finite in 1 of 3 logged steps, the first is 2"]),
        ([2.0, math.inf, math.nan], ["is not finite from step 2 on"]),
        ([2.0, None, None], ["is not finite from step 2 on"]),
        ([2.0, "nan", "nan"], ["is not finite from step 2 on"]),
        ([0.0, 0.0, 0.0], ["the loss is exactly 0.0 at 3 logged steps, the first is 1"]),
        ([0, 1.0, 1.0], ["the loss is exactly 0.0 at step 1"]),
        ([1e-9, 1e-9, 1e-9], []),
    ],
)
def test_a_foreign_log(tmp_path: Path, losses: list[Any], expected: list[str]) -> None:
    history = [{"step": i + 1, "loss": loss, "learning_rate": 1e-5} for i, loss in enumerate(losses)]
    history.append({"step": 3, "eval_runtime": 1.0})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    found = [what for what in notes(tmp_path) if "transformers" not in what]
    assert len(found) == len(expected)
    assert all(what.startswith(start) for what, start in zip(found, expected, strict=True))


def test_a_run_of_ours(copy: Any) -> None:
    folder = copy("sft/seed-0")
    assert not any("finite" in what or "exactly" in what for what in notes(folder))
    lines = read_lines(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    train[1]["grad_norm"] = None
    write_lines(folder / "metrics.jsonl", lines)
    assert "is not finite in 1 of 3 logged steps, the first is 2 (grad_norm)" in notes(folder)
    for line in train:
        line["objective"], line["grad_norm"] = 0.0, None
    write_lines(folder / "metrics.jsonl", lines)
    found = notes(folder)
    assert "is not finite from step 1 on (grad_norm)" in found
    assert any(what.startswith("the objective is exactly 0.0 at 3 logged steps") for what in found)
    for line in train:  # online: no update, so no gradient
        line["updates"], line["objective"] = 0, None
    write_lines(folder / "metrics.jsonl", lines)
    assert not any("finite" in what or "exactly" in what for what in notes(folder))
