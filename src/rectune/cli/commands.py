"""The verbs that have a flag for every setting of a run; the other verbs are in `cli/app.py`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from rectune.cli.console import print_lines, print_table
from rectune.cli.options import settings_flags
from rectune.cli.parameters import Count, Switch, Texts
from rectune.config import DataConfig, RFTConfig, RLConfig, load_config
from rectune.errors import UserError


@settings_flags()
def train(
    recipe: Path | None = None,
    /,
    *,
    resume: Switch = False,
    dry_run: Switch = False,
    **overrides: Any,
) -> None:
    """Fine-tune a model on demonstrations.

    Settings come from a TOML recipe, from flags, or from both; a flag wins.

    Args:
        recipe: TOML file with the settings below, such as `batch_size = 8`.
        resume: Resume from the last checkpoint in the run folder, if there is one.
        dry_run: Print the settings, rows, tokens, steps and memory estimate, and stop.
    """
    began = time.perf_counter()
    config = load_config(recipe, overrides)
    if dry_run:
        from rectune.training.dry_run import plan

        print_lines(json.dumps(plan(config), indent=2))
        return
    from rectune.runtime.io import to_json
    from rectune.training.trainer import train

    result = train(config, resume=resume, began=began)
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print_lines(to_json(asdict(result), indent=2))


@settings_flags(kind=RLConfig)
def rl(
    recipe: Path | None = None,
    /,
    *,
    resume: Switch = False,
    dry_run: Switch = False,
    json: Switch = False,
    **overrides: Any,
) -> None:
    """Train a model on its own graded answers, drawn as it learns: GRPO or PPO.

    Settings come from a TOML recipe, from flags, or from both; a flag wins.

    Args:
        recipe: TOML file with the settings below.
        resume: Resume from the last checkpoint in the run folder, if there is one.
        dry_run: Print the settings, problems, answers, updates and memory estimate, and stop.
        json: Print summary.json instead of a table.
    """
    began = time.perf_counter()
    config = load_config(recipe, overrides, RLConfig)
    if dry_run:
        from rectune.rl.rl_summary import plan

        print_lines(to_text(plan(config)))
        return
    from rectune.rl.loop import train_rl
    from rectune.rl.rl_summary import table

    result = train_rl(config, resume=resume, began=began)
    if json:
        print_lines(to_text(asdict(result)))
        return
    print_table(table(result))
    print_lines(
        f"Model: {next(p for p in (config.output_dir / 'adapter', config.output_dir / 'model') if p.is_dir())}"
    )


@settings_flags(lambda name: name != "objective")
def compare(
    recipe: Path | None = None,
    /,
    *,
    objectives: str = "sft,dft",
    seeds: int = 1,
    tasks: str | None = None,
    tasks_in: str | None = None,
    tasks_out: str | None = None,
    include_path: Path | None = None,
    limit: int | None = None,
    num_samples: Count = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 4096,
    stop: Texts = (),
    sweep: str | None = None,
    sweep_steps: int | None = None,
    race: str | None = None,
    validation: str | None = None,
    no_sharpening: Switch = False,
    dry_run: Switch = False,
    json: Switch = False,
    objective: Annotated[str | None, Parameter(show=False)] = None,
    **overrides: Any,
) -> None:
    """Train with several objectives and judge them in pairs, over problems and seeds; run again, it goes on.

    All runs share the settings below, rows and their order; --output-dir is the comparison's folder, --seed the first
    seed.

    Args:
        recipe: TOML file with the settings below.
        objectives: Separated by commas, each as --objective of rectune train takes it, such as sft,power:alpha=0.5.
        seeds: Runs of each objective.
        tasks: Benchmarks, or JSONL files of problems, separated by commas, not labelled in or out of domain.
        tasks_in: The same, of the training rows' domain.
        tasks_out: The same, of other domains.
        include_path: Folder with the benchmarks' files; unset: packaged, or from the hub.
        limit: Maximum number of problems of each benchmark.
        num_samples: Answers to each problem.
        temperature: Sampling temperature; greedy answers are sampled in addition.
        max_new_tokens: Maximum length of an answer in tokens.
        stop: Text at which an answer ends, as \\nQuestion: (\\n is a line end); may be given several times.
        sweep: Learning rates to try each objective with, separated by commas; the best on validation is taken.
        sweep_steps: Of each trial; a quarter of a run's if unset.
        race: Stop objectives early that are clearly worse on validation; the budget: 30m, 2h or 800steps in all.
        validation: Benchmark or file for --sweep and --race; if unset, a quarter of the problems in domain.
        no_sharpening: Skip the control at matched entropy.
        dry_run: Print runs, steps, tokens and samples, and stop.
        json: Print all of comparison.json.
    """
    if objective is not None:
        what = "a comparison takes several objectives"
        raise UserError(what, where="--objective", hint=f"give --objectives sft,{objective}")
    training = load_config(recipe, overrides)
    from rectune.experiments.compare import CompareConfig, compare, plan
    from rectune.experiments.comparison_tables import tables

    config = CompareConfig(
        training, names(objectives), seeds=seeds, tasks_in=names(tasks_in), tasks_out=names(tasks_out),
        tasks=names(tasks), include_path=include_path, limit=limit, num_samples=num_samples, temperature=temperature,
        max_new_tokens=max_new_tokens, stop=stop, sweep=rates(sweep), sweep_steps=sweep_steps, race=race,
        validation=validation, match_entropy=not no_sharpening,
    )  # fmt: skip
    if dry_run:
        print_lines(to_text(plan(config)))
        return
    result = compare(config)
    if json:
        print_lines(to_text(result.to_dict()))
        return
    for title, rows in tables(result):
        print_lines(title)
        print_table(rows)
    print_lines(*(result.verdict.sentences if result.verdict else ()))
    print_lines(f"\nPage: {training.output_dir / 'report.html'}")


@settings_flags(kind=RFTConfig)
def rft(
    recipe: Path | None = None,
    /,
    *,
    resume: Switch = False,
    dry_run: Switch = False,
    json: Switch = False,
    **overrides: Any,
) -> None:
    """Let a model learn from its own answers that a verifier has judged: sample, grade, select, train.

    The objective decides the method: sft is RFT, dft the paper's offline DFT, iw_sft iw-SFT, dpo DPO. Settings come
    from a TOML recipe, from flags, or from both; a flag wins.

    Args:
        recipe: TOML file with the settings below; such as `num_samples = 8`.
        resume: Resume a run in the folder where it stopped, at any stage.
        dry_run: Print settings, problems, and the most samples and rows, and stop.
        json: Print counts and figures as JSON instead of a table.
    """
    config = load_config(recipe, overrides, RFTConfig)
    from rectune.experiments.rft import plan, table, train_rft

    if dry_run:
        print_lines(to_text(plan(config)))
        return
    result = train_rft(config, resume=resume)
    if json:
        from rectune.runtime.io import to_json

        print_lines(to_json(asdict(result), indent=2))
        return
    print_table([table(result)])
    print_lines(f"Run: {result.train.out}")


READ = {"model", "data", "output_dir", "seed", "dtype", "logits_memory_mb", *DataConfig.model_fields} - {
    "too_long"
}
"""Settings of a run that decide what a diagnosis reads."""


@settings_flags(READ.__contains__)
def diagnose(
    recipe: Path | None = None,
    /,
    *,
    goal: Literal["generalise", "fit"] | None = None,
    rows: int | None = None,
    seconds: float = 90.0,
    objectives: str = "",
    check_overlap: str = "",
    include_path: Path | None = None,
    no_gradients: Switch = False,
    json: Switch = False,
    **overrides: Any,
) -> None:
    """Say which objective fits the data under a model, before any training: one forward pass, a verdict, a page.

    Args:
        recipe: TOML file of the run that you think of; its model and its settings of data are read.
        goal: What you want of the data: to generalise from it, or to fit its distribution.
        rows: Measure so many rows; by default as many as fit --seconds.
        seconds: Of the pass over rows.
        objectives: What to show, separated by commas, such as sft,dft,power:alpha=0.3; by default the usual ones.
        check_overlap: Benchmarks whose problems to look for in the rows, separated by commas.
        include_path: Folder with the benchmarks' files.
        no_gradients: Skip gradient norms, which take a backward pass for each objective.
        json: Print diagnosis.json instead of a summary.
    """
    began = time.perf_counter()
    config = load_config(recipe, overrides)
    from rectune.diagnosis.diagnose import diagnose
    from rectune.diagnosis.page import summary
    from rectune.evaluation.prompts import questions

    benchmarks = names(check_overlap)
    result = diagnose(
        config.model, config.data, out=config.output_dir, goal=goal, rows=rows, seconds=seconds,
        objectives=names(objectives), options=config, gradients=not no_gradients,
        problems=questions(benchmarks, include_path) if benchmarks else None, precision=config.dtype,
        memory_budget=config.logits_memory_mb, seed=config.seed, began=began,
    )  # fmt: skip
    if json:
        print_lines(to_text(result.to_dict()))
        return
    for part in summary(result):
        if isinstance(part, str):
            print_lines(part)
        else:
            print_table(part)
    print_lines(f"\nPage: {config.output_dir / 'diagnosis.html'}")


@settings_flags(lambda name: name in DataConfig.model_fields and name != "max_length")
def check(
    data: str,
    /,
    *,
    model: str | None = None,
    kind: Literal["rows", "pairs", "problems"] | None = None,
    max_length: int = 2048,
    json: Switch = False,
    **overrides: Any,
) -> None:
    """Say what data are and what is made of them: format, fields, faulty rows, and a row as a model reads it.

    Exit code 2 where training or sampling would stop at them.

    Args:
        data: Rows or pairs as `rectune train` takes them, or a file of problems.
        model: Also write a row with this model's template, its targets marked; the weights are not loaded.
        kind: What the data are, where their fields do not tell.
        max_length: Longest row in tokens; says how many are cut.
        json: Print all of it as JSON.
    """
    from rectune.diagnosis.check import check as look
    from rectune.diagnosis.check import summary

    options = load_config(None, overrides, DataConfig)
    result = look(data, kind=kind, options=options, model=model, max_length=max_length)
    print_lines(*([to_text(result)] if json else summary(result)))
    if result["errors"]:
        raise UserError(result["errors"][0], where=None if result["errors"][0].startswith(data) else data)


def reproduce(
    name: str,
    /,
    *,
    output_dir: Path,
    scale: Literal["full", "mini"] = "mini",
    seeds: int | None = None,
    arms: str = "",
    budget: float = 1.0,
    include_path: Path | None = None,
    backend: Literal["hf", "vllm"] = "hf",
    gpus: int = 8,
    dry_run: Switch = False,
    json: Switch = False,
) -> None:
    """Carry out a table or figure of the paper again, and put its figures beside ours; run again, it goes on.

    Args:
        name: Recipe, such as table2; see `rectune list recipes`.
        output_dir: Folder of the runs and the page.
        scale: mini trains a small model of our own on two cores, full is the paper's models and data.
        seeds: Runs of each method; by default 3 at mini scale, 1 at full scale.
        arms: Only these methods, separated by commas, such as SFT,DFT; later calls add others.
        budget: Share of rows, problems and steps at mini scale, to try it out.
        include_path: Folder with the benchmarks' files, at full scale.
        backend: Samples answers at full scale.
        gpus: For the estimate and the launch lines, at full scale.
        dry_run: Print runs, steps, tokens and expected cost, and stop.
        json: Print all of it as JSON.
    """
    from rectune.reproduction.runner import reproduce as carry_out
    from rectune.reproduction.tables import plan_parts, result_parts

    result = carry_out(
        name, out=output_dir, scale=scale, seeds=seeds, arms=names(arms), budget=budget, benchmark_dir=include_path,
        engine=backend, gpus=gpus, dry_run=dry_run,
    )  # fmt: skip
    if json:
        print_lines(to_text(result))
        return
    for part in plan_parts(result) if dry_run else result_parts(result):
        if isinstance(part, str):
            print_lines(part)
        else:
            print_table(part)
    if not dry_run:
        print_lines(f"\nPage: {result['page']}")


def names(text: str | None) -> list[str]:
    """What is separated by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def rates(text: str | None) -> list[float]:
    """Learning rates separated by commas."""
    try:
        return [float(rate) for rate in names(text)]
    except ValueError:
        raise UserError(
            f"'{text}' is not a list of learning rates", where="--sweep", hint="such as 2e-5,5e-5"
        ) from None


def to_text(result: object) -> str:
    return json.dumps(result, indent=2, ensure_ascii=False)
