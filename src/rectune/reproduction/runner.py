"""`rectune reproduce`: carry out a recipe of the paper at full or mini scale, and put its figures beside ours.

Order: the base model is asked; at mini scale every arm's learning rate is chosen on separate problems; then all arms
are run and asked, seed by seed; then verdict, tables and page. Run again, it goes on where it was. What lies where is
in `job.py`, one run in `runs.py`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rectune.errors import UserError, unknown_name
from rectune.experiments.evaluator import EvalSettings, correct, is_evaluated, mean_accuracy
from rectune.experiments.lr_sweep import best_rate
from rectune.reproduction.job import BASE, Job, full_jobs, mini_job, trained_folder
from rectune.reproduction.paper import paper_table
from rectune.reproduction.prepare import prepare
from rectune.reproduction.recipe import SCALES, Arm, Recipe, load_mini, load_recipe
from rectune.reproduction.record import record
from rectune.reproduction.runs import Respondent, carry_out, draw_samples, is_done, kinds_of
from rectune.runtime.io import check_writable, load_record, write_json
from rectune.runtime.locks import lock
from rectune.runtime.progress import TaskTimer

log = logging.getLogger("rectune")


def reproduce(
    name: str,
    *,
    out: Path,
    scale: str = "mini",
    seeds: int | None = None,
    arms: Sequence[str] = (),
    budget: float = 1.0,
    benchmark_dir: Path | None = None,
    engine: str = "hf",
    gpus: int = 8,
    dry_run: bool = False,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Carry out a recipe, and return what is written to OUT/reproduction.json.

    Args:
        name: Of the recipe, such as table2.
        out: Folder; run again, it goes on.
        scale: full (the paper's models and data) or mini (a small model of our own on two cores).
        seeds: Runs of each arm; by default 3 at mini scale and, as in the paper, 1 at full scale.
        arms: Labels; by default all. Later calls in the same folder add others.
        budget: At mini scale, share of rows, problems and steps, to try it out.
        benchmark_dir: Folder that has the benchmarks' files, at full scale.
        engine: local or vllm, for answers.
        gpus: For the estimate and the launch line, at full scale.
        dry_run: Return the plan and write nothing but the mini scale's rows.
        cache: Of the mini scale's base model; by default rectune's.

    Raises:
        UserError: An unknown recipe, scale or arm, a recipe that cannot be done at mini scale (says why), and all
            that training, sampling and evaluation raise.
    """
    recipe = load_recipe(name)
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES, where="--scale")
    if scale == "mini" and recipe.no_mini:
        raise UserError(
            f"cannot be done at mini scale: {recipe.no_mini}",
            where=name,
            hint="--scale full, or --dry-run with it",
        )
    count = seeds if seeds is not None else 3 if scale == "mini" else 1
    if count < 1:
        raise UserError(f"{count} seeds", where="--seeds", hint="1 or more")
    chosen = _choose(recipe, arms)
    check_writable(Path(out))
    if benchmark_dir is not None and not Path(benchmark_dir).is_dir():
        raise UserError("no such folder", where=f"--include-path {benchmark_dir}")
    if scale == "mini":
        from rectune.reproduction.task import make_base, make_task

        task = make_task(load_mini(budget), cache)
        jobs = [mini_job(recipe, task, Path(out), chosen, count)]
    else:
        jobs = full_jobs(recipe, Path(out), chosen, count, benchmark_dir, engine)
    if dry_run:
        from rectune.reproduction.plan import plan

        return plan(recipe, jobs, gpus=gpus)
    with lock(Path(out), "at work"):
        if scale == "mini":
            log.info("base model: %s", make_base(task))
        else:
            prepare(jobs[0])
        return _finish(recipe, Path(out), [_carry_out(job) for job in jobs])


def _choose(recipe: Recipe, labels: Sequence[str]) -> tuple[Arm, ...]:
    known = {arm.label: arm for arm in recipe.arms}
    for label in labels:
        if label not in known:
            raise unknown_name("arm", label, known, where="--arms")
    return tuple(arm for arm in recipe.arms if not labels or arm.label in labels)


def _carry_out(job: Job) -> dict[str, Any]:
    job.out.mkdir(parents=True, exist_ok=True)
    job = _with_earlier(job)
    asked = Respondent(job.model, job.asking)
    for kind, draws in kinds_of(job.asking, job.seeds[0]).items():
        log.info("base model, %s", kind)
        asked.answer(job.out / "runs" / BASE / kind, draws)
    del asked
    swept = _sweep(job)
    job = replace(
        job, chosen={one["label"]: one["learning_rate"] for one in swept["arms"].values()} if swept else {}
    )
    runs = [(arm, seed) for seed in job.seeds for arm in job.arms]
    clock = TaskTimer(
        job.recipe.name,
        {arm.slug: sum(not _is_judged(job, a, s) for a, s in runs if a == arm) for arm in job.arms},
    )
    for arm, seed in runs:
        if not _is_judged(job, arm, seed):
            with clock.task(arm.slug, f"{arm.label}, seed {seed}"):
                _run(job, arm, seed)
    if job.recipe.histogram:
        from rectune.reproduction.histogram import measure_targets

        measure_targets(job)
    return record(job, swept)


