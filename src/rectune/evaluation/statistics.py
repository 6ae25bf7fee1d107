"""Accuracy with intervals: avg@n, pass@k, maj@k, paired differences.

The unit of evidence is the *problem*: its N samples are one cluster, so 30 problems x 16 samples are 30 observations,
not 480. Every matrix below is `PxN`, problems by samples, with values in [0, 1]; a list of P arrays of different
lengths is accepted too (a problem then counts once, whatever its number of samples). All results are deterministic.
How the intervals were chosen, why they are not the cluster-robust normal ones, and how often they cover the truth in
simulation is in `docs/statistics.md`; `benchmarks/coverage.py` measures it again.

Shapes: P problems, N samples, S seeds, R values of a correlation (or of a spread), M values of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from rectune.errors import UserError

RESAMPLES = 4000
EXACT_FLIPS = 14  # up to 2^14 sign patterns are enumerated, more are drawn
TINY = 1e-12
GRAIN = 256
"""Samples that a share of unknown origin (pass@k of a problem) is taken to come from."""

_ROOTS = (np.arange(48) + 0.5) / 48
CORRELATIONS = np.concatenate([[1e-6], _ROOTS**2])
PRIOR = np.concatenate([[0.3], 0.7 * _ROOTS / _ROOTS.sum()])  # 0.3 on "none", the rest even over (0, 1)


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

    How alike a problem's samples are decides how much the problems are worth: `clustered_limits`. Where all
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


def pass_at_k_by_problem(correct_PxN: Matrix, k: int) -> np.ndarray:
    """Unbiased chance that at least one of k samples is correct, 1 - C(n-c, k) / C(n, k): float64 of shape (P,).

    The interval of their mean is `mean_interval(pass_at_k_by_problem(correct, k)[:, None])`.

    Raises:
        UserError: as `mean_interval`; k < 1; a problem with fewer than k samples; values other than 0 and 1.
    """
    rows = _binary_rows(correct_PxN)
    _check_k(rows, k)
    return np.array([1 - _comb_ratio(len(row), int(row.sum()), k) for row in rows])


def maj_at_k_by_problem(correct_PxN: Matrix, answers_PxN: Sequence[Sequence[object]], k: int) -> np.ndarray:
    """Chance that the most frequent answer among k samples is correct: float64 of shape (P,).

    A tie is drawn among the tied.

    Args:
        correct_PxN: 0 or 1.
        answers_PxN: What each sample votes for, as `metrics.group_votes` groups the answers. All correct samples of a
            problem are one answer; others are the same when equal. None (nothing extracted) does not vote.
        k: Votes. The mean over all subsets of k samples, or over 200 random ones with a fixed seed where there are
            more than `EVERY_SUBSET`; so maj@1 is avg@1.

    Raises:
        UserError: as `pass_at_k_by_problem`; answers of another shape.
    """
    rows = _binary_rows(correct_PxN)
    _check_k(rows, k)
    if [len(row) for row in rows] != [len(answers) for answers in answers_PxN]:
        raise UserError("answers and verdicts differ in shape", hint="one answer for each sample")
    rng = np.random.default_rng(0)
    return np.array([_majority(row, list(ans), k, rng) for row, ans in zip(rows, answers_PxN, strict=True)])


class Chosen(NamedTuple):
    """How a run was chosen before its difference is judged, by answers of the same seeds to other problems.

    Attributes:
        among: Trained arms that it was chosen from.
        problems: Problems that it was chosen on.
    """

    among: int
    problems: int


def paired_difference(
    a_PxN: Matrix, b_PxN: Matrix, level: float = 0.95, chosen: Chosen | None = None
) -> Difference:
    """Mean of a minus b over the same problems in the same order, with interval and sign-flip p-value.

    The interval is Tango's score interval for as many pairs as the problems are worth (`paired_limits`); two
    runs that nowhere differ are bounded by what P problems could have shown. The p-value flips the sign of each
    problem's difference: all patterns where few problems differ, else 20,000 drawn with a fixed seed, the observed one
    counted in, so it is never 0.

    Arrays of shape S x P x N (or lists of S arrays) hold S training seeds on the same problems: then seeds and problems
    are both random, and the interval is widened by what the seeds add (`seed_spread`). The p-value is then
    Student's. With `chosen` it is widened once more (`choice_variance`): new problems do not undo the luck of the seeds
    by which an arm was chosen. The p-value knows nothing of a choice.

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
    if chosen is not None and several:
        _, seeds, problems = mean_variance(d_SxP)
        more = choice_variance(len(d_SxP), len(d_P), seeds, problems, _two_sided(level), chosen)
        added = math.hypot(added, math.sqrt(float(more)))
    return Difference(mean, *_widened(mean, low, high, added, least=-1.0), p_value)


