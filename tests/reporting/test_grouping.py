"""Whose evaluation is whose."""

from __future__ import annotations

from pathlib import Path

from rectune.reporting.grouping import group
from rectune.reporting.load_runs import Evaluation, Found, Notes, Run


def test_a_base_model_that_was_trained_itself_is_the_base(tmp_path: Path) -> None:
    tuned, run = tmp_path / "tuned", tmp_path / "comparison/runs/dft/seed-0"
    config = {"model": str(tuned / "model"), "objective": "dft", "seed": 0}

    def evaluation(folder: Path, model: Path, of_run: Path) -> Evaluation:
        result = {"benchmarks": {"b": {}}, "protocol": {"temperature": 1.0}}
        return Evaluation(folder, {**result, "model": str(model), "training_run": str(of_run)})

    found = Found(
        runs=[Run(run, config=config)],
        evaluations=[
            evaluation(tmp_path / "comparison/runs/base/evaluation", tuned / "model", tuned),
            evaluation(run / "evaluation", run, run),
        ],
    )
    notes = Notes()
    assert [arm.label for arm in group(found, notes)] == ["base", "dft"]
    assert not notes.found
