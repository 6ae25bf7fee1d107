"""What a comparison can show, said before anything is trained: how likely a true difference is to be shown.

Differences are taken to be normal, with the spreads of `ASSUMED`, and judged by the limits of `decision.py`
(`simulate_limits`). Spreads grow with the difference: for the 19 points between DFT and SFT in docs/decisions.md they
were 32 points among problems and 3.3 among seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rectune.analysis.summary_text import DOMAINS
from rectune.evaluation.statistics import Chosen, Spread, simulate_limits
from rectune.records import Power

ASSUMED = Spread(problems=0.2, seeds=0.01, rest=0.1)
"""Of the difference of two arms; `rest` is that of a problem among seeds, without the noise of sampling."""
DIFFICULTY = 0.15
"""Mean of p (1 - p) over problems, p being the accuracy on one: the variance of one sampled answer."""
LEVEL = 0.95
"""Of each limit by itself; the interval between two limits has 90 %."""
GAINS = (0.02, 0.05, 0.1)
"""True gains whose chance is said."""
WANTED = 0.8
"""The chance that `needed` problems give."""
MOST_PROBLEMS, MOST_SEEDS = 20_000, 10
"""More of them are not proposed."""


def simulated_reach(
    seeds: int, problems: int, samples: int, chosen: Chosen, *, runs: int = 20_000
) -> np.ndarray:
    """In each of `runs` comparisons, how far below the truth the lower limit of a difference is.

    Args:
        seeds, problems, samples: Of each arm, of the verdict, to each problem.
        chosen: How the arm was chosen.
    """
    spread = ASSUMED._replace(rest=math.sqrt(ASSUMED.rest**2 + 2 * DIFFICULTY / samples))
    error_R, half_R = simulate_limits(seeds, problems, spread, LEVEL, chosen=chosen, runs=runs)
    reach_R: np.ndarray = half_R - error_R
    return reach_R


def plan_power(
    problems: Mapping[str, int],
    validation: Mapping[str, int],
    *,
    seeds: int,
    samples: int,
    among: int,
    margin: float,
    protected: str,
) -> list[Power]:
    """Chances of a loss of 0 to be shown to be within the margin, and of `GAINS` to be shown.

    Args:
        problems, validation: How many each domain has for the verdict and for the choice.
        seeds, samples: Runs of each arm, answers to each problem.
        among: Trained arms that one is chosen from.
        margin: A fraction.
        protected: The domain in which nothing may be lost beyond the margin.
    """
    plans = []
    for domain in DOMAINS:
        chosen = Chosen(among, validation[domain])
        reach_R = simulated_reach(seeds, problems[domain], samples, chosen)
        for difference in (0.0,) if domain == protected else GAINS:
            distance = margin if domain == protected else difference
            needed = _needed(distance, seeds, problems[domain], samples, chosen)
            plans.append(
                Power(
                    domain=domain,
                    problems=problems[domain],
                    seeds=seeds,
                    difference=difference,
                    chance=float(np.mean(reach_R < distance)),
                    shown=float(np.quantile(reach_R, WANTED)),
                    needed_problems=needed[0] if needed else None,
                    needed_seeds=needed[1] if needed else None,
                )
            )
    return plans


def _needed(
    distance: float, seeds: int, problems: int, samples: int, chosen: Chosen
) -> tuple[int, int] | None:
    """Problems, to two figures, and seeds that give the chance `WANTED`: as few seeds as there are, or more."""

    def enough(count: int, seeds: int) -> bool:
        scaled = chosen._replace(problems=max(1, round(chosen.problems * count / problems)))
        reach_R = simulated_reach(seeds, count, samples, scaled, runs=4000)
        return float(np.mean(reach_R < distance)) >= WANTED

    allowed = range(seeds, MOST_SEEDS + 1) if seeds > 1 else [1]
    fewest = next((count for count in allowed if enough(MOST_PROBLEMS, count)), None)
    if fewest is None:
        return None
    low, high = 1, MOST_PROBLEMS
    while high > 1.03 * low + 1:
        middle = max(2, round(math.sqrt(low * high)))
        low, high = (low, middle) if enough(middle, fewest) else (middle, high)
    step = 10 ** max(0, len(str(high)) - 2)
    return math.ceil(high / step) * step, fewest


def power_sentences(plans: Sequence[Power], margin: float, samples: int) -> list[str]:
    """What can be shown, whether the margin can be, and what all of it assumes."""
    if not plans:
        return []
    (kept,) = [plan for plan in plans if plan.difference == 0]
    gains = [plan for plan in plans if plan.difference]
    first, *more = (f"{100 * plan.difference:g}{{}} in {_percent(plan)}" for plan in gains)
    shown = ", of ".join([first.format(" points is shown"), *(text.format("") for text in more)])
    seeds = f"{kept.seeds} seeds" if kept.seeds > 1 else "one seed"
    sentences = [
        f"with {seeds} and {gains[0].problems} problems {DOMAINS[gains[0].domain]} a true gain of {shown}; "
        f"with {kept.problems} problems {DOMAINS[kept.domain]} a true loss of 0 is shown to be within "
        f"{100 * margin:g} in {_percent(kept)}"
    ]
    if kept.chance < WANTED:
        hardly = "can hardly be shown" if kept.chance < 0.5 else "is often not shown"
        sentences.append(f"the margin of {100 * margin:g} {hardly}: {_what_would_do(kept)}")
    among_seeds = (
        f", {100 * ASSUMED.seeds:g} among seeds" if kept.seeds > 1 else "; other seeds are not covered"
    )
    sentences.append(
        f"this assumes differences that vary by {100 * ASSUMED.problems:g} points among problems{among_seeds}, "
        f"and {samples} answers to each problem"
    )
    return sentences


def _percent(plan: Power) -> str:
    return f"{100 * plan.chance:.0f} %"


def _what_would_do(plan: Power) -> str:
    """Problems and seeds, or a larger margin."""
    larger = f"a margin of {100 * plan.shown:.1f} is shown in {100 * WANTED:g} %"
    if plan.shown >= 0.5:
        larger = "as it is, no margin below 50 is"
    if plan.needed_problems is None or plan.needed_seeds is None:
        return f"even {MOST_PROBLEMS:,} problems and {MOST_SEEDS} seeds would not do; {larger}"
    seeds = f" and {plan.needed_seeds} seeds" if plan.needed_seeds > plan.seeds else ""
    return f"about {plan.needed_problems:,} problems {DOMAINS[plan.domain]}{seeds} would do; {larger}"
