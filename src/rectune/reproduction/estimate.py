"""What a recipe is expected to take: GPU hours and memory at full scale, minutes at mini scale; by formulas.

    training   6 P T FLOPs for T tokens and P parameters, 8 P T where activations are computed again
    reference  2 P T once, for objectives that compare with the base model
    answers    2 P (prompt + answer) FLOPs for each
    hours      FLOPs / (`PEAK` x share of it that is reached) / 3600
    memory     bytes per parameter: 2 weights, 4 masters, 4 gradients, 8 moments (with LoRA: 2 weights), and what the
               backward pass keeps for one forward pass of `micro_batch_tokens`

The shares are assumptions, said with every estimate; so are tokens of a row and of an answer where no data are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rectune.config import SplitConfig
from rectune.data.sampler import plan_steps
from rectune.objective_spec import parse_objective
from rectune.reproduction.job import Job
from rectune.reproduction.paper import figures
from rectune.reproduction.recipe import Arm

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


def full_estimate(job: Job, arm: Arm) -> dict[str, Any]:
    """GPU hours, memory and what they rest on, for one run of an arm and its evaluation."""
    shape, assumed = figures()["models"][job.model], job.recipe.full["assumed"]
    parameters, given = shape["parameters"], job.settings(arm)
    prompt, answer = assumed["prompt_tokens"], assumed["answer_tokens"]
    drawn = 0.0
    if arm.method == "rl":
        rows = given["max_steps"] * given["problems_per_step"] * (given["num_samples"])
        tokens, drawn, steps = rows * (prompt + answer), rows, given["max_steps"]
    else:
        questions = job.recipe.full["settings"]["max_train_samples"]
        rows, tokens = questions, questions * assumed["row_tokens"]
        if arm.method == "rft":
            drawn = questions * given["num_samples"]
            paired = given["objective"].startswith("dpo")
            rows = questions if paired else round(drawn * assumed["correct"])
            tokens = rows * (prompt + answer) * (1 + paired)
        share = given.get("eval_split_size", SplitConfig().eval_split_size)
        rows -= max(1, round(rows * float(share))) if share else 0
        steps = len(plan_steps(rows, given["batch_size"], epochs=given["num_train_epochs"]))
        rows, tokens = rows * given["num_train_epochs"], tokens * given["num_train_epochs"]
    reference = _reads_reference(given)
    per_token = (8 if given.get("gradient_checkpointing") else 6) + 2 * reference
    asked = sum(PROBLEMS[name] for name in job.recipe.benchmarks) * job.asking.draws.num_samples
    if every := job.recipe.curve.get("full"):
        asked *= steps // every
    sampling = 2 * parameters * (prompt + answer) / (PEAK * SAMPLING_SHARE) / 3600
    return {
        "steps": int(steps),
        "answers_trained": int(rows),
        "tokens_trained": int(tokens),
        "answers_drawn": int(drawn),
        "answers_evaluated": int(asked),
        "gpu_hours_training": per_token * parameters * tokens / (PEAK * TRAINING_SHARE) / 3600,
        "gpu_hours_answers": (drawn + asked) * sampling,
        "memory_gib": memory(shape, given),
    }


def memory(shape: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float]:
    """GiB of one process that holds the whole model, by part; sharded over G processes, the first part is 1 / G."""
    lora = bool(given.get("lora_r"))
    states = (2 if lora else 18) * shape["parameters"]
    layer = (16 * shape["width"] + 4 * shape["inner"]) * 2
    kept = shape["layers"] * shape["width"] * 2 + layer
    parts = {
        "states": states,
        "activations": given.get("micro_batch_tokens", 4096) * kept,
        "head": given.get("memory_budget", 256) * 2**20,
    }
    found = {name: value / 2**30 for name, value in parts.items()}
    return {**found, "total": sum(found.values())}


def mini_estimate(job: Job, arm: Arm) -> dict[str, Any]:
    """Seconds of one run of an arm and of its evaluation on two cores, by the speeds in `_mini.toml`."""
    assert job.task is not None
    mini, given = job.task.settings, job.settings(arm)
    speed, steps = mini["speed"], given["max_steps"]
    batch = given["problems_per_step"] * given["num_samples"] if arm.method == "rl" else given["batch_size"]
    paired = given.get("objective", "").startswith("dpo")
    rows = steps * batch * (1 + paired)
    tokens = rows * speed["row_tokens"]
    drawn = rows if arm.method == "rl" else 0
    asked = sum(mini["task"][name] for name in job.asking.benchmarks) * (job.asking.draws.num_samples + 1)
    answer = speed["answer_tokens"] / speed["drawn_per_second"]
    training = tokens / speed["trained_per_second"] * (1.35 if _reads_reference(given) else 1)
    return {
        "steps": steps,
        "answers_trained": rows,
        "tokens_trained": int(tokens),
        "answers_drawn": drawn or (mini["task"]["problems"] * 4 if arm.method == "rft" else 0),
        "answers_evaluated": asked,
        "seconds_training": training + drawn * answer * 2,  # few rows at once: half as fast
        "seconds_answers": asked * answer,
    }


def mini_minutes(job: Job, estimates: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Minutes of the whole recipe at mini scale, by part; the base model's training only where it is not there."""
    assert job.task is not None
    mini, seeds = job.task.settings, len(job.seeds)
    speed, sweep = mini["speed"], mini["sweep"]
    answer = speed["answer_tokens"] / speed["drawn_per_second"]
    training = sum(one["seconds_training"] for one in estimates.values())
    trials = len(job.rates) * (
        sweep["share"] * training + len(estimates) * mini["task"]["validation"] * sweep["n"] * answer
    )
    asked = next(iter(estimates.values()))["seconds_answers"] if estimates else 0.0
    points = (
        sum(one["steps"] // job.recipe.curve["mini"] for one in estimates.values()) if job.recipe.curve else 0
    )
    parts = {
        "base": 0.0 if job.task.base.is_dir() else mini["base"]["steps"] * speed["base_step_seconds"],
        "sweep": trials if job.rates else 0.0,
        "shared_answers": seeds * mini["task"]["problems"] * 4 * answer if job.sharing else 0.0,
        "training": seeds * training,
        "overhead": len(estimates) * (seeds + len(job.rates)) * speed["run_seconds"],
        "answers": asked * (1 + seeds * len(estimates)) + points * seeds * asked / 4,
    }
    minutes = {name: seconds / 60 for name, seconds in parts.items()}
    return {**minutes, "total": sum(minutes.values())}


def _reads_reference(given: Mapping[str, Any]) -> bool:
    return "ref_logp" in parse_objective(given.get("objective", "sft"))[0].columns
