"""The models of a comparison that could be shipped, as points with their accuracies: base model, runs, and what lies
between them.

    OUT/runs/<slug>/seed-<s>/{evaluation,greedy,validation}   answers of a run, the model at t = 1

What an accuracy and its interval are is in `analysis/significance.py`; which point to ship is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rectune.analysis.significance import mean_accuracy_of
from rectune.evaluation.accuracy import correct_matrix, read_evaluation, read_graded
from rectune.experiments.grid import BASE, Arm, Grid
from rectune.experiments.problem_sets import Problems
from rectune.records import Point, PointScore


def make_points(grid: Grid, arms: Sequence[Arm]) -> list[Point]:
    """The base model and the runs of the arms, with their accuracies."""
    base = {str(grid.seeds[0]): f"runs/{BASE}"}
    points = [Point(arm=BASE, label=BASE, at=0.0, folders=base)]
    for arm in arms:
        runs = {str(seed): grid.run(arm, seed).trained for seed in grid.seeds}
        folders = {seed: folder.relative_to(grid.out).as_posix() for seed, folder in runs.items()}
        points.append(Point(arm=arm.slug, label=arm.label, folders=folders))
    return [with_scores(point, grid) for point in points]


def with_scores(point: Point, grid: Grid) -> Point:
    """The point with its accuracies on the problems of the verdict and on those of validation."""
    of = {"scores": ("evaluation", grid.problems), "greedy": ("greedy", grid.problems)}
    of["validation"] = ("validation", {**grid.validation, **grid.validation_out})
    domains = {**grid.domains, **grid.validation_domains}
    folders = {seed: grid.out / folder for seed, folder in point.folders.items()}
    scores = {
        name: _scores({seed: folder / kind for seed, folder in folders.items()}, problems, domains)
        for name, (kind, problems) in of.items()
    }
    return point.model_copy(update=scores)


def _scores(
    folders: Mapping[str, Path], problems: Problems, domains: Mapping[str, str]
) -> dict[str, PointScore]:
    """Domain to accuracy over seeds and problems of all its tasks; empty where an evaluation is not there."""
    if not problems or not all((folder / "evaluation.json").is_file() for folder in folders.values()):
        return {}
    answers = {seed: _correct_by_task(folder) for seed, folder in folders.items()}
    scores = {}
    for domain in dict.fromkeys(domains[task] for task in problems):
        tasks = [task for task in problems if domains[task] == domain]
        correct_S = [np.concatenate([by_task[task] for task in tasks]) for by_task in answers.values()]
        by_seed = {seed: float(x.mean()) for seed, x in zip(answers, correct_S, strict=True)}
        scores[domain] = PointScore(**mean_accuracy_of(correct_S)._asdict(), by_seed=by_seed)
    return scores


def _correct_by_task(folder: Path) -> dict[str, np.ndarray]:
    """Task to which samples are correct, (P, N)."""
    evaluation = read_evaluation(folder)
    ids = {task: result.problem_ids for task, result in evaluation.benchmarks.items()}
    every = [problem_id for problem_ids in ids.values() for problem_id in problem_ids]
    lines = read_graded(folder / "graded.jsonl", every, evaluation.protocol.n)
    return {task: correct_matrix({i: lines[i] for i in problem_ids}) for task, problem_ids in ids.items()}
