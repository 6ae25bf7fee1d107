"""What a comparison would do, without doing it: `rectune compare --dry-run`."""

from __future__ import annotations

from typing import Any

from rectune.comparison.arms import run_config, run_folder
from rectune.comparison.matrix import Matrix
from rectune.comparison.race import rungs
from rectune.comparison.sweep import trial_steps
from rectune.disk import load_record
from rectune.training.plan import plans


def planned(matrix: Matrix, *, sharpening: bool) -> dict[str, Any]:
    """Runs, steps, tokens and samples; reads the data and the model, writes nothing.

    `tokens_to_train_on` is what is left to do, `samples` what the verdict takes in all (without the few that may
    correct a matched temperature), `validation_samples` what a sweep takes and a race at most. `seconds_of_training`
    is told from the runs in the folder that are finished, and None without any.
    """
    runs = [_run(matrix, arm_number, seed) for arm_number in range(len(matrix.arms)) for seed in matrix.seeds]
    steps, arms, seeds, draws = matrix.steps, len(matrix.arms), len(matrix.seeds), matrix.draws
    trials, stages = arms * len(set(matrix.choices.rates)), _rungs(matrix)
    tokens, of_trial = _tokens(matrix)
    speeds = [run["tokens_per_second"] for run in runs if run["tokens_per_second"]]
    to_do = sum(tokens[run["seed"]] for run in runs if run["state"] != "finished") + trials * of_trial
    asked, validated = (sum(map(len, some.values())) for some in (matrix.problems, matrix.validation))
    matched = len(runs) + 1 - seeds if sharpening and draws.temperature == 1 else 0  # all but one arm
    return {
        "model": matrix.config.model,
        "data": matrix.config.data,
        "runs": runs,
        "steps_per_run": steps,
        "tokens_per_run": tokens[matrix.seeds[0]],
        "sweep": {"trials": trials, "steps": trials * trial_steps(matrix)} if trials else None,
        "race": {"budget": matrix.choices.budget, "rungs": stages} if stages else None,
        "tokens_to_train_on": to_do,
        "seconds_of_training": round(to_do * len(speeds) / sum(speeds)) if speeds else None,
        "benchmarks": matrix.domains,
        "problems": {name: len(problems) for name, problems in matrix.problems.items()},
        "validation": {name: len(problems) for name, problems in matrix.validation.items()},
        "samples": asked * ((len(runs) + 1) * (draws.n + 1) + matched * draws.n),
        "validation_samples": validated * draws.n * (trials + len(stages) * arms * seeds),
        "memory_mib": matrix.plan["memory_mib"],
    }


def _rungs(matrix: Matrix) -> list[int]:
    return rungs(len(matrix.arms), matrix.steps) if matrix.choices.budget else []


def _tokens(matrix: Matrix) -> tuple[dict[int, int], int]:
    """What a run trains on, by seed, and what a trial of the sweep does."""
    arm, (first, *others) = matrix.arms[0], matrix.seeds
    configs = [run_config(matrix.config, arm, seed, run_folder(matrix.out, arm, seed)) for seed in others]
    if matrix.choices.rates:
        configs.append(run_config(matrix.config, arm, first, matrix.out, steps=trial_steps(matrix)))
    found = [one["tokens_to_train_on"] for one in (plans(configs) if configs else [])]
    of_trial = found.pop() if matrix.choices.rates else 0
    return {first: matrix.plan["tokens_to_train_on"], **dict(zip(others, found, strict=True))}, of_trial


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
