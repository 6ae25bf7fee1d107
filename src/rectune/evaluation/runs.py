"""Evaluation folders of several arms and seeds as matrices of answers, and which of them belong together.

A folder that cannot be read is left out with a warning, as is what is not alike. What is compared, and how, is in
`arms.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rectune.errors import UserError
from rectune.evaluation.compare import protocol_differences, read_evaluation
from rectune.evaluation.scoring import read_graded
from rectune.evaluation.shape import Answers, answers_of, joined, sampled_entropy
from rectune.evaluation.wording import BASE

Folders = Mapping[str, Mapping[int, Path]]


class Held(NamedTuple):
    """The answers of one run to one benchmark (or to all of a domain), by problem."""

    ids: list[str]
    answers: Answers
    temperature: float


Arms = dict[str, dict[int, Held]]  # label -> seed -> answers


def read_arms(folders: Folders, warnings: list[str]) -> tuple[dict[str, Arms], dict[str, dict[str, Any]]]:
    """Benchmark to arms, and the evaluations by name; what cannot be read becomes a warning."""
    found: dict[str, Arms] = {}
    evaluations: dict[str, dict[str, Any]] = {}
    order = sorted(
        folders, key=lambda label: label != BASE
    )  # the base model is what others are compared with
    for label, seed in [(arm, number) for arm in order for number in folders[arm]]:
        folder = Path(folders[label][seed])
        try:
            evaluation = read_evaluation(folder)
            n, temperature = evaluation["protocol"]["n"], float(evaluation["protocol"]["temperature"])
            wanted = {name: list(one["problem_ids"]) for name, one in evaluation["benchmarks"].items()}
            lines = read_graded(folder / "graded.jsonl", [i for ids in wanted.values() for i in ids], n)
            held = {name: answers_of({i: lines[i] for i in ids}) for name, ids in wanted.items() if ids}
            for answers in held.values() if evaluation["protocol"].get("top_p", 1) != 1 else ():
                answers.numbers["surprisal"][:] = (
                    np.nan
                )  # then it is not that of the distribution sampled from
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = (
                str(error) if isinstance(error, UserError) else f"{folder}: is not an evaluation ({error!r})"
            )
            warnings.append(f"{label}, seed {seed}, is left out: {why}")
            continue
        evaluations[f"{label}, seed {seed}"] = evaluation
        for name, answers in held.items():
            found.setdefault(name, {}).setdefault(label, {})[seed] = Held(wanted[name], answers, temperature)
    return found, evaluations


def unlike(evaluations: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Differences in protocol from the first evaluation."""
    (first, reference), *others = evaluations.items()
    return [f"{first} and {name}: {w}" for name, e in others for w in protocol_differences(reference, e)]


def target_of(
    plain: dict[str, Arms], cool: dict[str, Arms], named: str | None, warnings: list[str]
) -> str | None:
    """The arm that the matched ones are as sharp as."""
    if named is not None or not cool:
        return named
    done = {label for arms in cool.values() for label in arms}
    left = dict.fromkeys(label for arms in plain.values() for label in arms if label not in done)
    if len(left) > 1:
        nats = {
            label: [e for arms in plain.values() if (e := entropy_of(arms.get(label, {})))] for label in left
        }
        known = {label: float(np.mean(values)) for label, values in nats.items() if values}
        left = {min(known, key=lambda label: known[label]): None} if known else {}
    if not left:
        warnings.append("which arm the temperatures were matched to cannot be told; they are not compared")
    return next(iter(left), None)


def entropy_of(runs: Mapping[int, Held]) -> float | None:
    """Mean entropy of an arm's own answers in nats a token; None unless they were drawn at T = 1 with log-probs."""
    values = [sampled_entropy(held.answers) for held in runs.values() if held.temperature == 1]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def pooled(benchmarks: Sequence[Arms]) -> Arms:
    """All problems of several benchmarks, for the runs that have all of them."""
    together: Arms = {}
    for label in benchmarks[0]:
        for seed, first in benchmarks[0][label].items():
            parts = [arms.get(label, {}).get(seed) for arms in benchmarks]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(benchmarks):
                ids = [i for part in whole for i in part.ids]
                answers = joined([part.answers for part in whole], problems=True)
                together.setdefault(label, {})[seed] = Held(ids, answers, first.temperature)
    return together


def common(what: str, held: Sequence[Held], warnings: list[str]) -> list[Answers]:
    """Each one's answers to the problems that all have, in the order of the first."""
    shared = set(held[0].ids).intersection(*(one.ids for one in held))
    most = max(len(one.ids) for one in held)
    if len(shared) < most:
        warnings.append(
            f"{what}: {len(shared)} of {most} problems are in all evaluations that belong together"
        )
    if all(one.ids == held[0].ids for one in held):
        return [one.answers for one in held]
    rows = [{i: row for row, i in enumerate(one.ids)} for one in held]
    order = [i for i in held[0].ids if i in shared]
    return [one.answers.take([at[i] for i in order]) for one, at in zip(held, rows, strict=True)]


def paired(
    name: str, labels: tuple[str, str], a: dict[int, Held], b: dict[int, Held], warnings: list[str]
) -> tuple[list[Answers], list[Answers]] | None:
    """Answers of a and b, seed by seed, to the problems that all have; None without a problem or a run in common."""
    seeds = [(seed, seed) for seed in a if seed in b]
    if len({labels[0]: a, labels[1]: b}.get(BASE, "")) == 1:
        seeds = [(i, j) for i in a for j in b]
    elif not seeds and a and b:
        seeds = list(zip(sorted(a), sorted(b), strict=False))
        warnings.append(f"{labels[0]} and {labels[1]} have no seed in common: paired in order")
    if not seeds:
        return None
    held = [*(a[i] for i, _ in seeds), *(b[j] for _, j in seeds)]
    if not set(held[0].ids).intersection(*(one.ids for one in held)):
        warnings.append(f"{name}: {labels[0]} and {labels[1]} have no problem in common")
        return None
    answers = common(f"{name}, {labels[0]} and {labels[1]}", held, warnings)
    return answers[: len(seeds)], answers[len(seeds) :]
