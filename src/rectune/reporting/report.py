"""One self-contained page from folders alone: verdict first, then what it rests on, then what it cost.

    read.py -> grouping.py -> collect.py (data) -> sections.py, closing.py, figures.py -> page.html or markdown.py

Nothing is measured here and no model is loaded. What is missing or damaged is noted on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rectune.errors import UserError, unknown_name
from rectune.pages.render import render, write_page
from rectune.reporting import figures
from rectune.reporting.collect import collect
from rectune.reporting.markdown import render_markdown
from rectune.reporting.sections import Section, closing, sections
from rectune.runtime.io import check_output

FORMATS = ("html", "markdown")


def report(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    format: Literal["html", "markdown"] = "html",
    benchmarks_in: Sequence[str] = (),
    benchmarks_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the page of some runs, and return everything on it as data.

    Args:
        folders: Run, evaluation, comparison, diagnosis folders, folders that hold such, or runs of a transformers
            Trainer. Partial and damaged ones are shown as far as they go.
        out: File to write; None writes nothing.
        format: Of that file.
        benchmarks_in, benchmarks_out: Benchmarks of the training rows' domain and of others, where no comparison
            says so.

    Returns:
        JSON-ready; docs/report.md describes the fields.

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
    data = collect([Path(folder) for folder in folders], domains)
    if out is not None:
        write_page(Path(out), page(data) if format == "html" else markdown(data))
    return data


def page(data: dict[str, Any]) -> str:
    """The HTML page of what `collect` gives."""
    looks = {
        label: {
            "color": look["color"],
            "css": {"dashdot": "double"}.get(look["linestyle"], look["linestyle"]),
        }
        for label, look in figures.styles(data).items()
        if any(one["label"] == label for one in data["curves"])
    }
    return render(
        "reporting/page.html",
        title=data["title"],
        data=data,
        parts=[section for section in (_with_figures(one, data) for one in sections(data)) if section],
        closing=[section for section in closing(data) if section],
        legend=looks,
        tones=_tones(data["verdict"]["judged"]),
    )


def _tones(judged: dict[str, Any] | None) -> dict[str, str]:
    """The look of sentences that say that training did harm, or good."""
    looks = {"worse": "bad", "better": "good"}
    headline = (judged or {}).get("headline", [])
    return {
        one["sentence"].rstrip(".") + ".": looks[one["verdict"]]
        for one in headline
        if one["verdict"] in looks
    }


def markdown(data: dict[str, Any]) -> str:
    """The same as Markdown."""
    return render_markdown(
        data, [one for one in sections(data) if one], [one for one in closing(data) if one]
    )


def _with_figures(section: Section, data: dict[str, Any]) -> Section:
    if section.key == "accuracy":
        section.figures = figures.accuracies(data)
    elif section.key == "course":
        section.figures = figures.over_steps(data, figures.COURSE)
    elif section.key == "probabilities":
        section.figures = figures.histograms(data)
    elif section.key == "losses":
        section.figures = figures.over_steps(data, figures.LOSSES)
    elif section.key == "rollouts":
        section.figures = figures.over_steps(data, figures.ROLLOUTS)
    elif section.key == "drift":
        drift = figures.over_steps(data, figures.DRIFT)
        section.figures = drift or figures.over_steps(data, figures.HOLDOUT_DRIFT)
    elif section.key == "foreign":
        section.figures = figures.over_steps(data, figures.LOG)
    return section
