"""How often the 95 % intervals of `rectune.evaluation.statistics` hold the truth: python
benchmarks/coverage.py [RUNS].

Problems have Beta(mean * c, (1 - mean) * c) accuracies (c small: problems are nearly all right or all wrong;
"equal": all have the same), N samples each; the truth is the mean over all problems there could be. For
comparison: the percentile bootstrap over problems, and the interval that takes every sample for an
observation of its own.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from rectune.evaluation.intervals import resamples
from rectune.evaluation.statistics import mean_interval, paired_difference


def draw(rng: np.random.Generator, P: int, N: int, mean: float, c: float) -> np.ndarray:
    p_P = np.full(P, mean) if math.isinf(c) else rng.beta(mean * c, (1 - mean) * c, size=P)
    return (rng.random((P, N)) < p_P[:, None]).astype(float)


def percentile(x_PxN: np.ndarray) -> tuple[float, float]:
    x_P = x_PxN.mean(1)
    means = np.concatenate([counts @ x_P / len(x_P) for counts in resamples(len(x_P))])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def naive(x_PxN: np.ndarray) -> tuple[float, float]:
    mean = float(x_PxN.mean())
    half = 1.96 * math.sqrt(mean * (1 - mean) / x_PxN.size)
    return mean - half, mean + half


def mean_row(P: int, N: int, mean: float, c: float, runs: int) -> list[float]:
    rng, hits = np.random.default_rng(0), np.zeros(3)
    for _ in range(runs):
        x = draw(rng, P, N, mean, c)
        for i, (low, high) in enumerate((mean_interval(x)[1:], percentile(x), naive(x))):
            hits[i] += low - 1e-12 <= mean <= high + 1e-12
    return [float(share) for share in 100 * hits / runs]


def difference_row(P: int, N: int, mean: float, gain: float, c: float, runs: int) -> list[float]:
    """Two runs whose problems share half their difficulty: coverage of the gain, and how often p < 0.05."""
    rng, hits, found = np.random.default_rng(0), 0, 0
    for _ in range(runs):
        own_P = rng.random(P) < 0.5
        a_P = rng.beta(mean * c, (1 - mean) * c, size=P)
        fresh_P = rng.beta((mean + gain) * c, (1 - mean - gain) * c, size=P)
        b_P = np.where(own_P, a_P, fresh_P)
        a, b = ((rng.random((P, N)) < p[:, None]).astype(float) for p in (a_P, b_P))
        _, low, high, p_value = paired_difference(b, a)
        hits += low <= gain / 2 <= high
        found += p_value < 0.05
    return [100 * hits / runs, 100 * found / runs]


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    print(f"95 % intervals, {runs} runs each\n\n| P x N | mean | c | ours | percentile | naive |")
    print("| --- | --- | --- | --- | --- | --- |")
    for P, N in ((30, 16), (30, 4), (100, 16), (300, 1)):
        for mean in (0.02, 0.05, 0.1, 0.3, 0.5, 0.9):
            for c in (0.5, 2.0, 10.0, math.inf) if (P, N) == (30, 16) else (2.0,):
                row = " | ".join(f"{share:.1f}" for share in mean_row(P, N, mean, c, runs))
                print(f"| {P} x {N} | {mean} | {'equal' if math.isinf(c) else c} | {row} |", flush=True)
    print("\n| P x N | mean | gain | difference covered | p < 0.05 |\n| --- | --- | --- | --- | --- |")
    for P, N in ((30, 16), (100, 4)):
        for mean, gain in ((0.05, 0.0), (0.05, 0.1), (0.3, 0.0), (0.3, 0.2), (0.85, 0.1)):
            covered, found = difference_row(P, N, mean, gain, 2.0, runs // 2)
            print(f"| {P} x {N} | {mean} | {gain / 2} | {covered:.1f} | {found:.1f} |", flush=True)


if __name__ == "__main__":
    main()
