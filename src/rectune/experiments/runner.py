"""Carries out the grid of an experiment: base model, sweep, race, runs, evaluations, verdict.

Every step is skipped where its result is there, so a killed experiment resumes. Training is in `training/trainer.py`,
evaluation and the statistics of the verdict in `evaluation/` and `analysis/`.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from rectune.analysis.significance import compare_runs
from rectune.config import RLConfig
from rectune.experiments.curve import curve_points, evaluate_over_steps
from rectune.experiments.entropy_control import choose_target, evaluate_matched, mean_entropy
from rectune.experiments.evaluator import EvalSettings, Evaluator, is_evaluated
from rectune.experiments.grid import BASE, Arm, ArmRun, Grid
from rectune.experiments.interpolation import make_points
from rectune.experiments.lr_sweep import sweep
from rectune.experiments.problem_sets import write_problems
from rectune.experiments.successive_halving import race
from rectune.records import ComparedArm, Comparison, Dropped, read_record, write_record
from rectune.runtime.progress import TaskTimer
from rectune.sampling.sample import frozen_template

log = logging.getLogger("rectune")

Folders = dict[str, dict[int, Path]]
COMPARISON = "comparison.json"


def read_comparison(out: Path) -> Comparison | None:
    """OUT/comparison.json; None if there is none. Raises `UserError` for a damaged one."""
    path = out / COMPARISON
    return read_record(path, Comparison) if path.is_file() else None


def run_grid(grid: Grid) -> Comparison:
    """Do everything that is not done yet, and write OUT/comparison.json.

    Raises:
        UserError: Whatever training and evaluation raise, or problems that are not those the folder began with.
    """
    with grid.grader:
        return _run(_with_dated_template(grid))


def _run(grid: Grid) -> Comparison:
    record = _record(grid)
    begun = read_comparison(grid.out)
    if begun is None:
        shutil.rmtree(grid.out / "problems", ignore_errors=True)  # of an attempt without an answer
    else:  # an older verdict stands until there is a new one
        record = record.model_copy(
            update={name: getattr(begun, name) for name in ("verdict", "matched_to", "points")}
        )
    files = write_problems(grid.out / "problems" / "verdict", grid.problems)
    validation = write_problems(grid.out / "problems" / "validation", grid.validation)
    _evaluate_base(grid, files)
    if begun is None:  # from now on the folder holds this experiment: the model can be evaluated like this
        write_record(grid.out / COMPARISON, record)
    arms = grid.arms
    if swept := sweep(grid, validation):
        rates = {slug: arm.learning_rate for slug, arm in swept.arms.items()}
        arms = tuple(arm.with_rate(rates[arm.slug]) if arm.slug in rates else arm for arm in arms)
        record = record.model_copy(update={"sweep": swept, "arms": _compared(grid, arms)})
        write_record(grid.out / COMPARISON, record)
    left: Sequence[Arm] = arms
    if raced := race(grid, arms, validation):
        left = [arm for arm in arms if arm.slug in raced.survivors]
        record = record.model_copy(update={"race": raced, "arms": _compared(grid, arms, raced.dropped)})
        write_record(grid.out / COMPARISON, record)
    _train_and_evaluate(grid, grid.runs(left), files)
    matched, target = _match(grid, left, files) if grid.match_entropy else ({}, None)
    greedy = _folders(grid, left, "greedy") if "greedy" in evaluations(grid.evaluation, 0) else None
    verdict = compare_runs(
        _folders(grid, left, "evaluation"), grid.domains, greedy=greedy, matched=matched or None, matched_to=target
    )  # fmt: skip
    points = [*make_points(grid, left), *curve_points(grid, arms)]
    record = record.model_copy(update={"matched_to": target, "points": points, "verdict": verdict})
    write_record(grid.out / COMPARISON, record)
    return record


def _with_dated_template(grid: Grid) -> Grid:
    """A template that reads the clock writes the day on which the experiment began, in training and evaluation."""
    given = grid.evaluation.chat_template
    template = frozen_template(grid.out, given, grid.model)
    if template == given:
        return grid
    dated = {"chat_template": template}
    arms = tuple(
        replace(arm, config=arm.config.model_copy(update=dated)) if arm.config.chat_template == given else arm
        for arm in grid.arms
    )
    return replace(grid, arms=arms, evaluation=replace(grid.evaluation, chat_template=template))


def _record(grid: Grid) -> Comparison:
    return Comparison(
        rectune=version("rectune"),
        model=grid.model,
        data=grid.data,
        seeds=list(grid.seeds),
        arms=_compared(grid, grid.arms),
        base=f"runs/{BASE}",
        benchmarks=dict(grid.domains),
        problems={name: len(problems) for name, problems in grid.problems.items()},
        validation={name: len(problems) for name, problems in grid.validation.items()},
        settings=grid.settings,
    )


def _compared(
    grid: Grid, arms: Sequence[Arm], dropped: Mapping[str, Dropped] | None = None
) -> list[ComparedArm]:
    compared = []
    for arm in arms:
        config = arm.config
        runs = {seed: grid.run(arm, seed).trained.relative_to(grid.out) for seed in grid.seeds}
        compared.append(
            ComparedArm(
                objective=config.algorithm if isinstance(config, RLConfig) else config.objective,
                label=arm.label,
                slug=arm.slug,
                learning_rate=config.learning_rate,
                runs={str(seed): folder.as_posix() for seed, folder in runs.items()},
                dropped=(dropped or {}).get(arm.slug),
            )
        )
    return compared


def evaluations(settings: EvalSettings, seed: int) -> dict[str, EvalSettings]:
    """The evaluations of a model that need no other model's: as the experiment has it, and greedy."""
    asked = replace(settings, seed=seed)
    greedy = replace(asked, num_samples=1, temperature=0.0)
    return {"evaluation": asked} | ({"greedy": greedy} if greedy != asked else {})


