"""What a study consists of, as study.toml and real.toml have it, and what it will take on two cores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rectune.config import Settings, load_config
from rectune.objective_spec import column_names
from rectune.objectives import OBJECTIVES

PARTS = {"mini": "study.toml", "real": "real.toml"}


class Condition(Settings):
    """What rows are like."""

    title: str
    rows: int
    steps: int
    """Optimizer steps of a run."""
    source: Literal["stories", "base", "facts", "gsm8k"] = "stories"
    """Right by construction, sampled from the base model, to be learnt by heart, packaged GSM8K calculations."""
    way: str = "told"
    """How answers are written, see `mini/stories.py`."""
    wrong: float = 0.0
    """Share of wrong answers."""
    twice: bool = False
    """Whether stories have the change that the base model does not know."""


class Claim(Settings):
    """What a paper says, as a difference between two arms that the study can judge; `result.py` says how."""

    text: str
    source: str
    better: str
    than: str
    domain: str = "both"
    """in, out, or both: then each of them has to hold."""
    greedy: bool = False
    conditions: tuple[str, ...] = ()
    """Those that it is about; none: all."""
    against: str = ""
    """A condition in which the difference should be smaller than in the first of `conditions`."""


class Study(Settings):
    """study.toml or real.toml."""

    title: str
    seeds: int
    hours: float
    """Of two cores."""
    margin: float
    """Accuracy that a model may lose in domain, a fraction."""
    interpolate: tuple[float, ...]
    midpoints: tuple[str, ...]
    """Objectives whose models are interpolated with the base model, and averaged with each other."""
    objectives: tuple[str, ...] = ()
    """Besides all that train on rows."""
    only: tuple[str, ...] = ()
    """Instead of all of them."""
    model: str = ""
    """Empty: the base model of the mini scale."""
    tasks_in: tuple[str, ...] = ()
    tasks_out: tuple[str, ...] = ()
    limit: int | None = None
    settings: dict[str, Any]
    answers: dict[str, Any]
    problems: dict[str, int] = Field(default_factory=dict)
    rates: tuple[float, ...]
    sweep_share: float
    speed: dict[str, float]
    conditions: dict[str, Condition]
    claims: tuple[Claim, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Every objective that trains on rows, then the others."""
        every = tuple(name for name, loss in OBJECTIVES.items() if "pair" not in column_names(loss))
        return (*(self.only or every), *self.objectives)


def load_study(part: str, budget: float = 1.0) -> Study:
    """The content of a part's file; with a budget below 1 that share of its rows, steps and problems, to try it out."""
    study = load_config(Path(__file__).with_name(PARTS[part]), {}, Study)
    if budget == 1:
        return study

    def scaled(count: int) -> int:
        return max(4, round(budget * count))

    conditions = {
        name: condition.model_copy(update={"rows": scaled(condition.rows), "steps": scaled(condition.steps)})
        for name, condition in study.conditions.items()
    }
    problems = {name: scaled(count) for name, count in study.problems.items()}
    limit = study.limit and scaled(study.limit)
    return study.model_copy(update={"conditions": conditions, "problems": problems, "limit": limit})


def plan(study: Study) -> list[dict[str, str]]:
    """Runs and minutes of every condition on two cores, by the speeds in the study's file; then of all of them."""
    speed, arms, n = study.speed, len(study.arms), study.answers["num_samples"]
    soup = len(study.midpoints) > 1
    counts = {
        "runs": arms * study.seeds,
        "trials": arms * len(study.rates),
        "points": study.seeds * ((len(study.midpoints) + soup) * len(study.interpolate) + soup),
    }
    lines, total = [], 0.0
    for name, condition in study.conditions.items():
        steps = (counts["runs"] + counts["trials"] * study.sweep_share) * condition.steps
        answers = (
            (counts["runs"] + counts["points"] + 1) * (n + 1) * (speed["problems"] + speed["validation"])
        )
        answers += counts["trials"] * n * speed["validation"] / 2  # a trial answers those in domain
        seconds = steps * speed["step_seconds"] + answers * speed["answer_seconds"]
        seconds += sum(counts.values()) * speed["run_seconds"] + speed["condition_seconds"]
        total += seconds
        lines.append(_planned(name, condition.title, counts, seconds))
    every = {name: len(study.conditions) * count for name, count in counts.items()}
    return [*lines, _planned("all", "", every, total)]


def _planned(name: str, title: str, counts: Mapping[str, int], seconds: float) -> dict[str, str]:
    shown = {name: str(count) for name, count in counts.items()}
    return {"condition": name, "rows": title, **shown, "minutes on two cores": f"{seconds / 120:.1f}"}
