"""One self-contained page from folders alone: verdict first, then what it rests on, then what it cost.

    load_runs.py -> grouping.py -> verdict.py, run_info.py, sample_table.py -> Report -> page.html, page.md.jinja

Nothing is measured here and no model is loaded. What is missing or damaged is noted on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rectune.errors import UserError, unknown_name
from rectune.pages.render import render_html, render_markdown, write_page
from rectune.reporting import run_info
from rectune.reporting.figures import draw_figures, styles
from rectune.reporting.grouping import BASE, ReportArm, group, short
from rectune.reporting.load_runs import FORMAT, NoteList, load_folders
from rectune.reporting.opening import make_opening
from rectune.reporting.page_model import ArmEntry, ArmEvaluation, DriftWarning, Report
from rectune.reporting.sample_table import answer_tables
from rectune.reporting.verdict import page_verdict
from rectune.runtime.io import check_output
from rectune.training.drift import THRESHOLDS

FORMATS = ("html", "markdown")


def report(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    format: Literal["html", "markdown"] = "html",
    benchmarks_in: Sequence[str] = (),
    benchmarks_out: Sequence[str] = (),
) -> Report:
    """Write the page of some runs, and return everything on it.

    Args:
        folders: Run, evaluation, comparison, diagnosis folders, folders that hold such, or runs of a transformers
            Trainer. Partial and damaged ones are shown as far as possible.
        out: File to write; None writes nothing.
        format: Of that file.
        benchmarks_in, benchmarks_out: Benchmarks of the training rows' domain and of others, where no comparison
            says so.

    Raises:
        UserError: No such folder, nothing that can be used, an unknown benchmark, or a file that cannot be written.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if not folders:
        raise UserError("no folder given", hint="rectune report RUN...")
    if out is not None:
        check_output(Path(out))
    domains = {**dict.fromkeys(benchmarks_in, "in"), **dict.fromkeys(benchmarks_out, "out")}
    notes = NoteList()
    loaded = load_folders(folders, notes)
    evaluated = {name for folder in loaded.evaluations.values() for name in folder.result.benchmarks}
    for name in domains:
        if name not in evaluated:
            raise unknown_name("benchmark", name, evaluated, where="--tasks-in and --tasks-out")
    arms = group(loaded, notes)
    comparisons = loaded.comparisons.values()
    verdict = page_verdict(loaded, arms, domains, notes)
    found = Report(
        format=FORMAT,
        rectune=version("rectune"),
        title=_title(arms),
        folders=[str(folder) for folder in folders],
        model=_shared(arms, "model"),
        data=_shared(arms, "data"),
        opening=make_opening(loaded, verdict),
        verdict=verdict,
        paper=run_info.paper_comparison(comparisons),
        diagnoses=run_info.diagnosis_quotes(loaded.diagnoses),
        arms=[_entry(arm) for arm in arms],
        choices=run_info.choices(comparisons),
        holdout=run_info.holdout_table(arms),
        curves=run_info.curves(arms),
        histograms=run_info.histograms(arms),
        warnings=run_info.drift_warnings(arms),
        tokens=run_info.token_changes(arms),
        answers=answer_tables(arms, notes),
        settings=run_info.settings(arms),
        environment=run_info.environment(loaded),
        cost=run_info.cost(arms),
        notes=notes.notes,
    )
    if out is not None:
        write_page(Path(out), page(found) if format == "html" else markdown(found))
    return found


def page(found: Report) -> str:
    """As HTML."""
    shown, figures = {run.label for run in found.curves}, draw_figures(found)
    return render_html(
        "reporting/page.html",
        title=found.title,
        layout="reporting/html.jinja",
        figures=figures,
        styles={label: style for label, style in styles(found).items() if label in shown},
        tones=_tones(found),
        folded=bool(figures["opening"]),
        nav=[],
        **_values(found),
    )


def markdown(found: Report) -> str:
    """As Markdown for a pull request: without figures."""
    figures = dict.fromkeys(
        (
            "opening",
            "steps",
            "accuracy",
            "training",
            "probabilities",
            "losses",
            "rollouts",
            "drift",
            "foreign",
        ),
        (),
    )
    return render_markdown(
        "reporting/page.md.jinja", layout="reporting/markdown.jinja", figures=figures, **_values(found)
    )


def _values(found: Report) -> dict[str, Any]:
    """What both templates name."""
    warnings: dict[tuple[str, str], list[DriftWarning]] = {}
    for warning in found.warnings:
        warnings.setdefault((warning.label, warning.figure), []).append(warning)
    meanings = {name: line.means for name, line in THRESHOLDS.items()}
    return {"report": found, "drift_warnings": warnings, "drift_meanings": meanings}


def _tones(found: Report) -> dict[str, str]:
    """The look of sentences that say that training did harm, or good."""
    looks = {"worse": "bad", "better": "good"}
    lines = found.verdict.judged.headline if found.verdict.judged else []
    return {line.sentence.rstrip(".") + ".": looks[line.verdict] for line in lines if line.verdict in looks}


def _entry(arm: ReportArm) -> ArmEntry:
    evaluations = [
        ArmEvaluation(
            str(e.path),
            role,
            seed,
            list(e.result.benchmarks),
            [short(text, 300) for text in e.result.warnings],
        )
        for role, slots in arm.evaluations.items()
        for by_seed in slots.values()
        for seed, e in by_seed.items()
    ]
    runs = {str(seed): str(run.path) for seed, run in arm.runs.items()}
    return ArmEntry(arm.label, sorted(arm.runs), runs, evaluations, arm.dropped)


def _title(arms: Sequence[ReportArm]) -> str:
    labels = [arm.label for arm in arms if arm.label != BASE]
    if len(labels) > 4:
        return f"{len(labels)} arms compared"
    return " against ".join(labels) if labels else "Base model" if arms else "Report"


def _shared(arms: Sequence[ReportArm], name: str) -> str:
    """A setting of all runs, or how many different values there are."""
    values = list(
        dict.fromkeys(
            str(run.config[name]) for arm in arms for run in arm.runs.values() if name in run.config
        )
    )
    if len(values) > 3:
        return f"{len(values)} different"
    return ", ".join(short(_path_end(value), 120) for value in values)


def _path_end(value: str) -> str:
    """The end of a long path; names on the hub and relative paths are not changed."""
    return "/".join(("…", *Path(value).parts[-2:])) if Path(value).is_absolute() else value
