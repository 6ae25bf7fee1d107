"""The figures of a report, as SVG. What they mean is said in `sections.jinja`.

An arm has the same colour and line everywhere; runs of several seeds are thin, their mean is thick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rectune.analysis.summary_text import DOMAINS
from rectune.pages.format import percent, points
from rectune.pages.plots import BASE_COLOUR, COLOURS, figure
from rectune.records import ArmResult, PairResult
from rectune.reporting.grouping import BASE
from rectune.reporting.page_model import ProbabilityShift, Report
from rectune.reporting.tradeoff import draw_tradeoff

_LINES = ("solid", "dashed", "dotted", "dashdot")
_WIDTH, _HEIGHT = 3.5, 2.3  # inches of a panel
MOST_PANELS = 12
"""Histograms that are drawn; the table has all."""

Style = dict[str, str]
Line = Sequence[tuple[float, float]]
Figures = list[tuple[Markup, str]]
"""Each with its caption."""

PANELS = {
    "training": (
        ("holdout", "nll", "Hold-out NLL (nats per target)"),
        ("holdout", "mean_p", "Hold-out mean p of the targets"),
        ("holdout", "accuracy", "Hold-out share of targets that are top-1"),
    ),
    "losses": (
        ("train", "objective", "Value of the objective"),
        ("train", "nll", "NLL of the same tokens (nats)"),
    ),
    "rollouts": (
        ("rollouts", "reward", "Mean reward of the sampled answers"),
        ("rollouts", "length", "Tokens of an answer"),
        ("rollouts", "entropy", "Entropy of the tokens trained on (nats)"),
        ("rollouts", "kl", "KL to the initial model (nats)"),
        ("rollouts", "clip_share", "Share of clipped tokens"),
    ),
    "drift": (
        ("drift", "kl", "KL(base || model) on the probe (nats)"),
        ("drift", "entropy", "Entropy on the probe (nats)"),
        ("drift", "eos_p", "Probability of turn ends"),
        ("drift", "repetition", "Repeated 4-grams in sampled answers"),
        ("drift", "length", "Tokens of sampled answers"),
        ("drift", "stopped", "Share of answers that end by themselves"),
    ),
    "holdout_drift": (
        ("holdout", "entropy", "Hold-out entropy (nats)"),
        ("holdout", "eos_p", "Hold-out probability of turn ends"),
    ),
    "foreign": (
        ("log", "loss", "Loss as logged"),
        ("log", "eval_loss", "Evaluation loss as logged"),
        ("log", "learning_rate", "Learning rate"),
        ("log", "mean_token_accuracy", "Token accuracy as logged"),
    ),
}
"""By section of the page: kind of line, name of the number, caption."""


def draw_figures(report: Report) -> dict[str, Figures]:
    """By section of the page, in its order."""
    found = {section: _over_steps(report, panels) for section, panels in PANELS.items()}
    instead = found.pop("holdout_drift")
    found["drift"] = found["drift"] or instead
    accuracies = _accuracies(report)
    opening = [tradeoff] if (tradeoff := draw_tradeoff(report.opening, styles(report))) else accuracies[:1]
    found |= {"opening": opening, "steps": _steps(report)}
    return {**found, "accuracy": accuracies, "probabilities": _histograms(report)}


def styles(report: Report) -> dict[str, Style]:
    """Colour and line of every arm by label; the base model is grey."""
    found = {BASE: {"color": BASE_COLOUR, "linestyle": "solid"}}
    for i, label in enumerate(arm.label for arm in report.arms if arm.label != BASE):
        found[label] = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": _LINES[i // len(COLOURS) % len(_LINES)],
        }
    return found


def _over_steps(report: Report, panels: Sequence[tuple[str, str, str]]) -> Figures:
    """A figure for every panel that has a curve."""
    found = []
    for kind, name, title in panels:
        lines: dict[str, list[Line]] = {}
        for run in report.curves:
            if line := [(point["step"], point[name]) for point in getattr(run, kind) if name in point]:
                lines.setdefault(run.label, []).append(
                    _smoothed(line) if kind in ("train", "rollouts") else line
                )
        if any(len(line) > 1 for seeds in lines.values() for line in seeds):
            found.append((_curves(lines, title, styles(report)), title))
    return found


def _steps(report: Report) -> Figures:
    """Accuracy over steps, a panel for each domain."""
    found = []
    for domain, words in DOMAINS.items():
        title = f"{words[:1].upper()}{words[1:]}, %"
        lines = {
            curve.label: [
                [
                    (float(s), 100 * a)
                    for s, a in zip(curve.steps, curve.scores[domain], strict=True)
                    if a is not None
                ]
            ]
            for curve in report.opening.curves
        }
        if lines := {label: seeds for label, seeds in lines.items() if len(seeds[0]) > 1}:
            found.append((_curves(lines, title, styles(report), width=2.7), title))
    return found


def _curves(
    lines: Mapping[str, Sequence[Line]], title: str, looks: Mapping[str, Style], width: float = _WIDTH
) -> Markup:
    def draw(ax: Any) -> None:
        for label, seeds in lines.items():
            several = len(seeds) > 1
            for line in seeds:
                few = {} if several or len(line) > 30 else {"marker": "o", "markersize": 3.5}
                thin = {"linewidth": 0.7, "alpha": 0.5} if several else few
                ax.plot(*zip(*line, strict=True), **looks[label], **thin)
            if several:
                ax.plot(*zip(*_mean_of(seeds), strict=True), **looks[label])
        ax.set_xlabel("step")
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        ax.margins(x=0.02)

    return figure(draw, label=f"{title} against steps for {', '.join(lines)}", width=width, height=_HEIGHT)


def _smoothed(line: Line) -> Line:
    """Running mean over a twentieth of the points: single steps are too noisy to be read."""
    half = len(line) // 40
    values = [value for _, value in line]
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(line)))
    return [(step, sum(w) / len(w)) for (step, _), w in zip(line, windows, strict=True)]


def _mean_of(seeds: Sequence[Line]) -> Line:
    """Mean at the steps that all seeds have; the first seed where they share none."""
    tables = [dict(line) for line in seeds]
    shared = [step for step in tables[0] if all(step in table for table in tables)]
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in shared] or seeds[0]


def _histograms(report: Report) -> Figures:
    """Before (grey area) and after (line) of every arm on the same logarithmic scale: the paper's Figure 2."""
    arms, looks, edges = report.histograms.arms, styles(report), report.histograms.bins
    shares = [share for shift in arms.values() for share in (*shift.before, *shift.after) if share > 0]
    bottom = min(shares, default=1e-4) / 2
    places = range(len(edges))

    def panel(label: str, shift: ProbabilityShift) -> Markup:
        before, after = ([max(share, bottom) for share in end] for end in (shift.before, shift.after))

        def draw(ax: Any) -> None:
            ax.set_yscale("log")
            area = {"fill": True, "color": BASE_COLOUR, "alpha": 0.45, "linewidth": 0}
            ax.stairs(before, places, baseline=bottom, **area)
            ax.stairs(after, places, baseline=bottom, linewidth=2, **looks[label])
            ax.set_ylim(bottom, 1)
            ax.set_xlim(0, len(edges) - 1)
            named = [place for place in places if place % 2 == 0 or place == places[-1]]
            ax.set_xticks(named, [f"{edges[place]:g}" for place in named])
            ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            ax.yaxis.set_minor_formatter(lambda share, _: "")
            ax.set_xlabel("probability of the target")
            ax.grid(axis="x", visible=False)

        words = ", ".join(percent(share) for share in shift.after)
        description = f"Targets of {label} by probability, after training: {words}"
        return figure(draw, label=description, width=_WIDTH, height=_HEIGHT)

    return [(panel(label, shift), label) for label, shift in list(arms.items())[:MOST_PANELS]]


