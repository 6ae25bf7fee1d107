"""Accuracy over steps: a run pauses every few steps, and the model there answers the validation problems.

A run that pauses ends with the same bits as one that does not. The answers are sampled as for the verdict, but fewer
of them: a mean over all problems needs no more to show which way an arm moves.

    OUT/runs/<slug>/seed-<s>/step-<step>/validation   answers of a run at a pause

A recipe of the paper uses the problems of the verdict instead, as the paper's Figure 1 does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rectune.experiments.evaluator import is_evaluated
from rectune.experiments.grid import Arm, ArmRun, Grid
from rectune.experiments.interpolation import with_scores
from rectune.records import Point
from rectune.runtime.progress import TaskTimer

log = logging.getLogger("rectune")

SAMPLES = 4
"""Answers to each problem at a pause, at most."""


def evaluate_over_steps(grid: Grid, run: ArmRun, *, until: int | None = None) -> None:
    """Train up to the last pause before step `until` (None: the end), and evaluate the model at each pause.

    Pauses that are evaluated are not repeated; those of a run that is finished cannot be made up for.
    """
    files, settings = grid.curve_files, replace(grid.evaluation, seed=run.config.seed)
    settings = replace(settings, num_samples=grid.curve_samples or settings.num_samples)
    last = until if until is not None else run.config.max_steps or int(grid.plan["steps"])
    left = [
        step
        for step in pauses(grid, last)
        if not is_evaluated(curve_folder(run, step) / "validation", files, settings)
    ]
    if left and run.is_finished:
        log.info("%s is finished: no accuracy at step %s", run.name, ", ".join(map(str, left)))
        return
    progress = TaskTimer(f"{run.name}, accuracy over steps", {"pause": len(left)})
    for step in left:
        with progress.task("pause", f"train to step {step}, and sample {settings.num_samples} times"):
            run.train(until=step)
            with run.evaluator() as evaluator:
                evaluator.evaluate(curve_folder(run, step) / "validation", files, settings)


def pauses(grid: Grid, steps: int) -> range:
    """The steps of a run at which it pauses; none without accuracy over steps."""
    return range(grid.curve_steps, steps, grid.curve_steps) if grid.curve_steps else range(0)


def curve_folder(run: ArmRun, step: int) -> Path:
    """What belongs to the model at a pause; what version 0.2 wrote there is moved to it."""
    folder, old = run.folder / f"step-{step}", run.folder / f"validation-step-{step:04d}"
    if old.is_dir():
        folder.mkdir(exist_ok=True)
        old.rename(folder / "validation")
    return folder


def curve_points(grid: Grid, arms: Sequence[Arm]) -> list[Point]:
    """The arms at each pause that all seeds have, and at the end, with their accuracies on validation problems."""
    points = []
    for arm in arms if grid.curve_steps and grid.curve_on == "validation" else ():
        steps = grid.steps(arm)
        for step in (*pauses(grid, steps), steps):
            runs = {str(seed): grid.run(arm, seed) for seed in grid.seeds}
            folders = {
                seed: run.trained if step == steps else curve_folder(run, step) for seed, run in runs.items()
            }
            below = {seed: folder.relative_to(grid.out).as_posix() for seed, folder in folders.items()}
            point = Point(arm=arm.slug, label=arm.label, step=step, folders=below)
            point = with_scores(point, grid.out, grid.domains, grid.validation_domains)
            if point.validation:
                points.append(point.model_copy(update={"scores": {}, "greedy": {}}))
    return points
