"""The control at equal entropy: every model is also sampled at the temperature at which it is as sharp as DFT's.

Average accuracy at T = 1 rewards low entropy by itself, and objectives such as DFT lower entropy. What is left of a
difference at equal entropy is not due to sharpness. How the temperature is found is in `analysis/entropy_matching.py`,
what becomes of it in `analysis/significance.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rectune.analysis.entropy_matching import FEWEST_ANSWERS, entropy_of_answers, match
from rectune.config import RLConfig
from rectune.evaluation.accuracy import read_evaluation
from rectune.experiments.evaluator import EvalSettings, Evaluator
from rectune.experiments.grid import Arm
from rectune.objective_spec import parse_objective
from rectune.records import AnswerEntropy, MatchFile, MatchPilot, read_record, write_record

log = logging.getLogger("rectune")

TOLERANCE = 0.1
"""Share of the target entropy by which matched answers may miss it without a correction or a warning."""
MOST = 3.0
"""Largest factor of a correction: a few answers may all be certain."""
PILOT_SHARE = 0.2
"""A pilot samples at most this share of the answers; where that is too few, a miss only gives a warning."""
NEAR_ONE = 0.02
"""Distance from T = 1 within which the answers visit the same states."""


def mean_entropy(evaluator: Evaluator, folder: Path, settings: EvalSettings) -> float:
    """Mean entropy of a model's answers in FOLDER/evaluation, in nats a token; kept in FOLDER/entropy.json."""
    path = folder / "entropy.json"
    if not path.is_file():
        entropy = entropy_of_answers(
            evaluator.model, folder / "evaluation", loaded=evaluator.loaded(settings)
        )
        write_record(path, AnswerEntropy(entropy=entropy))
    return read_record(path, AnswerEntropy).entropy


def choose_target(arms: Sequence[Arm], entropies: Mapping[str, Mapping[int, float]]) -> Arm:
    """The arm that others are matched to: dft if it is among the arms, else the one of lowest mean entropy.

    Args:
        arms: Without the base model, which is never the target.
        entropies: Label to seed to nats a token.
    """
    dft = [arm for arm in arms if _is_dft(arm)]
    return min(dft or arms, key=lambda arm: sum(entropies[arm.label].values()) / len(entropies[arm.label]))


def _is_dft(arm: Arm) -> bool:
    return not isinstance(arm.config, RLConfig) and parse_objective(arm.config.objective)[0].label == "dft"


def evaluate_matched(
    evaluator: Evaluator,
    folder: Path,
    slug: str,
    target: float,
    files: Sequence[Path],
    settings: EvalSettings,
) -> Path:
    """Sample a model as sharply as the arm `slug`, and return the folder.

    Its match.json has the temperature and how it was found; `drawn` is the entropy of the answers sampled there, which
    was only estimated before.
    """
    matched = folder / f"matched-{slug}"
    path = matched / "match.json"
    if not path.is_file():
        found = _temperature(evaluator, folder, slug, target, files, settings)
        matched.mkdir(parents=True, exist_ok=True)
        write_record(path, found)
    record = read_record(path, MatchFile)
    temperature = record.temperature
    evaluator.evaluate(matched, files, replace(settings, temperature=temperature))
    if record.drawn is None:
        drawn = entropy_of_answers(
            evaluator.model, matched, temperature=temperature, loaded=evaluator.loaded(settings)
        )
        write_record(path, record.model_copy(update={"drawn": drawn}))
        log.log(
            logging.WARNING if _misses(drawn, target) else logging.INFO,
            "answers sampled at T = %.3f have %.3f nats a token, for a target of %.3f",
            temperature,
            drawn,
            target,
        )
    return matched


def _temperature(
    evaluator: Evaluator,
    folder: Path,
    slug: str,
    target: float,
    files: Sequence[Path],
    settings: EvalSettings,
) -> MatchFile:
    """What `match` finds at the states of T = 1, corrected once by a pilot: a few answers sampled there."""
    own = folder / "evaluation"
    loaded = evaluator.loaded(settings)
    found = match(evaluator.model, own, target, loaded=loaded)
    log.info("%s", found.sentence)
    problems = sum(len(task.problem_ids) for task in read_evaluation(own).benchmarks.values())
    n, temperature = math.ceil(FEWEST_ANSWERS / problems), found.temperature
    near_one = math.isclose(temperature, 1, abs_tol=NEAR_ONE)
    if not found.reached or near_one or n > PILOT_SHARE * settings.num_samples:
        return MatchFile(**found.to_dict(), to=slug, pilot=None)
    answers = folder / f"validation-matched-{slug}"
    evaluator.evaluate(
        answers, files, replace(settings, num_samples=n, temperature=temperature, seed=settings.seed + 1)
    )
    drawn = entropy_of_answers(evaluator.model, answers, temperature=temperature, loaded=loaded)
    pilot = MatchPilot(temperature=temperature, answers=n * problems, drawn=drawn)
    if _misses(drawn, target):
        aim = target * min(found.entropy / max(drawn, 1e-9), MOST)
        log.info("%d answers sampled there have %.3f, so the aim becomes %.3f", n * problems, drawn, aim)
        found = match(evaluator.model, own, aim, loaded=loaded).model_copy(update={"target": target})
        log.info("%s", found.sentence)
    return MatchFile(**found.to_dict(), to=slug, pilot=pilot)


def _misses(drawn: float, target: float) -> bool:
    return abs(drawn - target) > TOLERANCE * target