class Estimate(NamedTuple):
    """A mean difference, its standard error, and that which the same runs would have on other problems."""

    mean: float
    error: float
    elsewhere: float


def paired_estimate(a_PxN: Matrix, b_PxN: Matrix, problems: int) -> Estimate:
    """Mean of a minus b with standard errors: here, and on `problems` other problems.

    An error is at least that of half a problem, since equal answers to a few problems do not prove that two runs are
    equal. Shapes and errors are those of `paired_difference`.
    """
    several = _is_3d(a_PxN)
    a_SxP, _ = _pooled(list(a_PxN) if several else [a_PxN], "a")
    b_SxP, _ = _pooled(list(b_PxN) if several else [b_PxN], "b")
    _check_pairs(a_SxP, b_SxP)
    d_SxP = a_SxP - b_SxP
    S, P = d_SxP.shape
    if S > 1 and P > 1:
        variance, _, of_problems = mean_variance(d_SxP)
        seeds = max(variance - of_problems, 0.0)
    else:
        variance, seeds = float(d_SxP.mean(0).var()) / max(P - 1, 1), 0.0
    elsewhere = seeds + (variance - seeds) * P / problems
    errors = (max(math.sqrt(variance), 0.5 / P), max(math.sqrt(elsewhere), 0.5 / problems))
    return Estimate(float(d_SxP.mean()), *errors)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 0.05, the family-wise error is below 5 %."""
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise UserError("p-values must be a list of numbers in [0, 1]")
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
    if isinstance(matrix, np.ndarray) and matrix.ndim == 2 and matrix.size and matrix.dtype.kind in "biuf":
        array = matrix.astype(float, copy=False)
        if ((array >= 0) & (array <= 1)).all():  # else the loop below names the problem
            return list(array)
    try:
        rows = [np.asarray(row, dtype=float) for row in matrix]
    except (TypeError, ValueError):
        raise UserError(f"{name} is not a matrix of numbers", hint="problems x samples, 0 or 1") from None
    if not rows:
        raise UserError(f"{name} has no problems")
    for index, row in enumerate(rows):
        if row.ndim != 1:
            raise UserError(f"{name} must be problems x samples", hint="for one sample each: x[:, None]")
        if not len(row):
            raise UserError("no samples", where=f"{name}, problem {index}")
        if not np.all((row >= 0) & (row <= 1)):  # false for NaN as well
            raise UserError("values must be in [0, 1] and not NaN", where=f"{name}, problem {index}")
    return rows


def _binary_rows(matrix: Matrix) -> list[np.ndarray]:
    rows = _rows(matrix, "correct")
    together = np.concatenate(rows)
    if ((together == 0) | (together == 1)).all():
        return rows
    for index, row in enumerate(rows):
        if not np.all((row == 0) | (row == 1)):
            raise UserError("verdicts must be 0 or 1", where=f"correct, problem {index}")
    return rows


def _check_k(rows: list[np.ndarray], k: int) -> None:
    fewest = min(len(row) for row in rows)
    if not 1 <= k <= fewest:
        raise UserError(f"k = {k} with {fewest} samples of a problem", hint=f"k is from 1 to {fewest}")


@lru_cache(maxsize=4096)
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
    if all(isinstance(matrix, np.ndarray) and matrix.ndim == 2 for matrix in matrices_S):
        arrays = [np.stack(rows) for rows in rows_S]
        return np.stack([array.mean(axis=1) for array in arrays]), list(np.concatenate(arrays, axis=1))
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


@lru_cache(maxsize=2)
def _counts(P: int) -> np.ndarray:
    """How often each problem is drawn in each of R resamples: uint16 of shape (R, P)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(P, np.full(P, 1 / P), size=RESAMPLES).astype(np.uint16)


def resamples(P: int) -> Iterator[np.ndarray]:
    """The same resamples for every statistic of P problems, as floats, in blocks to keep memory small."""
    for start in range(0, RESAMPLES, 500):
        yield _counts(P)[start : start + 500].astype(float)


