"""How often the 95 % intervals of `rectune.evaluation.statistics` hold the truth.

    python benchmarks/coverage.py [--runs 4000] [--docs docs/statistics.md]

Problems have Beta(mean * c, (1 - mean) * c) accuracies (c small: problems are nearly all right or all wrong;
"equal": all have the same), N samples each; the truth is the mean over all problems there could be. For
comparison: the percentile bootstrap over problems, and the interval that takes every sample for an observation
of its own. `level` has false findings over seeds, `choice` and `rule` those of the choice of a model to ship. `--docs`
puts the tables between the markers of that file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np

from rectune.analysis.decision import NEARLY, chance_confirmed
from rectune.analysis.power import LEVEL
from rectune.evaluation.statistics import (
    Chosen,
    Estimate,
    Spread,
    half_widths,
    mean_interval,
    paired_difference,
    resamples,
    simulate_limits,
)

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


class Candidates:
    """Arms of S seeds and their normal differences from a reference, one of which is chosen and then tested.

    Drawn are means and mean squares, as in `simulate_limits`, so that a cell of 10,000 takes seconds. A difference
    varies by 0.25 among problems, half of its variance shared by all arms, by 0.15 among seeds on one problem, and by
    `seed` among seeds as a whole, as the reference does. A quarter of the problems is for the choice.

    Shapes: R runs, A trained arms, K candidates: places on the way from the reference to an arm; S seeds.
    """

    def __init__(self, S: int, P: int, arms: int, places: int, seed: float, runs: int) -> None:
        self.S, self.arms, self.seed, self.runs = S, arms, seed, runs
        self.sizes, self.rng = (P // 4, P - P // 4), np.random.default_rng(0)
        self.at_K = np.tile(np.arange(1, places + 1) / places, arms)
        self.arm_K = np.repeat(np.arange(arms), places)

    def domain(self, gain: np.ndarray | float) -> list[tuple[np.ndarray, ...]]:
        """For the choice and the verdict: means, variances and their parts, each R x K; `gain` of each candidate."""
        normal, R, S = self.rng.normal, self.runs, self.S
        luck_RxKxS = normal(0, self.seed, (R, self.arms, S))[:, self.arm_K] * self.at_K[:, None]
        luck_RxKxS += normal(0, self.seed, (R, 1, S))
        gain_Kx1 = np.broadcast_to(gain, self.at_K.shape)[:, None]
        return [self._drawn(gain_Kx1 + luck_RxKxS, P) for P in self.sizes]

    def _drawn(self, mean_RxKxS: np.ndarray, P: int) -> tuple[np.ndarray, ...]:
        (R, K, S), problem, rest = mean_RxKxS.shape, 0.25**2 / P, 0.15**2 / P
        half = math.sqrt(problem / 2)
        shared_Rx1, own_RxA = self.rng.normal(0, half, (R, 1)), self.rng.normal(0, half, (R, self.arms))
        x_RxKxS = mean_RxKxS + self.rng.normal(0, math.sqrt(rest), (R, K, S))
        x_RxKxS += (shared_Rx1 + own_RxA[:, self.arm_K])[..., None]
        seeds, both = x_RxKxS.var(-1, ddof=1) / S, (S - 1) * (P - 1)
        problems = (problem + rest / S) * self.rng.chisquare(P - 1, (R, K)) / (P - 1)
        variance = seeds + problems - rest / S * self.rng.chisquare(both, (R, K)) / both
        return x_RxKxS.mean(-1), np.maximum(variance, np.maximum(seeds, problems)), seeds, problems

    def _likely(
        self, kept: tuple[np.ndarray, ...], gained: tuple[np.ndarray, ...], margin: float
    ) -> np.ndarray:
        """The candidates among which the largest gain decides, R x K, as `choose` has it."""
        estimates, scale = [], self.sizes[0] / self.sizes[1]
        for mean, variance, _, problems in (kept, gained):
            seeds = np.maximum(variance - problems, 0)
            estimates += [mean, np.sqrt(variance), np.sqrt(seeds + (variance - seeds) * scale)]
        chance = np.vectorize(
            lambda *six: chance_confirmed(Estimate(*six[:3]), Estimate(*six[3:]), margin), otypes=[float]
        )
        chance_RxK = chance(*estimates)
        return np.asarray(chance_RxK >= NEARLY * chance_RxK.max(1, keepdims=True))

    def shown(
        self, loss: np.ndarray | float, gain: np.ndarray | float, margin: float, *, within: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """R: which candidate is chosen; 2 x R: whether it meets the criterion, and whether it would without `Chosen`.

        Args:
            loss, gain: True ones, of each candidate.
            within: Choose the largest gain among those whose loss is within the margin, as a rule without chances.
        """
        (kept, kept_again), (gained, gained_again) = self.domain(-np.asarray(loss)), self.domain(gain)
        among_RxK = kept[0] >= -margin if within else self._likely(kept, gained, margin)
        choice_R = np.where(among_RxK, gained[0], kept[0] - 1).argmax(1)
        met_2xR = np.ones((2, self.runs), bool)
        for drawn, line in ((kept_again, -margin), (gained_again, 0.0)):
            mean_R, *parts = (values[np.arange(self.runs), choice_R] for values in drawn)
            for met_R, chosen in zip(met_2xR, (Chosen(self.arms, self.sizes[0]), None), strict=True):
                variance_R, seed_R, problem_R = parts
                half_R = half_widths(self.S, self.sizes[1], variance_R, seed_R, problem_R, LEVEL, chosen)
                met_R &= mean_R - half_R > line
        return choice_R, met_2xR


def choice_table(runs: int) -> Iterator[str]:
    """Error where all candidates lose the margin, or gain nothing (the larger of both); power where they do not."""
    yield "| seeds | problems | chosen from | 0 | 2 | 4 | without: 0 | 2 | 4 | +5 | +10 |\n|" + " --- |" * 11
    for S, P, (arms, places) in product((3, 5), (100, 400, 800), ((1, 1), (5, 1), (3, 4), (12, 1))):
        errors = []
        for seed in (0.0, 0.02, 0.04):
            cell = Candidates(S, P, arms, places, seed, 5 * runs)
            nulls = [cell.shown(*truth)[1].mean(1) for truth in ((0.02, 0.5, 0.02), (0.0, 0.0, 0.5))]
            errors.append(100 * np.maximum(*nulls))
        worlds = [(Candidates(S, P, arms, places, 0.01, 5 * runs), gain) for gain in (0.05, 0.1)]
        power = [100 * cell.shown(0.0, gain, 0.05)[1][0].mean() for cell, gain in worlds]
        cells = [*(error[0] for error in errors), *(error[1] for error in errors), *power]
        among = f"{arms} x {places}" if places > 1 else f"{arms}"
        yield f"| {S} | {P} | {among} | " + " | ".join(f"{x:.1f}" for x in cells) + " |"


def rule_table(runs: int) -> Iterator[str]:
    """Three arms at four places each, which lose and gain the more the farther they are from the reference."""
    yield (
        "| seeds | problems | margin | rule | shipped | true gain shipped | true loss of the choice |\n|"
        + " --- |" * 7
    )
    at = np.tile(np.arange(1, 5) / 4, 3)
    loss = np.repeat([0.06, 0.02, 0.1], 4) * np.where(np.arange(12) < 4, at**2, at)
    gain = np.repeat([0.12, 0.05, 0.15], 4) * at
    for S, P, margin in product((3, 5), (200, 800), (0.02, 0.05)):
        for rule, within in (("largest within", True), ("ours", False)):
            choice_R, met_2xR = Candidates(S, P, 3, 4, 0.01, 5 * runs).shown(
                loss, gain, margin, within=within
            )
            figures = (met_2xR[0].mean(), (met_2xR[0] * gain[choice_R]).mean(), loss[choice_R].mean())
            cells = " | ".join(f"{100 * figure:.1f}" for figure in figures)
            yield f"| {S} | {P} | {100 * margin:g} | {rule} | {cells} |"


TABLES = {
    "mean": mean_table,
    "grid": grid_table,
    "difference": difference_table,
    "seeds": seeds_table,
    "level": level_table,
    "choice": choice_table,
    "rule": rule_table,
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
