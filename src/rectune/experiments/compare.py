"""Compare objectives: the same model, rows, order and budget; only the objective differs. Then a paired verdict.

    OUT/comparison.json   arms, choices, verdict (see docs/comparison.md)
    OUT/problems/         what is asked: `verdict`, and apart from it `validation`, which choices are judged by
    OUT/runs/, OUT/sweep/ runs and their evaluations (see `variants.py`, `lr_sweep.py`)
    OUT/report.html       the page

Every step is skipped where its result is there, so a comparison that was killed goes on, and objectives and seeds
can be added. Training is in `training/trainer.py`, evaluation and the verdict's statistics in `evaluation/`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rectune.analysis.significance import judge
from rectune.config import TrainConfig
from rectune.errors import UserError
from rectune.experiments.comparison_file import read_record, write_record
from rectune.experiments.entropy_control import answer_matched, choose_target, entropy
from rectune.experiments.evaluator import Draws, Respondent, is_answered
from rectune.experiments.grid import Choices, Matrix, is_trained, make_matrix, train_run, with_rates
from rectune.experiments.lr_sweep import sweep, trial_steps
from rectune.experiments.problem_sets import name_domains, write_problems
from rectune.experiments.successive_halving import check_affordable, race, rungs
from rectune.experiments.variants import BASE, Arm, run_config, run_folder
from rectune.objective_spec import parse_objective
from rectune.runtime.io import check_writable, load_record, translate_disk_errors
from rectune.runtime.locks import lock
from rectune.runtime.progress import TaskTimer
from rectune.runtime.signals import on_interrupt
from rectune.sampling.dated import kept_template
from rectune.sampling.stop_strings import check_stops
from rectune.training.dataloader import read_texts
from rectune.training.dry_run import plans
from rectune.training.inputs import check_named, with_models_own


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


log = logging.getLogger("rectune")

Folders = dict[str, dict[int, Path]]


def compare(
    config: TrainConfig,
    objectives: Sequence[str],
    *,
    seeds: int = 1,
    benchmarks_in: Sequence[str] = (),
    benchmarks_out: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    benchmark_dir: Path | None = None,
    limit: int | None = None,
    n: int = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 4096,
    stop: Sequence[str] = (),
    sweep: Sequence[float] = (),
    sweep_steps: int | None = None,
    race: str | None = None,
    validation: str | None = None,
    sharpening: bool = True,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train every objective with every seed, ask all of them and the base model, and judge them in pairs.

    Run again, it goes on where it was stopped; with more objectives or seeds it adds them to what is there.

    Args:
        config: All that the runs share; `output_dir` is the folder of the comparison, `seed` the first seed.
        objectives: Such as `dft`, `power:alpha=0.5` or `sft@0.3+dft@0.7`; a pair is judged as later minus earlier.
        seeds: How many.
        benchmarks_in, benchmarks_out, benchmarks: Names of benchmarks, or JSONL files of problems: of the training
            rows' domain, of another one, and neither.
        benchmark_dir, limit, n, temperature, max_new_tokens, stop: As in `evaluate`.
        sweep: Learning rates to try each objective with; empty: the config's for all.
        sweep_steps: Of each trial; None: a quarter of a run's.
        race: What a race may spend, such as `30m` or `800steps`; None: all arms are trained to the end.
        validation: Benchmark or file that sweep and race are judged by; None: a quarter of the in-domain problems.
        sharpening: Also sample every model as sharp as dft, or where that is not compared as the sharpest arm.
        dry_run: Check everything, and return what would be done.

    Returns:
        The content of OUT/comparison.json, or the plan of a dry run.

    Raises:
        UserError: What cannot be used, or a folder that holds a comparison with other settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a comparison runs in one process",
            where="WORLD_SIZE",
            hint="train each objective with accelerate launch, evaluate the runs, then rectune report RUN...",
        )
    if "objective" in config.model_fields_set:
        log.info("objective: the recipe's is left aside, --objectives says what is compared")
    domains = name_domains({"in": benchmarks_in, "out": benchmarks_out, "": benchmarks})
    draws = Draws(n, temperature, max_new_tokens, config.seed, check_stops(stop))
    choices = Choices(tuple(sweep), sweep_steps, race, validation)
    config = with_models_own(config)
    matrix = make_matrix(
        config, objectives, seeds, domains, draws, choices, benchmark_dir=benchmark_dir, limit=limit
    )
    _check_inputs(matrix)
    if race:
        check_affordable(matrix)
    if dry_run:
        return planned(matrix, sharpening=sharpening)
    again = on_interrupt(lambda: f"{matrix.out}: stopped; run it again, it goes on")
    with lock(matrix.out, "comparing"), translate_disk_errors(matrix.out), again:
        return _carry_out(matrix, sharpening=sharpening)


def _check_inputs(matrix: Matrix) -> None:
    """Look at what the runs will read, before any model is loaded; nothing where all of them are finished."""
    check_writable(matrix.out)
    check_named(matrix.config)
    seen = set()
    for arm in matrix.arms:
        paired = "pair" in parse_objective(arm.objective)[0].columns
        folders = [run_folder(matrix.out, arm, seed) for seed in matrix.seeds]
        if paired not in seen and not all(map(is_trained, folders)):
            seen.add(paired)
            read_texts(run_config(matrix.config, arm, matrix.seeds[0], folders[0]), paired=paired)


def _carry_out(matrix: Matrix, *, sharpening: bool) -> dict[str, Any]:
    template = kept_template(matrix.out, matrix.config.chat_template, matrix.config.model)
    matrix = replace(matrix, config=matrix.config.model_copy(update={"chat_template": template}))
    out, arms, results = matrix.out, matrix.arms, dict[str, Any]()
    found = read_record(out)
    if found is None:
        shutil.rmtree(out / "problems", ignore_errors=True)  # of an attempt that got no answer
    else:  # an older verdict stands until there is a new one
        results |= {name: found[name] for name in ("verdict", "matched_to")}
    files = write_problems(out / "problems" / "verdict", matrix.problems)
    validation = write_problems(out / "problems" / "validation", matrix.validation)
    if matrix.config.lora_r and not matrix.config.merge_adapter:
        log.info("merge_adapter: on, because answers are drawn from plain models")
    _ask(
        _base(matrix),
        out / "runs" / BASE,
        "base",
        files,
        matrix.draws,
        TaskTimer("base model", {"sample": 2}),
    )
    if found is None:  # from now on the folder holds this comparison: the model can be asked like this
        write_record(matrix, arms)
    if matrix.choices.rates:
        results["sweep"] = sweep(matrix, validation)
        arms = with_rates(
            arms, {slug: one["learning_rate"] for slug, one in results["sweep"]["arms"].items()}
        )
        write_record(matrix, arms, **results)
    left = arms
    if matrix.choices.budget:
        results["race"] = race(matrix, arms, validation)
        left = tuple(arm for arm in arms if arm.slug in results["race"]["survivors"])
        results["dropped"] = results["race"]["dropped"]
        write_record(matrix, arms, **results)
    return _finish(matrix, arms, left, files, results, sharpening=sharpening)


def _finish(
    matrix: Matrix,
    arms: Sequence[Arm],
    left: Sequence[Arm],
    files: Sequence[Path],
    results: dict[str, Any],
    *,
    sharpening: bool,
) -> dict[str, Any]:
    """Train the arms that are left to the end, ask them, and write the verdict and the page."""
    runs = [(arm, seed) for arm in left for seed in matrix.seeds]
    clock = TaskTimer("runs", _tasks(matrix, runs, files))
    for arm, seed in runs:
        folder, name = run_folder(matrix.out, arm, seed), f"{arm.label}, seed {seed}"
        run = run_config(matrix.config, arm, seed, folder)
        if is_trained(folder):
            train_run(run)  # puts away what a kill left behind
        else:
            with clock.task("train", f"train {name}"):
                train_run(run)
        _ask(_trained(matrix, arm, seed), folder, name, files, replace(matrix.draws, seed=seed), clock)
    matched, results["matched_to"] = _match(matrix, left, files) if sharpening else ({}, None)
    results["verdict"] = judge(
        _folders(matrix, left, "evaluation"),
        matrix.domains,
        greedy=_folders(matrix, left, "greedy"),
        matched=matched or None,
        matched_to=results["matched_to"],
    )
    record = write_record(matrix, arms, **results)
    from rectune.reporting.report import report

    report([matrix.out], out=matrix.out / "report.html")
    return record


def _ask(
    respondent: Respondent, folder: Path, name: str, files: Sequence[Path], draws: Draws, clock: TaskTimer
) -> None:
    """The evaluations that need no other model's: at the comparison's temperature, and greedy."""
    for kind, how in _evaluations(draws):
        if not is_answered(folder / kind, files, how):
            with clock.task("sample", f"ask {name}, {'greedily' if kind == 'greedy' else f'{how.n} times'}"):
                respondent.answer(folder / kind, files, how)
    respondent.forget()


def _match(matrix: Matrix, left: Sequence[Arm], files: Sequence[Path]) -> tuple[Folders, str | None]:
    """The sharpening control: label to seed to folder of the matched evaluations, and the label they are matched to."""
    if matrix.draws.temperature != 1:
        log.info(
            "sharpening: no control at temperature %g, entropies are those at 1", matrix.draws.temperature
        )
        return {}, None
    first = matrix.seeds[0]
    models = {(BASE, first): (_base(matrix), matrix.out / "runs" / BASE, "base")}
    for arm in left:
        for seed in matrix.seeds:
            models[arm.slug, seed] = (
                _trained(matrix, arm, seed),
                run_folder(matrix.out, arm, seed),
                arm.label,
            )
    entropies: dict[str, dict[int, float]] = {}
    for (slug, seed), (respondent, folder, _) in models.items():
        entropies.setdefault(slug, {})[seed] = entropy(respondent, folder)
    target = choose_target(left, entropies)
    others = {key: value for key, value in models.items() if key[0] != target.slug}
    clock = TaskTimer(f"as sharp as {target.label}", {"matched": len(others)})
    matched: Folders = {}
    for (_, seed), (respondent, folder, label) in others.items():
        wanted, draws = entropies[target.slug][seed], replace(matrix.draws, seed=seed)
        with clock.task("matched", f"{label}, seed {seed}"):
            found = answer_matched(respondent, folder, target.slug, wanted, files, draws)
        respondent.forget()
        matched.setdefault(label, {})[seed] = found
    return matched, target.label


def _base(matrix: Matrix) -> Respondent:
    return Respondent(matrix.config.model, matrix.config.model, matrix.config)


def _trained(matrix: Matrix, arm: Arm, seed: int) -> Respondent:
    folder = run_folder(matrix.out, arm, seed)
    return Respondent(str(folder), str(folder / "model"), matrix.config)


def _evaluations(draws: Draws) -> Iterator[tuple[str, Draws]]:
    yield "evaluation", draws
    yield "greedy", replace(draws, n=1, temperature=0.0)


def _tasks(matrix: Matrix, runs: Sequence[tuple[Arm, int]], files: Sequence[Path]) -> dict[str, int]:
    tasks = {"train": 0, "sample": 0}
    for arm, seed in runs:
        folder = run_folder(matrix.out, arm, seed)
        tasks["train"] += not is_trained(folder)
        for kind, draws in _evaluations(replace(matrix.draws, seed=seed)):
            tasks["sample"] += not is_answered(folder / kind, files, draws)
    return tasks


def _folders(matrix: Matrix, left: Sequence[Arm], kind: str) -> Folders:
    folders: Folders = {BASE: {matrix.seeds[0]: matrix.out / "runs" / BASE / kind}}
    for arm in left:
        folders[arm.label] = {seed: run_folder(matrix.out, arm, seed) / kind for seed in matrix.seeds}
    return folders
