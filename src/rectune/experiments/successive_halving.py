"""Successive halving made cautious: arms that are clearly worse on the validation problems stop early.

At a rung an arm is dropped only if the paired difference from the leader says so after Holm's correction, so a rung may
drop no arm. If the budget does not cover the next rung and the end of one run, only the leader's runs are finished. The
learning-rate schedule is that of the whole run, so a surviving run is bit-identical to one trained without a race.

Arms are never judged by an objective's own value: -p log p falls as p goes to 0, so a falling DFT loss can mean a model
that gets worse, and losses of two objectives cannot be compared.

    OUT/race.json                                   the rungs that are done
    OUT/runs/<slug>/seed-<s>/validation-<step>      answers to the validation problems at a rung
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from rectune.errors import UserError
from rectune.evaluation.statistics import Difference, holm, paired_difference
from rectune.experiments.curve import evaluate_over_steps
from rectune.experiments.evaluator import correct, is_evaluated, mean_accuracy
from rectune.experiments.grid import Arm, Budget, Grid
from rectune.records import (
    Accuracy,
    BehindLeader,
    Dropped,
    RaceProgress,
    RaceResult,
    Rung,
    Standing,
    read_record,
    write_record,
)
from rectune.runtime.progress import TaskTimer

log = logging.getLogger("rectune")

LEVEL = 0.95
"""An arm is dropped if this interval of the difference is above 0 and Holm's p-value is below 1 - LEVEL."""


def rungs(arms: int, steps: int) -> list[int]:
    """After which steps a race is judged: a half of a run, a quarter and so on, one for every doubling of the arms."""
    count = max(2, math.ceil(math.log2(arms)))
    return sorted({max(1, round(steps / 2**k)) for k in range(1, count + 1)} - {steps})


def check_affordable(grid: Grid, budget: Budget) -> None:
    """Raise `UserError` if the steps of the budget do not reach the first rung and the end of one arm."""
    arms, seeds, steps = len(grid.arms), len(grid.seeds), grid.steps(grid.arms[0])
    stages = rungs(arms, steps)
    if not stages:
        raise UserError(f"runs of {steps} steps are too short for a race", where="--race")
    least = seeds * (arms * stages[0] + steps - stages[0])
    if budget.in_steps and budget.amount < least:
        raise UserError(
            f"{budget.text} is too little: {arms} arms to step {stages[0]} and one of them to step {steps},"
            f" {seeds} seeds each, are {least} steps",
            where="--race",
        )


def race(grid: Grid, arms: Sequence[Arm], validation: Sequence[Path]) -> RaceResult | None:
    """Run the race up to its last rung; rungs in OUT/race.json are not judged again. None without a race."""
    if (budget := grid.race) is None:
        return None
    path, steps = grid.out / "race.json", grid.steps(arms[0])
    done = read_record(path, RaceProgress).rungs if path.is_file() else []
    stages = rungs(len(arms), steps)
    progress = TaskTimer("race", {"rung": len(arms) * len(grid.seeds) * len(stages)})
    alive, dropped, ended = list(arms), dict[str, Dropped](), "all rungs"
    for number, step in enumerate([*stages, steps]):
        if len(alive) == 1:
            ended = "one left"
        elif number and not _affordable(grid, budget, done[number - 1], len(alive), step):
            ended = "budget"
        if ended != "all rungs" or number == len(stages):
            break
        if number == len(done):
            done.append(_rung(grid, alive, step, validation, progress, done[-1] if done else None))
            write_record(path, RaceProgress(rungs=done))
        for arm in [arm for arm in alive if arm.label in done[number].worse]:
            dropped[arm.slug] = _dropped(done[number], arm.label, "clearly worse than")
            alive.remove(arm)
            log.info("race: %s is dropped: %s", arm.label, dropped[arm.slug].reason)
    if ended == "budget":
        spent = f"the budget of {budget.text} is spent; not clearly worse than"
        for arm in [arm for arm in alive if arm.label != done[-1].leader]:
            dropped[arm.slug] = _dropped(done[-1], arm.label, spent)
            alive.remove(arm)
    survivors = [arm.slug for arm in alive]
    return RaceResult(budget=budget.text, rungs=done, ended=ended, survivors=survivors, dropped=dropped)


