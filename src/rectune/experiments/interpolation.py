"""The models of a comparison that could be shipped, as points with their accuracies: base model, runs, and what lies
between them.

    OUT/runs/<slug>/seed-<s>/{evaluation,greedy,validation}   answers of a run, the model at t = 1
    OUT/runs/<slug>/seed-<s>/at-<t>/...                       of base + t (run - base)
    OUT/runs/<slug>+<slug>/seed-<s>/...                       of the mean of two arms' runs, and of t in .../at-<t>

A merged model's weights are in `model` of its folder while it is evaluated. How models are merged is in
`models/merge.py`, what an accuracy and its interval are in `analysis/significance.py`; which point to ship is not
decided here.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rectune.analysis.significance import mean_accuracy_of
from rectune.analysis.summary_text import merged_label
from rectune.evaluation.accuracy import correct_matrix, read_answers
from rectune.experiments.evaluator import EvalSettings, Evaluator, is_evaluated
from rectune.experiments.grid import BASE, Arm, Grid
from rectune.models.merge import at_folder, open_sources
from rectune.records import Point, PointScore
from rectune.runtime.io import unfinished

log = logging.getLogger("rectune")


@dataclass(frozen=True)
class MergedArm:
    """Models between the base model and the runs of an arm, or the means of several arms' runs, by seed.

    Attributes:
        arms: Whose runs are averaged.
        at: Share of the way from the base model.
    """

    arms: tuple[Arm, ...]
    at: float

    @property
    def slug(self) -> str:
        return "+".join(arm.slug for arm in self.arms)

    @property
    def label(self) -> str:
        return merged_label([arm.label for arm in self.arms], self.at)

    def folder(self, grid: Grid, seed: int) -> Path:
        """Of what belongs to the model of a seed."""
        folder = grid.out / "runs" / self.slug / f"seed-{seed}"
        return folder if self.at == 1 else folder / at_folder(self.at)

    @contextmanager
    def evaluator(self, grid: Grid, seed: int) -> Iterator[Evaluator]:
        """Of the model of a seed, which is made when an answer is first needed, and removed at the end."""
        model = self.folder(grid, seed) / "model"
        runs = [str(grid.run(arm, seed).trained / "model") for arm in self.arms]
        try:
            with _MergedEvaluator(grid, runs, self.at, model) as evaluator:
                yield evaluator
        finally:
            _remove(model)


class _MergedEvaluator(Evaluator):
    """Merges the model before the first evaluation that is not there yet."""

    def __init__(self, grid: Grid, runs: Sequence[str], at: float, model: Path) -> None:
        super().__init__(str(model), str(model), grid.grader)
        self._base, self._runs, self._at, self._folder = grid.model, runs, at, model

    def evaluate(self, folder: Path, files: Sequence[Path], settings: EvalSettings) -> None:
        """As `Evaluator.evaluate`."""
        if is_evaluated(folder, files, settings):
            return
        if not self._folder.exists():
            open_sources(self._base, self._runs).write(self._folder, self._at)
        super().evaluate(folder, files, settings)


def _remove(model: Path) -> None:
    for folder in (model, unfinished(model)):
        shutil.rmtree(folder, ignore_errors=True)


def remove_merged(out: Path) -> None:
    """Remove the weights of merged models that a killed process left behind."""
    for pattern in ("*/seed-*/at-*", "*+*/seed-*"):
        for folder in (out / "runs").glob(pattern):
            _remove(folder / "model")


def merged_arms(grid: Grid, arms: Sequence[Arm]) -> list[MergedArm]:
    """What lies between the base model and the runs of these arms, and the means that are wanted of them."""
    merged = [
        MergedArm((arm,), at) for arm in arms if arm.slug in grid.interpolated for at in grid.interpolate
    ]
    for slugs in grid.soups:
        members = tuple(arm for arm in arms if arm.slug in slugs)
        if len(members) < len(slugs):
            log.info("no mean of %s: not all of them are left", " and ".join(slugs))
            continue
        merged += [MergedArm(members, at) for at in (*grid.interpolate, 1.0)]
    return merged


def make_points(grid: Grid, arms: Sequence[Arm]) -> list[Point]:
    """The base model, the runs of the arms and the merged models, with their accuracies."""
    base = {str(grid.seeds[0]): f"runs/{BASE}"}
    points = [Point(arm=BASE, label=BASE, at=0.0, folders=base)]
    for arm in arms:
        points.append(Point(arm=arm.slug, label=arm.label))
        points[-1].folders = {str(seed): _below(grid, grid.run(arm, seed).trained) for seed in grid.seeds}
    for merged in merged_arms(grid, arms):
        points.append(Point(arm=merged.slug, label=merged.label, at=merged.at))
        points[-1].folders = {str(seed): _below(grid, merged.folder(grid, seed)) for seed in grid.seeds}
    return [with_scores(point, grid.out, grid.domains, grid.validation_domains) for point in points]


def _below(grid: Grid, folder: Path) -> str:
    return folder.relative_to(grid.out).as_posix()


def with_scores(
    point: Point, out: Path, domains: Mapping[str, str], validation_domains: Mapping[str, str]
) -> Point:
    """The point with its accuracies on the problems of the verdict and on those of validation.

    Args:
        out: Folder of the comparison.
        domains, validation_domains: Task to domain, of the verdict's problems and of validation problems.
    """
    folders = {seed: out / folder for seed, folder in point.folders.items()}
    kinds = {"scores": ("evaluation", domains), "greedy": ("greedy", domains)}
    kinds["validation"] = ("validation", validation_domains)
    scores = {
        name: _scores({seed: folder / kind for seed, folder in folders.items()}, of_kind)
        for name, (kind, of_kind) in kinds.items()
    }
    return point.model_copy(update=scores)


def _scores(folders: Mapping[str, Path], domains: Mapping[str, str]) -> dict[str, PointScore]:
    """Domain to accuracy over seeds and problems of all its tasks; empty where an evaluation is not there."""
    if not domains or not all((folder / "evaluation.json").is_file() for folder in folders.values()):
        return {}
    answers = {
        seed: {task: correct_matrix(samples) for task, samples in read_answers(folder)[1].items()}
        for seed, folder in folders.items()
    }
    scores = {}
    for domain in dict.fromkeys(domains.values()):
        tasks = [task for task in domains if domains[task] == domain]
        correct_S = [np.concatenate([by_task[task] for task in tasks]) for by_task in answers.values()]
        by_seed = {seed: float(x.mean()) for seed, x in zip(answers, correct_S, strict=True)}
        scores[domain] = PointScore(**mean_accuracy_of(correct_S)._asdict(), by_seed=by_seed)
    return scores
