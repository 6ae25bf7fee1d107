"""The page of a diagnosis: the verdict, what it rests on, and real rows with every token coloured.

It shows what `diagnosis.json` holds and nothing else; what is missing there is left out here. What a browser does
beyond showing (another colouring, the figures of a token) is in `page.js`.
"""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from markupsafe import Markup

from rectune.diagnosis.examples import TOKENS
from rectune.diagnosis.risks import STRONG, WEAK
from rectune.pages.plots import figure
from rectune.pages.ramps import ramp_css
from rectune.pages.render import render
from rectune.runtime.escape import visible
from rectune.training.metrics import PROBABILITY_BINS

_WIDTH = 100
_ROWS = 3  # named for each risk; the page and the JSON have more


def summary(diagnosis: Mapping[str, Any]) -> list[str | list[dict[str, str]]]:
    """Lines of text, and tables as lists of rows, in the order in which they are printed."""
    verdict, overall = diagnosis["verdict"], diagnosis["overall"]
    measured = (
        f"{diagnosis['measured_rows']:,} of {diagnosis['rows']:,} rows, {diagnosis['measured_targets']:,} targets, "
        f"{diagnosis['seconds_measuring']:.0f} s for the pass over rows, {diagnosis['seconds']:.0f} s in all"
    )
    shown: list[str | list[dict[str, str]]] = [
        _wrap(verdict["sentence"]),
        _wrap(f"How sure: {verdict['confidence']}. Reasons:")
        + "".join("\n" + _wrap(f"- {reason['text']} ({reason['source']})") for reason in verdict["reasons"]),
        f"\nWhere the data lies ({measured})",
        [_figures("all targets", overall), *(_figures(one["name"], one) for one in diagnosis["by_class"])],
        "What each objective would do (share of gradient weight by target probability)",
        [_objective(one, diagnosis["bins"]) for one in diagnosis["objectives"]],
    ]
    if diagnosis["objectives"][0]["learning_rate_factor"] is not None:
        shown.append(
            _wrap(
                "A learning rate up to so many times SFT's is worth a try (--sweep), not more: AdamW makes up for most "
                "of a smaller gradient."
            )
        )
    if diagnosis["risks"]:
        shown.append("\nRisks")
    for risk in diagnosis["risks"]:
        shown += [
            _wrap(f"{risk['name']} ({risk['severity']}): {risk['evidence']}"),
            _wrap(f"what to do: {risk['remedy']}", "    "),
        ]
        if risk["rows"]:
            shown.append("    rows: " + ", ".join(row["where"] for row in risk["rows"][:_ROWS]))
    shown.append("\nNext, with your benchmarks: BENCHMARK of the rows' domain, ANOTHER of another one")
    return [*shown, *verdict["next"]]


def _figures(name: str, one: Mapping[str, Any]) -> dict[str, str]:
    low = sum(one["histogram"][:3]) / max(1, one["targets"])
    high = one["histogram"][-1] / max(1, one["targets"])
    return {
        "": name,
        "targets": f"{one['targets']:,}",
        "mean p": f"{one['mean_p']:.3f}",
        "NLL": f"{one['nll']:.2f}",
        "entropy": f"{one['entropy']:.2f}",
        "top-1": f"{one['top1']:.0%}",
        "p < 0.01": f"{low:.0%}",
        "p >= 0.9": f"{high:.0%}",
    }


def _objective(one: Mapping[str, Any], bins: list[float]) -> dict[str, str]:
    share = one["share_by_bin"]
    middle = next(i for i, edge in enumerate(bins) if edge >= 0.5)
    ratio, factor = one["gradient_norm_ratio"], one["learning_rate_factor"]
    return {
        "objective": one["label"],
        "mean weight": f"{one['mean_weight']:.3f}",
        "p < 0.01": f"{sum(share[:3]):.0%}",
        "0.01 to 0.5": f"{sum(share[3:middle]):.0%}",
        "p >= 0.5": f"{sum(share[middle:]):.0%}",
        "end tokens": f"{one['share_by_class']['end and special']:.0%}",
        "effective targets": f"{one['effective_sample_size']:.0%}",
        "gradient / sft's": "-" if ratio is None else f"{ratio:.2f}",
        "learning rate up to": "-" if factor is None else f"x {factor:.1f}",
    }


def _wrap(text: str, indent: str = "") -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  "))


BINS = len(PROBABILITY_BINS) - 1
_GROUPS = (("Token class", "by_class"), ("Place in the answer", "by_position"), ("Source", "by_source"))
_OBJECTS = ("objectives", "examples", "reasons", "risks", "rows", *(key for _, key in _GROUPS))
_KINDS: dict[str, type] = {"next": str, **dict.fromkeys(_OBJECTS, Mapping)}
"""Fields that hold lists of one kind."""
_VISIBLE = str.maketrans({"\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\u2028": "↵\n", "\u2029": "↵\n"})


