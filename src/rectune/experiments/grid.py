"""The grid of an experiment: arms times seeds, what every model is evaluated on, and where each run lies.

    OUT/runs/<slug>/seed-<s>/            run of one arm and seed; with rejection sampling it trains in .../train
    OUT/runs/<slug>/seed-<s>/evaluation  answers to the problems of the verdict
    OUT/runs/<slug>/seed-<s>/greedy      one answer each at temperature 0
    OUT/runs/<slug>/seed-<s>/validation  answers to the problems that choices are judged on
    OUT/runs/base/...                    the same of the base model
    OUT/sweep/<slug>/lr-<rate>/          run of one learning rate, see `lr_sweep.py`
    OUT/samples/seed-<s>.jsonl           answers of the base model that the arms with rejection sampling share

`compare.py` and `reproduce.py` make grids, `runner.py` carries them out.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from rectune.config import RFTConfig, RLConfig, TrainConfig
from rectune.errors import UserError
from rectune.experiments.evaluator import EvalSettings, Evaluator
from rectune.experiments.problem_sets import Problems
from rectune.grading.pool import Grader
from rectune.records import OverlapResult
from rectune.runtime.io import write_json
from rectune.training.trainer import train

BASE = "base"
"""The base model: an arm without a run."""
RunConfig = TrainConfig | RFTConfig | RLConfig

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        label: As it is shown, such as `power alpha=0.5`.
        slug: Name of its folder.
        config: Settings of its runs; `Grid.run` fills in folder and seed.
        sweep: Whether a sweep chooses the learning rate.
    """

    label: str
    slug: str
    config: RunConfig
    sweep: bool = True

    @property
    def method(self) -> str:
        """The verb that trains it: train, rft or rl."""
        if isinstance(self.config, RLConfig):
            return "rl"
        return "rft" if isinstance(self.config, RFTConfig) else "train"

    def with_rate(self, rate: float) -> Arm:
        """The same arm with another learning rate."""
        return replace(self, config=self.config.model_copy(update={"learning_rate": rate}))


@dataclass(frozen=True)
class ArmRun:
    """One training run of an arm.

    Attributes:
        name: As the log calls it.
        folder: Everything about the run.
        config: All of its settings.
        grader: Of the grid.
    """

    name: str
    folder: Path
    config: RunConfig
    grader: Grader

    @property
    def trained(self) -> Path:
        """The folder with model/, metrics.jsonl and summary.json."""
        return self.folder / "train" if isinstance(self.config, RFTConfig) else self.folder

    @property
    def training(self) -> TrainConfig:
        """The settings of a run that trains on rows."""
        assert isinstance(self.config, TrainConfig)
        return self.config

    @property
    def is_finished(self) -> bool:
        return (self.trained / "summary.json").is_file()

    def evaluator(self) -> Evaluator:
        """Of the trained model."""
        return Evaluator(str(self.trained), str(self.trained / "model"), self.grader)

    def train(self, *, until: int | None = None) -> None:
        """Train to the end, or pause after step `until`; the checkpoints of a finished run are removed."""
        if not self.is_finished:
            if isinstance(self.config, RFTConfig):
                from rectune.experiments.rft import train_rft

                _share_samples(self.config)
                train_rft(self.config, resume=True)
            elif isinstance(self.config, RLConfig):
                from rectune.rl.rl_trainer import train_rl

                train_rl(self.config, resume=True)
            else:
                train(self.config, resume=True, until=until)
            gc.collect()  # the model of this run, before the next one's
        if self.is_finished:
            shutil.rmtree(self.trained / "checkpoints", ignore_errors=True)


def _share_samples(config: RFTConfig) -> None:
    """Sample the answers in `samples`, which several runs share, unless they are there.

    The file of the same name with `.json` says how long it took.
    """
    from rectune.experiments.rft import read, sample_answers

    path = Path(config.samples or "")
    cost = path.with_suffix(".json")
    if cost.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    alone = config.model_copy(update={"samples": None})
    sample_answers(alone, read(alone), path)
    with path.open("rb") as lines:
        lengths = [len(json.loads(line)["token_ids"]) for line in lines]
    record = {"format": 1, "answers": len(lengths), "tokens": sum(lengths)}
    write_json(cost, {**record, "seconds": time.perf_counter() - began})


@dataclass(frozen=True)
class Budget:
    """What a race may spend: steps of all runs together, or seconds of training and validation."""

    text: str
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
    return Budget(text, amount if unit == "steps" else amount * SECONDS[unit], unit == "steps")


@dataclass(frozen=True)
class SweepSettings:
    """A sweep of learning rates.

    Attributes:
        rates: Learning rates that every arm is tried with.
        steps: Of a trial; None: the share of a run's steps.
        share: See `steps`.
        num_samples: Answers to each validation problem; None: as for the verdict.
    """

    rates: tuple[float, ...]
    steps: int | None = None
    share: float = 0.25
    num_samples: int | None = None


