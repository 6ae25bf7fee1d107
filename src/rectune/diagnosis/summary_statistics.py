"""Where the data lies under the model: probability, NLL, entropy and top-1 rate, over all targets and by group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rectune.diagnosis.classes import CLASSES
from rectune.diagnosis.measure import Measured
from rectune.training.metrics import histogram

PLACES = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.9), (0.9, 1.0))
"""Parts of an answer, from its first token to its last."""
_MOST_SOURCES = 20


def figures(measured: Measured, chosen_N: np.ndarray | None = None) -> dict[str, Any]:
    """Figures of the chosen targets, or of all; means over targets."""
    chosen = np.ones(len(measured.logp_N), bool) if chosen_N is None else chosen_N
    p = measured.p_N[chosen]
    return {
        "targets": len(p),
        "mean_p": float(p.mean()),
        "nll": float(-measured.logp_N[chosen].mean()),
        "entropy": float(measured.entropy_N[chosen].mean()),
        "top1": float(measured.top1_N[chosen].mean()),
        "histogram": histogram(p),
    }


def standard_error(measured: Measured) -> float | None:
    """Of the mean p over all targets, whole rows being what was drawn; None for a single row."""
    rows = len(measured.rows)
    if rows < 2:
        return None
    residual = np.bincount(measured.row_N, weights=measured.p_N - measured.p_N.mean(), minlength=rows)
    return math.sqrt(rows / (rows - 1) * float((residual**2).sum())) / len(measured.p_N)


def by_class(measured: Measured, classes_N: np.ndarray) -> list[dict[str, Any]]:
    """Figures of each token class that occurs."""
    return list(_groups(measured, classes_N, CLASSES))


def by_place(measured: Measured) -> list[dict[str, Any]]:
    """Figures by position in the answer."""
    edges = [high for _, high in PLACES[:-1]]
    names = [f"{low:.0%} to {high:.0%}" for low, high in PLACES]
    return list(_groups(measured, np.digitize(measured.place_N, edges), names))


def by_source(measured: Measured, sources: Sequence[str]) -> list[dict[str, Any]]:
    """Figures by the rows' `source` field, the largest first; empty where the rows have none."""
    names = sorted(set(sources))
    if names in ([], [""]):
        return []
    index = {name: i for i, name in enumerate(names)}
    of_row = np.array([index[source] for source in sources])
    found = list(_groups(measured, of_row[measured.row_N], [name or "(none)" for name in names]))
    return sorted(found, key=lambda group: -group["targets"])[:_MOST_SOURCES]


def _groups(measured: Measured, group_N: np.ndarray, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, name in enumerate(names):
        chosen = group_N == number
        if chosen.any():
            yield {"name": name, **figures(measured, chosen)}
