"""The verdict, decision and page of a comparison over the logs of evaluation harnesses.

The answers of each log are written as an evaluation folder, OUT/runs/ARM/seed-S/evaluation (with a margin also
`validation`), and from there on all is as for runs of our own.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rectune.analysis.decision import decide, pick_reference
from rectune.analysis.logs import align, one_score_each, parse_logs, read_logs
from rectune.analysis.significance import compare_runs
from rectune.analysis.summary_text import BASE, DOMAINS
from rectune.config import CompareConfig, flag
from rectune.config.verbs import LOGS
from rectune.errors import UserError, unknown_name
from rectune.evaluation.statistics import mean_interval
from rectune.experiments.interpolation import with_scores
from rectune.experiments.problem_sets import set_aside
from rectune.experiments.runner import COMPARISON, read_comparison
from rectune.records import (
    Accuracy,
    ComparedArm,
    Comparison,
    EvalProtocol,
    Evaluation,
    Graded,
    Point,
    TaskResult,
    write_record,
)
from rectune.runtime.io import lock, translate_disk_errors, write_jsonl

log = logging.getLogger("rectune")

USED = frozenset(
    {
        "logs",
        "metric",
        "cluster",
        "tasks",
        "tasks_in",
        "tasks_out",
        "margin",
        "against",
        "require",
        "output_dir",
        "seed",
    }
)
"""Settings of a comparison that mean something for logs."""


def compare_logs(config: CompareConfig) -> Comparison:
    """Compare the arms of `config.logs` in pairs, decide if there is a margin, and write OUT.

    Raises:
        UserError: A setting that is about training, logs that cannot be read or have no problem in common, tasks that
            they do not have, or a folder that holds a comparison of runs.
    """
    unused = sorted(config.model_fields_set - USED - ({"data"} if config.data == LOGS else set()))
    if unused:
        raise UserError("not with --logs: nothing is trained", where=", ".join(map(flag, unused)))
    frame = align(read_logs(parse_logs(config.logs), metric=config.metric, cluster=config.cluster))
    domains = _domains(config, frame)
    frame = _units(frame[frame["task"].isin(domains)], config.cluster)
    arms = sorted(frame["arm"].drop_duplicates(), key=lambda arm: arm != BASE)
    if len(arms) < 2:
        raise UserError(
            "there is nothing to compare: one arm", where="--logs", hint="give --logs for each arm"
        )
    _check_decision(config, frame, arms, domains)
    for note in frame.attrs["notes"]:
        log.warning("%s", note)
    out = config.output_dir
    with lock(out, "comparing"), translate_disk_errors(out):
        begun = read_comparison(out)
        if begun is not None and "logs" not in begun.settings:
            raise UserError(
                "the folder holds a comparison of runs", where=out, hint="give another --output-dir"
            )
        if begun is not None:
            shutil.rmtree(out / "runs", ignore_errors=True)
        comparison = _judge(config, frame, domains, arms)
        from rectune.reporting.report import report

        report([out], out=out / "report.html")
    return comparison


def _domains(config: CompareConfig, frame: Any) -> dict[str, str]:
    """Task to domain: by the settings, where they name tasks (or patterns such as mmlu_*), else by the logs."""
    known = list(frame["task"].drop_duplicates())
    domains: dict[str, str] = {}
    for domain, names in (("in", config.tasks_in), ("out", config.tasks_out), ("", config.tasks)):
        for name in names:
            fits = [task for task in known if task == name or fnmatchcase(task, name)]
            if not fits:
                raise unknown_name("task", name, known, where="--tasks-in, --tasks-out and --tasks")
            if twice := [task for task in fits if task in domains]:
                raise UserError(f"'{twice[0]}' is given twice", where="--tasks-in, --tasks-out and --tasks")
            domains |= dict.fromkeys(fits, domain)
    if not domains:
        return {str(task): str(rows["domain"].iloc[0]) for task, rows in frame.groupby("task", sort=False)}
    if rest := [task for task in known if task not in domains]:
        frame.attrs["notes"].append(f"not compared, since no --tasks names them: {', '.join(rest)}")
    return domains


def _units(frame: Any, cluster: str | None) -> Any:
    """One unit a problem, with as many answers in all logs of an arm, or one a cluster."""
    notes = frame.attrs["notes"]
    if cluster:
        units = one_score_each(frame, "cluster")
        counts = (
            len(some[["task", name]].drop_duplicates())
            for some, name in ((frame, "problem_id"), (units, "problem_id"))
        )
        notes.append("{} problems are in {} clusters".format(*counts))
        return units
    answers = frame.groupby(["arm", "seed", "task", "problem_id"], sort=False).size().groupby(level=[0, 1])
    uneven = answers.nunique() > 1
    parts = []
    for (arm, seed), rows in frame.groupby(["arm", "seed"], sort=False):
        if uneven[arm, seed]:
            notes.append(
                f"{arm}, seed {seed}: problems have different numbers of answers; each counts with its mean"
            )
            rows.attrs = dict(frame.attrs)
            rows = one_score_each(rows, "problem_id")
        parts.append(rows)
    import pandas

    together = pandas.concat(parts, ignore_index=True)
    together.attrs = {**frame.attrs, "notes": notes}
    return together


def _check_decision(config: CompareConfig, frame: Any, arms: list[str], domains: Mapping[str, str]) -> None:
    if config.margin is None:
        if config.require or config.against:
            raise UserError("requires --margin", where="--require" if config.require else "--against")
        return
    if BASE not in arms:
        hint = "--logs base=FOLDER"
        raise UserError("requires the logs of the base model, as arm 'base'", where="--margin", hint=hint)
    pick_reference(arms, config.against)
    for domain, title in DOMAINS.items():
        if domain not in domains.values():
            raise UserError(f"requires tasks {title}", where="--margin", hint=f"give --tasks-{domain}")
    seeds = frame[frame["arm"] != BASE].groupby("arm")["seed"].nunique()
    if config.require and seeds.min() < 2:
        hint = f"{seeds.idxmin()} has one; 3 are usual"
        raise UserError("requires logs of two seeds or more of each arm", where="--require", hint=hint)


def _judge(config: CompareConfig, frame: Any, domains: dict[str, str], arms: list[str]) -> Comparison:
    out = config.output_dir
    ids = {
        str(task): list(dict.fromkeys(rows["problem_id"])) for task, rows in frame.groupby("task", sort=False)
    }
    validation: dict[str, list[str]] = {}
    for domain in DOMAINS if config.margin is not None else ():
        apart, ids = set_aside(ids, domains, config.seed, domain)
        validation |= apart
    record = _record(config, frame, domains, arms, ids, validation)
    write_record(out / COMPARISON, record)  # from now on a later call may replace what is in runs
    folders: dict[str, dict[int, Path]] = {}
    for (arm, seed), rows in frame.groupby(["arm", "seed"], sort=False):
        folder = out / _folder(arm, seed)
        folders.setdefault(arm, {})[seed] = folder / "evaluation"
        for kind, problems in (("evaluation", ids), ("validation", validation)):
            if problems:
                _write_evaluation(folder / kind, arm, rows, problems)
    verdict = compare_runs({arm: folders[arm] for arm in arms}, domains)
    verdict = verdict.model_copy(update={"warnings": [*frame.attrs["notes"], *verdict.warnings]})
    of_validation = {task: domains[task] for task in validation}
    points = [
        with_scores(
            Point(
                arm=arm,
                label=arm,
                at=0.0 if arm == BASE else 1.0,
                folders={str(seed): _folder(arm, seed) for seed in folders[arm]},
            ),
            out,
            domains,
            of_validation,
        )
        for arm in arms
    ]
    record = record.model_copy(update={"points": points, "verdict": verdict})
    if config.margin is not None:
        decision = decide(
            record, out, margin=round(config.margin / 100, 10), against=config.against, require=config.require
        )
        record = record.model_copy(update={"decision": decision})
    write_record(out / COMPARISON, record)
    return record


def _folder(arm: str, seed: int) -> str:
    return f"runs/{BASE}" if arm == BASE else f"runs/arm-{arm}/seed-{seed}"


def _record(
    config: CompareConfig,
    frame: Any,
    domains: dict[str, str],
    arms: list[str],
    ids: Mapping[str, list[str]],
    validation: Mapping[str, list[str]],
) -> Comparison:
    seeds = {arm: sorted(map(int, rows["seed"].unique())) for arm, rows in frame.groupby("arm")}
    compared = [
        ComparedArm(
            objective=arm,
            label=arm,
            slug=arm,
            learning_rate=None,
            runs={str(seed): _folder(arm, seed) for seed in seeds[arm]},
            dropped=None,
        )
        for arm in arms
        if arm != BASE
    ]
    return Comparison(
        rectune=version("rectune"),
        model="",
        data="",
        seeds=sorted({seed for arm in seeds if arm != BASE for seed in seeds[arm]}),
        arms=compared,
        base=f"runs/{BASE}",
        benchmarks=domains,
        problems={task: len(names) for task, names in ids.items()},
        validation={task: len(names) for task, names in validation.items()},
        settings={
            "logs": list(config.logs),
            "metrics": {task: frame.attrs["metrics"][task] for task in domains},
            "cluster": config.cluster,
            "n": int(frame["sample"].groupby([frame["arm"], frame["seed"]]).nunique().min()),
            "seed": config.seed,
            "split": config.margin is not None,
        },
    )


def _write_evaluation(folder: Path, arm: str, rows: Any, problems: Mapping[str, list[str]]) -> None:
    """An evaluation folder with the answers to some problems, sorted as these are."""
    by_problem = dict(list(rows.groupby(["task", "problem_id"], sort=False)))
    graded, tasks, n = [], {}, 0
    for task, ids in problems.items():
        scores = [by_problem[task, problem_id]["score"].to_numpy() for problem_id in ids]
        n = len(scores[0])
        lines = [line for problem_id in ids for line in _lines(by_problem[task, problem_id])]
        graded += lines
        right = sum(line.verdict == "correct" for line in lines)
        tasks[task] = TaskResult(
            problems=len(ids),
            samples=len(lines),
            avg=Accuracy(**mean_interval(scores)._asdict()),
            pass_at={},
            verdicts={"correct": right, "wrong": len(lines) - right},
            prompt="",
            note=f"from logs, {rows['metric'][rows['task'] == task].iloc[0]}",
            problem_ids=[f"{task}/{problem_id}" for problem_id in ids],
        )
    write_jsonl(folder / "graded.jsonl", (line.to_dict() for line in graded))
    record = Evaluation(
        model=arm, protocol=EvalProtocol(n=n, temperature=None, engine="logs"), benchmarks=tasks
    )
    write_record(folder / "evaluation.json", record)


def _lines(rows: Any) -> Iterator[Graded]:
    for index, row in enumerate(rows.itertuples(index=False)):
        yield Graded.model_validate(
            {
                "problem_id": f"{row.task}/{row.problem_id}",
                "sample_index": index,
                "text": row.text,
                "prompt": row.prompt,
                "answer": row.target,
                "grader": "logs",
                "verdict": "correct" if row.score == 1 else "wrong",
                "score": float(row.score),
                "extracted": row.extracted if isinstance(row.extracted, str) else None,
            }
        )
