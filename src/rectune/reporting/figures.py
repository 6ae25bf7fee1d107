"""The page's figures: from the data of `collect.py` to SVG. What they mean is said beside them, in `sections.py`.

An arm has the same colour and line everywhere; runs of several seeds are thin, their mean is thick.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rectune.pages.plots import BASE_COLOUR, COLOURS, figure
from rectune.reporting.grouping import BASE

_LINES = ("solid", "dashed", "dotted", "dashdot")
_PANEL = {"width": 3.5, "height": 2.3}
MOST_PANELS = 12
"""Histograms that are drawn; the table has all."""

COURSE = (
    ("holdout", "nll", "Hold-out NLL (nats per target)"),
    ("holdout", "mean_p", "Hold-out mean p of the targets"),
    ("holdout", "accuracy", "Hold-out share of targets that are top-1"),
)
LOSSES = (
    ("train", "objective", "The objective's own value"),
    ("train", "nll", "NLL of the same tokens (nats)"),
)
ROLLOUTS = (
    ("rollouts", "reward", "Mean reward of the answers drawn"),
    ("rollouts", "length", "Tokens of an answer"),
    ("rollouts", "entropy", "Entropy of the tokens trained on (nats)"),
    ("rollouts", "kl", "KL to the initial model (nats)"),
    ("rollouts", "clip_share", "Share of tokens that the clip took"),
)
DRIFT = (
    ("drift", "kl", "KL(base || model) on the probe (nats)"),
    ("drift", "entropy", "Entropy on the probe (nats)"),
    ("drift", "eos_p", "Probability of turn ends"),
    ("drift", "repetition", "Repeated 4-grams in sampled answers"),
    ("drift", "length", "Tokens of sampled answers"),
    ("drift", "stopped", "Share of answers that ended by themselves"),
)
HOLDOUT_DRIFT = (
    ("holdout", "entropy", "Hold-out entropy (nats)"),
    ("holdout", "eos_p", "Hold-out probability of turn ends"),
)
LOG = (
    ("log", "loss", "Loss as logged"),
    ("log", "eval_loss", "Evaluation loss as logged"),
    ("log", "learning_rate", "Learning rate"),
    ("log", "mean_token_accuracy", "Token accuracy as logged"),
)


def styles(data: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Colour and line of every arm by label; the base model is grey."""
    labels = [arm["label"] for arm in data["arms"] if arm["label"] != BASE]
    drawn = {
        label: {"color": COLOURS[i % len(COLOURS)], "linestyle": _LINES[i // len(COLOURS) % len(_LINES)]}
        for i, label in enumerate(labels)
    }
    return {BASE: {"color": BASE_COLOUR, "linestyle": "solid"}, **drawn}


def over_steps(data: Mapping[str, Any], panels: Sequence[tuple[str, str, str]]) -> list[tuple[Markup, str]]:
    """A figure with its title for every panel that has something to show: figures against steps."""
    found = []
    for kind, name, title in panels:
        lines = {
            (one["label"], one["seed"]): points
            for one in data["curves"]
            if (points := [(line["step"], line[name]) for line in one[kind] if name in line])
        }
        if lines and any(len(points) > 1 for points in lines.values()):
            found.append((_curves(lines, title, styles(data), smooth=kind in ("train", "rollouts")), title))
    return found


def _curves(
    lines: Mapping[tuple[str, Any], Sequence[tuple[float, float]]],
    title: str,
    looks: Mapping[str, Mapping[str, str]],
    *,
    smooth: bool,
) -> Markup:
    by_label: dict[str, list[Sequence[tuple[float, float]]]] = {}
    for (label, _), points in lines.items():
        by_label.setdefault(label, []).append(_smoothed(points) if smooth else points)

    def draw(ax: Any) -> None:
        for label, seeds in by_label.items():
            thin = len(seeds) > 1
            for points in seeds:
                few = {} if thin or len(points) > 30 else {"marker": "o", "markersize": 3.5}
                look = {"linewidth": 0.7, "alpha": 0.5} if thin else few
                ax.plot(*zip(*points, strict=True), **looks[label], **look)
            if thin:
                ax.plot(*zip(*_mean_of(seeds), strict=True), **looks[label])
        ax.set_xlabel("step")
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        ax.margins(x=0.02)

    return _quiet(draw, label=f"{title} against steps for {', '.join(by_label)}", **_PANEL)


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running mean over a twentieth of the points: single steps are too noisy to be read."""
    half = len(points) // 40
    values = [value for _, value in points]
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(points)))
    return [(step, sum(w) / len(w)) for (step, _), w in zip(points, windows, strict=True)]


def _mean_of(seeds: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean at the steps that all seeds have; of the first where they share none."""
    tables = [dict(points) for points in seeds]
    shared = [step for step in tables[0] if all(step in table for table in tables)]
    return [(s, sum(table[s] for table in tables) / len(tables)) for s in shared] or list(seeds[0])


def histograms(data: Mapping[str, Any]) -> list[tuple[Markup, str]]:
    """Before (grey area) and after (line) of every arm on the same logarithmic scale: the paper's Figure 2."""
    found, looks = data["histograms"], styles(data)
    shares = [s for one in found["arms"].values() for end in ("before", "after") for s in one[end] if s > 0]
    bottom = min(shares, default=1e-4) / 2
    edges = found["bins"]
    places = list(range(len(edges)))

    def panel(label: str, one: Mapping[str, Any]) -> Markup:
        def draw(ax: Any) -> None:
            ax.set_yscale("log")
            ax.stairs([max(s, bottom) for s in one["before"]], places, baseline=bottom, fill=True, color=BASE_COLOUR,
                      alpha=0.45, linewidth=0)  # fmt: skip
            ax.stairs(
                [max(s, bottom) for s in one["after"]], places, baseline=bottom, linewidth=2, **looks[label]
            )
            ax.set_ylim(bottom, 1)
            ax.set_xlim(0, len(edges) - 1)
            named = [place for place in places if place % 2 == 0 or place == places[-1]]
            ax.set_xticks(named, [f"{edges[place]:g}" for place in named])
            ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            ax.yaxis.set_minor_formatter(lambda share, _: "")
            ax.set_xlabel("probability of the target")
            ax.grid(axis="x", visible=False)

        words = ", ".join(f"{100 * s:.1f} %" for s in one["after"])
        return _quiet(draw, label=f"Targets of {label} by probability, after training: {words}", **_PANEL)

    return [(panel(label, one), label) for label, one in list(found["arms"].items())[:MOST_PANELS]]


def accuracies(data: Mapping[str, Any]) -> list[tuple[Markup, str]]:
    """One figure a benchmark: accuracies with intervals, and differences of pairs around zero."""
    judged = data["verdict"]["judged"]
    found = []
    for name, one in (judged or {"benchmarks": {}})["benchmarks"].items():
        found.append((_intervals(name, one["arms"], styles(data)), f"{name}: accuracy in %"))
        if 0 < len(one["pairs"]) <= 2 * MOST_PANELS:
            found.append((_differences(name, one["pairs"]), f"{name}: differences in points"))
    return found


def _intervals(
    name: str, arms: Mapping[str, Mapping[str, Any]], looks: Mapping[str, Mapping[str, str]]
) -> Markup:
    labels = list(arms)

    def draw(ax: Any) -> None:
        for y, label in enumerate(labels):
            mean, low, high = (100 * arms[label][key] for key in ("mean", "low", "high"))
            colour = looks.get(label, {"color": BASE_COLOUR})["color"]
            ax.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
            ax.plot([mean], [y], "o", color=colour, markersize=7)
            for seed in arms[label].get("by_seed", {}).values():
                ax.plot([100 * seed], [y + 0.22], "|", color=colour, markersize=5, alpha=0.8)
        _rows(ax, labels)
        left, right = ax.get_xlim()
        ax.set_xlim(left=-0.02 * right if left < 0.2 * right else left)

    said = "; ".join(f"{label} {100 * arms[label]['mean']:.1f} %" for label in labels)
    return _quiet(draw, label=f"Accuracy on {name} with 95 % intervals: {said}", **_tall(labels))


def _differences(name: str, pairs: Sequence[Mapping[str, Any]]) -> Markup:
    labels = [f"{pair['a']} - {pair['b']}" for pair in pairs]

    def draw(ax: Any) -> None:
        ax.axvline(0, color=BASE_COLOUR, linewidth=1.2)
        for y, pair in enumerate(pairs):
            shown = pair.get("shown", False)
            look = {"color": COLOURS[0] if shown else BASE_COLOUR}
            ax.plot(
                [100 * pair["low"], 100 * pair["high"]], [y, y], linewidth=2.5, solid_capstyle="butt", **look
            )
            ax.plot(
                [100 * pair["difference"]],
                [y],
                "o",
                markersize=7,
                fillstyle="full" if shown else "none",
                **look,
            )
        _rows(ax, labels)

    said = "; ".join(
        f"{label} {100 * pair['difference']:.1f}" for label, pair in zip(labels, pairs, strict=True)
    )
    return _quiet(
        draw, label=f"Paired differences on {name} in points with 95 % intervals: {said}", **_tall(labels)
    )


def _rows(ax: Any, labels: Sequence[str]) -> None:
    """One line of a figure for each label, the first on top."""
    ax.set_yticks(range(len(labels)), [label if len(label) <= 32 else label[:31] + "…" for label in labels])
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _tall(labels: Iterable[str]) -> dict[str, float]:
    return {"width": 4.6, "height": 0.75 + 0.32 * len(list(labels))}


def _quiet(draw: Callable[[Any], None], **layout: Any) -> Markup:
    """`figure`, without warnings about letters that matplotlib's own font lacks: the browser has them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        return figure(draw, **layout)
