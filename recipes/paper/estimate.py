"""`rectune reproduce --dry-run`: every run with its settings and its expected cost, by formulas; nothing is trained.

    training   6 P T FLOPs for T tokens and P parameters, 8 P T where activations are computed again
    reference  2 P T once, for objectives that compare with the base model
    answers    2 P (prompt + answer) FLOPs for each
    hours      FLOPs / (`PEAK` x share of it that is reached) / 3600
    memory     bytes per parameter: 2 weights, 4 masters, 4 gradients, 8 moments (with LoRA: 2 weights), and what the
               backward pass keeps for one forward pass of `tokens_per_micro_batch`

The shares are assumptions, printed with every estimate; so are tokens of a row and of an answer where no data are at
hand. Minutes at mini scale follow from the speeds in mini.toml.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rectune.config import RFTConfig, RLConfig, TrainConfig, as_flags
from rectune.data.sampler import plan_steps
from rectune.errors import UserError
from rectune.experiments.grid import Arm, ArmRun, Grid
from rectune.experiments.reproduce import Reproduction
from rectune.runtime.io import load_record

from .figures import figures, paper_table
from .result import Part, answers_per_step, columns, notes

PEAK = 989e12
"""bfloat16 FLOP/s of one H100 SXM, dense, by its data sheet."""
TRAINING_SHARE = 0.35
SAMPLING_SHARE = 0.08
PROBLEMS = {
    "math500": 500, "minerva": 272, "olympiadbench": 675, "aime24": 30, "amc23": 40, "humaneval": 164, "mbpp": 500,
    "natural_questions": 3610,
}  # fmt: skip
"""Problems of the benchmarks."""
FORMULA = (
    f"hours = FLOPs / ({PEAK / 1e12:.0f} TFLOP/s x {TRAINING_SHARE:.0%} training, {SAMPLING_SHARE:.0%} answers); "
    "training 8 P T (6 P T without recomputing activations, + 2 P T for a reference), answers 2 P x (prompt + answer) "
    "tokens; memory per process 18 P bytes (2 P with LoRA) + activations + head"
)


def plan(work: Reproduction) -> dict[str, Any]:
    """`models`, each with its `runs`; the sums; `formula` or `speed`; notes on the paper's figures."""
    table, first = paper_table(work.path.stem), work.grids[0]
    mini = work.config.scale == "mini"
    models = [_mini_model(grid) if mini else _full_model(work, grid) for grid in work.grids]
    draws = {
        name: getattr(first.evaluation, name) for name in ("num_samples", "temperature", "max_new_tokens")
    }
    result = {
        "recipe": work.path.stem, "title": table.title, "scale": work.config.scale, "benchmarks": dict(first.domains),
        "draws": draws, "seeds": list(first.seeds), "rates_tried": list(first.sweep.rates) if first.sweep else [],
        "models": models, "notes": list(table.notes),
    }  # fmt: skip
    if mini:
        return {**result, "speed": _task(first)["speed"], "minutes": models[0]["minutes"]}
    hours = len(first.seeds) * sum(run["gpu_hours"] for model in models for run in model["runs"])
    return {**result, "formula": FORMULA, "assumed": work.recipe.assumed, "gpu_hours": hours}


def _full_model(work: Reproduction, grid: Grid) -> dict[str, Any]:
    runs = []
    for arm in grid.arms:
        planned = _planned(grid, arm, full_estimate(work, grid, arm))
        planned["gpu_hours"] = planned["gpu_hours_training"] + planned["gpu_hours_answers"]
        run = grid.run(arm, grid.seeds[0])
        planned["launch"] = launch_line(run, work.config.gpus) if arm.method == "train" else None
        runs.append(planned)
    return {"model": grid.model, "runs": runs}


def _planned(grid: Grid, arm: Arm, estimate: dict[str, Any]) -> dict[str, Any]:
    config = grid.run(arm, grid.seeds[0]).config
    swept = grid.sweep is not None and arm.sweep
    return {
        "arm": arm.label,
        "method": arm.method,
        "rate": "chosen by the sweep" if swept else config.learning_rate,
        **estimate,
        "settings": json.loads(config.model_dump_json()),
    }


