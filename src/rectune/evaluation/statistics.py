"""Accuracy with honest intervals: avg@n, pass@k, maj@k, paired differences.

The unit of evidence is the *problem*: its N samples are one cluster, so 30 problems x 16 samples are 30
observations, not 480. Every matrix below is `PxN`, problems by samples, with values in [0, 1]; a list of P
arrays of different lengths is accepted too (a problem then counts once, whatever its number of samples). How
the intervals were chosen, and how often they cover the truth in simulation, is in `docs/statistics.md`;
`benchmarks/coverage.py` measures it again. What was sampled and how it was graded is left to `evaluate.py`.

Shapes: P problems, N samples, S seeds, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from rectune.errors import UserError
from rectune.evaluation.intervals import (
    TINY,
    bootstrap_t,
    resamples,
    sign_flip,
    t_quantile,
    t_two_sided,
    wilson,
)

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
    """Mean accuracy (avg@N) and its interval, by bootstrap over problems.

    Each limit is one third bootstrap-t and two thirds Wilson's score limit at the effective number of
    problems. Over 30 problems the percentile bootstrap covers 85 % where it should cover 95, Wilson's limits
    are somewhat short where accuracies are low and unequal, and the bootstrap-t is too long there; together
    they hold what they promise. No limit is wider than Wilson's for P problems that are each all right or all
    wrong, and where all problems agree (all right, all wrong) that is the interval: ten problems without a
    success do not prove an accuracy of zero. One problem says nothing about others: its interval is [0, 1].

    Raises:
        UserError: no problems, a problem without samples, values outside [0, 1] or NaN, `level` outside (0,
        1).
    """
    x_P = _problem_means(correct_PxN, "correct")
    P, mean = len(x_P), float(x_P.mean())
    quantile = t_quantile(_two_sided(level), P - 1)
    if P == 1:
        return Interval(mean, 0.0, 1.0)
    widest = wilson(mean, quantile, P)
    error = float(x_P.std(ddof=1)) / math.sqrt(P)
    if error < TINY:
        return Interval(mean, *widest)
    low_t, high_t = bootstrap_t(x_P, error, level)
    low_w, high_w = wilson(mean, quantile, mean * (1 - mean) / error**2)
    low = (max(low_t, widest[0]) + 2 * low_w) / 3
    high = (min(high_t, widest[1]) + 2 * high_w) / 3
    return Interval(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)))


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
        answers_PxN: The extracted answers. All correct samples of a problem are one answer, however they are
        written;
            others are the same when equal. None (nothing extracted) does not vote.
        k: Votes; for k below N the mean over 200 random subsets with a fixed seed.

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

    The interval is, limit by limit, the wider one of Student's t and the bootstrap percentiles over problems,
    these taken as far out as t would. Where every problem differs by the same amount (often: by nothing) it
    is Wilson's limit on P problems, not a point. The p-value flips the sign of each problem's difference: all
    patterns where few problems differ, else 20,000 drawn with a fixed seed, the observed one counted in, so
    it is never 0.

    Arrays of shape S x P x N (or lists of S arrays) hold S training seeds on the same problems: then seeds
    and problems are both random, and the interval and the p-value come from their two variances with
    Satterthwaite's degrees of freedom.

    Raises:
        UserError: as `mean_interval`; different numbers of problems or seeds; fewer than two seeds.
    """
    if _is_3d(a_PxN) or _is_3d(b_PxN):
        return _difference_over_seeds(a_PxN, b_PxN, level)
    d_P = _differences(a_PxN, b_PxN)
    P, mean, p_value = len(d_P), float(d_P.mean()), sign_flip(d_P)
    quantile = t_quantile(_two_sided(level), P - 1)
    if P == 1:
        return Difference(mean, -1.0, 1.0, p_value)
    error = float(d_P.std(ddof=1)) / math.sqrt(P)
    if error < TINY:
        low, high = wilson((mean + 1) / 2, quantile, P)
        return Difference(mean, 2 * low - 1, 2 * high - 1, p_value)
    tail = NormalDist().cdf(-quantile * math.sqrt(P / (P - 1)))
    resampled_R = np.concatenate([counts @ d_P / P for counts in resamples(P)])
    low, high = np.quantile(resampled_R, [tail, 1 - tail])
    low, high = min(float(low), mean - quantile * error), max(float(high), mean + quantile * error)
    return Difference(mean, max(-1.0, low), min(1.0, high), p_value)


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
    d_P = _differences(a_PxN, b_PxN)
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


