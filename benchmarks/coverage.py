"""How often the 95 % intervals of `rectune.evaluation.statistics` hold the truth.

    python benchmarks/coverage.py [--runs 4000] [--docs docs/statistics.md]

Problems have Beta(mean * c, (1 - mean) * c) accuracies (c small: problems are nearly all right or all wrong;
"equal": all have the same), N samples each; the truth is the mean over all problems there could be. For
comparison: the percentile bootstrap over problems, and the interval that takes every sample for an observation
of its own. `--docs` puts the tables between the markers of that file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rectune.evaluation.statistics import Spread, mean_interval, paired_difference, resamples, simulate_limits

EQUAL = math.inf
Limits = Callable[[np.ndarray], tuple[float, float]]


def draw(rng: np.random.Generator, P: int, N: int, mean: float, c: float) -> np.ndarray:
    """Right answers of each problem, out of N."""
    return rng.binomial(N, np.full(P, mean) if math.isinf(c) else rng.beta(mean * c, (1 - mean) * c, size=P))


def matrix(k_P: np.ndarray, N: int) -> np.ndarray:
    return (np.arange(N) < k_P[:, None]).astype(float)


def percentile(x_PxN: np.ndarray) -> tuple[float, float]:
    x_P = x_PxN.mean(1)
    means = np.concatenate([counts @ x_P / len(x_P) for counts in resamples(len(x_P))])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def naive(x_PxN: np.ndarray) -> tuple[float, float]:
    mean = float(x_PxN.mean())
    half = 1.96 * math.sqrt(mean * (1 - mean) / x_PxN.size)
    return mean - half, mean + half


def ours(x_PxN: np.ndarray) -> tuple[float, float]:
    _, low, high = mean_interval(x_PxN)
    return low, high


def mean_cell(P: int, N: int, mean: float, c: float, runs: int, methods: tuple[Limits, ...]) -> list[float]:
    """Per cent covered by each method; draws that differ only in the order of problems are judged once."""
    rng, hits, known = np.random.default_rng(0), np.zeros(len(methods)), {}
    for _ in range(runs):
        k_P = np.sort(draw(rng, P, N, mean, c))
        if (key := k_P.tobytes()) not in known:
            limits = [method(matrix(k_P, N)) for method in methods]
            known[key] = np.array([low - 1e-12 <= mean <= high + 1e-12 for low, high in limits])
        hits += known[key]
    return [float(share) for share in 100 * hits / runs]


def difference_cell(P: int, N: int, mean: float, gain: float, c: float, runs: int) -> list[float]:
    """Two runs whose problems share half their difficulty: coverage of the gain, and how often p < 0.05."""
    rng, hits, found = np.random.default_rng(0), 0, 0
    for _ in range(runs):
        own_P = rng.random(P) < 0.5
        a_P = rng.beta(mean * c, (1 - mean) * c, size=P)
        b_P = np.where(own_P, a_P, rng.beta((mean + gain) * c, (1 - mean - gain) * c, size=P))
        a, b = (matrix(rng.binomial(N, p_P), N) for p_P in (a_P, b_P))
        _, low, high, p_value = paired_difference(b, a)
        hits += low <= gain / 2 <= high
        found += p_value < 0.05
    return [100 * hits / runs, 100 * found / runs]


def seeds_cell(S: int, P: int, gain: float, seed: float, each: float, runs: int) -> list[float]:
    """Two arms of S seeds, 8 samples, accuracies 0.4 on average: coverage of gain, p < 0.05, coverage of an arm.

    `seed`: standard deviation of an arm's accuracy between its seeds; `each`: of a problem's, between seeds.
    """
    rng, counts = np.random.default_rng(0), np.zeros(3)
    for _ in range(runs):
        easy_P = rng.uniform(0.2, 0.6, P)
        arms = []
        for shift in (0.0, gain):
            chance = easy_P + shift + rng.normal(0, seed, (S, 1)) + rng.normal(0, each, (S, P))
            arms.append((rng.random((S, P, 8)) < np.clip(chance, 0, 1)[..., None]).astype(float))
        _, low, high, p_value = paired_difference(arms[1], arms[0])
        _, low_arm, high_arm = mean_interval(arms[0])
        counts += [low <= gain <= high, p_value < 0.05, low_arm <= 0.4 <= high_arm]
    return [float(share) for share in 100 * counts / runs]


def level_cell(S: int, P: int, seeds: float, rest: float, gain: float, runs: int) -> float:
    """Per cent of comparisons with p < 0.05, where the difference is normal with a standard error of 1.

    `seeds`, `rest`: shares of the variance that seeds bring, and seeds x problems; problems bring the others.
    """
    spread = Spread(*np.sqrt([(1 - seeds - rest) * P, seeds * S, rest * S * P]))
    error, half = simulate_limits(S, P, spread, 0.975, runs=runs)
    return float(100 * np.mean(abs(gain + error) > half))


def level_table(runs: int) -> Iterator[str]:
    yield "| seeds | worst | equal: 0 | 0.1 | 0.4 | apart: 0 | 0.1 | 0.4 |\n|" + " --- |" * 8
    for S in (2, 3, 4, 5, 8):
        grid = [
            level_cell(S, P, seeds, rest, 0, 25 * runs)
            for P in (30, 100, 400)
            for rest in (0.005, 0.02, 0.1, 0.3, 0.5)
            for seeds in (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.95, 0.99)
            if seeds + rest <= 1
        ]
        rows = [
            level_cell(S, 200, seeds, 0.3, gain, 25 * runs) for gain in (0, 3.5) for seeds in (0, 0.1, 0.4)
        ]
        yield f"| {S} | {max(grid):.1f} | " + " | ".join(f"{x:.1f}" for x in rows) + " |"


def mean_table(runs: int) -> Iterator[str]:
    yield "| P x N | mean | c | ours | percentile | naive |\n| --- | --- | --- | --- | --- | --- |"
    for P, N in ((30, 16), (30, 4), (100, 16), (300, 1)):
        for mean in (0.02, 0.05, 0.1, 0.3, 0.5, 0.9):
            for c in (0.5, 2.0, 10.0, EQUAL) if (P, N) == (30, 16) else (2.0,):
                row = " | ".join(
                    f"{x:.1f}" for x in mean_cell(P, N, mean, c, runs, (ours, percentile, naive))
                )
                yield f"| {P} x {N} | {mean} | {'equal' if math.isinf(c) else c} | {row} |"


def grid_table(runs: int) -> Iterator[str]:
    """Cells of a finer grid that are outside 93 to 97; means above 0.5 mirror those below."""
    cells, outside = 0, []
    for P in (15, 30, 60, 100, 300):
        for N in (1, 4, 16):
            for mean in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5):
                for c in (0.5, 2.0, 10.0, EQUAL) if N > 1 else (EQUAL,):
                    (covered,) = mean_cell(P, N, mean, c, runs, (ours,))
                    cells += 1
                    if not 93 <= covered <= 97:
                        wrong = "equal" if math.isinf(c) else c
                        outside.append(
                            (N, f"| {P} x {N} | {mean} | {wrong} | {covered:.1f} | {P * mean:.1f} |")
                        )
    yield f"{cells - len(outside)} of {cells} cells are within 93 to 97; the others:\n"
    yield "| P x N | mean | c | ours | P x mean |\n| --- | --- | --- | --- | --- |"
    yield from (row for _, row in sorted(outside, key=lambda cell: cell[0]))


def difference_table(runs: int) -> Iterator[str]:
    yield "| P x N | mean | c | gain | difference covered | p < 0.05 |\n| --- | --- | --- | --- | --- | --- |"
    for P, N in ((30, 16), (100, 4)):
        for mean, gain in ((0.05, 0.0), (0.05, 0.1), (0.3, 0.0), (0.3, 0.2), (0.85, 0.1)):
            for c in (0.5, 2.0, 10.0):
                covered, found = difference_cell(P, N, mean, gain, c, runs // 2)
                yield f"| {P} x {N} | {mean} | {c} | {gain / 2} | {covered:.1f} | {found:.1f} |"


def seeds_table(runs: int) -> Iterator[str]:
    yield "| S x P | gain | seeds | seeds x problems | difference covered | p < 0.05 | an arm covered |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for S, P in ((3, 30), (3, 100), (3, 400), (2, 100), (5, 100)):
        for gain in (0.0, 0.05) if S == 3 else (0.0,):
            for seed in (0.0, 0.02, 0.05):
                for each in (0.0, 0.1) if S == 3 else (0.1,):
                    row = " | ".join(f"{x:.1f}" for x in seeds_cell(S, P, gain, seed, each, runs // 4))
                    yield f"| {S} x {P} | {gain} | {seed} | {each} | {row} |"


TABLES = {
    "mean": mean_table,
    "grid": grid_table,
    "difference": difference_table,
    "seeds": seeds_table,
    "level": level_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of the 95 % intervals, by simulation.")
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    for name in options.tables.split(","):
        lines = []
        for line in TABLES[name](options.runs):
            print(line, flush=True)
            lines.append(line)
        if options.docs:
            text = options.docs.read_text()
            begin, end = f"<!-- {name} -->\n", f"\n<!-- end {name} -->"
            before, rest = text.split(begin)
            options.docs.write_text(before + begin + "\n".join(lines) + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