def _with_earlier(job: Job) -> Job:
    """The job with the arms and seeds that its folder already has, in the recipe's order."""
    path = job.out / "comparison.json"
    if not path.is_file():
        return job
    found = load_record(path, "arms", "seeds")
    had = {one["label"] for one in found["arms"]} | {arm.label for arm in job.arms}
    seeds = tuple(range(max(len(job.seeds), len(found["seeds"]))))
    return replace(job, arms=tuple(arm for arm in job.recipe.arms if arm.label in had), seeds=seeds)


def _sweep(job: Job) -> dict[str, Any] | None:
    """Try every arm with every rate on the validation problems; first seed, shorter runs, weights removed after."""
    wanted = [arm for arm in job.arms if not job.fixed_rate(arm)]
    if not job.rates or job.task is None or not wanted:
        return None
    own = job.task.settings["sweep"]
    files, seed = [Path(job.data["validation"])], job.seeds[0]
    draws = replace(job.asking.draws, num_samples=own["n"], seed=seed)
    clock = TaskTimer("sweep", {arm.slug: len(job.rates) for arm in wanted})
    arms, steps = {}, 0
    for arm in wanted:
        trials: list[dict[str, Any]] = []
        for rate in job.rates:
            folder = job.out / "sweep" / arm.slug / f"lr-{rate:g}"
            config = job.config(arm, seed, folder, rate=rate, share=own["share"])
            steps = config.max_steps or 0  # type: ignore[attr-defined]
            trained = trained_folder(arm, folder)
            if not is_evaluated(trained / "validation", files, draws):
                with clock.task(arm.slug, f"{arm.label} at learning rate {rate:g}"):
                    if arm.method == "rft":
                        draw_samples(job, seed)
                    carry_out(arm, config)
                    Respondent(str(trained / "model"), job.asking).answer(
                        trained / "validation", draws, files
                    )
            shutil.rmtree(trained / "model", ignore_errors=True)
            trials.append(
                {
                    "learning_rate": rate,
                    "accuracy": mean_accuracy([correct(trained / "validation", files)])._asdict(),
                }
            )
        best = best_rate({trial["learning_rate"]: trial["accuracy"]["mean"] for trial in trials})
        edge = best in (min(job.rates), max(job.rates))
        arms[arm.slug] = {"label": arm.label, "learning_rate": best, "edge": edge, "trials": trials}
        log.info("learning rate of %s: %g", arm.label, best)
    problems = job.task.settings["task"]["validation"]
    return {"steps": steps, "seed": seed, "problems": problems, "arms": arms}


def _run(job: Job, arm: Arm, seed: int) -> None:
    """One run and its answers."""
    folder = job.folder(arm, seed)
    config = job.config(arm, seed, folder)
    if arm.method == "rft" and not is_done(arm, folder):
        draw_samples(job, seed)
    if every := job.recipe.curve.get(job.scale):
        _along(job, arm, config, every)
    carry_out(arm, config)
    trained = trained_folder(arm, folder)
    asked = Respondent(str(trained / "model"), job.asking)
    for kind, draws in kinds_of(job.asking, seed).items():
        asked.answer(trained / kind, draws)


def _along(job: Job, arm: Arm, config: Any, every: int) -> None:
    """Pause the training every so many steps, and ask the model as it is then."""
    from rectune.training.dry_run import plan

    steps = config.max_steps or plan(config)["steps"]
    for step in range(every, steps, every):
        draws = _curve_draws(job, config.seed)
        folder = config.output_dir / f"validation-step-{step:04d}"
        if not is_evaluated(folder, job.asking.places, draws):
            carry_out(arm, config, until=step)
            Respondent(str(config.output_dir / "model"), job.asking).answer(folder, draws)


def _curve_draws(job: Job, seed: int) -> EvalSettings:
    return replace(job.asking.draws, num_samples=4 if job.task else job.asking.draws.num_samples, seed=seed)


def _is_judged(job: Job, arm: Arm, seed: int) -> bool:
    folder = trained_folder(arm, job.folder(arm, seed))
    return is_done(arm, job.folder(arm, seed)) and all(
        is_evaluated(folder / kind, job.asking.places, draws)
        for kind, draws in kinds_of(job.asking, seed).items()
    )


def _finish(recipe: Recipe, out: Path, models: list[dict[str, Any]]) -> dict[str, Any]:
    from rectune.reporting.report import report

    table = paper_table(recipe.name)
    result = {
        "format": 1,
        "rectune": version("rectune"),
        "recipe": recipe.name,
        "title": table.title,
        "unit": table.unit,
        "against": recipe.against,
        "notes": list(table.notes),
        "models": models,
        "page": str(out / "report.html"),
    }
    write_json(out / "reproduction.json", result, indent=2)
    report([out], out=out / "report.html")
    return result