def launch_line(run: ArmRun, gpus: int) -> str:
    """The command that trains a run on several GPUs of a machine; `reproduce` then finds it finished.

    Data parallel: each process holds the whole model, so `memory_gib` has to fit.
    """
    config = run.training
    plain = TrainConfig(data=config.data, output_dir=config.output_dir)
    kept = ("data", "output_dir")
    changed = [n for n in type(config).model_fields if n in kept or getattr(config, n) != getattr(plain, n)]
    given = as_flags(config, changed)
    return f"accelerate launch --num_processes {gpus} -m rectune.cli.app train {shlex.join(given)} --resume"


def full_estimate(work: Reproduction, grid: Grid, arm: Arm) -> dict[str, Any]:
    """GPU hours, memory and what they rest on, for one run of an arm and its evaluation."""
    shape, assumed, config = figures()["models"].get(grid.model), work.recipe.assumed, arm.config
    if unknown := [name for name in grid.domains if name not in PROBLEMS] or ([] if shape else [grid.model]):
        hint = "add it to figures.json or to PROBLEMS in estimate.py"
        raise UserError(
            f"{unknown[0]} has no known size, which the estimate needs", where=work.path, hint=hint
        )
    parameters = shape["parameters"]
    length, sampled = assumed["prompt_tokens"] + assumed["answer_tokens"], 0.0
    if isinstance(config, RLConfig):
        steps, rows = config.max_steps, config.max_steps * config.problems_per_step * config.num_samples
        tokens, sampled = rows * length, rows
    else:
        rows = work.recipe.settings["max_train_samples"]
        tokens = rows * assumed["row_tokens"]
        if isinstance(config, RFTConfig):
            sampled, paired = rows * config.num_samples, "pair" in columns(arm)
            rows = rows if paired else round(sampled * assumed["correct"])
            tokens = rows * length * (1 + paired)
        if config.eval_split_size:
            rows -= max(1, round(rows * config.eval_split_size))
        steps = len(plan_steps(rows, config.batch_size, epochs=config.num_train_epochs))
        rows, tokens = rows * config.num_train_epochs, tokens * config.num_train_epochs
    per_token = (8 if config.gradient_checkpointing else 6) + 2 * ("ref_logp" in columns(arm))
    evaluated = sum(PROBLEMS[name] for name in grid.domains) * grid.evaluation.num_samples
    if grid.curve_steps:
        evaluated *= steps // grid.curve_steps
    return {
        "steps": int(steps),
        "answers_trained": int(rows),
        "tokens_trained": int(tokens),
        "answers_drawn": int(sampled),
        "answers_evaluated": int(evaluated),
        "gpu_hours_training": per_token * parameters * tokens / (PEAK * TRAINING_SHARE) / 3600,
        "gpu_hours_answers": (sampled + evaluated) * 2 * parameters * length / (PEAK * SAMPLING_SHARE) / 3600,
        "memory_gib": _memory(shape, config),
    }


def _memory(shape: Mapping[str, Any], config: Any) -> dict[str, float]:
    """GiB of one process that holds the whole model, by part; sharded over G processes, the first part is 1 / G."""
    layer = (16 * shape["width"] + 4 * shape["inner"]) * 2
    parts = {
        "states": (2 if config.lora_r else 18) * shape["parameters"] / 2**30,
        "activations": config.tokens_per_micro_batch * (shape["layers"] * shape["width"] * 2 + layer) / 2**30,
        "head": config.logits_memory_mb / 2**10,
    }
    return {**parts, "total": sum(parts.values())}


def _task(grid: Grid) -> dict[str, Any]:
    return load_record(Path(grid.data).with_name("task.json"), "task", "speed", "base")


