"""What a user sees while a run goes on: decisions with their reasons, then a bar with the time left; on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rectune.config import TrainConfig
from rectune.objectives import vanishes
from rectune.training.dataloader import TrainingData
from rectune.training.objective_schedule import Phase

log = logging.getLogger("rectune")


def say_decisions(config: TrainConfig, data: TrainingData, phases: list[Phase], precision: str) -> None:
    """One line per decision, with its reason."""
    shown = ", then ".join(
        f"{p.name}{''.join(f' {k}={v:g}' for k, v in p.settings.items())} until step {round(p.end * len(data.plan))}"
        for p in phases
    )
    log.info("objective: %s", shown)
    if config.objective.phases and "name" in config.objective.model_fields_set:
        log.info(
            "objective: objective.phases decides; objective.name = %s is not used", config.objective.name
        )
    if protect := phases[0].protect:
        names = " and ".join(p.name for p in phases if vanishes(p.objective, **p.settings))
        reason = (
            f", because {names} gives no weight to what the model never says (objective.protect = 0 is Eq. 9)"
        )
        reason = reason if config.objective.protect is None else ""
        log.info("protect: turn-ending and special tokens keep weight %g%s", protect, reason)
    log.info("precision: %s", precision)
    log.info(
        "rows: %s to train on, %s kept aside, written with %s; %s steps of %s rows",
        f"{len(data.train):,}", f"{len(data.holdout):,}", data.template.name, f"{len(data.plan):,}", config.batch_size,
    )  # fmt: skip


@contextmanager
def progress(
    steps: int, start: int, *, shown: bool = True, line: Callable[[dict[str, Any]], str] | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with time left on a terminal, about ten lines in all elsewhere; both on stderr.

    Args:
        line: What is said of a step's figures; by default of those that `train` logs.
    """
    line = line or _line
    if not shown:
        yield lambda figures: None
        return
    if not sys.stderr.isatty():
        every = max(1, steps // 10)

        def say(figures: dict[str, Any]) -> None:
            if figures["step"] % every == 0 or figures["step"] == steps:
                log.info("step %d of %d: %s", figures["step"], steps, line(figures))

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=start)

        def show(figures: dict[str, Any]) -> None:
            bar.update(task, advance=1, description=line(figures))

        yield show


def _line(figures: dict[str, Any]) -> str:
    if "nll" not in figures:
        return "no targets"
    return (
        f"objective {figures['objective']:.3f}  nll {figures['nll']:.3f}  mean p {figures['mean_p']:.3f}"
        f"  {figures['tokens_per_second']:.0f} tokens/s"
    )
