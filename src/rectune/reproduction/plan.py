"""`rectune reproduce --dry-run`: every run with its settings, steps, tokens and expected cost; nothing is trained.

The formulas are in `estimate.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from rectune.config import TrainConfig, flag
from rectune.reproduction.estimate import FORMULA, full_estimate, mini_estimate, mini_minutes
from rectune.reproduction.job import Job
from rectune.reproduction.paper import paper_table
from rectune.reproduction.recipe import Arm, Recipe

VERBS = {"train": "train", "rft": "rft", "rl": "rl"}


def plan(recipe: Recipe, jobs: Sequence[Job], *, gpus: int = 8) -> dict[str, Any]:
    """JSON-ready: `models`, each with its `runs`; the sums; `formula` or `speed`; the paper's notes."""
    table = paper_table(recipe.name)
    models = [_model(job, gpus) for job in jobs]
    result = {
        "recipe": recipe.name,
        "title": table.title,
        "scale": jobs[0].scale,
        "benchmarks": jobs[0].asking.benchmarks,
        "draws": vars(jobs[0].asking.draws),
        "seeds": list(jobs[0].seeds),
        "rates_tried": list(jobs[0].rates),
        "models": models,
        "notes": list(table.notes),
    }
    if jobs[0].task:
        return {**result, "speed": jobs[0].task.settings["speed"], "minutes": models[0]["minutes"]}
    hours = sum(len(jobs[0].seeds) * run["gpu_hours"] for model in models for run in model["runs"])
    return {**result, "formula": FORMULA, "assumed": recipe.full["assumed"], "gpu_hours": hours}


def _model(job: Job, gpus: int) -> dict[str, Any]:
    if job.task:
        estimates = {arm.label: mini_estimate(job, arm) for arm in job.arms}
        runs = [_run(job, arm, estimates[arm.label]) for arm in job.arms]
        return {
            "model": job.model,
            "runs": runs,
            "minutes": mini_minutes(job, estimates),
            "data": _tokens(job),
        }
    runs = []
    for arm in job.arms:
        run = _run(job, arm, full_estimate(job, arm))
        run["gpu_hours"] = run["gpu_hours_training"] + run["gpu_hours_answers"]
        run["launch"] = launch_line(job, arm, gpus) if arm.method == "train" else None
        runs.append(run)
    return {"model": job.model, "runs": runs}


def _run(job: Job, arm: Arm, estimate: dict[str, Any]) -> dict[str, Any]:
    config = job.config(arm, job.seeds[0], job.folder(arm, job.seeds[0]))
    return {
        "arm": arm.label,
        "method": arm.method,
        "rate": "chosen by the sweep"
        if job.rates and not job.fixed_rate(arm)
        else _of(config, "learning_rate"),
        **estimate,
        "settings": json.loads(config.model_dump_json()),
    }


def _of(config: Any, name: str) -> Any:
    return getattr(config, name)


def _tokens(job: Job) -> dict[str, Any]:
    """Rows and problems at hand, by file."""
    counts = {}
    for name, path in job.data.items():
        with open(path, "rb") as lines:
            counts[name] = sum(1 for _ in lines)
    return counts


def launch_line(job: Job, arm: Arm, gpus: int) -> str:
    """What trains the first run of an arm on several GPUs of a machine; `reproduce` then finds it finished.

    Data parallel: each process holds the whole model, so `memory_gib` has to fit.
    """
    config = job.config(arm, job.seeds[0], job.folder(arm, job.seeds[0]))
    assert isinstance(config, TrainConfig)
    plain = TrainConfig(data=config.data, output_dir=config.output_dir)
    given = []
    for name, value in config:
        default = getattr(plain, name)
        if value != default or name in ("data", "output_dir"):
            given += [flag(name), _typed(value)]
    processes = f"accelerate launch --num_processes {gpus} -m rectune.cli.app train"
    return f"{processes} {shlex.join(given)} --resume"


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={one}" for key, one in value.items())
    return str(value)
