"""A race: all arms start, those that are clearly worse on the validation problems stop early, the others go on.

Successive halving made cautious: at a rung an arm is dropped only where the leader's paired difference says so after
Holm's correction (`checkpoint_choice.py`), so a rung may drop nobody. Where the budget no longer allows the
next rung and the end of one run, the leader's runs are finished and all others end where they are. The
learning-rate schedule is that of the whole run, so an arm that goes on is bit for bit the arm that was never in
a race.

    OUT/race.json                                   the rungs that are done
    OUT/runs/<slug>/seed-<s>/validation-<step>      answers to the validation problems at a rung
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rectune.errors import UserError
from rectune.experiments.checkpoint_choice import decide
from rectune.experiments.evaluator import Respondent, correct, is_answered
from rectune.experiments.grid import Budget, Matrix, is_trained, parse_budget, train_run
from rectune.experiments.variants import Arm, run_config, run_folder
from rectune.runtime.io import load_record, write_json
from rectune.runtime.progress import TaskTimer

log = logging.getLogger("rectune")


def rungs(arms: int, steps: int) -> list[int]:
    """After which steps a race is judged: a run's half, quarter and so on, one for every doubling of the arms."""
    count = max(2, math.ceil(math.log2(arms)))
    return sorted({max(1, round(steps / 2**k)) for k in range(1, count + 1)} - {steps})


def check_affordable(matrix: Matrix) -> None:
    """Raise `UserError` where the steps of the budget do not reach the first rung and the end of one arm."""
    budget = parse_budget(matrix.choices.budget or "")
    stages = rungs(len(matrix.arms), matrix.steps)
    if not stages:
        raise UserError(f"runs of {matrix.steps} steps are too short for a race", where="--race")
    if not budget.in_steps:
        return
    least = len(matrix.seeds) * (len(matrix.arms) * stages[0] + matrix.steps - stages[0])
    if budget.amount < least:
        raise UserError(
            f"{matrix.choices.budget} is too little: {len(matrix.arms)} arms to step {stages[0]} and one of them to"
            f" step {matrix.steps}, {len(matrix.seeds)} seeds each, are {least} steps",
            where="--race",
        )


def race(matrix: Matrix, arms: Sequence[Arm], validation: Sequence[Path]) -> dict[str, Any]:
    """Run the race as far as its last rung; rungs that are in OUT/race.json are not judged again.

    Returns:
        JSON-ready: `budget`; `rungs`, each with `step`, `leader`, `accuracy`, `behind` and `worse` (see
        `choices.decide`), `problems`, and `steps` and `seconds` spent so far; `ended`: "all rungs", "one left" or
        "budget"; `survivors`: slugs whose runs are to be finished; `dropped`: slug to `step`, `reason` and figures.
    """
    text = matrix.choices.budget or ""
    budget, path = parse_budget(text), matrix.out / "race.json"
    done: list[dict[str, Any]] = []
    if path.is_file():
        done = load_record(path, "rungs")["rungs"]
    stages = rungs(len(arms), matrix.steps)
    clock = TaskTimer("race", {"rung": len(arms) * len(matrix.seeds) * len(stages)})
    alive, dropped, ended = list(arms), dict[str, dict[str, Any]](), "all rungs"
    for number, step in enumerate([*stages, matrix.steps]):
        spent = done[number - 1] if number else {"step": 0, "steps": 0, "seconds": 0.0}
        if len(alive) == 1:
            ended = "one left"
        elif number and not _affordable(budget, spent, matrix, len(alive), step):
            ended = "budget"
        if ended != "all rungs" or number == len(stages):
            break
        if number == len(done):
            done.append(_rung(matrix, alive, step, validation, clock, spent))
            write_json(path, {"format": 1, "rungs": done}, indent=2)
        for arm in [arm for arm in alive if arm.label in done[number]["worse"]]:
            dropped[arm.slug] = _dropped(done[number], arm.label, "clearly worse than")
            alive.remove(arm)
            log.info("race: %s is dropped: %s", arm.label, dropped[arm.slug]["reason"])
    if ended == "budget":
        last = done[-1]
        for arm in [arm for arm in alive if arm.label != last["leader"]]:
            dropped[arm.slug] = _dropped(
                last, arm.label, f"the budget of {text} is spent; not clearly worse than"
            )
            alive.remove(arm)
    survivors = [arm.slug for arm in alive]
    return {"budget": text, "rungs": done, "ended": ended, "survivors": survivors, "dropped": dropped}


def _affordable(budget: Budget, spent: Mapping[str, Any], matrix: Matrix, alive: int, step: int) -> bool:
    """Whether all that are left can go on to `step`, and one of them from there to the end."""
    seeds = len(matrix.seeds)
    steps = seeds * (alive * (step - spent["step"]) + matrix.steps - step)
    if budget.in_steps:
        return bool(spent["steps"] + steps <= budget.amount)
    return bool(spent["seconds"] * (1 + steps / spent["steps"]) <= budget.amount)


def _rung(
    matrix: Matrix,
    alive: Sequence[Arm],
    step: int,
    validation: Sequence[Path],
    clock: TaskTimer,
    spent: Mapping[str, Any],
) -> dict[str, Any]:
    """Take all arms that are left to `step`, and judge them there."""
    began = time.perf_counter()
    verdicts: dict[str, list[np.ndarray]] = {arm.label: [] for arm in alive}
    for arm in alive:
        for seed in matrix.seeds:
            folder, draws = run_folder(matrix.out, arm, seed), replace(matrix.draws, seed=seed)
            answers = folder / f"validation-{step}"
            if not is_answered(answers, validation, draws):
                if is_trained(folder):
                    raise UserError(f"is finished: it cannot be judged at step {step} any more", where=folder)
                with clock.task("rung", f"{arm.label}, seed {seed}, to step {step} of {matrix.steps}"):
                    train_run(run_config(matrix.config, arm, seed, folder), until=step)
                    respondent = Respondent(str(folder), str(folder / "model"), matrix.config)
                    respondent.answer(answers, validation, draws)
                    respondent.forget()
            verdicts[arm.label].append(correct(answers, validation))
    return {
        "step": step,
        **decide(verdicts),
        "problems": sum(len(asked) for asked in matrix.validation.values()),
        "steps": spent["steps"] + len(alive) * len(matrix.seeds) * (step - spent["step"]),
        "seconds": spent["seconds"] + time.perf_counter() - began,
    }


def _dropped(rung: Mapping[str, Any], label: str, why: str) -> dict[str, Any]:
    """Why an arm went no further, in words and in figures."""
    behind, leader = rung["behind"][label], rung["leader"]
    points = {name: f"{100 * behind[name]:.1f}" for name in ("difference", "low", "high")}
    reason = (
        f"{why} {leader} at step {rung['step']}: {points['difference']} points behind on {rung['problems']} validation"
        f" problems, interval {points['low']} to {points['high']}, adjusted p = {behind['p_holm']:.2g}"
    )
    own, best = (rung["accuracy"][name]["mean"] for name in (label, leader))
    figures = {"leader": leader, "accuracy": own, "leader_accuracy": best, **behind}
    return {"step": rung["step"], "reason": reason, **figures}