def clustered_limits(k_P: np.ndarray, n_P: np.ndarray, level: float) -> tuple[float, float]:
    """Limits of an accuracy when k of n samples are right in each problem (k may be a fraction, not all are 0 or n).

    How alike the samples of one problem are, their intraclass correlation, is not known. Each value of it has as weight
    the likelihood of the k under a beta-binomial distribution, the accuracy integrated out. With correlation r the
    problems are worth P / (r + (1 - r) mean(1/n)) yes-or-no observations, and the accuracy is Beta distributed with so
    many, at the mean over problems, plus one right and one wrong. The limits are quantiles of the weighted sum. The
    beta-binomial distribution thus decides how much the problems are worth, never where the mean is.
    """
    P, share = len(k_P), float((k_P / n_P).mean())
    angle = math.asin(
        math.sqrt(share)
    )  # on this scale the standard error is 1 / (2 sqrt(n)) for every accuracy
    mean_M = np.sin(_between(angle, 2.5 / math.sqrt(P), 81)) ** 2
    odds_R = 1 / CORRELATIONS - 1
    right_MxR, wrong_MxR = mean_M[:, None] * odds_R, (1 - mean_M[:, None]) * odds_R
    fit_MxR = np.log(PRIOR) + np.zeros_like(right_MxR)
    for n in np.unique(n_P):
        count_N, order_N = _histogram(k_P[n_P == n], int(n)), np.arange(n)
        fit_MxR += np.log(right_MxR[..., None] + order_N) @ count_N[::-1].cumsum()[::-1][1:]
        fit_MxR += np.log(wrong_MxR[..., None] + order_N) @ count_N.cumsum()[::-1][1:]
        fit_MxR -= count_N.sum() * np.log(odds_R[:, None] + order_N).sum(-1)
    weight_R = np.exp(fit_MxR - fit_MxR.max()).sum(0)
    weight_R /= weight_R.sum()
    likely = weight_R > 1e-6
    worth_R = P / (CORRELATIONS + (1 - CORRELATIONS) * float((1 / n_P).mean()))[likely]
    angle_M = _between(angle, 3.5 / math.sqrt(worth_R.min()), 2001)
    log_right_M, log_wrong_M = 2 * np.log(np.sin(angle_M)), 2 * np.log(np.cos(angle_M))
    density_RxM = (share * worth_R + 0.5)[:, None] * log_right_M
    density_RxM += ((1 - share) * worth_R + 0.5)[:, None] * log_wrong_M
    density_RxM = np.exp(density_RxM - density_RxM.max(1, keepdims=True))
    density_M = weight_R[likely] / density_RxM.sum(1) @ density_RxM
    inside_M = density_M.cumsum() - density_M / 2
    tails = np.array([(1 - level) / 2, (1 + level) / 2]) * density_M.sum()
    low, high = np.sin(np.interp(tails, inside_M, angle_M)) ** 2
    return float(low), float(high)


def _between(angle: float, reach: float, points: int) -> np.ndarray:
    """Angles around one, inside (0, pi / 2)."""
    return np.linspace(max(angle - reach, 1e-3), min(angle + reach, math.pi / 2 - 1e-3), points)


def _histogram(k_P: np.ndarray, n: int) -> np.ndarray:
    """How often each k from 0 to n occurs; a fraction counts for both its neighbours."""
    whole_P = np.minimum(np.floor(k_P + 1e-9), n - 1).astype(int)
    part_P = np.clip(k_P - whole_P, 0, 1)
    low_N, high_N = (np.bincount(whole_P, share, minlength=n + 1) for share in (1 - part_P, part_P))
    sums: np.ndarray = low_N + np.concatenate([[0.0], high_N[:-1]])
    return sums


def wilson(mean: float, quantile: float, n: float) -> tuple[float, float]:
    """Wilson's score limits for a share `mean` of n observations."""
    k = quantile**2 / n
    centre, half = mean + k / 2, math.sqrt(k * mean * (1 - mean) + k**2 / 4)
    return max(0.0, (centre - half) / (1 + k)), min(1.0, (centre + half) / (1 + k))


