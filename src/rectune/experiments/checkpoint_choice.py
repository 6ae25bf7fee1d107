"""Choosing between arms by their accuracy on validation problems: learning rates of a sweep, who goes on in a race.

Neither ever looks at an objective's own value: -p log p falls as p goes to 0, so a falling DFT loss can mean a model
that gets worse, and losses of two objectives cannot be compared at all. Training the arms is left to
`lr_sweep.py` and `successive_halving.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rectune.evaluation.statistics import Difference, holm, mean_interval, paired_difference

LEVEL = 0.95
"""An arm is dropped where this interval of the difference is above 0 and Holm's p-value is below 1 - LEVEL."""


def accuracy(correct_SxPxN: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean over seeds and problems, with its interval over problems."""
    by_problem_PxS = np.stack([matrix.mean(axis=1) for matrix in correct_SxPxN], axis=1)
    return mean_interval(by_problem_PxS, LEVEL)._asdict()


def best_rate(accuracies: Mapping[float, float]) -> float:
    """The learning rate with the highest accuracy; of several the lowest."""
    return min(accuracies, key=lambda rate: (-accuracies[rate], rate))


def decide(arms: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Any]:
    """Who leads, and who is clearly worse.

    Which arm leads is itself read from these answers, so Holm's correction is over all pairs of arms, not only over
    those with the leader in them.

    Args:
        arms: Label to one matrix of verdicts a seed, (P, N), the same problems in the same order.

    Returns:
        `leader`; `accuracy` by label; `behind`: for every other label `difference` (leader minus arm), `low`, `high`,
        `p_value`, `p_holm`; `worse`: labels that are clearly worse.
    """
    figures = {label: accuracy(matrices) for label, matrices in arms.items()}
    leader = max(figures, key=lambda label: figures[label]["mean"])  # of several the first
    pairs = list(combinations(arms, 2))
    found = [_difference(arms[a], arms[b]) for a, b in pairs]
    adjusted = holm([one.p_value for one in found]) if found else []
    behind: dict[str, dict[str, float]] = {}
    for (a, b), one, p_holm in zip(pairs, found, adjusted, strict=True):
        if leader in (a, b):
            low, high, mean = (
                (one.low, one.high, one.mean) if a == leader else (-one.high, -one.low, -one.mean)
            )
            behind[b if a == leader else a] = {
                "difference": mean,
                "low": low,
                "high": high,
                "p_value": one.p_value,
                "p_holm": p_holm,
            }
    worse = [name for name, one in behind.items() if one["low"] > 0 and one["p_holm"] < 1 - LEVEL]
    return {"leader": leader, "accuracy": figures, "behind": behind, "worse": worse}


def _difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Difference:
    return paired_difference(list(a), list(b), LEVEL) if len(a) > 1 else paired_difference(a[0], b[0], LEVEL)
