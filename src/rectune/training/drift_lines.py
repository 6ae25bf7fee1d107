"""The lines at which drift is worth a warning: one table of values, what crossing means, and what to do.

A line is crossed against what the run began with, so that a base model which never stops is not held against the run.
The same table stands with reasons and sources in `docs/training.md`. What is measured is in `drift.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

Figures = Mapping[str, float | None]


class Line(NamedTuple):
    """A figure is past its line where `crossed(now, start, value)`."""

    value: float
    crossed: Callable[[float, float, float], bool]
    means: str
    remedy: str


def _above(now: float, start: float, value: float) -> bool:
    return now > value


def _above_and_doubled(now: float, start: float, value: float) -> bool:
    return now > value and now > 2 * start


def _grown(now: float, start: float, value: float) -> bool:
    return now > value * start


def _fallen(now: float, start: float, value: float) -> bool:
    return now < value * start


LINES = {
    "kl": Line(
        5.0, _above,
        "the model has left the base model's distribution, which goes with forgetting",
        "lower learning_rate, or objective.name = asft, which pulls back to the base",
    ),
    "entropy": Line(
        0.1, _fallen,
        "the model is nearly certain of every token, so its samples lose variety",
        "fewer steps, a lower learning_rate, or an objective that keeps entropy (uncertain, eaft, psft)",
    ),
    "eos_p": Line(
        0.5, _fallen,
        "the model unlearns to end its turn",
        "objective.protect = 1, and check that the rows end their turns",
    ),
    "stopped": Line(
        0.5, _fallen,
        "sampled answers do not end by themselves",
        "objective.protect = 1, and sample from the model with the template it was trained with",
    ),
    "repetition": Line(
        0.3, _above_and_doubled,
        "sampled answers run in circles",
        "fewer epochs or a lower learning_rate",
    ),
    "length": Line(
        2.0, _grown,
        "sampled answers are longer than the base model's and the reference answers",
        "read some of them (rectune sample): often the turn's end is missing",
    ),
}  # fmt: skip
"""By the figure of the drift line that it is about."""


def warnings(now: Figures, start: Figures, *, reference_length: float, last: bool) -> list[str]:
    """Names of the figures that are past their line.

    Args:
        now, start: Figures of drift, of the model now and of the model as it was; None where there is none.
        reference_length: Mean tokens of the reference answers, which answers may grow to.
        last: The model is finished, so that most of its answers have to end by themselves whatever the base did.
    """
    base = {"kl": 0.0, **start}
    if base.get("length") is not None:
        base["length"] = max(base["length"] or 0.0, reference_length)
    if last:
        base["stopped"] = 1.0
    crossed = []
    for name, line in LINES.items():
        value, first = now.get(name), base.get(name)
        if value is not None and first is not None and line.crossed(value, first, line.value):
            crossed.append(name)
    return crossed


def sentence(name: str, now: Figures, start: Figures) -> str:
    """The warning in words: the figure, what it was, what it means and what to do."""
    was = start.get(name)
    before = "" if was is None or name == "kl" else f" (at the start {was:.3g})"
    return f"{name} is {now[name]:.3g}{before}: {LINES[name].means}; {LINES[name].remedy}"
