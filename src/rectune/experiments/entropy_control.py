"""The sharpening control: every model also sampled at the temperature that makes it as sharp as the DFT model.

Average accuracy at T = 1 rewards low entropy by itself, and objectives such as DFT lower entropy. What is left of a
difference at equal entropy is not sharpness. How the temperature is found is in `analysis/entropy_matching.py`, what
comes of it in `analysis/significance.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rectune.analysis.entropy_matching import FEWEST_ANSWERS, entropy_of_answers, match
from rectune.evaluation.results import read_evaluation
from rectune.experiments.evaluator import Draws, Respondent
from rectune.experiments.variants import Arm
from rectune.objective_spec import parse_objective
from rectune.runtime.io import load_record, write_json

log = logging.getLogger("rectune")

NEAR = 0.1
"""Share of the target entropy by which matched answers may miss it without a correction or a warning."""
MOST = 3.0
"""By which a correction multiplies its aim at most: a few answers may all be certain."""
SHARE = 0.2
"""Of the answers to be drawn that a correction may draw besides; where that is too few, a miss is warned of only."""
SAME = 0.02
"""Distance from T = 1 at which other states are not to be feared."""


def entropy(respondent: Respondent, folder: Path) -> float:
    """Mean entropy of a model's answers in FOLDER/evaluation, in nats a token; kept in FOLDER/entropy.json."""
    path = folder / "entropy.json"
    if not path.is_file():
        found = entropy_of_answers(respondent.model, folder / "evaluation")
        write_json(path, {"format": 1, "entropy": found})
    return float(load_record(path, "entropy")["entropy"])


def choose_target(arms: Sequence[Arm], entropies: Mapping[str, Mapping[int, float]]) -> Arm:
    """Whom the others are made as sharp as: dft where it is among the arms, else the one of lowest mean entropy.

    Args:
        arms: Without the base model, which is never the target.
        entropies: Slug to seed to nats a token.
    """
    plain = [arm for arm in arms if parse_objective(arm.objective)[0].name == "dft"]
    return min(plain or arms, key=lambda arm: sum(entropies[arm.slug].values()) / len(entropies[arm.slug]))


def answer_matched(
    respondent: Respondent, folder: Path, slug: str, target: float, files: Sequence[Path], draws: Draws
) -> Path:
    """Sample a model as sharp as the arm `slug`; match.json beside has the temperature and how it was found.

    Its `drawn` is the entropy of the answers drawn there, which the target was only estimated for.
    """
    matched = folder / f"matched-{slug}"
    path = matched / "match.json"
    if not path.is_file():
        found = _temperature(respondent, folder, slug, target, files, draws)
        matched.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": 1, "to": slug, **found}, indent=2)
    record = load_record(path, "temperature")
    temperature = float(record["temperature"])
    respondent.answer(matched, files, replace(draws, temperature=temperature))
    if "drawn" not in record:
        drawn = entropy_of_answers(respondent.model, matched, temperature=temperature)
        write_json(path, {**record, "drawn": drawn}, indent=2)
        say = log.warning if _misses(drawn, target) else log.info
        say(
            "answers drawn at T = %.3f have %.3f nats a token, for a target of %.3f",
            temperature,
            drawn,
            target,
        )
    return matched


def _temperature(
    respondent: Respondent, folder: Path, slug: str, target: float, files: Sequence[Path], draws: Draws
) -> dict[str, Any]:
    """What `match` finds at the states of T = 1, corrected once by a few answers drawn there, which visit others."""
    own = folder / "evaluation"
    found = match(respondent.model, own, target)
    log.info("%s", found["sentence"])
    problems = sum(len(one["problem_ids"]) for one in read_evaluation(own)["benchmarks"].values())
    n, temperature = math.ceil(FEWEST_ANSWERS / problems), found["temperature"]
    same = math.isclose(temperature, 1, abs_tol=SAME)
    if not found["reached"] or same or n > SHARE * draws.n:
        return {**found, "pilot": None}
    answers = folder / f"validation-matched-{slug}"
    respondent.answer(answers, files, replace(draws, n=n, temperature=temperature, seed=draws.seed + 1))
    drawn = entropy_of_answers(respondent.model, answers, temperature=temperature)
    pilot = {"temperature": temperature, "answers": n * problems, "drawn": drawn}
    if _misses(drawn, target):
        aim = target * min(found["entropy"] / max(drawn, 1e-9), MOST)
        log.info("%d answers drawn there have %.3f, so the aim becomes %.3f", pilot["answers"], drawn, aim)
        found = {**match(respondent.model, own, aim), "target": target}
        log.info("%s", found["sentence"])
    return {**found, "pilot": pilot}


def _misses(drawn: float, target: float) -> bool:
    return abs(drawn - target) > NEAR * target
