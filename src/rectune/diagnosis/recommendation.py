"""Which objective fits: the verdict on the model-strong, intermediate, weak continuum of arXiv:2510.00526.

The verdict also says what the position cannot: how near it is to a threshold, which risks speak against it, and that
it depends on whether the user wants to fit this distribution or to generalise from it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Literal

from rectune.diagnosis.risks import ERRORS_NEAR, FEW_TARGETS, INTERMEDIATE, NEAR, STRONG, WEAK, RiskThreshold
from rectune.objective_spec import parse_objective, slug_of
from rectune.records import OverallFigures, Reason, Recommendation, Risk

Position = Literal["strong", "intermediate", "weak"]

RACE = ("sft", "dft", "power:alpha=0.5", "floor", "asft", "sft@0.3+dft@0.7")
"""What is worth a race where the answer is open."""
_AGAINST = ("facts", "deterministic")  # risks that speak against giving up improbable tokens


def position(mean_p: float) -> Position:
    """Where mean p lies on the continuum."""
    if mean_p >= STRONG.value:
        return "strong"
    return "weak" if mean_p < WEAK.value else "intermediate"


def recommend(
    overall: OverallFigures, risks: Sequence[Risk], goal: str | None, model: str, data: str, options: str = ""
) -> Recommendation:
    """The objective, how sure that is, the reasons with their numbers, and what to run next.

    Args:
        overall: Figures of all targets.
        risks: Those found.
        goal: "generalise", "fit", or None where the user has not said.
        model, data, options: For the commands; options are further flags with a space in front.
    """
    place = position(overall.mean_p)
    against = [risk for risk in risks if risk.name in _AGAINST]
    spec, alternatives = _choice(place, goal, bool(against))
    (phase,) = parse_objective(spec)
    return Recommendation(
        position=place,
        objective=spec,
        label=phase.label,
        name=phase.name,
        settings=phase.settings,
        alternatives=list(alternatives),
        confidence=_confidence(overall, place, goal, bool(against)),
        sentence=_sentence(place, goal, phase.label, overall.mean_p, bool(against)),
        reasons=list(_reasons(overall, place, goal, against)),
        next=_next(place, spec, alternatives, model, data, options),
    )


def _choice(place: Position, goal: str | None, against: bool) -> tuple[str, tuple[str, ...]]:
    """The objective that fits, and what else is worth a try."""
    if place == "weak":
        return "sft", ()
    if against:
        return "sft", ("power:alpha=0.5", "sft@0.3+dft@0.7")
    if place == "strong":
        return ("sft", ("power:alpha=0.5", "dft")) if goal == "fit" else ("dft", ("sft", "floor"))
    spec = "sft" if goal == "fit" else "power:alpha=0.5"
    return spec, tuple(other for other in RACE if other != spec)


def _confidence(
    overall: OverallFigures, place: Position, goal: str | None, against: bool
) -> Literal["high", "medium", "low"]:
    """High only where the rule speaks plainly, the goal is known, and mean p is far from both thresholds."""
    distance = min(abs(overall.mean_p - STRONG.value), abs(overall.mean_p - WEAK.value))
    error = math.inf if overall.mean_p_error is None else overall.mean_p_error
    near = distance < max(NEAR.value, ERRORS_NEAR.value * error)
    if place == "intermediate" or (place == "strong" and (against or (goal is None and near))):
        return "low"
    if near or overall.targets < FEW_TARGETS.value:
        return "medium"
    return "high" if place == "weak" or goal == "generalise" else "medium"


def _sentence(place: Position, goal: str | None, label: str, p: float, against: bool) -> str:
    start = f"Mean target probability {p:.2f}: the model is {place} on this data."
    if place == "weak":
        return f"{start} Use {label}: an objective that trusts the model's own probabilities has nothing to go by here."
    if against:
        return f"{start} Use {label} all the same: the rows look like what dft loses on (see the risks)."
    if place == "strong" and goal == "fit":
        return f"{start} To fit exactly this distribution use {label}; dft would keep to what the model already says."
    if place == "strong":
        both = "" if goal else " To fit exactly this distribution rather than to generalise from it, use sft."
        return f"{start} Use {label}: low-probability tokens are more likely noise than news.{both}"
    if goal == "fit":
        return f"{start} The evidence is open; to fit this distribution start from {label}, and let a race decide."
    both = " To fit this distribution start from sft; to generalise from it dft may win, and lose the rows' domain."
    return f"{start} The evidence is open here: {label} is the middle, a race decides.{'' if goal else both}"


def _reasons(
    overall: OverallFigures, place: Position, goal: str | None, against: Sequence[Risk]
) -> list[Reason]:
    p, error = overall.mean_p, overall.mean_p_error
    known = f"mean p {p:.3f}" + ("" if error is None else f" (standard error {error:.3f})")
    text, threshold = {
        "strong": (f"{known} is above {STRONG.value:g}, where prior-leaning objectives win", STRONG),
        "weak": (f"{known} is below {WEAK.value:g}, where plain likelihood wins", WEAK),
        "intermediate": (
            f"{known} is between {WEAK.value:g} and {STRONG.value:g}, where neither wins for sure", INTERMEDIATE
        ),
    }[place]  # fmt: skip
    reasons = [_reason(text, p, threshold)]
    if goal == "fit" and place != "weak":
        text = "to fit this distribution, tokens that the model does not expect have to be learnt; DFT gives them up"
        reasons.append(Reason(text=text, value=p, threshold=None, source="the paper, Eq. 9: weight p"))
    for risk in against:
        text = f"{risk.evidence}: this speaks against giving up improbable tokens"
        reasons.append(_reason(text, risk.value, RiskThreshold(risk.threshold, risk.source)))
    if overall.targets < FEW_TARGETS.value:
        reasons.append(
            _reason(f"only {overall.targets:,} targets were measured", overall.targets, FEW_TARGETS)
        )
    return reasons


def _reason(text: str, value: float, threshold: RiskThreshold) -> Reason:
    return Reason(text=text, value=value, threshold=threshold.value, source=threshold.source)


def _next(
    place: Position, spec: str, alternatives: Sequence[str], model: str, data: str, options: str
) -> list[str]:
    """Commands to run, the verdict's first."""
    source = f"--model {shlex.quote(model)} --data {shlex.quote(data)}{options}"
    objectives = ",".join(dict.fromkeys(("sft", "dft", spec)))
    tasks = "--tasks-in BENCHMARK --tasks-out ANOTHER"
    compare = (
        f"rectune compare {source} --objectives {objectives} --seeds 3 {tasks} --output-dir runs/compare"
    )
    if place == "intermediate":
        race = ",".join(dict.fromkeys((spec, *alternatives)))
        return [
            f"rectune compare {source} --objectives {race} --race 2h {tasks} --output-dir runs/race",
            compare,
        ]
    folder = slug_of(parse_objective(spec))
    return [f"rectune train {source} --objective {spec} --output-dir runs/{folder}", compare]
