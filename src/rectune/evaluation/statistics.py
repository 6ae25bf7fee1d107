"""Accuracy with honest intervals: avg@n, pass@k, maj@k, paired differences.

The unit of evidence is the *problem*: its N samples are one cluster, so 30 problems x 16 samples are 30
observations, not 480. Every matrix below is `PxN`, problems by samples, with values in [0, 1]; a list of P
arrays of different lengths is accepted too (a problem then counts once, whatever its number of samples). How
the intervals were chosen, and how often they cover the truth in simulation, is in `docs/statistics.md`;
`benchmarks/coverage.py` measures it again. What was sampled and how it was graded is left to `evaluate.py`.

Shapes: P problems, N samples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from rectune.errors import UserError
from rectune.evaluation.intervals import (
    GRAIN,
    TINY,
    clustered_limits,
    paired_limits,
    seed_spread,
    sign_flip,
    t_quantile,
    wilson,
)

EVERY_SUBSET = 2000
"""maj@k is exact where there are so many subsets at most; beyond, it is a mean over 200 random ones."""
Matrix = Any  # an array PxN, or P sequences of numbers


class Interval(NamedTuple):
    """An estimate and its interval, all in [0, 1]."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a minus b, its interval in [-1, 1], and the two-sided p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p_value: float


def mean_interval(correct_PxN: Matrix, level: float = 0.95) -> Interval:
    """Mean accuracy (avg@N) and its interval.

    How alike a problem's samples are decides how much the problems are worth: `intervals.clustered_limits`. Where all
    problems agree (all right, all wrong) nothing is known of that, and the interval is Wilson's for P problems that are
    each all right or all wrong: ten problems without a success do not prove an accuracy of zero. One problem says
    nothing about others: its interval is [0, 1].

    Arrays of shape S x P x N (or lists of S arrays) hold S training seeds on the same problems: seeds and problems are
    then both random. One seed says nothing about others: its interval is over problems alone.

    Raises:
        UserError: no problems, a problem without samples, values outside [0, 1] or NaN, `level` outside (0, 1), seeds
            with different numbers of problems.
    """
    seeds_S = list(correct_PxN) if _is_3d(correct_PxN) else [correct_PxN]
    x_SxP, rows = _pooled(seeds_S, "correct")
    P, mean = x_SxP.shape[1], float(x_SxP.mean())
    quantile = t_quantile(_two_sided(level), P - 1)
    if P == 1:
        return Interval(mean, 0.0, 1.0)
    if x_SxP.mean(0).std() < TINY:
        low, high = wilson(mean, quantile, P)
    else:
        known = all(np.all((row == 0) | (row == 1)) for row in rows)
        n_P = np.array([min(len(row), GRAIN) if known else GRAIN for row in rows])
        low, high = clustered_limits(n_P * x_SxP.mean(0), n_P, level)
    added = seed_spread(x_SxP, level)[0] if len(seeds_S) > 1 else 0.0
    return Interval(mean, *_widened(mean, low, high, added, least=0.0))


def pass_at_k(correct_PxN: Matrix, k: int) -> float:
    """Unbiased chance that at least one of k samples is correct: mean over problems of 1 - C(n-c, k) / C(n,
    k).

    Its interval is `mean_interval(pass_at_k_by_problem(correct, k)[:, None])`.

    Raises:
        UserError: as `mean_interval`; k < 1; a problem with fewer than k samples; values other than 0 and 1.
    """
    return float(pass_at_k_by_problem(correct_PxN, k).mean())


def pass_at_k_by_problem(correct_PxN: Matrix, k: int) -> np.ndarray:
    """pass@k of each problem, float64 of shape (P,)."""
    rows = _binary_rows(correct_PxN)
    _check_k(rows, k)
    return np.array([1 - _comb_ratio(len(row), int(row.sum()), k) for row in rows])


def maj_at_k(correct_PxN: Matrix, answers_PxN: Sequence[Sequence[object]], k: int) -> float:
    """Chance that the most frequent answer among k samples is correct; a tie is drawn among the tied.

    Args:
        correct_PxN: 0 or 1.
        answers_PxN: What each sample votes for, as `voting.votes` groups the answers. All correct samples of a
            problem are one answer; others are the same when equal. None (nothing extracted) does not vote.
        k: Votes. The mean over all subsets of k samples, or over 200 random ones with a fixed seed where there are
            more than `EVERY_SUBSET`; so maj@1 is avg@1.

    Raises:
        UserError: as `pass_at_k`; answers of another shape.
    """
    return float(maj_at_k_by_problem(correct_PxN, answers_PxN, k).mean())


