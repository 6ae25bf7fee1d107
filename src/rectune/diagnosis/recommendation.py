"""Which objective fits: the verdict on the model-strong, intermediate, weak continuum of arXiv:2510.00526.

What the position cannot say is said: how near to a line it is, what the risks take away from it, and that it depends on
whether the user wants to fit this distribution or to generalise from it. The lines are in `risks.py`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rectune.diagnosis.risks import ERRORS_NEAR, FEW_TARGETS, INTERMEDIATE, NEAR, STRONG, WEAK
from rectune.errors import unknown_name
from rectune.objective_spec import parse_objective, slug_of

GOALS = ("generalise", "fit")
RACE = ("sft", "dft", "power:alpha=0.5", "floor", "asft", "sft@0.3+dft@0.7")
"""What is worth a race where the answer is open."""


def check_goal(goal: str | None) -> None:
    """Raises `UserError` for an unknown goal."""
    if goal is not None and goal not in GOALS:
        raise unknown_name("goal", goal, GOALS, where="--goal")


def position(mean_p: float) -> str:
    """Where mean p lies: "strong", "intermediate" or "weak"."""
    if mean_p >= STRONG.value:
        return "strong"
    return "weak" if mean_p < WEAK.value else "intermediate"


def decide(
    overall: Mapping[str, Any],
    risks: Sequence[Mapping[str, Any]],
    goal: str | None,
    model: str,
    data: str,
    options: str = "",
) -> dict[str, Any]:
    """The verdict, JSON-ready: objective, confidence, reasons beside their numbers, what to run next.

    Args:
        overall: Figures of all targets, with the standard error of mean p.
        risks: Those found.
        goal: "generalise", "fit", or None where the user has not said.
        model, data, options: For the commands; options are further flags with a space in front.
    """
    p = float(overall["mean_p"])
    error = math.inf if overall["mean_p_error"] is None else float(overall["mean_p_error"])
    place, names = position(p), {risk["name"] for risk in risks}
    against = names & {"facts", "deterministic"}
    spec, alternatives = _choice(place, goal, bool(against))
    reasons = [_position_reason(p, error, place)]
    if goal == "fit" and place != "weak":
        text = "to fit this distribution, tokens that the model does not expect have to be learnt; DFT gives them up"
        reasons.append({"text": text, "value": p, "threshold": None, "source": "the paper, Eq. 9: weight p"})
    for risk in risks:
        if risk["name"] in against:
            text = f"{risk['evidence']}: what speaks against giving up improbable tokens"
            reasons.append(
                {
                    "text": text,
                    "value": risk["value"],
                    "threshold": risk["threshold"],
                    "source": risk["source"],
                }
            )
    if overall["targets"] < FEW_TARGETS.value:
        text = f"only {overall['targets']:,} targets were measured"
        reasons.append(
            {
                "text": text,
                "value": overall["targets"],
                "threshold": FEW_TARGETS.value,
                "source": FEW_TARGETS.source,
            }
        )
    (phase,) = parse_objective(spec)
    return {
        "position": place,
        "objective": spec,
        "label": phase.label,
        "name": phase.name,
        "settings": phase.settings,
        "alternatives": list(alternatives),
        "confidence": _confidence(p, error, place, goal, bool(against), int(overall["targets"])),
        "sentence": _sentence(place, goal, phase.label, p, bool(against)),
        "reasons": reasons,
        "next": _next(place, goal, spec, alternatives, model, data, options),
    }


def _choice(place: str, goal: str | None, against: bool) -> tuple[str, tuple[str, ...]]:
    """The objective that fits, and what else is worth a try."""
    if place == "weak" or against:
        return "sft", () if place == "weak" else ("power:alpha=0.5", "sft@0.3+dft@0.7")
    if place == "strong":
        return ("sft", ("power:alpha=0.5", "dft")) if goal == "fit" else ("dft", ("sft", "floor"))
    return ("sft" if goal == "fit" else "power:alpha=0.5"), tuple(
        one for one in RACE if one != ("sft" if goal == "fit" else "power:alpha=0.5")
    )


def _confidence(p: float, error: float, place: str, goal: str | None, against: bool, targets: int) -> str:
    """High only where the rule speaks plainly, the goal is known, and mean p is far from both lines."""
    distance = min(abs(p - STRONG.value), abs(p - WEAK.value))
    near = distance < max(NEAR.value, ERRORS_NEAR.value * error)
    if place == "intermediate" or (place == "strong" and (against or (goal is None and near))):
        return "low"
    if near or targets < FEW_TARGETS.value:
        return "medium"
    return "high" if place == "weak" or goal == "generalise" else "medium"


def _sentence(place: str, goal: str | None, label: str, p: float, against: bool) -> str:
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
    both = (
        ""
        if goal
        else " To fit this distribution start from sft; to generalise from it dft may win, and lose the rows' domain."
    )
    return f"{start} The evidence is open here: {label} is the middle, a race decides.{both}"


def _position_reason(p: float, error: float, place: str) -> dict[str, Any]:
    line = {"strong": STRONG, "weak": WEAK}.get(place, INTERMEDIATE)
    known = f"mean p {p:.3f}" + (f" (standard error {error:.3f})" if math.isfinite(error) else "")
    text = {
        "strong": f"{known} is above {STRONG.value:g}, where prior-leaning objectives win",
        "weak": f"{known} is below {WEAK.value:g}, where plain likelihood wins",
        "intermediate": f"{known} is between {WEAK.value:g} and {STRONG.value:g}, where neither wins for sure",
    }[place]
    return {"text": text, "value": p, "threshold": line.value, "source": line.source}


def _next(
    place: str, goal: str | None, spec: str, alternatives: Sequence[str], model: str, data: str, options: str
) -> list[str]:
    """Commands to run, the verdict's first."""
    source = f"--model {shlex.quote(model)} --data {shlex.quote(data)}{options}"
    objectives = ",".join(dict.fromkeys(("sft", "dft", spec)))
    asked = "--tasks-in BENCHMARK --tasks-out ANOTHER"
    compare = (
        f"rectune compare {source} --objectives {objectives} --seeds 3 {asked} --output-dir runs/compare"
    )
    if place == "intermediate":
        race = ",".join(dict.fromkeys((spec, *alternatives)))
        return [
            f"rectune compare {source} --objectives {race} --race 2h {asked} --output-dir runs/race",
            compare,
        ]
    return [
        f"rectune train {source} --objective {spec} --output-dir runs/{slug_of(parse_objective(spec))}",
        compare,
    ]
