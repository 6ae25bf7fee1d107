"""rectune's objectives and graders inside other trainers.

`dft_loss` (or `objective_loss` for any other) is a `compute_loss_func` of a transformers `Trainer`. The trainer
has the model build all logits, so this saves no memory; `rectune train` does, and so does TRL's trainer, for which
there is `trl.SFTTrainer`. `tinker.loss` is for services that take a loss of log-probabilities. `grader_reward` is a
reward function for TRL's `GRPOTrainer`; `examples/trl_grpo.py` shows it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rectune.columns import HEAD_COLUMNS
from rectune.errors import UserError, unknown_name
from rectune.grading.pool import GRADERS, Grader
from rectune.logprobs import check_targets, columns_of_logits, supervised_positions
from rectune.objective_spec import Phase, check_settings, parse_objective
from rectune.objectives import Objective

__all__ = ["dft_loss", "grader_reward", "objective_loss"]

_COLUMNS = ("row", *(name for name in HEAD_COLUMNS if name != "kl"))


class LossFunction(Protocol):
    """What a transformers `Trainer` takes as `compute_loss_func`."""

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor: ...


def objective_loss(objective: str | Objective, **settings: float) -> LossFunction:
    """An objective as `Trainer(compute_loss_func=objective_loss("power", alpha=0.5))`.

    It may read `row` and what logits give: all columns of the head but `kl`.
    The sum over tokens is divided by `num_items_in_batch`, which the trainer counts over the accumulated batch and all
    processes, so accumulation gives the gradient of the whole batch.

    Raises:
        UserError: An unknown objective or setting, phases, or an objective that reads columns which logits alone do not
            give, or all rows of a step.
    """
    phase = single_phase(objective, _COLUMNS, "a transformers Trainer", settings)
    read = phase.columns

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        # on the device of the model's last part, where it is on several
        index, targets = supervised_positions(labels.to(logits.device))
        check_targets(targets, logits.shape[-1])
        columns = columns_of_logits(logits.flatten(0, 1)[index].float(), targets, read)
        columns["row"] = index // labels.shape[1]
        total = phase.loss(columns).sum()
        count = max(1, len(targets)) if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count, device=total.device)

    return loss


def supported_phases(
    objective: str | Objective,
    columns: Sequence[str],
    trainer: str,
    settings: Mapping[str, float] | None = None,
) -> tuple[Phase, ...]:
    """The phases of an objective of which each reads only `columns`; `settings` are for an objective of one phase.

    Raises:
        UserError: An unknown objective or setting, or a column that `trainer` does not have.
    """
    if callable(objective):
        phases: tuple[Phase, ...] = (Phase(objective, objective.__name__, {}),)
    else:
        phases = parse_objective(objective)
    if settings:
        phases = tuple(
            replace(phase, settings=phase.settings | check_settings(phase.function, settings))
            for phase in phases
        )
    for phase in phases:
        if missing := [name for name in (*phase.step_columns, *phase.columns) if name not in columns]:
            raise UserError(
                f"{phase.label} reads {missing[0]}, which {trainer} does not have", hint="use rectune train"
            )
    return phases


def single_phase(
    objective: str | Objective,
    columns: Sequence[str],
    trainer: str,
    settings: Mapping[str, float] | None = None,
) -> Phase:
    """As `supported_phases`, for what does not know how far its training is. Raises `UserError` for phases."""
    phase, *more = supported_phases(objective, columns, trainer, settings)
    if more:
        raise UserError(f"'{objective}' has phases, which {trainer} does not have")
    return phase


dft_loss: LossFunction = objective_loss("dft")
"""Dynamic Fine-Tuning in one line: `Trainer(..., compute_loss_func=dft_loss)`."""


def grader_reward(
    grader: str = "math", *, timeout: float = 5.0, workers: int | None = None
) -> Callable[..., list[float | None]]:
    """A grader as `GRPOTrainer(reward_funcs=grader_reward("math"))`: 1 for a correct answer, 0 for any other.

    The dataset needs a column `answer` (gold), and for some graders `extra`. An answer that could not be judged (a
    time-out, a crash) gets None, which TRL leaves out of the group.
    Graders are processes, which live as long as the function.

    Raises:
        UserError: No such grader.
    """
    if grader not in GRADERS:
        raise unknown_name("grader", grader, GRADERS)
    pool = Grader(workers, timeout)

    def reward(
        completions: Sequence[Any],
        answer: Sequence[Any],
        extra: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float | None]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        extras = extra or [None] * len(texts)
        items = [(gold, text, grader, more) for gold, text, more in zip(answer, texts, extras, strict=True)]
        known: dict[str, float | None] = {"timeout": None, "error": None, "correct": 1.0}
        return [known.get(graded.verdict, 0.0) for graded in pool.grade(items)]

    reward.__name__ = f"{grader}_reward"  # TRL logs it by its name
    weakref.finalize(reward, pool.close)
    return reward
