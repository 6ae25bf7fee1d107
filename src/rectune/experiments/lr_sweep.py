"""Chooses a learning rate for each arm: gradients of DFT are smaller than those of SFT, so one rate for both would
compare learning rates.

    OUT/sweep/<slug>/lr-<rate>/             a short run of its own, with a whole schedule, first seed
    OUT/sweep/<slug>/lr-<rate>/validation   its answers to the validation problems

The rate with the best accuracy there is taken. Weights are removed once their answers are graded.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rectune.experiments.evaluator import correct, is_evaluated, mean_accuracy
from rectune.experiments.grid import Arm, Grid, SweepSettings
from rectune.records import Accuracy, SweepResult, SweepTrial, SweptArm
from rectune.runtime.progress import TaskTimer

log = logging.getLogger("rectune")


FACTORS = (1 / 3, 1.0, 3.0)
"""By how much the rates of `--sweep auto` differ from learning_rate."""
SHARE_OF_TRAINING = 1 / 3
"""Most that its trials may take of the steps of all runs."""
FEWEST_PROBLEMS = 50
"""Validation problems that it needs: with fewer, chance chooses."""


def automatic_rates(rate: float) -> tuple[float, ...]:
    """The rates of `--sweep auto`, in two digits."""
    return tuple(rate if factor == 1 else float(f"{rate * factor:.1e}") for factor in FACTORS)


def cost_of_trials(seeds: int) -> float:
    """Steps of the trials of `--sweep auto`, as a share of those of all runs."""
    return len(FACTORS) * SweepSettings.share / seeds


def rate_warnings(grid: Grid, swept: SweepResult | None) -> list[str]:
    """What the verdict has to say about learning rates: not matched, or chosen at the edge of what was tried."""
    if grid.unmatched:
        rate = grid.arms[0].config.learning_rate
        tried = ",".join(f"{tried:g}" for tried in automatic_rates(rate))
        return [
            f"learning rates are not matched: every arm uses {rate:g}; --sweep {tried} tries others for each"
        ]
    return [
        f"the learning rate of {arm.label}, {arm.learning_rate:g}, is at the edge of the sweep"
        f" ({', '.join(f'{trial.learning_rate:g}' for trial in arm.trials)}): a better one may lie beyond"
        for arm in (swept.arms.values() if swept else ())
        if arm.edge
    ]


def sweep(grid: Grid, validation: Sequence[Path]) -> SweepResult | None:
    """Try every arm with every learning rate; None where no arm is to be swept."""
    arms = [arm for arm in grid.arms if arm.sweep]
    if grid.sweep is None or not arms:
        return None
    rates = sorted(set(grid.sweep.rates))
    progress = TaskTimer("sweep", {"trial": len(arms) * len(rates)})
    swept = {}
    for arm in arms:
        trials = [_trial(grid, arm, rate, validation, progress) for rate in rates]
        best = best_rate({trial.learning_rate: trial.accuracy.mean for trial in trials})
        edge = len(rates) > 1 and best in (rates[0], rates[-1])
        swept[arm.slug] = SweptArm(label=arm.label, learning_rate=best, edge=edge, trials=trials)
        log.info("learning rate of %s: %g%s", arm.label, best, ", at the edge of the sweep" if edge else "")
    problems = sum(map(len, grid.validation.values()))
    steps = grid.trial_steps(arms[-1])
    return SweepResult(steps=steps, seed=grid.seeds[0], problems=problems, arms=swept)


def best_rate(accuracies: Mapping[float, float]) -> float:
    """The learning rate with the highest accuracy; of several the lowest."""
    return min(accuracies, key=lambda rate: (-accuracies[rate], rate))


def _trial(grid: Grid, arm: Arm, rate: float, validation: Sequence[Path], progress: TaskTimer) -> SweepTrial:
    assert grid.sweep is not None
    run = grid.trial(arm, rate)
    answers = run.trained / "validation"
    settings = replace(
        grid.evaluation, seed=grid.seeds[0], num_samples=grid.sweep.num_samples or grid.evaluation.num_samples
    )
    if not is_evaluated(answers, validation, settings):
        with progress.task("trial", run.name):
            run.train()
            with run.evaluator() as evaluator:
                evaluator.evaluate(answers, validation, settings)
    for weights in ("model", "adapter"):
        shutil.rmtree(run.trained / weights, ignore_errors=True)
    accuracy = Accuracy(**mean_accuracy([correct(answers, validation)])._asdict())
    where = run.folder.relative_to(grid.out).as_posix()
    return SweepTrial(learning_rate=rate, accuracy=accuracy, run=where)