def _affordable(grid: Grid, budget: Budget, last: Rung, alive: int, step: int) -> bool:
    """Whether all that are left can go on to `step`, and one of them from there to the end."""
    to_end = grid.steps(grid.arms[0]) - step
    steps = len(grid.seeds) * (alive * (step - last.step) + to_end)
    if budget.in_steps:
        return last.steps + steps <= budget.amount
    return last.seconds * (1 + steps / last.steps) <= budget.amount


def _rung(
    grid: Grid,
    alive: Sequence[Arm],
    step: int,
    validation: Sequence[Path],
    progress: TaskTimer,
    last: Rung | None,
) -> Rung:
    """Train all arms that are left up to `step`, and compare them there."""
    began = time.perf_counter()
    verdicts: dict[str, list[np.ndarray]] = {arm.label: [] for arm in alive}
    for arm in alive:
        for seed in grid.seeds:
            run, settings = grid.run(arm, seed), replace(grid.evaluation, seed=seed)
            answers = run.folder / f"validation-{step}"
            if not is_evaluated(answers, validation, settings):
                if run.is_finished:
                    raise UserError(
                        f"the run is finished and cannot be evaluated at step {step}", where=run.folder
                    )
                evaluate_over_steps(grid, run, until=step)
                with progress.task("rung", f"{run.name}, to step {step} of {grid.steps(arm)}"):
                    run.train(until=step)
                    with run.evaluator() as evaluator:
                        evaluator.evaluate(answers, validation, settings)
            verdicts[arm.label].append(correct(answers, validation))
    before = (last.step, last.steps, last.seconds) if last else (0, 0, 0.0)
    return Rung(
        **dict(compare_arms(verdicts)),
        step=step,
        problems=sum(map(len, grid.validation.values())),
        steps=before[1] + len(alive) * len(grid.seeds) * (step - before[0]),
        seconds=before[2] + time.perf_counter() - began,
    )


def compare_arms(arms: Mapping[str, Sequence[np.ndarray]]) -> Standing:
    """Who leads, and who is clearly worse.

    The leader is itself found in these answers, so Holm's correction is over all pairs of arms, not only over those
    with the leader.

    Args:
        arms: Label to one matrix of verdicts a seed, (P, N), the same problems in the same order.
    """
    accuracy = {label: Accuracy(**mean_accuracy(x, LEVEL)._asdict()) for label, x in arms.items()}
    leader = max(accuracy, key=lambda label: accuracy[label].mean)  # of several the first
    pairs = list(combinations(arms, 2))
    differences = [_difference(arms[a], arms[b]) for a, b in pairs]
    adjusted = holm([difference.p_value for difference in differences]) if pairs else []
    behind = {}
    for (a, b), found, p_holm in zip(pairs, differences, adjusted, strict=True):
        if leader in (a, b):
            mean, low, high = (
                (found.mean, found.low, found.high) if a == leader else (-found.mean, -found.high, -found.low)
            )
            behind[b if a == leader else a] = BehindLeader(
                difference=mean, low=low, high=high, p_value=found.p_value, p_holm=p_holm
            )
    worse = [label for label, one in behind.items() if one.low > 0 and one.p_holm < 1 - LEVEL]
    return Standing(leader=leader, accuracy=accuracy, behind=behind, worse=worse)


def _difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Difference:
    return paired_difference(list(a), list(b), LEVEL) if len(a) > 1 else paired_difference(a[0], b[0], LEVEL)


def _dropped(rung: Rung, label: str, why: str) -> Dropped:
    """Why an arm went no further, in words and in figures."""
    behind, leader = rung.behind[label], rung.leader
    difference, low, high = (f"{100 * x:.1f}" for x in (behind.difference, behind.low, behind.high))
    reason = (
        f"{why} {leader} at step {rung.step}: {difference} points behind on {rung.problems} validation"
        f" problems, interval {low} to {high}, adjusted p = {behind.p_holm:.2g}"
    )
    mine, best = (rung.accuracy[name].mean for name in (label, leader))
    return Dropped(
        step=rung.step, reason=reason, leader=leader, accuracy=mine, leader_accuracy=best, **dict(behind)
    )
