"""A small sweep of learning rates, one choice for each objective: DFT's gradients are smaller than SFT's, so one rate
for both would compare learning rates.

    OUT/sweep/<slug>/lr-<rate>/             a short run of its own, with the whole schedule, first seed
    OUT/sweep/<slug>/lr-<rate>/validation   its answers to the validation problems

The best accuracy there is taken (`checkpoint_choice.py`). The weights are removed once their answers are graded.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rectune.experiments.checkpoint_choice import accuracy, best_rate
from rectune.experiments.evaluator import Respondent, correct, is_answered
from rectune.experiments.grid import Matrix, train_run
from rectune.experiments.variants import Arm, run_config
from rectune.runtime.progress import TaskTimer

log = logging.getLogger("rectune")

SHARE = 0.25
"""Of a run's steps that a trial takes, unless `sweep_steps` says otherwise."""


def sweep(matrix: Matrix, validation: Sequence[Path]) -> dict[str, Any]:
    """Try every objective with every learning rate.

    Returns:
        JSON-ready: `steps` and `seed` of each trial, `problems` they are judged by, `arms`: slug to `learning_rate`,
        `edge` (the best rate is the lowest or highest that was tried) and `trials`, each with `learning_rate`,
        `accuracy` (mean, low, high) and `run`.
    """
    steps = trial_steps(matrix)
    rates = sorted(set(matrix.choices.rates))
    clock = TaskTimer("sweep", {"trial": len(matrix.arms) * len(rates)})
    arms = {}
    for arm in matrix.arms:
        tried = [replace(arm, learning_rate=rate) for rate in rates]
        trials = [_trial(matrix, one, steps, validation, clock) for one in tried]
        best = best_rate({trial["learning_rate"]: trial["accuracy"]["mean"] for trial in trials})
        edge = len(trials) > 1 and best in (trials[0]["learning_rate"], trials[-1]["learning_rate"])
        arms[arm.slug] = {"label": arm.label, "learning_rate": best, "edge": edge, "trials": trials}
        log.info("learning rate of %s: %g%s", arm.label, best, ", at the edge of the sweep" if edge else "")
    count = sum(len(asked) for asked in matrix.validation.values())
    return {"steps": steps, "seed": matrix.seeds[0], "problems": count, "arms": arms}


def trial_steps(matrix: Matrix) -> int:
    """Steps of each trial."""
    return matrix.choices.sweep_steps or max(1, round(SHARE * matrix.steps))


def _trial(
    matrix: Matrix, arm: Arm, steps: int, validation: Sequence[Path], clock: TaskTimer
) -> dict[str, Any]:
    seed, relative = matrix.seeds[0], Path("sweep") / arm.slug / f"lr-{arm.learning_rate:g}"
    folder = matrix.out / relative
    answers, draws = folder / "validation", replace(matrix.draws, seed=seed)
    if not is_answered(answers, validation, draws):
        with clock.task("trial", f"{arm.label} at learning rate {arm.learning_rate:g}, {steps} steps"):
            train_run(run_config(matrix.config, arm, seed, folder, steps=steps))
            respondent = Respondent(str(folder), str(folder / "model"), matrix.config)
            respondent.answer(answers, validation, draws)
            respondent.forget()
    for weights in ("model", "adapter"):
        shutil.rmtree(folder / weights, ignore_errors=True)
    figures = accuracy([correct(answers, validation)])
    return {"learning_rate": arm.learning_rate, "accuracy": figures, "run": relative.as_posix()}