def _mini_model(grid: Grid) -> dict[str, Any]:
    """Runs with seconds on two cores, and minutes of the whole recipe by part."""
    task = _task(grid)
    estimates = {arm.label: _mini_estimate(grid, arm, task) for arm in grid.arms}
    speed, seeds, arms = task["speed"], len(grid.seeds), len(grid.arms)
    answer = speed["answer_tokens"] / speed["drawn_per_second"]
    training = sum(one["seconds_training"] for one in estimates.values())
    evaluated = next(iter(estimates.values()))["seconds_answers"]
    points = sum(one["steps"] // grid.curve_steps for one in estimates.values()) if grid.curve_steps else 0
    trials, rates, shared = (
        0.0,
        len(grid.sweep.rates) if grid.sweep else 0,
        any(a.method == "rft" for a in grid.arms),
    )
    if grid.sweep:
        judged = arms * task["task"]["validation"] * (grid.sweep.num_samples or 0) * answer
        trials = rates * (grid.sweep.share * training + judged)
    seconds = {
        "base": 0.0 if Path(grid.model).is_dir() else task["base"]["steps"] * speed["base_step_seconds"],
        "sweep": trials,
        "shared_answers": seeds * task["task"]["problems"] * 4 * answer if shared else 0.0,
        "training": seeds * training,
        "overhead": arms * (seeds + rates) * speed["run_seconds"],
        "answers": evaluated * (1 + seeds * arms) + points * seeds * evaluated / 4,
    }
    return {
        "model": grid.model,
        "runs": [_planned(grid, arm, estimates[arm.label]) for arm in grid.arms],
        "minutes": {**{k: v / 60 for k, v in seconds.items()}, "total": sum(seconds.values()) / 60},
    }


def _mini_estimate(grid: Grid, arm: Arm, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one run of an arm and of its evaluation."""
    speed, steps, live = task["speed"], grid.steps(arm), arm.method == "rl"
    rows = steps * answers_per_step(arm)
    tokens = rows * speed["row_tokens"]
    evaluated = sum(task["task"][name] for name in grid.domains) * (grid.evaluation.num_samples + 1)
    answer = speed["answer_tokens"] / speed["drawn_per_second"]
    training = tokens / speed["trained_per_second"] * (1.35 if "ref_logp" in columns(arm) else 1)
    return {
        "steps": steps,
        "answers_trained": rows,
        "tokens_trained": int(tokens),
        "answers_drawn": rows if live else task["task"]["problems"] * 4 if arm.method == "rft" else 0,
        "answers_evaluated": evaluated,
        "seconds_training": training + live * rows * answer * 2,  # few rows at once: half as fast
        "seconds_answers": evaluated * answer,
    }


def parts(plan: dict[str, Any]) -> Iterator[Part]:
    """Tables and sentences of a plan."""
    draws, names = plan["draws"], ", ".join(plan["benchmarks"])
    yield f"{plan['recipe']}: {plan['title']}, {plan['scale']} scale, seeds {', '.join(map(str, plan['seeds']))}"
    yield (
        f"sampled: {names}; {draws['num_samples']} answers at temperature {draws['temperature']:g}, "
        f"at most {draws['max_new_tokens']} tokens"
    )
    for model in plan["models"]:
        yield f"\n{model['model']}"
        yield [_row(run) for run in model["runs"]]
        if "minutes" in model:
            yield "minutes: " + ", ".join(f"{name} {value:.1f}" for name, value in model["minutes"].items())
        lines = [run["launch"] for run in model["runs"] if run.get("launch")]
        yield from (["on several GPUs, each run by itself:", *lines] if lines else [])
    if plan["scale"] == "mini":
        rates = ", ".join(f"{rate:g}" for rate in plan["rates_tried"]) or "none"
        yield f"by the speeds of mini.toml: {_listed(plan['speed'])}; rates tried: {rates}"
    else:
        yield f"\nin all {plan['gpu_hours']:.0f} GPU hours. {plan['formula']}. Assumed: {_listed(plan['assumed'])}"
    yield from notes(plan)


def _listed(named: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in named.items())


def _row(run: dict[str, Any]) -> dict[str, Any]:
    row = {"arm": run["arm"], "method": run["method"]}
    row["rate"] = run["rate"] if isinstance(run["rate"], str) else f"{run['rate']:g}"
    names = {
        "steps": "steps",
        "answers_trained": "answers",
        "tokens_trained": "tokens",
        "answers_drawn": "drawn",
    }
    row |= {shown: f"{run[name]:,}" for name, shown in {**names, "answers_evaluated": "evaluated"}.items()}
    if "gpu_hours" in run:
        hours = f"{run['gpu_hours_training']:.1f} + {run['gpu_hours_answers']:.1f}"
        return row | {"GPU hours": hours, "GiB": f"{run['memory_gib']['total']:.0f}"}
    return row | {"seconds": f"{run['seconds_training']:.0f} + {run['seconds_answers']:.0f}"}