def _problem_means(matrix: Matrix, name: str) -> np.ndarray:
    return np.array([row.mean() for row in _rows(matrix, name)])


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
    if k == len(names):
        chosen_RxN = np.ones((1, k))
    else:
        chosen_RxN = (rng.random((200, len(names))).argsort(axis=1) < k).astype(float)
    counts_RxC = chosen_RxN @ votes_NxC
    top_R = counts_RxC.max(axis=1)
    tied_R = (counts_RxC == top_R[:, None]).sum(axis=1)
    return float(np.mean(np.where((counts_RxC[:, 0] == top_R) & (top_R > 0), 1 / tied_R, 0.0)))


def _differences(a_PxN: Matrix, b_PxN: Matrix) -> np.ndarray:
    a_P, b_P = _problem_means(a_PxN, "a"), _problem_means(b_PxN, "b")
    if len(a_P) != len(b_P):
        raise UserError(f"a has {len(a_P)} problems and b has {len(b_P)}", hint="compare the same problems")
    return a_P - b_P


def _is_3d(matrix: Matrix) -> bool:
    """Whether this is one matrix per seed: an array of three dimensions, or a list of arrays of two."""
    return len(matrix) > 0 and isinstance(matrix[0], np.ndarray) and matrix[0].ndim == 2


def _difference_over_seeds(a_SxPxN: Matrix, b_SxPxN: Matrix, level: float) -> Difference:
    if len(a_SxPxN) != len(b_SxPxN) or len(a_SxPxN) < 2:
        raise UserError(
            f"{len(a_SxPxN)} and {len(b_SxPxN)} seeds", hint="give the same seeds, two or more, for both"
        )
    d_SxP = np.array([_differences(a, b) for a, b in zip(a_SxPxN, b_SxPxN, strict=True)])
    S, P = d_SxP.shape
    mean, seed_S, problem_P = float(d_SxP.mean()), d_SxP.mean(1), d_SxP.mean(0)
    if P == 1:
        return Difference(mean, -1.0, 1.0, 1.0)
    # Two-way layout without replication: mean squares of seeds, problems and what is left.
    ms_seed, ms_problem = P * float(seed_S.var(ddof=1)), S * float(problem_P.var(ddof=1))
    rest = d_SxP - seed_S[:, None] - problem_P + mean
    ms_rest = float((rest**2).sum()) / ((S - 1) * (P - 1))
    variance = max(ms_seed + ms_problem - ms_rest, ms_seed, ms_problem)
    if variance < TINY:
        low, high = wilson((mean + 1) / 2, t_quantile(_two_sided(level), P - 1), P)
        return Difference(mean, 2 * low - 1, 2 * high - 1, 1.0 if abs(mean) < TINY else 2.0 ** (1 - S))
    weights = ((ms_seed, S - 1), (ms_problem, P - 1), (ms_rest, (S - 1) * (P - 1)))
    freedom = max(1.0, variance**2 / sum(ms**2 / df for ms, df in weights))
    error = math.sqrt(variance / (S * P))
    half = t_quantile(_two_sided(level), freedom) * error
    p_value = max(t_two_sided(abs(mean) / error, freedom), 1e-12)
    return Difference(mean, max(-1.0, mean - half), min(1.0, mean + half), p_value)


def _two_sided(level: float) -> float:
    if not 0 < level < 1:
        raise UserError(f"level {level} is not between 0 and 1", hint="0.95 is usual")
    return (1 + level) / 2
