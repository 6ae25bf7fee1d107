"""Compares objectives: the same model, rows, order and budget; only the objective differs. Then a paired verdict.

    OUT/comparison.json   arms, choices, verdict (see docs/comparison.md)
    OUT/problems/         `verdict`, and apart from it `validation`, which choices are judged on
    OUT/runs/, OUT/sweep/ runs and their evaluations (see `grid.py`)
    OUT/report.html       the page

A killed comparison resumes, and objectives and seeds can be added.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from rectune.analysis.decision import TEMPERATURES, pick_reference
from rectune.analysis.power import plan_power, power_sentences
from rectune.analysis.summary_text import BASE, DOMAINS
from rectune.config import CompareConfig, TaskConfig, TrainConfig, dump_config, flag
from rectune.data.converters import PAIR
from rectune.data.trained_prompt import RunPrompt
from rectune.errors import UserError, unknown_name
from rectune.evaluation.prompts import check_overlap
from rectune.experiments.curve import SAMPLES, pauses
from rectune.experiments.evaluator import EvalSettings
from rectune.experiments.grid import Arm, Grid, SweepSettings, parse_budget
from rectune.experiments.interpolation import merged_arms
from rectune.experiments.lr_sweep import (
    FEWEST_PROBLEMS,
    SHARE_OF_TRAINING,
    automatic_rates,
    cost_of_trials,
)
from rectune.experiments.problem_sets import (
    VALIDATION_SHARE,
    Problems,
    check_apart,
    load_problems,
    name_domains,
    set_aside,
)
from rectune.experiments.runner import COMPARISON, read_comparison, run_grid
from rectune.experiments.successive_halving import check_affordable, rungs
from rectune.models.folder import adapter_folder
from rectune.objective_spec import label_of, make_phases, parse_objective, slug_of
from rectune.records import Comparison, OverlapResult
from rectune.runtime.io import JsonObject, check_writable, load_record, lock, to_json, translate_disk_errors
from rectune.runtime.signals import on_interrupt
from rectune.sampling.types import check_stops
from rectune.training.dataloader import check_named, read_texts, with_models_own
from rectune.training.dry_run import plans
from rectune.training.run_dir import FREE, filled, other_settings

log = logging.getLogger("rectune")


def compare(config: CompareConfig) -> Comparison:
    """Train every objective with every seed, evaluate all runs and the base model, and judge them in pairs.

    Run again, it resumes; with more objectives or seeds it adds them to what is there. With `logs` nothing is trained:
    see `compare_logs`.

    Returns:
        The content of OUT/comparison.json.

    Raises:
        UserError: What cannot be used, or a folder that holds a comparison with other settings.
    """
    if config.logs:
        from rectune.experiments.compare_logs import compare_logs

        return compare_logs(config)
    grid = _checked_grid(config)
    resumes = on_interrupt(lambda: f"{grid.out}: stopped; run it again, it resumes")
    with lock(grid.out, "comparing"), translate_disk_errors(grid.out), resumes:
        if config.lora_r and not config.merge_adapter:
            log.info("merge_adapter: on, because answers are sampled from merged models")
        for sentence in said_power(grid):
            log.info("%s", sentence)
        comparison = run_grid(grid)
        from rectune.reporting.report import report

        report([grid.out], out=grid.out / "report.html")
    return comparison


def _checked_grid(config: CompareConfig) -> Grid:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a comparison runs in one process",
            where="WORLD_SIZE",
            hint="train each objective with accelerate launch, evaluate the runs, then rectune report RUN...",
        )
    if "objective" in config.model_fields_set:
        log.info("objective of the recipe is ignored; --objectives names the objectives to compare")
    grid = make_grid(config)
    _check_inputs(grid)
    grid = _with_overlap(grid, config)
    if grid.race:
        check_affordable(grid, grid.race)
    return grid


def make_grid(config: CompareConfig) -> Grid:
    """Check everything that can be checked before a run is begun; reads problems, writes nothing.

    Objectives and seeds that the folder already has stay in it.

    Raises:
        UserError: An objective, setting, benchmark or choice that cannot be used, or a folder that holds a
            comparison with other settings (says which differ).
    """
    domains = name_domains({"in": config.tasks_in, "out": config.tasks_out, "": config.tasks})
    config = with_models_own(config).model_copy(update={"stop": check_stops(config.stop)})
    training, specs, count = config.training, list(config.objectives), config.seeds
    arms = make_arms(specs, training)
    begun = read_comparison(training.output_dir)
    config = _with_kept_margin(config, begun)
    split = _is_split(config, begun)
    load = _loader(config)
    config, unmatched = _with_rates(config, begun, domains, load)
    _check_choices(config, len(arms), split)
    problems, validation, validation_out = _problems(config, domains, split, load)
    settings = _settings(config, domains, split)
    if config.race:  # a race is among those who began it
        settings |= {"objectives": [arm.label for arm in arms], "seeds": config.seeds}
    if begun:
        _check_same(begun.settings, settings, training.output_dir / COMPARISON)
        slugs = {arm.slug for arm in begun.arms}
        specs = [arm.objective for arm in begun.arms] + [
            text for text, arm in zip(specs, arms, strict=True) if arm.slug not in slugs
        ]
        arms, count = make_arms(specs, training), max(count, len(begun.seeds))
    if config.margin is not None:
        labels = {text: arm.label for text, arm in zip(specs, arms, strict=True)}
        config = config.model_copy(update={"against": labels.get(config.against or "", config.against)})
        pick_reference([BASE, *labels.values()], config.against)
        _check_gate(config, count)
    evaluation = EvalSettings(
        config.num_samples,
        config.temperature,
        config.max_new_tokens,
        training.seed,
        tuple(config.stop),
        chat_template=training.chat_template,
        system_prompt=training.system_prompt,
        dtype=training.dtype,
    )
    return Grid(
        out=training.output_dir,
        model=training.model,
        data=training.data,
        arms=arms,
        seeds=tuple(range(training.seed, training.seed + count)),
        domains=domains,
        evaluation=evaluation,
        problems=problems,
        validation=validation,
        settings=settings,
        sweep=SweepSettings(_rates(config), config.sweep_steps) if config.sweep else None,
        unmatched=unmatched,
        race=parse_budget(config.race) if config.race else None,
        match_entropy=config.match_entropy,
        curve_steps=config.eval_steps if split else 0,
        curve_samples=min(SAMPLES, config.num_samples),
        curve_on="validation",
        validation_out=validation_out,
        margin=None if config.margin is None else round(config.margin / 100, 10),
        against=config.against,
        require=config.require,
        interpolate=tuple(sorted({*config.interpolate, *_kept_shares(begun)})),
        interpolated=_interpolated(config, begun, specs, arms),
        soups=tuple(dict.fromkeys([*_soups(config.soup, specs, arms), *_kept_soups(begun)])),
    )


def _with_kept_margin(config: CompareConfig, begun: Comparison | None) -> CompareConfig:
    """A folder that was begun with a margin keeps it, and whom it is against, unless another one is given.

    Raises:
        UserError: The folder was begun without a margin, so that it has no validation problems for one.
    """
    if begun is None:
        return config
    if begun.settings.get("split"):
        kept = begun.decision
        if config.margin is None and kept is not None:
            log.info("margin: %g points against %s, as before", 100 * kept.margin, kept.against)
            return config.model_copy(
                update={"margin": 100 * kept.margin, "against": config.against or kept.against}
            )
    elif config.margin is not None:
        raise UserError(
            "the comparison was begun without --margin: all of its problems are the verdict's",
            where=config.output_dir / COMPARISON,
            hint="give another --output-dir",
        )
    return config


def _is_split(config: CompareConfig, begun: Comparison | None) -> bool:
    """Whether problems of both domains are set aside: for a margin, and for accuracy over steps."""
    if begun is not None:
        split = config.margin is not None or bool(begun.settings.get("split"))
    else:
        split = config.margin is not None or bool(config.eval_steps and config.tasks_in and config.tasks_out)
    if config.eval_steps and not split:
        why = (
            "it needs --tasks-in and --tasks-out" if begun is None else "the comparison was begun without it"
        )
        log.info("eval_steps: on held-out rows only; accuracy over steps is not measured (%s)", why)
    return split


def _check_gate(config: CompareConfig, seeds: int) -> None:
    if config.require and seeds < 2:
        raise UserError(
            "requires --seeds 2 or more: one run says nothing about others",
            where="--require",
            hint="3 is usual",
        )


def _kept_shares(begun: Comparison | None) -> list[float]:
    """Shares at which the folder's arms are interpolated already."""
    return [point.at for point in begun.points if 0 < point.at < 1] if begun else []


