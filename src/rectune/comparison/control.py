"""The sharpening control: every model also sampled at the temperature that makes it as sharp as the DFT model.

Average accuracy at T = 1 rewards low entropy by itself, and objectives such as DFT lower entropy. What is left of a
difference at equal entropy is not sharpness. How the temperature is found is in `evaluation/sharpness.py`, what
comes of it in `evaluation/arms.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rectune.comparison.answers import Draws, Respondent
from rectune.comparison.arms import Arm
from rectune.disk import check_format
from rectune.evaluation.sharpness import entropy_of_answers, match
from rectune.training.checkpoints import to_json, write_text

log = logging.getLogger("rectune")

NEAR = 0.1
"""Share of the target entropy by which matched answers may miss it without a warning."""


def entropy(respondent: Respondent, folder: Path) -> float:
    """Mean entropy of a model's answers in FOLDER/evaluation, in nats a token; kept in FOLDER/entropy.json."""
    path = folder / "entropy.json"
    if not path.is_file():
        found = entropy_of_answers(respondent.model, folder / "evaluation")
        write_text(path, to_json({"format": 1, "entropy": found}) + "\n")
    return float(json.loads(path.read_text())["entropy"])


def choose_target(arms: Sequence[Arm], entropies: Mapping[str, Mapping[int, float]]) -> Arm:
    """Whom the others are made as sharp as: dft where it is among the arms, else the one of lowest mean entropy.

    Args:
        arms: Without the base model, which is never the target.
        entropies: Slug to seed to nats a token.
    """
    plain = [arm for arm in arms if arm.objective.name == "dft" and not arm.objective.phases]
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
        found = match(respondent.model, folder / "evaluation", target)
        log.info("%s", found["sentence"])
        matched.mkdir(parents=True, exist_ok=True)
        write_text(path, to_json({"format": 1, "to": slug, **found}, indent=2) + "\n")
    record = json.loads(path.read_text())
    check_format(record, path)
    temperature = float(record["temperature"])
    respondent.answer(matched, files, replace(draws, temperature=temperature))
    if "drawn" not in record:
        drawn = entropy_of_answers(respondent.model, matched, temperature=temperature)
        write_text(path, to_json({**record, "drawn": drawn}, indent=2) + "\n")
        say = log.warning if abs(drawn - target) > NEAR * target else log.info
        say(
            "answers drawn at T = %.3f have %.3f nats a token, for a target of %.3f",
            temperature,
            drawn,
            target,
        )
    return matched
