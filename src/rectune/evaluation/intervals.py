"""The numerics of `statistics.py`: limits of a clustered mean and of a paired difference, sign flips, Student's t.

numpy only, deterministic (fixed seeds). Which of them make which interval is decided in `statistics.py`; how they were
chosen is in `docs/statistics.md`.

Shapes: P problems, N samples, R values of a correlation (or of a spread), M values of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

RESAMPLES = 4000
EXACT_FLIPS = 14  # up to 2^14 sign patterns are enumerated, more are drawn
TINY = 1e-12
GRAIN = 256
"""Samples that a share of unknown origin (pass@k of a problem) is taken to come from."""

_ROOTS = (np.arange(48) + 0.5) / 48
CORRELATIONS = np.concatenate([[1e-6], _ROOTS**2])
PRIOR = np.concatenate([[0.3], 0.7 * _ROOTS / _ROOTS.sum()])  # 0.3 on "none", the rest even over (0, 1)


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
    return low_N + np.concatenate([[0.0], high_N[:-1]])


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
    S, P = x_SxP.shape
    mean, seed_S, problem_P = float(x_SxP.mean()), x_SxP.mean(1), x_SxP.mean(0)
    rest_SxP = x_SxP - seed_S[:, None] - problem_P + mean
    rest = float((rest_SxP**2).sum()) / ((S - 1) * (P - 1) * S * P)
    seeds, problems = float(seed_S.var(ddof=1)) / S, float(problem_P.var(ddof=1)) / P
    variance = max(seeds + problems - rest, seeds, problems)
    if variance < TINY:  # every problem differs alike with every seed
        return 0.0, 1.0 if abs(mean) < TINY else 2.0 ** (1 - S)
    freedom = float(seed_freedom(S, P, variance / max(seeds, TINY)))
    half = t_quantile((1 + level) / 2, freedom) * math.sqrt(variance)
    over_problems = t_quantile((1 + level) / 2, P - 1) * math.sqrt(problems)
    p_value = max(t_two_sided(abs(mean) / math.sqrt(variance), freedom), 1e-12)
    return math.sqrt(max(half**2 - over_problems**2, 0.0)), p_value


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


def t_table(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """t >= 0 and P(|T| <= t): with t = sqrt(f) tan(angle), the density becomes cos(angle)^(f - 1)."""
    angle = np.linspace(0, min(math.pi / 2 - 1e-9, 40 / math.sqrt(freedom)), 40_001)
    density = np.cos(angle) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * np.tan(angle), cumulative / cumulative[-1]


@lru_cache(maxsize=64)
def t_quantile(p: float, freedom: float) -> float:
    """Student's t quantile, p > 0.5 (to about six digits)."""
    if freedom < 1:
        return math.inf
    t, inside = t_table(freedom)
    return float(np.interp(2 * p - 1, inside, t))


def t_two_sided(t: float, freedom: float) -> float:
    """P(|T| > t)."""
    table, inside = t_table(freedom)
    return float(1 - np.interp(t, table, inside))
