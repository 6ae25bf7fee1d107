"""`make study`: every condition is a `rectune compare` of all objectives; two processes take conditions from a queue.

    OUT/conditions/<name>/    rows and problems
    OUT/compared/<name>/      the comparison, and in `diagnosis/` what the rows said before training
    OUT/study.json, study.md  who won where, see `result.py`; written anew after every condition

Stop it at any moment; the same command resumes it. An objective that is new since then joins.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rectune.cli.app import run
from rectune.cli.console import print_lines, print_table
from rectune.config import CompareConfig, DiagnoseConfig, load_config
from rectune.diagnosis.diagnose import diagnose
from rectune.errors import UserError
from rectune.experiments.compare import compare
from rectune.experiments.runner import read_comparison
from rectune.records import Diagnosis, read_record
from rectune.runtime.io import lock

from ..mini import task as mini_scale
from .conditions import write_condition
from .design import PARTS, Study, load_study, plan
from .result import JUDGED, write_condition_result, write_result

log = logging.getLogger("rectune")


def comparison_of(study: Study, name: str, out: Path) -> CompareConfig:
    """The comparison of all objectives in one condition; writes its rows and problems, and trains the base model."""
    condition = study.conditions[name]
    given: dict[str, Any] = {"limit": study.limit, "tasks_in": study.tasks_in, "tasks_out": study.tasks_out}
    if study.model:
        place = write_condition(out / "conditions", name, condition, None, {})
        given["model"] = study.model
    else:
        mini = mini_scale.make_task(mini_scale.load_mini())
        mini_scale.make_base(mini / "base" / "model")
        place = write_condition(out / "conditions", name, condition, mini, study.problems)
        given |= {"model": mini / "base" / "model", "eval_data": str(mini / "holdout.jsonl")}
        given |= {"validation": place / "validation.jsonl", "validation_out": place / "validation_out.jsonl"}
        given["tasks_in"] = [str(place / "in_domain.jsonl")]
        elsewhere = [name for name, domain in mini_scale.DOMAINS.items() if domain == "out"]
        given["tasks_out"] = [str(mini / f"{name}.jsonl") for name in elsewhere]
    given["data"] = place / "rows.jsonl"
    given |= {"sweep": study.rates, "margin": 100 * study.margin, "match_entropy": False}
    if study.rates:
        given["sweep_steps"] = max(1, round(study.sweep_share * condition.steps))
    given |= {"objectives": study.arms, "seeds": study.seeds, "max_steps": condition.steps}
    given |= {"interpolate": study.interpolate, "interpolate_only": study.midpoints}
    given |= {"soup": ["+".join(study.midpoints)], "output_dir": out / "compared" / name}
    return load_config(None, {**study.settings, **study.answers, **given}, CompareConfig)


def diagnosis_of(config: CompareConfig) -> Diagnosis:
    """What the rows say about the base model before training."""
    path = config.output_dir / "diagnosis" / "diagnosis.json"
    if path.is_file():
        return read_record(path, Diagnosis)
    shared = {
        name: getattr(config, name)
        for name in ("model", "data", "chat_template", "dtype", "logits_memory_mb")
    }
    own = {"output_dir": path.parent, "rows": 256, "gradients": False}
    return diagnose(load_config(None, {**shared, **own}, DiagnoseConfig))


def is_finished(study: Study, folder: Path) -> bool:
    """Whether a comparison has its verdict over every objective and seed."""
    comparison = read_comparison(folder)
    if comparison is None or comparison.verdict is None:
        return False
    compared = {arm.objective for arm in comparison.arms}
    return compared >= set(study.arms) and len(comparison.seeds) >= study.seeds


def work(study: Study, out: Path) -> None:
    """Carry out the conditions that no other process is at, the longest first, until none is left to do."""
    for name in sorted(study.conditions, key=lambda name: -study.conditions[name].steps):
        with ExitStack() as held:
            try:
                held.enter_context(lock(out / "queue" / name, "at this condition"))
            except UserError as error:
                log.info("%s: %s", name, error.what)
                continue
            folder = out / "compared" / name
            if not (finished := is_finished(study, folder)):
                log.info("condition %s: %s", name, study.conditions[name].title)
                config = comparison_of(study, name, out)
                diagnosis_of(config)
                compare(config)
            if not finished or not (folder / JUDGED).is_file():
                write_condition_result(study, out, name)


def run_study(part: str, out: Path, *, budget: float = 1.0, workers: int = 1) -> dict[str, Any]:
    """Carry out a study in several processes, and return the content of OUT/study.json.

    Args:
        part: "mini" or "real".
        out: Folder; what it has is kept.
        budget: Share of rows, steps and problems; below 1 its figures mean nothing.
        workers: Processes. Each takes conditions that no other is at.

    Raises:
        UserError: What cannot be used, or a process that failed.
    """
    study = load_study(part, budget)
    again = ["--part", part, "--output-dir", str(out), "--budget", str(budget), "--workers", "1"]
    others = [subprocess.Popen([sys.executable, "-m", __spec__.name, *again]) for _ in range(workers - 1)]
    try:
        work(study, out)
    finally:  # an interrupt reaches them as well
        codes = [process.wait() for process in others]
    if any(codes):
        raise UserError(
            f"another worker stopped with exit code {max(codes)}", where=out, hint="run it again, it resumes"
        )
    return write_result(study, out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.study.run", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--part", choices=PARTS, default="mini", help="mini scale or real model (default: %(default)s)"
    )
    parser.add_argument("--output-dir", type=Path, help="default: runs/study, runs/study-real")
    parser.add_argument(
        "--budget", type=float, default=1.0, help="share of rows, steps and problems, to try it out"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print runs and minutes, and compute nothing")
    options = parser.parse_args(arguments)
    out = options.output_dir or Path("runs") / (
        "study" if options.part == "mini" else f"study-{options.part}"
    )
    if options.dry_run:
        study = load_study(options.part, options.budget)
        print_lines(f"{study.title}: {len(study.arms)} objectives, at most {study.hours:g} hours")
        print_table(plan(study))
        return
    result = run_study(options.part, out, budget=options.budget, workers=options.workers)
    print_lines(*result["sentences"], f"page: {out / 'study.md'}")


if __name__ == "__main__":
    sys.exit(run(main))
