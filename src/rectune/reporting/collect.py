"""From folders to the data of the page: one JSON-ready dict, which `rectune report --json` prints.

Reading is in `load_runs.py`, grouping in `grouping.py`; each part of the page has its own file. Nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rectune.errors import UserError, unknown_name
from rectune.reporting import curves as course
from rectune.reporting import run_info as facts
from rectune.reporting import run_info as paper
from rectune.reporting import sample_table as answers
from rectune.reporting.grouping import BASE, Arm, group, short
from rectune.reporting.load_runs import FORMAT, Found, Notes, read_folder
from rectune.reporting.verdict import make_verdict


def collect(folders: Sequence[Path], domains: Mapping[str, str]) -> dict[str, Any]:
    """All that the page says.

    Args:
        folders: Run, evaluation, comparison, diagnosis and foreign folders, or folders that have some in them.
        domains: Benchmark to "in" or "out", in place of what comparisons say.

    Raises:
        UserError: No such folder, nothing in them that can be used, or a benchmark that was not evaluated on.
    """
    found, notes = Found(), Notes()
    for folder in dict.fromkeys(Path(one).expanduser().resolve() for one in folders):
        if not folder.exists():
            raise UserError("no such folder", where=folder)
        if not folder.is_dir():
            raise UserError(
                "is a file, not a folder", where=folder, hint="give the run folder that it lies in"
            )
        read_folder(folder, found, notes)
    _once(found)
    if not found:
        reasons = "; ".join(f"{note['where']}: {note['what']}" for note in notes.found[:3])
        raise UserError(
            f"nothing to report ({reasons})" if reasons else "nothing to report",
            hint="give folders that rectune train, eval, compare or diagnose wrote, or of a transformers Trainer",
        )
    evaluated = {name for evaluation in found.evaluations for name in evaluation.result["benchmarks"]}
    for name in domains:
        if name not in evaluated:
            raise unknown_name("benchmark", name, evaluated, where="--tasks-in and --tasks-out")
    arms = group(found, notes)
    return {
        "format": FORMAT,
        "rectune": version("rectune"),
        "title": _title(arms),
        "folders": [str(folder) for folder in folders],
        "model": _shared(arms, "model"),
        "data": _shared(arms, "data"),
        "verdict": make_verdict(found, arms, domains, notes),
        "paper": paper.beside(found),
        "diagnoses": facts.diagnoses(found),
        "arms": [_arm(arm) for arm in arms],
        "choices": facts.choices(found),
        "holdout": course.holdout_table(arms),
        "curves": course.curves(arms),
        "histograms": course.histograms(arms),
        "warnings": course.warnings(arms),
        "tokens": course.token_changes(arms),
        "answers": answers.side_by_side(arms, notes),
        "settings": facts.settings(arms),
        "environment": facts.environment(found),
        "cost": facts.cost(arms),
        "notes": notes.found,
    }


def _once(found: Found) -> None:
    """Each folder once, where a folder was given beside one that it lies in."""
    found.runs = list({run.path: run for run in found.runs}.values())
    found.evaluations = list({one.path: one for one in found.evaluations}.values())
    found.comparisons = list(dict(found.comparisons).items())
    found.diagnoses = list(dict(found.diagnoses).items())


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "label": arm.label,
        "seeds": sorted(arm.runs),
        "runs": {str(seed): str(run.path) for seed, run in arm.runs.items()},
        "evaluations": [
            {"path": str(one.path), "role": role, "seed": seed, "benchmarks": list(one.result["benchmarks"]),
             "warnings": [short(str(w), 300) for w in _list(one.result.get("warnings"))]}
            for role, slots in arm.evaluations.items() for by_seed in slots.values() for seed, one in by_seed.items()
        ],
        "dropped": arm.dropped,
    }  # fmt: skip


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _title(arms: Sequence[Arm]) -> str:
    labels = [arm.label for arm in arms if arm.label != BASE]
    if len(labels) > 4:
        return f"{len(labels)} arms compared"
    return " against ".join(labels) if labels else "Base model" if arms else "Report"


def _shared(arms: Sequence[Arm], name: str) -> str:
    """A setting of all runs, or how many there are of it."""
    values = list(
        dict.fromkeys(str(r.config[name]) for arm in arms for r in arm.runs.values() if name in r.config)
    )
    if len(values) > 3:
        return f"{len(values)} different"
    return ", ".join(short(_end(value), 120) for value in values)


def _end(value: str) -> str:
    """The end of a long path; names on the hub and relative paths stay as they are."""
    return "/".join(("…", *Path(value).parts[-2:])) if Path(value).is_absolute() else value