def _accuracies(report: Report) -> Figures:
    """One figure a benchmark: accuracies with intervals, and differences of pairs around zero."""
    found = []
    for name, task in report.verdict.judged.benchmarks.items() if report.verdict.judged else ():
        found.append((_intervals(name, task.arms, styles(report)), f"{name}: accuracy in %"))
        if 0 < len(task.pairs) <= 2 * MOST_PANELS:
            found.append((_differences(name, task.pairs), f"{name}: differences in points"))
    return found


def _intervals(name: str, arms: Mapping[str, ArmResult], looks: Mapping[str, Style]) -> Markup:
    def draw(ax: Any) -> None:
        for y, (label, arm) in enumerate(arms.items()):
            colour = looks.get(label, looks[BASE])["color"]
            _interval(ax, y, arm.mean, arm.low, arm.high, color=colour)
            for accuracy in arm.by_seed.values():
                ax.plot([100 * accuracy], [y + 0.22], "|", color=colour, markersize=5, alpha=0.8)
        left, right = ax.get_xlim()
        ax.set_xlim(left=-0.02 * right if left < 0.2 * right else left)

    said = "; ".join(f"{label} {percent(arm.mean)}" for label, arm in arms.items())
    return _rows(draw, list(arms), f"Accuracy on {name} with 95 % intervals: {said}")


def _differences(name: str, pairs: Sequence[PairResult]) -> Markup:
    def draw(ax: Any) -> None:
        ax.axvline(0, color=BASE_COLOUR, linewidth=1.2)
        for y, pair in enumerate(pairs):
            fill, colour = ("full", COLOURS[0]) if pair.shown else ("none", BASE_COLOUR)
            _interval(ax, y, pair.difference, pair.low, pair.high, fill, color=colour)

    labels = [f"{pair.a} - {pair.b}" for pair in pairs]
    said = "; ".join(f"{label} {points(pair.difference)}" for label, pair in zip(labels, pairs, strict=True))
    return _rows(draw, labels, f"Paired differences on {name} in points with 95 % intervals: {said}")


def _interval(ax: Any, y: int, mean: float, low: float, high: float, fill: str = "full", **look: str) -> None:
    ax.plot([100 * low, 100 * high], [y, y], linewidth=2.5, solid_capstyle="butt", **look)
    ax.plot([100 * mean], [y], "o", markersize=7, fillstyle=fill, **look)


def _rows(draw: Any, labels: Sequence[str], description: str) -> Markup:
    """A figure with one line for each label, the first on top."""

    def rows(ax: Any) -> None:
        draw(ax)
        ax.set_yticks(
            range(len(labels)), [label if len(label) <= 32 else label[:31] + "…" for label in labels]
        )
        ax.set_ylim(len(labels) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)

    return figure(rows, label=description, width=4.6, height=0.75 + 0.32 * len(labels))
