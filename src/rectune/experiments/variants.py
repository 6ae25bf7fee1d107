"""The arms of a comparison: objectives that differ in nothing else, their runs, and where these lie.

    OUT/runs/<slug>/seed-<s>/            the run folder of one arm and seed
    OUT/runs/<slug>/seed-<s>/evaluation  its answers at the comparison's temperature
    OUT/runs/<slug>/seed-<s>/greedy      one answer each at temperature 0
    OUT/runs/<slug>/seed-<s>/matched-X   at the temperature that gives it the entropy of arm X
    OUT/runs/base/...                    the same of the model as it was

How a run is trained is in `training/trainer.py`; what an objective's text means is in `objectives.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rectune.config import ObjectiveConfig, TrainConfig
from rectune.errors import UserError
from rectune.objectives import parse_spec
from rectune.training.objective_schedule import make_phases

BASE = "base"
"""The model as it was: an arm without a run."""
SHARED = ("protect", "refresh")
"""Settings of the objective's table that all arms have in common."""


@dataclass(frozen=True)
class Arm:
    """One objective with its settings.

    Attributes:
        spec: As it was given, such as `power:alpha=0.5`.
        label: As it is shown, such as `power alpha=0.5`.
        slug: As its folder is named.
        objective: As a run's config has it.
        learning_rate: Of its runs.
    """

    spec: str
    label: str
    slug: str
    objective: ObjectiveConfig
    learning_rate: float
    settings: dict[str, Any] = field(default_factory=dict)


def make_arms(specs: Sequence[str], config: TrainConfig) -> tuple[Arm, ...]:
    """The arms of objectives given as text, with the config's learning rate and `protect` and `refresh`.

    Raises:
        UserError: None, an unknown objective or setting (lists the valid ones), or one that is given twice.
    """
    if not specs:
        raise UserError("no objective to compare", where="--objectives", hint="for example sft,dft")
    shared: dict[str, Any] = {name: getattr(config.objective, name) for name in SHARED}
    arms: dict[str, Arm] = {}
    for text in specs:
        spec = parse_spec(text)
        objective = ObjectiveConfig(name=spec.name, phases=spec.phases, **shared, **spec.settings)
        make_phases(objective)
        if spec.slug in arms:
            raise UserError(f"'{spec.label}' is given twice", where="--objectives")
        arms[spec.slug] = Arm(
            text, spec.label, spec.slug, objective, config.learning_rate, dict(spec.settings)
        )
    return tuple(arms.values())


def run_folder(out: Path, arm: Arm, seed: int) -> Path:
    """Where the run of an arm and seed lies."""
    return out / "runs" / arm.slug / f"seed-{seed}"


def run_config(
    config: TrainConfig, arm: Arm, seed: int, out: Path, *, steps: int | None = None
) -> TrainConfig:
    """The config of one run: the comparison's, with the arm's objective and learning rate.

    Args:
        config: Of the comparison.
        seed: Of row order, hold-out and dropout; the same for all arms, so that they read the same rows.
        out: The run folder.
        steps: Instead of the config's.
    """
    changes: dict[str, Any] = {
        "objective": arm.objective,
        "learning_rate": arm.learning_rate,
        "seed": seed,
        "out": out,
        "run_name": "-".join([config.run_name or config.out.name, *out.parts[len(config.out.parts) :]]),
    }
    if steps is not None:
        changes["steps"] = steps
    if config.lora.rank:  # answers are drawn from a plain model
        changes["lora"] = config.lora.model_copy(update={"merge": True})
    return config.model_copy(update=changes)