def render_page(diagnosis: Mapping[str, Any]) -> str:
    """The page as HTML: one file that loads nothing.

    Args:
        diagnosis: Content of a diagnosis.json; fields may be missing or null.
    """
    d = _lenient(diagnosis)
    overall = d.get("overall") or _Partial()
    histogram = _numbers(overall.get("histogram"))
    verdict = d.get("verdict") or _Partial()
    examples = d.get("examples") or []
    objectives = d.get("objectives") or []
    classes = list(dict.fromkeys(name for one in objectives for name in one.get("share_by_class") or {}))
    folder = _folder([str(one.get("where") or "") for one in examples])
    shown = {str(one.get("where")): number for number, one in enumerate(examples, 1)}
    return render(
        "diagnosis/page.html",
        title=f"Diagnosis of {d.get('data') or 'data'} under {d.get('model') or 'a model'}",
        script="diagnosis/page.js",
        d=d,
        ramps=ramp_css(),
        overall=overall,
        verdict=verdict,
        p=_number(overall.get("mean_p")),
        lines=(WEAK, STRONG),
        figure=_histogram(histogram) if sum(histogram) else None,
        edges=[_edge(edge) for edge in PROBABILITY_BINS],
        folder=folder,
        place=lambda where: str(where or "").removeprefix(folder),
        bins=BINS,
        targets=_bar(histogram),
        shares=[x / sum(histogram) for x in histogram] if sum(histogram) else [],
        groups=[
            (name, [(one, _bar(_numbers(one.get("histogram")))) for one in found])
            for name, key in _GROUPS
            if (found := d.get(key) or [])
        ],
        total=_number(overall.get("targets")),
        objectives=[(one, _bar(_numbers(one.get("share_by_bin")))) for one in objectives],
        classes=classes,
        class_shares=_class_shares(d.get("by_class") or [], classes),
        step=lambda share: min(BINS - 1, int(BINS * (_number(share) or 0.0))),
        risks=d.get("risks") or [],
        shown=shown,
        linked=any(row.get("where") in shown for one in d.get("risks") or [] for row in one.get("rows") or []),
        rows=[_row(one) for one in examples],
        labels=_labels(examples),
        rows_data=_rows_data(examples),
        fixed=_fixed,
        short=_short,
    )  # fmt: skip


class _Partial(dict[str, Any]):
    """None for what is missing: a file may be older, cut by hand or of an interrupted run."""

    def __missing__(self, key: str) -> None:
        return None


def _lenient(value: Any, key: str = "") -> Any:
    """The same, with None for what is missing in objects and for what is no finite number, and lists of one kind."""
    if isinstance(value, Mapping):
        return _Partial((str(name), _lenient(one, str(name))) for name, one in value.items())
    if not isinstance(value, list | tuple):
        return None if isinstance(value, int | float) and _number(value) is None else value
    return [_lenient(one) for one in value if isinstance(one, _KINDS.get(key, object))]


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def _numbers(values: Iterable[Any] | None) -> list[float]:
    return [max(0.0, _number(value) or 0.0) for value in values or ()][:BINS]


def _fixed(value: Any, digits: int = 2) -> str:
    """With so many decimals; a dash where there is no number."""
    number = _number(value)
    return "–" if number is None else f"{number:,.{digits}f}"


def _short(value: Any) -> str:
    """To three figures; a dash where there is no number."""
    number = _number(value)
    return "–" if number is None else f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _edge(p: float) -> str:
    return f"{p:g}" if p == 0 or p >= 0.01 else f"1e{math.log10(p):.0f}"


def _bin(p: float) -> int:
    return min(BINS - 1, max(0, bisect_right(PROBABILITY_BINS, p) - 1))


def _bar(values: Sequence[float]) -> dict[str, Any] | None:
    """Parts of a bar by probability bin, and what it shows in words; None where there is nothing to show."""
    total = sum(values)
    if total <= 0 or len(values) != BINS:
        return None
    shares = [value / total for value in values]
    names = [f"{low:g} to {high:g}" for low, high in pairwise(PROBABILITY_BINS)]
    low, high = 100 * sum(shares[: _bin(0.1)]), 100 * shares[-1]
    return {
        "parts": [
            (number, f"{100 * share:.3f}", f"p {names[number]}: {100 * share:.1f} %")
            for number, share in enumerate(shares)
            if share > 0
        ],
        "words": f"p below 0.1: {low:.0f} %, 0.1 to 0.9: {100 - low - high:.0f} %, above 0.9: {high:.0f} %",
    }


