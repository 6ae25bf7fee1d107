"""A diagnosis for people: lines and tables for the terminal, and the page with real rows, every token coloured.

What a browser does beyond showing (another colouring, the numbers of a token) is in `page.js`.
"""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from markupsafe import Markup

from rectune.diagnosis.measure import EXAMPLE_TOKENS
from rectune.diagnosis.risks import STRONG, WEAK
from rectune.diagnosis.token_classes import CLASSES
from rectune.errors import visible
from rectune.pages.format import number, percent
from rectune.pages.plots import figure
from rectune.pages.render import render_html
from rectune.records import Diagnosis, ExampleRow, ObjectiveEffect, TargetFigures
from rectune.training.metrics import PROBABILITY_BINS, histogram

BINS = len(PROBABILITY_BINS) - 1
_WIDTH = 100
_ROWS = 3  # named for each risk in the terminal; the page and the JSON have more
_VISIBLE = str.maketrans({"\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\u2028": "↵\n", "\u2029": "↵\n"})


def summary(d: Diagnosis) -> list[str | list[dict[str, str]]]:
    """Lines of text, and tables as lists of rows, in the order in which they are printed."""
    measured = (
        f"{d.measured_rows:,} of {d.rows:,} rows, {d.measured_targets:,} targets, {d.seconds_measuring:.0f} s for the "
        f"pass over rows, {d.seconds:.0f} s in all"
    )
    reasons = [_wrap(f"- {reason.text} ({reason.source})") for reason in d.verdict.reasons]
    shown: list[str | list[dict[str, str]]] = [
        _wrap(d.verdict.sentence),
        "\n".join([_wrap(f"Confidence: {d.verdict.confidence}. Reasons:"), *reasons]),
        f"\nWhere the data lies ({measured})",
        [_figures("all targets", d.overall), *(_figures(group.name, group) for group in d.by_class)],
        "What each objective would do (share of gradient weight by target probability)",
        [_objective(effect, d.bins) for effect in d.objectives],
    ]
    if d.objectives[0].learning_rate_factor is not None:
        shown.append(
            _wrap(
                "The learning rate is an upper bound to try (--sweep), as a multiple of SFT's: AdamW makes up for most "
                "of a smaller gradient."
            )
        )
    if d.risks:
        shown.append("\nRisks")
    for risk in d.risks:
        shown += [
            _wrap(f"{risk.name} ({risk.severity}): {risk.evidence}"),
            _wrap(f"remedy: {risk.remedy}", "    "),
        ]
        if risk.rows:
            shown.append("    rows: " + ", ".join(row.where for row in risk.rows[:_ROWS]))
    shown.append("\nNext, with your benchmarks: BENCHMARK of the rows' domain, ANOTHER of another one")
    return [*shown, *d.verdict.next]


def _figures(name: str, group: TargetFigures) -> dict[str, str]:
    return {
        "": name,
        "targets": f"{group.targets:,}",
        "mean p": number(group.mean_p),
        "NLL": number(group.nll, 2),
        "entropy": number(group.entropy, 2),
        "top-1": percent(group.top1, 0),
        "p < 0.01": percent(sum(group.histogram[:3]) / max(1, group.targets), 0),
        "p >= 0.9": percent(group.histogram[-1] / max(1, group.targets), 0),
    }


def _objective(effect: ObjectiveEffect, bins: Sequence[float]) -> dict[str, str]:
    share, factor = effect.share_by_bin, effect.learning_rate_factor
    middle = next(i for i, edge in enumerate(bins) if edge >= 0.5)
    return {
        "objective": effect.label,
        "mean weight": number(effect.mean_weight),
        "p < 0.01": percent(sum(share[:3]), 0),
        "0.01 to 0.5": percent(sum(share[3:middle]), 0),
        "p >= 0.5": percent(sum(share[middle:]), 0),
        "end tokens": percent(effect.share_by_class.get(CLASSES[0]), 0),
        "effective targets": percent(effect.effective_sample_size, 0),
        "gradient / sft's": number(effect.gradient_norm_ratio, 2),
        "learning rate up to": "-" if factor is None else f"x {factor:.1f}",
    }


def _wrap(text: str, indent: str = "") -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  "))


def render_page(diagnosis: Diagnosis) -> str:
    """The page as HTML: one file that loads nothing."""
    labels = list(dict.fromkeys(label for row in diagnosis.examples for label in row.weights))
    folders = {row.where[: row.where.rfind("/") + 1] for row in diagnosis.examples}
    counts = {group.name: group.targets for group in diagnosis.by_class}
    return render_html(
        "diagnosis/page.html",
        title=f"Diagnosis of {diagnosis.data} under {diagnosis.model}",
        script="diagnosis/page.js",
        d=diagnosis,
        weak=WEAK.value,
        strong=STRONG.value,
        figure=_histogram(diagnosis.overall.histogram),
        edges=[_edge(edge) for edge in PROBABILITY_BINS],
        bins=BINS,
        bar=_bar,
        class_shares={
            name: counts.get(name, 0) / diagnosis.overall.targets
            for name in diagnosis.objectives[0].share_by_class
        },
        folder=folders.pop() if len(folders) == 1 else "",
        number_of={row.where: number for number, row in enumerate(diagnosis.examples, 1)},
        examples=[_shown_row(row) for row in diagnosis.examples],
        example_tokens=EXAMPLE_TOKENS,
        labels=labels,
        rows_data={
            "labels": [visible(label) for label in labels],
            "rows": [_row_data(row, labels) for row in diagnosis.examples],
        },
    )


