"""What a comparison would do, without doing it: `rectune compare --dry-run`."""

from __future__ import annotations

from typing import Any

from rectune.comparison.arms import run_folder
from rectune.comparison.matrix import Matrix
from rectune.comparison.race import rungs
from rectune.comparison.sweep import trial_steps
from rectune.disk import load_record


def planned(matrix: Matrix, *, sharpening: bool) -> dict[str, Any]:
    """Runs, steps, tokens and samples; reads the data and the model, writes nothing.

    `seconds_of_training` is told from the runs in the folder that are finished, and None without any.
    """
    runs = [_run(matrix, arm_number, seed) for arm_number in range(len(matrix.arms)) for seed in matrix.seeds]
    per_step, steps = matrix.plan["tokens_per_step"], matrix.steps
    trials = len(matrix.arms) * len(set(matrix.choices.rates))
    spent = trials * trial_steps(matrix) if trials else 0
    speeds = [run["tokens_per_second"] for run in runs if run["tokens_per_second"]]
    to_do = sum(steps for run in runs if run["state"] != "finished") + spent
    models, asked = len(runs) + 1, sum(map(len, matrix.problems.values()))
    samples = models * asked * (matrix.draws.n * (2 if sharpening else 1) + 1)
    return {
        "model": matrix.config.model,
        "data": matrix.config.data,
        "runs": runs,
        "steps_per_run": steps,
        "tokens_per_run": per_step * steps,
        "sweep": {"trials": trials, "steps": spent} if trials else None,
        "race": {"budget": matrix.choices.budget, "rungs": rungs(len(matrix.arms), steps)}
        if matrix.choices.budget
        else None,
        "tokens_to_train_on": per_step * to_do,
        "seconds_of_training": round(per_step * to_do * len(speeds) / sum(speeds)) if speeds else None,
        "benchmarks": matrix.domains,
        "problems": {name: len(problems) for name, problems in matrix.problems.items()},
        "validation": {name: len(problems) for name, problems in matrix.validation.items()},
        "samples": samples,
        "memory_mib": matrix.plan["memory_mib"],
    }


def _run(matrix: Matrix, arm_number: int, seed: int) -> dict[str, Any]:
    arm = matrix.arms[arm_number]
    folder = run_folder(matrix.out, arm, seed)
    summary = folder / "summary.json"
    begun = "begun" if (folder / "config.json").is_file() else "to do"
    speed = load_record(summary, "tokens_per_second")["tokens_per_second"] if summary.is_file() else None
    return {
        "objective": arm.label,
        "seed": seed,
        "learning_rate": None if matrix.choices.rates else arm.learning_rate,
        "state": "finished" if summary.is_file() else begun,
        "tokens_per_second": speed,
        "out": str(folder),
    }
