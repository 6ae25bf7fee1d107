"""Which model to ship: chosen on validation problems, confirmed on those of the verdict, the base model among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluations import write_evaluation
from rectune.analysis.decision import decide
from rectune.records import Comparison, Point

PROBLEMS = {"evaluation": 120, "validation": 40, "greedy": 120, "validation-greedy": 40}
Shares = tuple[float, float]


def comparison(
    out: Path, seeds: int = 3, n: int = 4, /, problems: dict[str, int] = PROBLEMS, **points: Any
) -> Comparison:
    """A folder whose models answer this share of the problems in and out of domain correctly.

    A point is a pair of shares for all kinds of evaluation, or a dict of kind to pair.
    """
    made = []
    for at, (name, shares) in enumerate(points.items()):
        runs = range(1 if name == "base" else seeds)
        folders = {str(seed): f"runs/{name}/seed-{seed}" for seed in runs}
        arm, _, t = name.partition("_")
        made.append(
            Point(
                arm=arm, label=name.replace("_", " at 0."), at=float(f"0.{t}") if t else 1.0, folders=folders
            )
        )
        for seed in runs:
            for kind, count in problems.items():
                pair = shares.get(kind, shares["evaluation"]) if isinstance(shares, dict) else shares
                if pair is None:
                    continue
                few = 1 if "greedy" in kind else n
                tasks = {
                    task: answers(share, count, few, hash_of(at, seed, kind, task))
                    for task, share in zip(("inside", "outside"), pair, strict=True)
                }
                temperature = 0.0 if "greedy" in kind else 1.0
                write_evaluation(out / folders[str(seed)] / kind, tasks, temperature=temperature)
    return Comparison(
        rectune="0", model="m", data="d", seeds=list(range(seeds)), arms=[], base="runs/base",
        benchmarks={"inside": "in", "outside": "out"}, problems={}, validation={}, settings={}, points=made,
    )  # fmt: skip


def hash_of(*parts: object) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(repr(parts))) % 2**32


def answers(share: float, count: int, n: int, seed: int) -> list[list[tuple[str, bool]]]:
    """Problems of the same difficulties for everybody, half of the way from the model's share."""
    hard = np.random.default_rng(count).normal(0, 0.1, count)
    right = np.random.default_rng(seed).random((count, n)) < np.clip(share + hard, 0, 1)[:, None]
    return [[("1", bool(answer)) for answer in row] for row in right]


def test_a_model_that_keeps_one_domain_and_gains_in_the_other_is_shipped(tmp_path: Path) -> None:
    found = decide(
        comparison(tmp_path, base=(0.3, 0.3), sft=(0.6, 0.3), dft=(0.4, 0.7), dft_5=(0.6, 0.6)),
        tmp_path,
        margin=0.05,
    )
    assert (found.outcome, found.ship, found.against) == ("ship", "dft at 0.5", "sft")
    assert found.non_inferior and found.superior
    assert found.sentence.startswith(
        "ship dft at 0.5: +30.3 (25.3 to 35.3) out of domain, in domain +1.0 (-3.4 to 5.3)"
    )
