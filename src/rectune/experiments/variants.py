"""The arms of a comparison: objectives that differ in nothing else, their runs, and where these lie.

    OUT/runs/<slug>/seed-<s>/            the run folder of one arm and seed
    OUT/runs/<slug>/seed-<s>/evaluation  its answers at the comparison's temperature
    OUT/runs/<slug>/seed-<s>/greedy      one answer each at temperature 0
    OUT/runs/<slug>/seed-<s>/matched-X   at the temperature that gives it the entropy of arm X
    OUT/runs/base/...                    the same of the model as it was

How a run is trained is in `training/trainer.py`; what an objective's text means is in `objective_spec.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectune.config import TrainConfig
from rectune.errors import UserError
from rectune.objective_spec import label_of, make_phases, slug_of

BASE = "base"
"""The model as it was: an arm without a run."""


@dataclass(frozen=True)
class Arm:
    """One objective with its settings.

    Attributes:
        objective: As it was given, such as `power:alpha=0.5`.
        label: As it is shown, such as `power alpha=0.5`.
        slug: As its folder is named.
        learning_rate: Of its runs.
    """

    objective: str
    label: str
    slug: str
    learning_rate: float


def make_arms(specs: Sequence[str], config: TrainConfig) -> tuple[Arm, ...]:
    """The arms of objectives given as text, with the config's learning rate.

    Raises:
        UserError: None, an unknown objective or setting (lists the valid ones), or one that is given twice.
    """
    if not specs:
        raise UserError("no objective to compare", where="--objectives", hint="for example sft,dft")
    arms: dict[str, Arm] = {}
    for text in specs:
        phases = make_phases(config.model_copy(update={"objective": text}))
        slug = slug_of(phases)
        if slug in arms:
            raise UserError(f"'{label_of(phases)}' is given twice", where="--objectives")
        arms[slug] = Arm(text, label_of(phases), slug, config.learning_rate)
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
        "output_dir": out,
        "run_name": "-".join(
            [config.run_name or config.output_dir.name, *out.parts[len(config.output_dir.parts) :]]
        ),
    }
    if steps is not None:
        changes["max_steps"] = steps
    if config.lora_r:  # answers are drawn from a plain model
        changes["merge_adapter"] = True
    return config.model_copy(update=changes)