def _kept_soups(begun: Comparison | None) -> list[tuple[str, ...]]:
    return [tuple(point.arm.split("+")) for point in begun.points if "+" in point.arm] if begun else []


def _interpolated(
    config: CompareConfig, begun: Comparison | None, specs: Sequence[str], arms: Sequence[Arm]
) -> tuple[str, ...]:
    """Slugs of the arms that are interpolated: of --interpolate-only, else all, and those that the folder has."""
    before = {point.arm for point in begun.points if 0 < point.at < 1} if begun else set()
    every = begun is None or before >= {
        arm.slug for arm in begun.arms
    }  # an arm that joins is like the others
    names = _slugs_by_name(specs, arms)
    for name in config.interpolate_only:
        if name not in names:
            raise unknown_name("objective", name, [arm.slug for arm in arms], where="--interpolate-only")
    wanted = {names[name] for name in config.interpolate_only}
    if not wanted and (config.interpolate or every):
        return tuple(arm.slug for arm in arms)
    return tuple(arm.slug for arm in arms if arm.slug in wanted | before)


def _slugs_by_name(specs: Sequence[str], arms: Sequence[Arm]) -> dict[str, str]:
    """An arm has three names: the objective as it was given, its label and its slug."""
    named = zip(specs, arms, strict=True)
    return {name: arm.slug for text, arm in named for name in (text, arm.label, arm.slug)}


