"""The numerics of `statistics.py`: bootstrap over problems, Wilson's limits, sign flips, Student's t.

numpy only, deterministic (fixed seeds). Which of them make which interval is decided in `statistics.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

RESAMPLES = 4000
EXACT_FLIPS = 14  # up to 2^14 sign patterns are enumerated, more are drawn
TINY = 1e-12


@lru_cache(maxsize=2)
def _counts(P: int) -> np.ndarray:
    """How often each problem is drawn in each of R resamples: uint16 of shape (R, P)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(P, np.full(P, 1 / P), size=RESAMPLES).astype(np.uint16)


def resamples(P: int) -> Iterator[np.ndarray]:
    """The same resamples for every statistic of P problems, as floats, in blocks to keep memory small."""
    for start in range(0, RESAMPLES, 500):
        yield _counts(P)[start : start + 500].astype(float)


def bootstrap_t(x_P: np.ndarray, error: float, level: float) -> tuple[float, float]:
    """Limits mean - t* error, with the quantiles of t* from resampled problems."""
    P, mean, pivots = len(x_P), float(x_P.mean()), []
    for counts in resamples(P):
        means = counts @ x_P / P
        errors = np.sqrt(np.maximum(counts @ x_P**2 / P - means**2, 0) / (P - 1))
        flat = errors < 1e-7  # all problems of the resample alike: infinitely far from the mean, or on it
        pivot = (means - mean) / np.where(flat, 1, errors)
        pivots.append(np.where(flat & (abs(means - mean) > TINY), np.sign(means - mean) * 1e9, pivot))
    low, high = np.quantile(np.concatenate(pivots), [(1 - level) / 2, (1 + level) / 2])
    return mean - float(high) * error, mean - float(low) * error


def wilson(mean: float, quantile: float, n: float) -> tuple[float, float]:
    """Wilson's score limits for a share `mean` of n observations."""
    k = quantile**2 / n
    centre, half = mean + k / 2, math.sqrt(k * mean * (1 - mean) + k**2 / 4)
    return max(0.0, (centre - half) / (1 + k)), min(1.0, (centre + half) / (1 + k))


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