def _class_shares(groups: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[float | None]:
    """Share of the targets in each class."""
    counts = {one.get("name"): _number(one.get("targets")) for one in groups}
    total = sum(count or 0.0 for count in counts.values())
    return [(counts.get(name) or 0.0) / total if total else None for name in classes]


def _histogram(counts: Sequence[float]) -> Markup:
    """Figure 2 of the paper: share of targets by probability, on a logarithmic scale."""
    total = sum(counts)
    shares = [count / total for count in counts]
    bottom = min(0.1, 10 ** math.floor(math.log10(min(share for share in shares if share > 0))))
    # Stand-ins that no other part of a figure has; each becomes the colour of its bin, light or dark.
    inks = {f"#0a0b{number:02x}": f"--p{number}" for number in range(BINS)}

    def draw(ax: Any) -> None:
        for number, (share, ink) in enumerate(zip(shares, inks, strict=True)):
            if share:
                ax.bar(number + 0.5, share - bottom * 0.999, bottom=bottom * 0.999, width=1, color=ink)
        ax.set_yscale("log")
        edges = [shares[0], *(max(pair) for pair in pairwise(shares)), shares[-1]]
        ax.stairs(
            [max(share, bottom) for share in shares], range(BINS + 1), baseline=None, color="#010203", lw=0.9
        )
        ax.vlines(
            range(BINS + 1), bottom, [max(edge, bottom) for edge in edges], color="#010203", lw=0.5, alpha=0.6
        )
        ax.set_ylim(bottom, 1)
        ax.set_xlim(0, BINS)
        ax.set_xticks(range(BINS + 1), [_edge(edge) for edge in PROBABILITY_BINS], fontsize=8)
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        ax.yaxis.set_minor_formatter(lambda share, _: "")
        ax.set_xlabel("probability of the target under the model")
        ax.grid(axis="x", visible=False)

    words = ", ".join(f"{100 * share:.2g} %" for share in shares)
    return figure(
        draw, label=f"Share of targets by probability bin: {words}", width=4.7, height=2.75, variables=inks
    )


def _visible(text: Any) -> str:
    """A token's text with its line breaks and tabs marked."""
    return visible(str("" if text is None else text).translate(_VISIBLE)) or "∅"


def _folder(places: Sequence[str]) -> str:
    """The folder that all places lie in, with its slash; "" where there is more than one."""
    folders = {place[: place.rfind("/") + 1] for place in places}
    return folders.pop() if len(folders) == 1 else ""


def _at(values: Any, place: int) -> Any:
    return values[place] if values and place < len(values) else None


def _targets(example: Mapping[str, Any]) -> list[int]:
    """Places of the supervised tokens."""
    tokens = example.get("tokens") or []
    return [place for place in range(len(tokens)) if _at(example.get("supervised"), place)]


def _row(example: Mapping[str, Any]) -> dict[str, Any]:
    """A row as pieces of text: stretches of prompt, and each target with the class that colours it."""
    tokens, targets = example.get("tokens") or [], set(_targets(example))
    known = [p for place in sorted(targets) if (p := _number(_at(example.get("p"), place))) is not None]
    pieces: list[tuple[str | None, str]] = []
    for is_target, places in groupby(range(len(tokens)), lambda place: place in targets):
        if not is_target:
            pieces.append((None, "".join(str(tokens[place]) for place in places)))
            continue
        for place in places:
            p = _number(_at(example.get("p"), place))
            pieces.append((f"p{_bin(p)}" if p is not None else "none", _visible(tokens[place])))
    counts = [0.0] * BINS
    for p in known:
        counts[_bin(p)] += 1
    return {
        "where": str(example.get("where") or ""),
        "source": example.get("source") or "",
        "pieces": pieces,
        "targets": len(targets),
        "mean_p": sum(known) / len(known) if known else None,
        "bar": _bar(counts),
        "cut": len(tokens) if len(tokens) >= TOKENS else None,
    }


def _labels(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the objectives that the rows have weights of."""
    return list(dict.fromkeys(label for one in examples for label in one.get("weights") or {}))


def _rows_data(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the script knows of each target, in the order of the targets on the page."""
    labels = _labels(examples)
    found = []
    for one in examples:
        places = _targets(one)
        weights = one.get("weights") or {}
        found.append(
            {
                "p": [_number(_at(one.get("p"), place)) for place in places],
                "entropy": [_number(_at(one.get("entropy"), place)) for place in places],
                "kind": [None if (kind := _at(one.get("class"), place)) is None else visible(kind) for place in places],
                "top": [
                    None if (top := _at(one.get("top"), place)) is None else _visible(top) for place in places
                ],
                "same": [
                    _at(one.get("top"), place) == _at(one.get("tokens"), place) for place in places
                ],
                "weights": [
                    [_number(_at(weights.get(label), place)) for place in places] for label in labels
                ],
            }
        )  # fmt: skip
    return {"labels": [visible(label) for label in labels], "rows": found}