def paired_limits(d_P: np.ndarray, grain: float, quantile: float) -> tuple[float, float]:
    """Tango's score limits for a mean difference, from as many pairs as the P problems are worth.

    Like Wilson's limits they ask of each difference whether the data would be surprising if it were true, with the
    variance that it would have then, so that a difference shown by few problems is not taken for a precise one. The
    worth is P times the variance of yes-or-no pairs with these means of gains and losses, over the variance observed;
    three tenths of a sample of one problem (`grain`: the mean of 1/n) are added to both, since a handful of successes
    does not prove that problems are alike.
    """
    P, mean = len(d_P), float(d_P.mean())
    gain, loss = float(np.maximum(d_P, 0).mean()), float(np.maximum(-d_P, 0).mean())
    spread = P * float(d_P.var(ddof=1))
    worth = float(P)
    if spread > TINY:
        pseudo = 0.3 * grain
        worth = max(worth, worth * (P * (gain + loss - mean**2) + pseudo) / (spread + pseudo))

    def surprise(true: float) -> float:
        """Standard errors between the mean and `true`, losses as frequent as then most likely."""
        b = -gain - loss + (2 - mean) * true
        frequent = (math.sqrt(max(b * b + 8 * loss * true * (1 - true), 0.0)) - b) / 4
        variance = max(2 * frequent + true * (1 - true), TINY)
        return abs(mean - true) / math.sqrt(variance / worth)

    limits = []
    for inside, outside in ((mean, -1.0), (mean, 1.0)):
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if surprise(middle) > quantile else (middle, outside)
        limits.append(inside)
    return limits[0], limits[1]


def seed_spread(x_SxP: np.ndarray, level: float) -> tuple[float, float]:
    """What the choice of seeds adds to an interval over problems, and the p-value of a mean of 0.

    Two-way layout without replication: the variance of the mean is that of seeds' means plus that of problems' means,
    less what both count. Student's t, with the degrees of freedom of `seed_freedom`.

    Returns:
        Half-width to add to that over problems, as the root of the sum of squares; two-sided p-value.
    """
    (S, P), mean = x_SxP.shape, float(x_SxP.mean())
    variance, seeds, problems = mean_variance(x_SxP)
    if variance < TINY:  # every problem differs alike with every seed
        return 0.0, 1.0 if abs(mean) < TINY else 2.0 ** (1 - S)
    freedom = float(seed_freedom(S, P, variance / max(seeds, TINY)))
    half = t_quantile((1 + level) / 2, freedom) * math.sqrt(variance)
    over_problems = t_quantile((1 + level) / 2, P - 1) * math.sqrt(problems)
    p_value = max(t_two_sided(abs(mean) / math.sqrt(variance), freedom), 1e-12)
    return math.sqrt(max(half**2 - over_problems**2, 0.0)), p_value


def mean_variance(x_SxP: np.ndarray) -> tuple[float, float, float]:
    """Variance of the mean over seeds and problems, and the parts of it that the seeds' and problems' means show."""
    S, P = x_SxP.shape
    seed_S, problem_P = x_SxP.mean(1), x_SxP.mean(0)
    rest_SxP = x_SxP - seed_S[:, None] - problem_P + x_SxP.mean()
    rest = float((rest_SxP**2).sum()) / ((S - 1) * (P - 1) * S * P)
    seeds, problems = float(seed_S.var(ddof=1)) / S, float(problem_P.var(ddof=1)) / P
    return max(seeds + problems - rest, seeds, problems), seeds, problems


def choice_variance(
    S: int, P: int, seeds: np.ndarray | float, problems: np.ndarray | float, p: float, chosen: Chosen
) -> np.ndarray:
    """Square of the half-width that a choice adds.

    Where seeds alone decide which of M arms is chosen, Bonferroni's quantile, at (1 - p) / M, takes the place of that
    at 1 - p for the part of the seeds. Where the luck of the problems decides, new problems undo it. In between a power
    of the seeds' share in the variance on the problems of the choice keeps the share of false findings at 5 %
    (`benchmarks/coverage.py --tables choice`).

    Args:
        S, P: Seeds, problems.
        seeds, problems: Parts of the variance of the mean, as `mean_variance` has them.
        p: Level of one limit.
        chosen: How the arm was chosen.
    """
    if chosen.among < 2 or chosen.problems < 1:
        return np.zeros_like(seeds)
    one, all_arms = t_quantile(p, S - 1), t_quantile(1 - (1 - p) / chosen.among, S - 1)
    share = seeds / np.maximum(seeds + problems * P / chosen.problems, TINY)
    return np.asarray((all_arms**2 - one**2) * seeds * share ** (0.5 / (S - 1)))