def _edge(p: float) -> str:
    return f"{p:g}" if p == 0 or p >= 0.01 else f"1e{math.log10(p):.0f}"


def _bin(p: float) -> int:
    return min(BINS - 1, bisect_right(PROBABILITY_BINS, p) - 1)


class Bar(NamedTuple):
    """A bar by probability bin: bin, width in % and description of each part, and what the whole shows in words."""

    parts: list[tuple[int, str, str]]
    words: str


def _bar(values: Sequence[float]) -> Bar | None:
    """None where there is nothing to show."""
    total = sum(values)
    if not total > 0:
        return None
    shares = [value / total for value in values]
    names = [f"{low:g} to {high:g}" for low, high in pairwise(PROBABILITY_BINS)]
    parts = [
        (bin, f"{100 * share:.3f}", f"p {names[bin]}: {percent(share)}")
        for bin, share in enumerate(shares)
        if share
    ]
    low, high = sum(shares[: _bin(0.1)]), shares[-1]
    words = f"p below 0.1: {percent(low, 0)}, 0.1 to 0.9: {percent(1 - low - high, 0)}, above 0.9: {percent(high, 0)}"
    return Bar(parts, words)


def _histogram(counts: Sequence[float]) -> Markup:
    """Figure 2 of the paper: share of targets by probability, on a logarithmic scale."""
    shares = [count / sum(counts) for count in counts]
    bottom = min(0.1, 10 ** math.floor(math.log10(min(share for share in shares if share > 0))))
    # Stand-ins that no other part of a figure has; each becomes the colour of its bin, light or dark.
    inks = {f"#0a0b{bin:02x}": f"--p{bin}" for bin in range(BINS)}

    def draw(ax: Any) -> None:
        for bin, (share, ink) in enumerate(zip(shares, inks, strict=True)):
            if share:
                ax.bar(bin + 0.5, share - bottom * 0.999, bottom=bottom * 0.999, width=1, color=ink)
        ax.set_yscale("log")
        edges = [shares[0], *(max(pair) for pair in pairwise(shares)), shares[-1]]
        tops, ends = ([max(share, bottom) for share in values] for values in (shares, edges))
        ax.stairs(tops, range(BINS + 1), baseline=None, color="#010203", lw=0.9)
        ax.vlines(range(BINS + 1), bottom, ends, color="#010203", lw=0.5, alpha=0.6)
        ax.set_ylim(bottom, 1)
        ax.set_xlim(0, BINS)
        ax.set_xticks(range(BINS + 1), [_edge(edge) for edge in PROBABILITY_BINS], fontsize=8)
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        ax.yaxis.set_minor_formatter(lambda share, _: "")
        ax.set_xlabel("probability of the target under the model")
        ax.grid(axis="x", visible=False)

    words = ", ".join(f"{100 * share:.2g} %" for share in shares)
    label = f"Share of targets by probability bin: {words}"
    return figure(draw, label=label, width=4.7, height=2.75, variables=inks)


class ShownRow(NamedTuple):
    """An example as pieces of text, each with the class that colours it (None for the prompt)."""

    where: str
    source: str
    pieces: list[tuple[str | None, str]]
    targets: int
    mean_p: float
    counts: list[int]
    cut: bool


def _shown_row(row: ExampleRow) -> ShownRow:
    pieces: list[tuple[str | None, str]] = []
    for p, tokens in groupby(zip(row.tokens, row.p, strict=True), key=lambda token: token[1]):
        texts = [text for text, _ in tokens]
        pieces += (
            [(None, "".join(texts))] if p is None else [(f"p{_bin(p)}", _visible(text)) for text in texts]
        )
    known = [p for p in row.p if p is not None]
    mean_p = sum(known) / max(1, len(known))
    cut = len(row.tokens) >= EXAMPLE_TOKENS
    return ShownRow(row.where, row.source, pieces, len(known), mean_p, histogram(known), cut)


def _row_data(row: ExampleRow, labels: Sequence[str]) -> dict[str, list[Any]]:
    """What the script knows of each target, in the order of the targets on the page."""
    places = [place for place, supervised in enumerate(row.supervised) if supervised]
    return {
        "p": [row.p[place] for place in places],
        "entropy": [row.entropy[place] for place in places],
        "kind": [visible(row.class_[place]) for place in places],
        "top": [_visible(row.top[place]) for place in places],
        "same": [row.top[place] == row.tokens[place] for place in places],
        "weights": [[row.weights[label][place] for place in places] for label in labels],
    }


def _visible(text: object) -> str:
    """A token's text with its line breaks and tabs marked."""
    return visible(str(text).translate(_VISIBLE)) or "∅"
