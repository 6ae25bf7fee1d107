"""The lines at which drift is worth a warning: one table of values, what crossing means, and what to do.

A line is crossed against what the run began with, so that a base model which never stops is not held against the run,
and by more than chance moves eight answers.
The same table stands with reasons and sources in `docs/training.md`. What is measured is in `drift.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from rectune.config import TrainConfig
from rectune.objectives import vanishes
from rectune.training.phases import Phase, make_phases

Figures = Mapping[str, float | None]


class Line(NamedTuple):
    """A figure is past its line where `crossed(now, start, value)` and it moved by `least` or more."""

    value: float
    crossed: Callable[[float, float, float], bool]
    means: str
    remedies: Callable[[TrainConfig], Iterable[str]]
    least: float = 0.0


def _above(now: float, start: float, value: float) -> bool:
    return now > value


def _above_and_doubled(now: float, start: float, value: float) -> bool:
    return now > value and now > 2 * start


def _grown(now: float, start: float, value: float) -> bool:
    return now > value * start


def _fallen(now: float, start: float, value: float) -> bool:
    return now < value * start


def _stay(config: TrainConfig) -> Iterator[str]:
    yield "lower learning_rate"
    if "asft" in _objectives(config):
        yield "raise objective.anchor, the pull back to the base"
    else:
        yield "try objective.name = asft, which pulls back to the base"


def _keep_entropy(config: TrainConfig) -> Iterator[str]:
    others = [name for name in ("uncertain", "eaft", "psft") if name not in _objectives(config)]
    yield "try fewer steps or a lower learning_rate"
    yield f"or an objective that keeps entropy ({', '.join(others)})"


def _protect(config: TrainConfig) -> Iterator[str]:
    """Where an objective gives end tokens up and the config lets it."""
    if any(phase.protect < 1 and vanishes(phase.objective, **phase.settings) for phase in _phases(config)):
        yield "set objective.protect = 1"
    yield "check that the rows end their turns"


def _objectives(config: TrainConfig) -> set[str]:
    return {phase.name for phase in _phases(config)}


def _phases(config: TrainConfig) -> list[Phase]:
    return make_phases(config.objective)


LINES = {
    "kl": Line(
        5.0, _above,
        "the model has left the base model's distribution, which goes with forgetting", _stay,
    ),
    "entropy": Line(
        0.1, _fallen,
        "the model has become nearly certain of every token, so its samples lose variety", _keep_entropy,
        least=0.1,
    ),
    "eos_p": Line(0.5, _fallen, "the model unlearns to end its turn", _protect, least=0.05),
    "stopped": Line(
        0.5, _fallen,
        "fewer sampled answers end by themselves than the base model's", _protect,
        least=0.25,
    ),
    "repetition": Line(
        0.3, _above_and_doubled,
        "sampled answers run in circles",
        lambda config: ["try fewer steps or a lower learning_rate"],
    ),
    "length": Line(
        2.0, _grown,
        "sampled answers are longer than the base model's and the reference answers",
        lambda config: ["read some of them (rectune sample): often the turn's end is missing"],
    ),
}  # fmt: skip
"""By the figure of the drift line that it is about."""


def warnings(now: Figures, start: Figures, *, reference_length: float) -> list[str]:
    """Names of the figures that are past their line: what became worse, not what was low from the start.

    Args:
        now, start: Figures of drift, of the model now and of the model as it was; None where there is none.
        reference_length: Mean tokens of the reference answers, which answers may grow to.
    """
    base = {"kl": 0.0, **start}
    if base.get("length") is not None:
        base["length"] = max(base["length"] or 0.0, reference_length)
    crossed = []
    for name, line in LINES.items():
        value, first = now.get(name), base.get(name)
        if value is None or first is None or abs(value - first) < line.least:
            continue
        if line.crossed(value, first, line.value):
            crossed.append(name)
    return crossed


def sentence(name: str, now: Figures, start: Figures, config: TrainConfig) -> str:
    """The warning in words: the figure, what it was, what it means, and what to do that is not done yet."""
    was = start.get(name)
    before = "" if was is None or name == "kl" else f" (at the start {was:.3g})"
    line = LINES[name]
    return f"{name} is {now[name]:.3g}{before}: {line.means}; {', '.join(line.remedies(config))}"