@dataclass(frozen=True)
class Grid:
    """An experiment.

    Attributes:
        out: Its folder.
        model, data: As comparison.json names them.
        arms, seeds: What is trained.
        domains: Benchmark to "in", "out" (of the training rows' domain) or "".
        evaluation: How answers are sampled.
        problems: What the verdict is over.
        validation: In-domain problems that sweep, race and the choice of a model are judged on; empty without them.
        validation_out: Out-of-domain problems that the choice of a model is judged on, too; empty without it.
        margin, against, require: See `analysis/decision.py`; no model is chosen where margin is None.
        settings: What must stay the same when the experiment is resumed.
        sweep, race: How learning rates and survivors are chosen; None: not at all.
        unmatched: Why a comparison has no sweep; "" for one that has, or needs none.
        match_entropy: Whether models are also sampled at equal entropy.
        curve_steps: Steps between evaluations during training, see `curve.py`; 0: none.
        curve_samples: Answers to each problem in these; None: as for the verdict.
        curve_on: Their problems.
        interpolate: Shares of the way from the base model at which arms are evaluated, too; see `interpolation.py`.
        interpolated: Slugs of these arms.
        soups: Slugs of the arms whose mean is evaluated.
        grader: Processes that grade all answers; they start when they are needed, and `run_grid` ends them.
        overlap: Problems whose text occurs in the training rows; None: not looked for.
    """

    out: Path
    model: str
    data: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    domains: Mapping[str, str]
    evaluation: EvalSettings
    problems: Problems
    validation: Problems
    settings: dict[str, JsonValue]
    sweep: SweepSettings | None = None
    race: Budget | None = None
    unmatched: str = ""
    match_entropy: bool = False
    curve_steps: int = 0
    curve_samples: int | None = None
    curve_on: Literal["verdict", "validation"] = "verdict"
    interpolate: tuple[float, ...] = ()
    interpolated: tuple[str, ...] = ()
    soups: tuple[tuple[str, ...], ...] = ()
    grader: Grader = field(default_factory=Grader, compare=False, repr=False)
    validation_out: Problems = field(default_factory=dict)
    margin: float | None = None
    against: str | None = None
    require: Literal["non-inferior", "superior"] | None = None
    overlap: OverlapResult | None = None

    @property
    def curve_files(self) -> list[Path]:
        """The problems that are evaluated during training, as `write_problems` writes them."""
        names = self.problems if self.curve_on == "verdict" else {**self.validation, **self.validation_out}
        return [self.out / "problems" / self.curve_on / f"{name}.jsonl" for name in names]

    @property
    def validation_domains(self) -> dict[str, str]:
        """Task of the validation problems to its domain."""
        return {**dict.fromkeys(self.validation, "in"), **dict.fromkeys(self.validation_out, "out")}

    def run(self, arm: Arm, seed: int) -> ArmRun:
        """The run of an arm and a seed; all arms read the same rows in the same order for a seed."""
        folder = self.out / "runs" / arm.slug / f"seed-{seed}"
        return ArmRun(f"{arm.label}, seed {seed}", folder, self._config(arm, seed, folder), self.grader)

    def base(self) -> Evaluator:
        """Of the base model."""
        return Evaluator(self.model, self.model, self.grader)

    def runs(self, arms: Sequence[Arm] | None = None) -> list[ArmRun]:
        return [self.run(arm, seed) for arm in arms or self.arms for seed in self.seeds]

    def trial(self, arm: Arm, rate: float) -> ArmRun:
        """A run of the sweep: first seed, fewer steps, a whole learning-rate schedule of its own."""
        folder = self.out / "sweep" / arm.slug / f"lr-{rate:g}"
        config = self._config(arm.with_rate(rate), self.seeds[0], folder)
        name = f"{arm.label} at learning rate {rate:g}, {self.trial_steps(arm)} steps"
        return ArmRun(
            name, folder, config.model_copy(update={"max_steps": self.trial_steps(arm)}), self.grader
        )

    def trial_steps(self, arm: Arm) -> int:
        assert self.sweep is not None
        return self.sweep.steps or max(1, round(self.sweep.share * self.steps(arm)))

    def steps(self, arm: Arm) -> int:
        """Optimizer steps of a run of the arm."""
        return arm.config.max_steps or int(self.plan["steps"])

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Rows, tokens and steps of the first run, as `rectune train --dry-run` prints them."""
        from rectune.training.dry_run import plan

        return plan(self.run(self.arms[0], self.seeds[0]).training)

    def _config(self, arm: Arm, seed: int, folder: Path) -> RunConfig:
        config = arm.config
        changes: dict[str, object] = {"seed": seed, "output_dir": folder}
        if not isinstance(config, RLConfig):
            name = config.run_name or self.out.name
            changes["run_name"] = "-".join([name, *folder.relative_to(self.out).parts])
            if config.lora_r:  # answers are sampled from a plain model
                changes["merge_adapter"] = True
        if isinstance(config, RFTConfig):
            changes["sampling_seed"] = seed
            changes["samples"] = str(self.out / "samples" / f"seed-{seed}.jsonl")
        return config.model_copy(update=changes)
