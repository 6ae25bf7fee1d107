"""What the terminal shows of a diagnosis: the verdict, where the data lies, what objectives would do, the risks."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

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
