"""Carries out the grid of an experiment: base model, sweep, race, runs, evaluations, verdict.

Every step is skipped where its result is there, so a killed experiment resumes. Training is in `training/trainer.py`,
evaluation and the statistics of the verdict in `evaluation/` and `analysis/`.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from rectune.analysis.decision import TEMPERATURES, best_decoding, decide, pick_reference, tempered
from rectune.analysis.significance import compare_runs
from rectune.config import RLConfig
from rectune.experiments.curve import curve_points, evaluate_over_steps
from rectune.experiments.entropy_control import choose_target, evaluate_matched, mean_entropy
from rectune.experiments.evaluator import EvalSettings, Evaluator, is_evaluated
from rectune.experiments.grid import BASE, Arm, ArmRun, Grid
from rectune.experiments.interpolation import MergedArm, make_points, merged_arms, remove_merged
from rectune.experiments.lr_sweep import rate_warnings, sweep
from rectune.experiments.problem_sets import ProblemFiles, write_problems
from rectune.experiments.successive_halving import race
from rectune.records import ComparedArm, Comparison, Dropped, Point, read_record, write_record
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
    gc.freeze()  # the many objects of imported modules are not looked at after each model
    try:
        with grid.grader:
            return _run(_with_dated_template(grid))
    finally:
        gc.unfreeze()


def _run(grid: Grid) -> Comparison:
    record = _record(grid)
    begun = read_comparison(grid.out)
    if begun is None:
        shutil.rmtree(grid.out / "problems", ignore_errors=True)  # of an attempt without an answer
    else:  # an older verdict stands until there is a new one
        record = record.model_copy(
            update={name: getattr(begun, name) for name in ("verdict", "matched_to", "points", "decision")}
        )
    files = _write_problems(grid)
    _evaluate_base(grid, files, record)
    if begun is None:  # from now on the folder holds this experiment: the model can be evaluated like this
        write_record(grid.out / COMPARISON, record)
    arms = grid.arms
    for sentence in rate_warnings(grid, None):
        log.info("%s (no sweep: %s)", sentence, grid.unmatched)
    if swept := sweep(grid, files.choices):
        rates = {slug: arm.learning_rate for slug, arm in swept.arms.items()}
        arms = tuple(arm.with_rate(rates[arm.slug]) if arm.slug in rates else arm for arm in arms)
        record = record.model_copy(update={"sweep": swept, "arms": _compared(grid, arms)})
        write_record(grid.out / COMPARISON, record)
    left: Sequence[Arm] = arms
    if raced := race(grid, arms, files.choices):
        left = [arm for arm in arms if arm.slug in raced.survivors]
        record = record.model_copy(update={"race": raced, "arms": _compared(grid, arms, raced.dropped)})
        write_record(grid.out / COMPARISON, record)
    _train_and_evaluate(grid, grid.runs(left), files)
    _evaluate_merged(grid, merged_arms(grid, left), files)
    matched, target = _match(grid, left, files.verdict) if grid.match_entropy else ({}, None)
    greedy = _folders(grid, left, "greedy") if "greedy" in evaluations(grid, 0, files) else None
    verdict = compare_runs(
        _folders(grid, left, "evaluation"), grid.domains, greedy=greedy, matched=matched or None, matched_to=target,
        overlap=[problem.problem_id for problem in grid.overlap.found] if grid.overlap else (),
    )  # fmt: skip
    verdict = verdict.model_copy(update={"warnings": [*verdict.warnings, *rate_warnings(grid, swept)]})
    for warning in verdict.warnings:
        log.warning("%s", warning)
    points = [*make_points(grid, left), *curve_points(grid, arms)]
    record = record.model_copy(update={"matched_to": target, "points": points, "verdict": verdict})
    if grid.margin is not None:
        against = _reference(grid, left)
        decision = decide(record, grid.out, margin=grid.margin, against=against, require=grid.require)
        record = record.model_copy(update={"decision": decision})
    write_record(grid.out / COMPARISON, record)
    return record


def _reference(grid: Grid, left: Sequence[Arm]) -> str:
    """The label that a decision is against; the base model where the race stopped that arm."""
    wanted = pick_reference([BASE, *(arm.label for arm in grid.arms)], grid.against)
    if wanted in (BASE, *(arm.label for arm in left)):
        return wanted
    log.warning("%s was dropped by the race, so the decision is against the base model", wanted)
    return BASE


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
        validation={name: len(some) for name, some in {**grid.validation, **grid.validation_out}.items()},
        validation_domains=grid.validation_domains,
        settings=grid.settings,
        overlap=grid.overlap,
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


def _write_problems(grid: Grid) -> ProblemFiles:
    verdict = write_problems(grid.out / "problems" / "verdict", grid.problems)
    choices, others = (
        write_problems(grid.out / "problems" / "validation", problems)
        for problems in (grid.validation, grid.validation_out)
    )
    return ProblemFiles(verdict, choices, [*choices, *others] if others else [])


Planned = Mapping[str, tuple[EvalSettings, Sequence[Path]]]
"""Folder of an evaluation to how what is sampled."""


def evaluations(grid: Grid, seed: int, files: ProblemFiles) -> Planned:
    """The evaluations of a model that need no other model's: as the experiment has it, and greedy; both on the problems
    that the choice of a model is judged on, too, if one is to be chosen.
    """
    sampled = replace(grid.evaluation, seed=seed)
    greedy = replace(sampled, num_samples=1, temperature=0.0)
    kinds = {"evaluation": sampled} | ({"greedy": greedy} if greedy != sampled else {})
    planned = {kind: (settings, files.verdict) for kind, settings in kinds.items()}
    if files.validation:
        names = {"evaluation": "validation", "greedy": "validation-greedy"}
        planned |= {names[kind]: (settings, files.validation) for kind, settings in kinds.items()}
    return planned


def _evaluate_base(grid: Grid, files: ProblemFiles, record: Comparison) -> None:
    """Sample the base model, at other temperatures too if a model is to be chosen: it is judged at its best one."""
    planned = dict(evaluations(grid, grid.seeds[0], files))
    sampled, folder = planned["evaluation"][0], grid.out / "runs" / BASE
    at = {tempered(t): replace(sampled, temperature=t) for t in TEMPERATURES if t != sampled.temperature}
    if files.validation:
        planned |= {kinds[0]: (settings, files.validation) for kinds, settings in at.items()}
    progress = TaskTimer("base model", dict.fromkeys(planned, 1))
    with grid.base() as evaluator:
        _evaluate(evaluator, folder, BASE, planned, progress)
        _keep_entropy(grid, evaluator, folder, grid.seeds[0])
        if files.validation:
            base = Point(arm=BASE, label=BASE, folders={str(grid.seeds[0]): f"runs/{BASE}"})
            kinds = best_decoding(record.model_copy(update={"points": [base]}), grid.out)
            if kinds in at:
                _evaluate(evaluator, folder, BASE, {kinds[1]: (at[kinds], files.verdict)}, progress)


def _evaluate(evaluator: Evaluator, folder: Path, name: str, planned: Planned, progress: TaskTimer) -> None:
    for kind, (settings, files) in planned.items():
        if not is_evaluated(folder / kind, files, settings):
            how = "greedily" if settings.temperature == 0 else f"{settings.num_samples} times"
            with progress.task(kind, f"sample {name} {how}"):
                evaluator.evaluate(folder / kind, files, settings)


def _missing(models: Iterable[tuple[Path, Planned]]) -> Counter[str]:
    """How many evaluations of each kind are not there yet."""
    return Counter(
        kind
        for folder, planned in models
        for kind, (settings, files) in planned.items()
        if not is_evaluated(folder / kind, files, settings)
    )


def _train_and_evaluate(grid: Grid, runs: Sequence[ArmRun], files: ProblemFiles) -> None:
    tasks = Counter(train=sum(not run.is_finished for run in runs))
    tasks += _missing((run.trained, evaluations(grid, run.config.seed, files)) for run in runs)
    progress = TaskTimer("runs", tasks)
    for run in runs:
        evaluate_over_steps(grid, run)
        if run.is_finished:
            run.train()  # removes what a kill left behind
        else:
            with progress.task("train", f"train {run.name}"):
                run.train()
        with run.evaluator() as evaluator:
            planned = evaluations(grid, run.config.seed, files)
            _evaluate(evaluator, run.trained, run.name, planned, progress)
            _keep_entropy(grid, evaluator, run.trained, run.config.seed)


def _keep_entropy(grid: Grid, evaluator: Evaluator, folder: Path, seed: int) -> None:
    """Measure what `_match` reads, while the model is loaded."""
    if grid.match_entropy and grid.evaluation.temperature == 1:
        mean_entropy(evaluator, folder, replace(grid.evaluation, seed=seed))


def _evaluate_merged(grid: Grid, merged: Sequence[MergedArm], files: ProblemFiles) -> None:
    remove_merged(grid.out)
    models = [(arm, seed, evaluations(grid, seed, files)) for arm in merged for seed in grid.seeds]
    tasks = _missing((arm.folder(grid, seed), planned) for arm, seed, planned in models)
    progress = TaskTimer("merged models", tasks)
    for arm, seed, planned in models:
        with arm.evaluator(grid, seed) as evaluator:
            name = f"{arm.label}, seed {seed}"
            _evaluate(evaluator, arm.folder(grid, seed), name, planned, progress)


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
        with evaluator:
            settings = replace(grid.evaluation, seed=seed)
            entropies.setdefault(label, {})[seed] = mean_entropy(evaluator, folder, settings)
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