def _evaluate_base(grid: Grid, files: Sequence[Path]) -> None:
    kinds = evaluations(grid.evaluation, grid.seeds[0])
    progress = TaskTimer("base model", dict.fromkeys(kinds, 1))
    with grid.base() as evaluator:
        _evaluate(evaluator, grid.out / "runs" / BASE, BASE, kinds, files, progress)


def _evaluate(
    evaluator: Evaluator,
    folder: Path,
    name: str,
    kinds: Mapping[str, EvalSettings],
    files: Sequence[Path],
    progress: TaskTimer,
) -> None:
    for kind, settings in kinds.items():
        if not is_evaluated(folder / kind, files, settings):
            how = "greedily" if kind == "greedy" else f"{settings.num_samples} times"
            with progress.task(kind, f"sample {name} {how}"):
                evaluator.evaluate(folder / kind, files, settings)


def _train_and_evaluate(grid: Grid, runs: Sequence[ArmRun], files: Sequence[Path]) -> None:
    tasks = Counter(train=sum(not run.is_finished for run in runs))
    for run in runs:
        for kind, settings in evaluations(grid.evaluation, run.config.seed).items():
            tasks[kind] += not is_evaluated(run.trained / kind, files, settings)
    progress = TaskTimer("runs", tasks)
    for run in runs:
        evaluate_over_steps(grid, run)
        if run.is_finished:
            run.train()  # removes what a kill left behind
        else:
            with progress.task("train", f"train {run.name}"):
                run.train()
        with run.evaluator() as evaluator:
            kinds = evaluations(grid.evaluation, run.config.seed)
            _evaluate(evaluator, run.trained, run.name, kinds, files, progress)


def _match(grid: Grid, left: Sequence[Arm], files: Sequence[Path]) -> tuple[Folders, str | None]:
    """The control at equal entropy: label to seed to folder of the matched evaluations, and the target's label."""
    if grid.evaluation.temperature != 1:
        log.info("no control at equal entropy: it needs answers at temperature 1")
        return {}, None
    models = {(BASE, grid.seeds[0]): (grid.base(), grid.out / "runs" / BASE)}
    for arm in left:
        for seed in grid.seeds:
            run = grid.run(arm, seed)
            models[arm.label, seed] = (run.evaluator(), run.trained)
    entropies: dict[str, dict[int, float]] = {}
    for (label, seed), (evaluator, folder) in models.items():
        entropies.setdefault(label, {})[seed] = mean_entropy(evaluator, folder)
    target = choose_target(left, entropies)
    others = {key: model for key, model in models.items() if key[0] != target.label}
    progress = TaskTimer(f"as sharp as {target.label}", {"matched": len(others)})
    matched: Folders = {}
    for (label, seed), (evaluator, folder) in others.items():
        settings = replace(grid.evaluation, seed=seed)
        with evaluator, progress.task("matched", f"{label}, seed {seed}"):
            matched.setdefault(label, {})[seed] = evaluate_matched(
                evaluator, folder, target.slug, entropies[target.label][seed], files, settings
            )
    return matched, target.label


def _folders(grid: Grid, arms: Sequence[Arm], kind: str) -> Folders:
    folders: Folders = {BASE: {grid.seeds[0]: grid.out / "runs" / BASE / kind}}
    for arm in arms:
        folders[arm.label] = {seed: grid.run(arm, seed).trained / kind for seed in grid.seeds}
    return folders