def maj_at_k_by_problem(correct_PxN: Matrix, answers_PxN: Sequence[Sequence[object]], k: int) -> np.ndarray:
    """maj@k of each problem, float64 of shape (P,)."""
    rows = _binary_rows(correct_PxN)
    _check_k(rows, k)
    if [len(row) for row in rows] != [len(answers) for answers in answers_PxN]:
        raise UserError("answers and verdicts differ in shape", hint="one answer for each sample")
    rng = np.random.default_rng(0)
    return np.array([_majority(row, list(ans), k, rng) for row, ans in zip(rows, answers_PxN, strict=True)])


def paired_difference(a_PxN: Matrix, b_PxN: Matrix, level: float = 0.95) -> Difference:
    """Mean of a minus b over the same problems in the same order, with interval and sign-flip p-value.

    The interval is Tango's score interval for as many pairs as the problems are worth (`intervals.paired_limits`); two
    runs that nowhere differ are bounded by what P problems could have shown. The p-value flips the sign of each
    problem's difference: all patterns where few problems differ, else 20,000 drawn with a fixed seed, the observed one
    counted in, so it is never 0.

    Arrays of shape S x P x N (or lists of S arrays) hold S training seeds on the same problems: then seeds and problems
    are both random, and the interval is widened by what the seeds add (`intervals.seed_spread`). The p-value is then
    Student's.

    Raises:
        UserError: as `mean_interval`; different numbers of problems or seeds; fewer than two seeds.
    """
    several = _is_3d(a_PxN) or _is_3d(b_PxN)
    if several and (len(a_PxN) != len(b_PxN) or len(a_PxN) < 2):
        raise UserError(
            f"{len(a_PxN)} and {len(b_PxN)} seeds", hint="give the same seeds, two or more, for both"
        )
    a_SxP, a_rows = _pooled(list(a_PxN) if several else [a_PxN], "a")
    b_SxP, b_rows = _pooled(list(b_PxN) if several else [b_PxN], "b")
    _check_pairs(a_SxP, b_SxP)
    d_SxP = a_SxP - b_SxP
    d_P, mean = d_SxP.mean(0), float(d_SxP.mean())
    quantile = t_quantile(_two_sided(level), len(d_P) - 1)
    if len(d_P) == 1:
        return Difference(mean, -1.0, 1.0, 1.0 if several else sign_flip(d_P))
    added, p_value = seed_spread(d_SxP, level) if several else (0.0, sign_flip(d_P))
    grain = float(np.mean([1 / len(row) for row in (*a_rows, *b_rows)]))
    low, high = paired_limits(d_P, grain, quantile)
    return Difference(mean, *_widened(mean, low, high, added, least=-1.0), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 0.05, the family-wise error is below 5 %."""
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise UserError("p-values have to be a list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty_like(p)
    result[order] = adjusted
    return [float(value) for value in result]


def problems_needed(difference: float, a_PxN: Matrix, b_PxN: Matrix, *, power: float = 0.8) -> int:
    """Problems needed to see `difference` (such as 0.02) at the 5 % level with this power, given a and b's
    spread.

    Raises:
        UserError: a difference of 0 or beyond [-1, 1]; no two problems that differ differently (no spread to
        go by).
    """
    if not 0 < abs(difference) <= 1:
        raise UserError(f"a difference of {difference} cannot be planned for", hint="give one such as 0.02")
    (a_1xP, _), (b_1xP, _) = _pooled([a_PxN], "a"), _pooled([b_PxN], "b")
    _check_pairs(a_1xP, b_1xP)
    d_P = (a_1xP - b_1xP)[0]
    spread = float(d_P.std(ddof=1)) if len(d_P) > 1 else 0.0
    if spread < TINY:
        raise UserError("the two runs differ alike on all problems: no spread to plan with")
    z = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((z * spread / difference) ** 2 + 2))  # + 2: t instead of normal quantiles


def _rows(matrix: Matrix, name: str) -> list[np.ndarray]:
    """P float arrays in [0, 1], checked."""
    try:
        rows = [np.asarray(row, dtype=float) for row in matrix]
    except (TypeError, ValueError):
        raise UserError(f"{name} is not a matrix of numbers", hint="problems x samples, 0 or 1") from None
    if not rows:
        raise UserError(f"{name} holds no problems")
    for index, row in enumerate(rows):
        if row.ndim != 1:
            raise UserError(f"{name} has to be problems x samples", hint="for one sample each: x[:, None]")
        if not len(row):
            raise UserError("no samples", where=f"{name}, problem {index}")
        if not np.all((row >= 0) & (row <= 1)):  # false for NaN as well
            raise UserError("values have to be in [0, 1] and not NaN", where=f"{name}, problem {index}")
    return rows


def _binary_rows(matrix: Matrix) -> list[np.ndarray]:
    rows = _rows(matrix, "correct")
    for index, row in enumerate(rows):
        if not np.all((row == 0) | (row == 1)):
            raise UserError("verdicts have to be 0 or 1", where=f"correct, problem {index}")
    return rows


def _check_k(rows: list[np.ndarray], k: int) -> None:
    fewest = min(len(row) for row in rows)
    if not 1 <= k <= fewest:
        raise UserError(f"k = {k} with {fewest} samples of a problem", hint=f"k is from 1 to {fewest}")


def _comb_ratio(n: int, c: int, k: int) -> float:
    """C(n-c, k) / C(n, k), the chance that k of n samples are all wrong, without large numbers."""
    return 0.0 if n - c < k else float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@lru_cache(maxsize=16)
def _subsets(n: int, k: int) -> np.ndarray:
    """All choices of k out of n: 0 or 1, of shape (C(n, k), n)."""
    chosen = np.zeros((math.comb(n, k), n))
    for row, members in zip(chosen, combinations(range(n), k), strict=True):
        row[list(members)] = 1
    return chosen


def _majority(correct_N: np.ndarray, answers: list[object], k: int, rng: np.random.Generator) -> float:
    names = [
        "correct" if right else (None if a is None else ("wrong", a))
        for right, a in zip(correct_N, answers, strict=True)
    ]
    classes = {
        name: i for i, name in enumerate(dict.fromkeys(["correct", *(n for n in names if n is not None)]))
    }
    votes_NxC = np.zeros((len(names), len(classes)))
    for i, name in enumerate(names):
        if name is not None:
            votes_NxC[i, classes[name]] = 1
    if math.comb(len(names), k) <= EVERY_SUBSET:
        chosen_RxN = _subsets(len(names), k)
    else:
        chosen_RxN = (rng.random((200, len(names))).argsort(axis=1) < k).astype(float)
    counts_RxC = chosen_RxN @ votes_NxC
    top_R = counts_RxC.max(axis=1)
    tied_R = (counts_RxC == top_R[:, None]).sum(axis=1)
    return float(np.mean(np.where((counts_RxC[:, 0] == top_R) & (top_R > 0), 1 / tied_R, 0.0)))


def _check_pairs(a_SxP: np.ndarray, b_SxP: np.ndarray) -> None:
    if a_SxP.shape != b_SxP.shape:
        raise UserError(
            f"a has {a_SxP.shape[1]} problems and b has {b_SxP.shape[1]}", hint="compare the same problems"
        )


def _is_3d(matrix: Matrix) -> bool:
    """Whether this is one matrix per seed: an array of three dimensions, or a list of arrays of two."""
    return len(matrix) > 0 and isinstance(matrix[0], np.ndarray) and matrix[0].ndim == 2


def _pooled(matrices_S: Sequence[Matrix], name: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Shares correct, S x P, and for each problem the samples of all seeds."""
    rows_S = [_rows(matrix, name) for matrix in matrices_S]
    if len({len(rows) for rows in rows_S}) > 1:
        raise UserError(
            f"the seeds of {name} have different numbers of problems", hint="compare the same problems"
        )
    together = [np.concatenate(of_seeds) for of_seeds in zip(*rows_S, strict=True)]
    return np.array([[row.mean() for row in rows] for rows in rows_S]), together


def _widened(mean: float, low: float, high: float, added: float, *, least: float) -> tuple[float, float]:
    """The limits with a half-width added as the root of the sum of squares, around the mean, in [least, 1]."""
    below, above = math.hypot(max(mean - low, 0.0), added), math.hypot(max(high - mean, 0.0), added)
    return max(least, mean - below), min(1.0, mean + above)


def _two_sided(level: float) -> float:
    if not 0 < level < 1:
        raise UserError(f"level {level} is not between 0 and 1", hint="0.95 is usual")
    return (1 + level) / 2