class Spread(NamedTuple):
    """Standard deviations of a difference between two arms: among problems, among seeds, and of the rest."""

    problems: float
    seeds: float
    rest: float


def simulate_limits(
    S: int, P: int, spread: Spread, p: float, *, chosen: Chosen | None = None, runs: int = 20_000
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the mean difference, and distances from it to its limits, of `runs` normal comparisons.

    Drawn are the mean squares that `mean_variance` reads from S seeds and P problems, so that this takes a moment. With
    one seed the spread of seeds does not count, as in the intervals.

    Args:
        S, P: Seeds, problems.
        spread: Standard deviations.
        p: Level of each limit by itself.
        chosen: As in `paired_difference`; the errors are those of an arm that nobody chose.
    """
    rng, both = np.random.default_rng(0), (S - 1) * (P - 1)
    problem, seed, rest = spread.problems**2 / P, spread.seeds**2 / S * (S > 1), spread.rest**2 / (S * P)
    error_R = rng.normal(0, math.sqrt(problem + seed + rest), runs)
    problem_R = (problem + rest) * rng.chisquare(P - 1, runs) / (P - 1)
    if S == 1:
        return error_R, t_quantile(p, P - 1) * np.sqrt(problem_R)
    seed_R = (seed + rest) * rng.chisquare(S - 1, runs) / (S - 1)
    variance_R = seed_R + problem_R - rest * rng.chisquare(both, runs) / both
    variance_R = np.maximum(variance_R, np.maximum(seed_R, problem_R))
    return error_R, half_widths(S, P, variance_R, seed_R, problem_R, p, chosen)


def half_widths(
    S: int,
    P: int,
    variance_R: np.ndarray,
    seed_R: np.ndarray,
    problem_R: np.ndarray,
    p: float,
    chosen: Chosen | None = None,
) -> np.ndarray:
    """Distances from a mean to its limits, from its variance and the parts of it, as `mean_variance` has them."""
    from scipy.special import stdtrit

    half2_R: np.ndarray = stdtrit(seed_freedom(S, P, variance_R / seed_R), p) ** 2 * variance_R
    if chosen is not None:
        half2_R = half2_R + choice_variance(S, P, seed_R, problem_R, p, chosen)
    half_R: np.ndarray = np.sqrt(half2_R)
    return half_R


def seed_freedom(S: int, P: int, ratio: np.ndarray | float) -> np.ndarray:
    """Degrees of freedom for a mean over seeds and problems: S - 1 where only seeds matter, P - 1 where they do not.

    Satterthwaite's exponent is 2, which takes a spread of seeds that happens to come out small for proof that seeds are
    alike: two equal arms then differ "significantly" in up to 12 % of comparisons with two seeds, 8 % with three. The
    exponents here keep all such shares at 5 %, and few larger ones would (`benchmarks/coverage.py --tables level`).

    Args:
        S: Seeds.
        P: Problems.
        ratio: Variance of the mean over the part of it that the seeds' means show, at least 1.
    """
    return np.minimum(P - 1, (S - 1) * np.asarray(ratio) ** min(1.0, 0.3 * (S - 1)))


def sign_flip(d_P: np.ndarray) -> float:
    """Two-sided p-value when each problem's difference could as well have had the other sign."""
    d_P = d_P[abs(d_P) > TINY]  # problems without a difference are the same under every flip
    if not len(d_P):
        return 1.0
    observed = abs(d_P.sum()) - 1e-9
    if len(d_P) <= EXACT_FLIPS:
        signs = 1 - 2 * ((np.arange(2 ** len(d_P))[:, None] >> np.arange(len(d_P))) & 1)
        return float(np.mean(abs(signs @ d_P) >= observed))
    rng, hits, draws = np.random.default_rng(0), 0, 20_000
    for _ in range(0, draws, 1000):
        signs = rng.integers(0, 2, size=(1000, len(d_P)), dtype=np.int8) * 2 - 1
        hits += int(np.sum(abs(signs @ d_P) >= observed))
    return (hits + 1) / (draws + 1)


def t_quantile(p: float, freedom: float) -> float:
    """Student's t quantile; infinite below one degree of freedom."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(freedom, p)) if freedom >= 1 else math.inf


def t_two_sided(t: float, freedom: float) -> float:
    """P(|T| > t) for t >= 0."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -t))
