"""One recipe, one model, one scale: every run with its settings, where it lies, and what it is asked.

    OUT/comparison.json, reproduction.json, report.html
    OUT/samples/seed-<s>.jsonl             answers of the base model that the offline arms share
    OUT/sweep/<arm>/lr-<rate>/             trials of the learning rate
    OUT/runs/<arm>/seed-<s>/               a run; of an offline arm the training is in .../train
    OUT/runs/base/                         the answers of the model as it was

With several models each has a folder of its own below OUT. Carrying out is left to `runs.py` and `runner.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rectune.config import RFTConfig, RLConfig, Settings, TrainConfig, load_config
from rectune.experiments.evaluator import EvalSettings
from rectune.reproduction.recipe import Arm, Recipe, Scale, full_settings, mini_settings
from rectune.reproduction.task import DOMAINS, Task

KINDS: dict[str, type[Settings]] = {"train": TrainConfig, "rft": RFTConfig, "rl": RLConfig}
BASE = "base"


@dataclass(frozen=True)
class Asking:
    """How models are asked.

    Attributes:
        benchmarks: Name to domain ("in", "out" or "").
        files: The problems at mini scale, a file for each benchmark; empty at full scale.
        draws: How the verdict's answers are drawn.
        prompt, system, template: As `evaluate` takes them.
        folder: Of benchmark files, at full scale.
        engine: local or vllm.
        precision: Of the local engine.
    """

    benchmarks: dict[str, str]
    files: tuple[Path, ...]
    draws: EvalSettings
    template: str = "auto"
    prompt: str | None = None
    system: str = ""
    folder: Path | None = None
    engine: str = "hf"
    precision: str = "auto"

    @property
    def places(self) -> tuple[Path, ...]:
        """Benchmarks as `is_evaluated` and `correct` name them: by a path's stem."""
        return self.files or tuple(map(Path, self.benchmarks))


@dataclass(frozen=True)
class Job:
    """What is trained and asked.

    Attributes:
        recipe, scale: Which.
        out: Folder of this model.
        model: Hub id or folder of the model that all start from.
        arms, seeds: What is trained.
        asking: Of the verdict.
        data: Rows and problems: `demonstrations`, `clean`, `problems`.
        rates: Learning rates that every arm is tried with; empty: the recipe's own.
        task: At mini scale.
        chosen: Arm's label to the learning rate that the sweep chose.
    """

    recipe: Recipe
    scale: Scale
    out: Path
    model: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    asking: Asking
    data: dict[str, Path | str]
    rates: tuple[float, ...] = ()
    task: Task | None = None
    chosen: dict[str, float] = field(default_factory=dict)

    def config(
        self, arm: Arm, seed: int, out: Path, *, rate: float | None = None, share: float = 1.0
    ) -> Settings:
        """The whole config of a run.

        Args:
            out: Its folder.
            rate: Learning rate instead of the chosen one.
            share: Of the steps, for a trial.
        """
        given = self.settings(arm)
        given |= {"model": self.model, "output_dir": out, "seed": seed}
        rate = rate or self.chosen.get(arm.label)
        if rate and not self.fixed_rate(arm):
            given["learning_rate"] = rate
        if share < 1:
            given["max_steps"] = max(1, round(share * int(given["max_steps"])))
        if arm.method == "train":
            given["data"] = str(
                self.data[arm.mini.get("data", "demonstrations") if self.task else "demonstrations"]
            )
        else:
            given["problems"] = str(self.data["problems"])
        if arm.method == "train" and self.task:
            given["eval_data"] = str(self.data["holdout"])
        elif arm.method == "rft":
            given |= {"sampling_seed": seed, "samples": str(self.samples(seed))}
            given |= {"eval_split_size": 0.02} if self.task else {}
        return load_config(None, given, KINDS[arm.method])

    def settings(self, arm: Arm) -> dict[str, Any]:
        """An arm's settings by dotted name, without those of one run."""
        if self.task:
            return mini_settings(arm, self.task.settings)
        return full_settings(self.recipe, arm, self.model)

    def fixed_rate(self, arm: Arm) -> bool:
        """Whether the recipe itself says the rate at this scale, so that none is chosen."""
        return bool(self.task) and "learning_rate" in arm.mini

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.out / "runs" / arm.slug / f"seed-{seed}"

    def samples(self, seed: int) -> Path:
        """The base model's answers to the problems, shared by the offline arms."""
        return self.out / "samples" / f"seed-{seed}.jsonl"

    @property
    def sharing(self) -> tuple[Arm, ...]:
        """Arms that train on the base model's own answers."""
        return tuple(arm for arm in self.arms if arm.method == "rft")


def trained_folder(arm: Arm, folder: Path) -> Path:
    """Where an arm's run folder is: model/, metrics.jsonl, summary.json."""
    return folder / "train" if arm.method == "rft" else folder


def mini_asking(task: Task) -> Asking:
    """The mini scale's benchmarks: in domain and out of it."""
    draws = task.settings["draws"]
    return Asking(
        benchmarks=dict(DOMAINS),
        files=tuple(task.file(name) for name in DOMAINS),
        draws=EvalSettings(
            num_samples=draws["n"], temperature=draws["temperature"], max_new_tokens=draws["max_new_tokens"]
        ),
        template="none",
        precision=task.settings["settings"]["dtype"],
    )


def full_asking(recipe: Recipe, folder: Path | None, engine: str) -> Asking:
    """The recipe's benchmarks, in the paper's way."""
    draws = recipe.full["draws"]
    return Asking(
        benchmarks=dict.fromkeys(recipe.benchmarks, ""),
        files=(),
        draws=EvalSettings(
            num_samples=draws["n"], temperature=draws["temperature"], max_new_tokens=draws["max_new_tokens"]
        ),
        template=recipe.full["settings"]["chat_template"],
        prompt=draws["prompt"] or None,
        system=draws["system"],
        folder=folder,
        engine=engine,
    )


def mini_job(recipe: Recipe, task: Task, out: Path, arms: Sequence[Arm], seeds: int) -> Job:
    """The recipe at mini scale."""
    names = ("demonstrations", "clean", "problems", "holdout", "validation")
    rates = tuple(task.settings["sweep"]["rates"]) if recipe.sweep else ()
    data: dict[str, Path | str] = {name: task.file(name) for name in names}
    return Job(
        recipe, "mini", out, str(task.base), tuple(arms), tuple(range(seeds)), mini_asking(task), data, rates, task
    )  # fmt: skip


def full_jobs(
    recipe: Recipe, out: Path, arms: Sequence[Arm], seeds: int, folder: Path | None, engine: str
) -> list[Job]:
    """The recipe at full scale, a job for each model."""
    asking, several = full_asking(recipe, folder, engine), len(recipe.models) > 1
    found = []
    for model in recipe.models:
        own = out / model.rpartition("/")[2] if several else out
        source = recipe.full["settings"]["data"]
        rows = out / "data" / "natural_questions.jsonl" if source == "natural_questions" else source
        data = {"demonstrations": rows, "problems": out / "data" / "problems.jsonl"}
        found.append(Job(recipe, "full", own, model, tuple(arms), tuple(range(seeds)), asking, data))
    return found
