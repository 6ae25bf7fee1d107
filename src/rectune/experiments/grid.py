"""The matrix of a comparison: what is to be trained and asked, checked before anything is done.

Carrying it out is left to `compare.py`, what the folder says about it to `comparison_file.py`.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rectune.config import TrainConfig, dump_config
from rectune.errors import UserError
from rectune.experiments.comparison_file import FILE, check_same, read_record
from rectune.experiments.evaluator import Draws
from rectune.experiments.problem_sets import (
    Problems,
    benchmark_name,
    check_apart,
    load_problems,
    set_aside,
)
from rectune.experiments.variants import Arm, make_arms, run_config, run_folder
from rectune.training.run_dir import FREE
from rectune.training.trainer import train

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """So many steps over all runs, or so many seconds of training and validation."""

    amount: float
    in_steps: bool


def parse_budget(text: str) -> Budget:
    """`800steps`, `90s`, `30m` or `2h`.

    Raises:
        UserError: Anything else, or nothing to spend.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(steps|s|m|min|h)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise UserError(f"'{text}' is not a budget", where="--race", hint="such as 30m, 2h or 800steps")
    amount, unit = float(found[1]), found[2]
    return Budget(amount, True) if unit == "steps" else Budget(amount * SECONDS[unit], False)


@dataclass(frozen=True)
class Choices:
    """What is chosen on validation problems.

    Attributes:
        rates: Learning rates that every objective is tried with; empty: the config's.
        sweep_steps: Of each trial; None: a quarter of a run's.
        budget: Of a race, such as 30m or 800steps; None: no race.
        validation: Benchmark or file to judge by; None: a quarter of the in-domain problems.
    """

    rates: tuple[float, ...] = ()
    sweep_steps: int | None = None
    budget: str | None = None
    validation: str | None = None

    @property
    def any(self) -> bool:
        return bool(self.rates or self.budget)


@dataclass(frozen=True)
class Matrix:
    """Arms times seeds, and what they are asked.

    Attributes:
        config: Settings that all runs share; its `out` is the comparison's folder.
        arms, seeds: What is trained.
        domains: Benchmark's name to "in", "out" or "".
        problems: What the verdict is over.
        validation: What choices are judged by; empty where none is made.
        draws: How answers are drawn.
        choices: Sweep and race.
        settings: What must be the same when the comparison is gone on with.
    """

    config: TrainConfig
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    domains: dict[str, str]
    problems: Problems
    validation: Problems
    draws: Draws
    choices: Choices
    settings: dict[str, Any]

    @property
    def out(self) -> Path:
        return self.config.output_dir

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Rows, tokens and steps of one run, as `rectune train --dry-run` has them."""
        from rectune.training.dry_run import plan

        first = self.arms[0]
        return plan(run_config(self.config, first, self.seeds[0], run_folder(self.out, first, self.seeds[0])))

    @property
    def steps(self) -> int:
        """Of one run."""
        return self.config.max_steps or int(self.plan["steps"])


def make_matrix(
    config: TrainConfig,
    objectives: Sequence[str],
    seeds: int,
    domains: Mapping[str, str],
    draws: Draws,
    choices: Choices,
    *,
    benchmark_dir: Path | None,
    limit: int | None,
) -> Matrix:
    """Check everything that can be checked before a run is begun; reads problems, writes nothing.

    Objectives and seeds that the folder already has stay in it.

    Raises:
        UserError: An objective, setting, benchmark or choice that cannot be used, or a folder that holds a
            comparison with other settings (says which differ).
    """
    if seeds < 1:
        raise UserError(f"{seeds} seeds", where="--seeds", hint="1 or more")
    arms = make_arms(objectives, config)
    _check_choices(choices, arms)
    if choices.any and choices.validation is None and "in" not in domains.values():
        set_aside({}, {}, 0)  # says what is missing, before problems are loaded
    load = {"benchmark_dir": benchmark_dir, "limit": limit}
    problems, validation = load_problems(list(domains), config, **load), Problems()  # type: ignore[arg-type]
    named = {benchmark_name(wanted): domain for wanted, domain in domains.items()}
    if choices.any and choices.validation is None:
        validation, problems = set_aside(problems, named, config.seed)
    elif choices.any and choices.validation is not None:
        validation = load_problems([choices.validation], config, **load)  # type: ignore[arg-type]
        check_apart(validation, problems)
    settings = _settings(config, named, draws, choices, limit)
    if choices.budget:  # a race is among those who began it
        settings |= {"objectives": [arm.label for arm in arms], "seeds": seeds}
    found = read_record(config.output_dir)
    if found:
        blank: Any = TrainConfig.model_construct  # without the settings that have no default
        defaults = _settings(blank(), {}, Draws(), Choices(), None)
        check_same(found, settings, defaults, config.output_dir / FILE)
        had = [arm["objective"] for arm in found["arms"]]
        slugs = {arm["slug"] for arm in found["arms"]}
        arms = make_arms([*had, *(arm.objective for arm in arms if arm.slug not in slugs)], config)
        seeds = max(seeds, len(found["seeds"]))
    numbers = tuple(range(config.seed, config.seed + seeds))
    return Matrix(config, arms, numbers, named, problems, validation, draws, choices, settings)


def _check_choices(choices: Choices, arms: Sequence[Arm]) -> None:
    if any(not 0 < rate < 1 for rate in choices.rates):
        raise UserError("a learning rate is above 0 and below 1", where="--sweep", hint="such as 2e-5,5e-5")
    if choices.sweep_steps is not None and (choices.sweep_steps < 1 or not choices.rates):
        raise UserError("needs --sweep, and 1 step or more", where="--sweep-steps")
    if choices.validation is not None and not choices.any:
        raise UserError("is for --sweep and --race, of which none is given", where="--validation")
    if choices.budget is not None:
        parse_budget(choices.budget)
        if len(arms) < 2:
            raise UserError("takes two objectives or more", where="--race")


def _settings(
    config: TrainConfig, domains: Mapping[str, str], draws: Draws, choices: Choices, limit: int | None
) -> dict[str, Any]:
    own = FREE | {"output_dir", "objective"}
    shared = {key: value for key, value in json.loads(dump_config(config)).items() if key not in own}
    return {
        **shared,
        "benchmarks": dict(domains),
        "limit": limit,
        "n": draws.n,
        "temperature": draws.temperature,
        "max_new_tokens": draws.max_new_tokens,
        "stop": list(draws.stop),
        "sweep": list(choices.rates),
        "sweep_steps": choices.sweep_steps,
        "race": choices.budget,
        "validation": choices.validation,
    }


def with_rates(arms: Sequence[Arm], rates: Mapping[str, float]) -> tuple[Arm, ...]:
    """The arms with the learning rates that were chosen for them, by slug."""
    return tuple(replace(arm, learning_rate=rates.get(arm.slug, arm.learning_rate)) for arm in arms)


def is_trained(folder: Path) -> bool:
    """Whether the run in this folder is finished."""
    return (folder / "summary.json").is_file()


def train_run(config: TrainConfig, *, until: int | None = None) -> None:
    """Train to the end, or pause after step `until`; the checkpoints of a finished run are removed."""
    if not is_trained(config.output_dir):
        train(config, resume=True, until=until)
        gc.collect()  # the model of this run, before the next one's
    if is_trained(config.output_dir):
        shutil.rmtree(config.output_dir / "checkpoints", ignore_errors=True)