def _soups(soups: Sequence[str], specs: Sequence[str], arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """The slugs of each mean that --soup names, in the order of the arms."""
    names = _slugs_by_name(specs, arms)
    for text in soups:
        members = [part.strip() for part in text.split("+")]
        for name in members:
            if name not in names:
                raise unknown_name("objective", name, [arm.slug for arm in arms], where="--soup")
        slugs = {names[name] for name in members}
        if len(slugs) < 2 or len(slugs) < len(members):
            raise UserError(
                f"'{text}' is not a mean of several objectives", where="--soup", hint="such as sft+dft"
            )
        yield tuple(arm.slug for arm in arms if arm.slug in slugs)


def make_arms(specs: Sequence[str], training: TrainConfig) -> tuple[Arm, ...]:
    """The arms of objectives given as text.

    Raises:
        UserError: None, an unknown objective or setting (lists the valid ones), or one that is given twice.
    """
    if not specs:
        raise UserError("no objective to compare", where="--objectives", hint="for example sft,dft")
    arms: dict[str, Arm] = {}
    for text in specs:
        config = training.model_copy(update={"objective": text})
        phases = make_phases(config)
        label, slug = label_of(phases), slug_of(phases)
        if slug in arms:
            raise UserError(f"'{label}' is given twice", where="--objectives")
        arms[slug] = Arm(label, slug, config)
    return tuple(arms.values())


Loader = Callable[[tuple[str, ...]], Problems]


def _loader(config: CompareConfig) -> Loader:
    """Reads the problems of benchmarks, once."""

    @cache
    def load(names: tuple[str, ...]) -> Problems:
        return load_problems(names, config.training, benchmark_dir=config.include_path, limit=config.limit)

    return load


def _rates(config: CompareConfig) -> tuple[float, ...]:
    assert config.sweep != "auto"
    return config.sweep


def _with_rates(
    config: CompareConfig, begun: Comparison | None, domains: Mapping[str, str], load: Loader
) -> tuple[CompareConfig, str]:
    """The settings with the rates of the sweep in place of auto; and why objectives share one rate, if they do."""
    several = len(config.objectives) > 1 or (begun is not None and len(begun.arms) > 1)
    rates, why = config.sweep, "--sweep none"
    if rates == "auto" and begun:
        kept = begun.settings.get("sweep")
        rates = tuple(map(float, kept)) if isinstance(kept, list) else ()  # type: ignore[arg-type]
        why = "the comparison was begun without one"
    elif rates == "auto":
        why = _against_sweep(config, domains, load) if several else "one objective"
        rates = () if why else automatic_rates(config.learning_rate)
    return config.model_copy(update={"sweep": rates}), "" if rates or not several else why


def _against_sweep(config: CompareConfig, domains: Mapping[str, str], load: Loader) -> str:
    """Why learning rates are not tried by default; "" where they are."""
    if config.race:
        return "a race has a budget of its own"
    if (share := cost_of_trials(config.seeds)) > SHARE_OF_TRAINING:
        return f"with --seeds {config.seeds} the trials would add {share:.0%} to the training; 3 are enough"
    if config.validation is None and not config.tasks_in:
        return "there are no in-domain problems to judge them on"
    if config.validation is not None:
        count = sum(map(len, load((config.validation,)).values()))
    else:
        problems = load((*config.tasks_in, *config.tasks_out, *config.tasks))
        inside = [every for name, every in problems.items() if domains[name] == "in"]
        count = sum(round(VALIDATION_SHARE * len(every)) for every in inside) if all(map(len, inside)) else 0
    if count < FEWEST_PROBLEMS:
        return f"{count} validation problems are too few to judge them on; {FEWEST_PROBLEMS} are needed"
    return ""


def _problems(
    config: CompareConfig, domains: dict[str, str], split: bool, load: Loader
) -> tuple[Problems, Problems, Problems]:
    """The problems of the verdict, and those in and, for the choice of a model, out of domain to judge choices on."""
    chosen = bool(config.sweep or config.race or split)
    if chosen and config.validation is None and "in" not in domains.values():
        set_aside({}, {}, 0)  # says what is missing, before problems are loaded
    problems = load((*config.tasks_in, *config.tasks_out, *config.tasks))
    given = {"in": config.validation, "out": config.validation_out}
    apart: dict[str, Problems] = {"in": {}, "out": {}}
    for domain in (["in"] if chosen else []) + (["out"] if split else []):
        if (name := given[domain]) is None:
            apart[domain], problems = set_aside(problems, domains, config.training.seed, domain)
        else:
            apart[domain] = load((name,))
            _check_validation(
                apart[domain], problems, {**domains, **dict.fromkeys(apart["in"], "in")}, domain
            )
    if split:
        for domain, title in DOMAINS.items():
            if sum(len(problems[name]) for name in problems if domains[name] == domain) < 2:
                raise UserError(
                    f"needs two or more problems {title}, besides those of validation", where="--tasks"
                )
    return problems, apart["in"], apart["out"]


def _check_validation(
    validation: Problems, problems: Problems, domains: Mapping[str, str], domain: str
) -> None:
    """Raise `UserError` for validation problems that are the verdict's, or have the name of another domain's."""
    where = "--validation" if domain == "in" else "--validation-out"
    check_apart(validation, problems, where)
    for name in validation:
        if domains.get(name, domain) != domain:
            raise UserError(
                f"'{name}' is the name of problems of another domain", where=where, hint="rename it"
            )


def _check_choices(config: CompareConfig, arms: int, split: bool) -> None:
    if any(not 0 < rate < 1 for rate in _rates(config)):
        raise UserError("learning rates must be between 0 and 1", where="--sweep", hint="such as 2e-5,5e-5")
    for at in config.interpolate:
        if not 0 < at < 1:
            hint = "0 is the base model and 1 the run, which are evaluated anyway"
            raise UserError(f"must be between 0 and 1 (got {at:g})", where="--interpolate", hint=hint)
    if config.interpolate_only and not config.interpolate:
        raise UserError("requires --interpolate", where="--interpolate-only")
    if (config.interpolate or config.soup) and adapter_folder(config.model) is not None:
        hint = "merge it into its base model first"
        raise UserError(
            "the model is an adapter, which --interpolate and --soup cannot use",
            where=config.model,
            hint=hint,
        )
    if config.sweep_steps is not None and not config.sweep:
        raise UserError("requires --sweep with rates", where="--sweep-steps")
    if config.validation is not None and not (config.sweep or config.race or split):
        raise UserError("requires --sweep, --race, --margin or --eval-steps", where="--validation")
    if config.validation_out is not None and not split:
        raise UserError("requires --margin or --eval-steps", where="--validation-out")
    for name in ("against", "require"):
        if getattr(config, name) is not None and config.margin is None:
            raise UserError("requires --margin", where=flag(name))
    if split and not (config.tasks_in and config.tasks_out):
        raise UserError("requires --tasks-in and --tasks-out", where="--margin")
    if config.race is not None:
        parse_budget(config.race)
        if arms < 2:
            raise UserError("requires at least two objectives", where="--race")


def _settings(config: CompareConfig, domains: dict[str, str], split: bool = False) -> dict[str, JsonValue]:
    """What must stay the same when the comparison is resumed."""
    free = FREE | {"output_dir", "objective"}
    training = json.loads(dump_config(config.training))
    own = (
        "limit", "temperature", "max_new_tokens", "sweep_steps", "race", "validation", "validation_out",
        "exclude_overlap",
    )  # fmt: skip
    return {
        **{name: value for name, value in training.items() if name not in free},
        **{name: getattr(config, name) for name in own},
        "benchmarks": dict(domains),
        "n": config.num_samples,
        "stop": list(config.stop),
        "sweep": [] if config.sweep == "auto" else list(config.sweep),
        "split": split,
    }


def _check_same(before: Mapping[str, JsonValue], settings: Mapping[str, JsonValue], path: Path) -> None:
    """Raise `UserError` if the comparison that is there has other settings; says which.

    Settings that the version which began it did not have yet are at their defaults.
    """
    defaults = _settings(CompareConfig(data="", output_dir=Path()), {})
    now: JsonObject = json.loads(to_json(settings))
    then = filled(before, json.loads(to_json(defaults)), now)
    if differing := [key for key in then.keys() | now.keys() if then.get(key) != now.get(key)]:
        raise other_settings(differing, then, now, path)


def _with_overlap(grid: Grid, config: CompareConfig) -> Grid:
    """The grid with the problems that occur in the training rows, searched for once; --exclude-overlap drops them."""
    begun = read_comparison(grid.out)
    overlap = begun.overlap if begun else _overlap(config)
    if overlap is None or not config.exclude_overlap:
        return replace(grid, overlap=overlap)
    known = {problem.problem_id for problem in overlap.found}
    left: dict[str, Any] = {}
    for kind in ("problems", "validation", "validation_out"):
        problems: Problems = getattr(grid, kind)
        left[kind] = {
            name: [p for p in every if p.problem_id not in known] for name, every in problems.items()
        }
        if empty := next((name for name, every in left[kind].items() if not every), None):
            raise UserError(f"all problems of {empty} occur in {grid.data}", where="--exclude-overlap")
    return replace(grid, overlap=overlap, **left)


def _overlap(config: CompareConfig) -> OverlapResult:
    training = config.training
    if "pair" in parse_objective(config.objectives[0])[0].columns:
        training = training.model_copy(update={"data_format": PAIR[0]})
    tasks = TaskConfig(
        tasks=(*config.tasks_in, *config.tasks_out, *config.tasks),
        include_path=config.include_path,
        limit=config.limit,
    )
    run = RunPrompt(Path(), Path(), training.data, training)
    return check_overlap(tasks, training.data, run, training.seed)


def _check_inputs(grid: Grid) -> None:
    """Look at what the runs will read, before any model is loaded; nothing where all of them are finished."""
    check_writable(grid.out)
    seen = set()
    for arm in grid.arms:
        runs = grid.runs([arm])
        config = runs[0].training
        check_named(config)
        paired = "pair" in parse_objective(config.objective)[0].columns
        if paired not in seen and not all(run.is_finished for run in runs):
            seen.add(paired)
            read_texts(config, paired=paired)


def plan(config: CompareConfig) -> dict[str, object]:
    """Runs, steps, tokens and samples; reads the data and the model, writes nothing.

    `tokens_to_train_on` is what is left to do, `samples` what the verdict takes in all (without the few that may
    correct a matched temperature, and those of the base model at its best one), `validation_samples` what a sweep, a
    race (at most), the choice of a model and accuracy over steps take. `seconds_of_training`
    is inferred from the finished runs in the folder, and None without any.
    """
    if config.logs:
        raise UserError("not with --logs: nothing is trained", where="--dry-run")
    grid = _checked_grid(config)
    runs = [_planned(grid, arm, seed) for arm in grid.arms for seed in grid.seeds]
    arms, seeds, n = len(grid.arms), len(grid.seeds), config.num_samples
    trials = arms * len(set(grid.sweep.rates)) if grid.sweep else 0
    models = len(runs) + 1 + seeds * len(merged_arms(grid, grid.arms))
    stages = rungs(arms, grid.steps(grid.arms[0])) if grid.race else []
    tokens, of_trial = _tokens(grid)
    speeds = [run["tokens_per_second"] for run in runs if run["tokens_per_second"]]
    to_do = sum(tokens[run["seed"]] for run in runs if run["state"] != "finished") + trials * of_trial
    asked, validated, apart = (
        sum(map(len, some.values())) for some in (grid.problems, grid.validation, grid.validation_out)
    )
    choices = validated * n * (trials + len(stages) * arms * seeds)
    if apart:  # every model, greedily too, and the base model at other temperatures
        choices += (validated + apart) * (models * (n + 1) + len(TEMPERATURES) * n)
    if grid.curve_steps:
        pauses_of_run = len(pauses(grid, grid.steps(grid.arms[0])))
        choices += (validated + apart) * len(runs) * pauses_of_run * (grid.curve_samples or n)
    matched = (
        len(runs) + 1 - seeds if config.match_entropy and config.temperature == 1 else 0
    )  # all but one arm
    return {
        "model": grid.model,
        "data": grid.data,
        "runs": runs,
        "steps_per_run": grid.steps(grid.arms[0]),
        "tokens_per_run": tokens[grid.seeds[0]],
        "sweep": {"trials": trials, "steps": trials * grid.trial_steps(grid.arms[0])} if trials else None,
        "race": {"budget": config.race, "rungs": stages} if stages else None,
        "tokens_to_train_on": to_do,
        "seconds_of_training": round(to_do * len(speeds) / sum(speeds)) if speeds else None,
        "benchmarks": grid.domains,
        "problems": {name: len(problems) for name, problems in grid.problems.items()},
        "validation": {
            name: len(problems) for name, problems in {**grid.validation, **grid.validation_out}.items()
        },
        "overlap": [problem.problem_id for problem in grid.overlap.found] if grid.overlap else None,
        "samples": asked * (models * (n + 1) + matched * n),
        "validation_samples": choices,
        "power": said_power(grid),
        "memory_mib": grid.plan["memory_mib"],
    }


def said_power(grid: Grid) -> list[str]:
    """What the comparison can show, in sentences; nothing without a margin."""
    if grid.margin is None:
        return []
    labels = [arm.label for arm in grid.arms]
    reference = pick_reference([BASE, *labels], grid.against)
    counts = [
        {
            domain: sum(len(some) for name, some in problems.items() if domains[name] == domain)
            for domain in DOMAINS
        }
        for problems, domains in (
            (grid.problems, grid.domains),
            ({**grid.validation, **grid.validation_out}, grid.validation_domains),
        )
    ]
    plans = plan_power(
        *counts,
        seeds=len(grid.seeds),
        samples=grid.evaluation.num_samples,
        among=max(1, len(labels) + len(grid.soups) - (reference != BASE and not grid.interpolate)),
        margin=grid.margin,
        protected="out" if reference == BASE else "in",
    )
    return power_sentences(plans, grid.margin, grid.evaluation.num_samples)


def _tokens(grid: Grid) -> tuple[dict[int, int], int]:
    """What a run trains on, by seed, and what a trial of the sweep does."""
    arm, (first, *others) = grid.arms[0], grid.seeds
    configs = [grid.run(arm, seed).training for seed in others]
    if grid.sweep:
        configs.append(grid.trial(arm, grid.sweep.rates[0]).training)
    tokens = [planned["tokens_to_train_on"] for planned in (plans(configs) if configs else [])]
    of_trial = tokens.pop() if grid.sweep else 0
    return {first: grid.plan["tokens_to_train_on"], **dict(zip(others, tokens, strict=True))}, of_trial


def _planned(grid: Grid, arm: Arm, seed: int) -> dict[str, Any]:
    folder = grid.run(arm, seed).folder
    summary = folder / "summary.json"
    begun = "begun" if (folder / "config.json").is_file() else "to do"
    return {
        "objective": arm.label,
        "seed": seed,
        "learning_rate": None if grid.sweep else arm.config.learning_rate,
        "state": "finished" if summary.is_file() else begun,
        "tokens_per_second": load_record(summary, "tokens_per_second")["tokens_per_second"]
        if summary.is_file()
        else None,
        "out": str(folder),
    }
