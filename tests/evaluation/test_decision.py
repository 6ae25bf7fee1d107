"""Which model to ship: chosen on validation problems, confirmed on those of the verdict, the base model among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluations import write_evaluation
from rectune.analysis.decision import decide
from rectune.analysis.power import ASSUMED, plan_power, power_sentences
from rectune.errors import UserError
from rectune.evaluation.statistics import paired_difference
from rectune.records import ArmDifference, Comparison, Point

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
                write_evaluation(
                    out / folders[str(seed)] / kind, tasks, temperature=temperature, scored=False
                )
    return Comparison(
        rectune="0", model="m", data="d", seeds=list(range(seeds)), arms=[], base="runs/base",
        benchmarks={"inside": "in", "outside": "out"},
        problems=dict.fromkeys(("inside", "outside"), problems["evaluation"]), validation={}, settings={}, points=made,
    )  # fmt: skip


def hash_of(*parts: object) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(repr(parts))) % 2**32


def answers(share: float, count: int, n: int, seed: int) -> list[list[tuple[str, bool]]]:
    """Problems of the same difficulties for everybody, half of the way from the model's share."""
    hard = np.random.default_rng(count).normal(0, 0.1, count)
    right = np.random.default_rng(seed).random((count, n)) < np.clip(share + hard, 0, 1)[:, None]
    return [[("1", bool(answer)) for answer in row] for row in right]


def test_a_model_that_keeps_one_domain_and_gains_in_the_other_is_shipped(tmp_path: Path) -> None:
    arms = {"base": (0.3, 0.3), "sft": (0.6, 0.3), "dft": (0.4, 0.7), "dft_5": (0.6, 0.6)}
    found = decide(comparison(tmp_path, **arms), tmp_path, margin=0.05, require="superior")
    assert (found.outcome, found.ship, found.against, found.protected) == ("ship", "dft at 0.5", "sft", "in")
    assert found.non_inferior and found.superior and found.passed
    assert found.inside and found.inside.low > -0.05
    assert found.sentence == (
        f"ship dft at 0.5: {figures(found.outside)} out of domain, in domain {figures(found.inside)}, against sft; "
        "3 seeds, 120 problems in and 120 out of domain"
    )
    assert {candidate.label for candidate in found.candidates} == {"dft", "dft at 0.5"}


def figures(difference: ArmDifference | None) -> str:
    assert difference is not None
    mean, low, high = (100 * value for value in (difference.difference, difference.low, difference.high))
    return f"{mean:+.1f} ({low:.1f} to {high:.1f})"


@pytest.mark.parametrize(
    ("arms", "against", "outcome", "ship", "sentence"),
    [
        (  # worse than base wherever it is trained
            {"base": (0.5, 0.5), "sft": (0.3, 0.2), "dft": (0.3, 0.4)}, None, "base", "base",
            "nothing beats base: don't train (best: dft, -",
        ),
        (  # a gain in one domain does not pay for a loss in the other
            {"base": (0.5, 0.5), "sft": (0.8, 0.1), "dft": (0.7, 0.15)}, None, "base", "base",
            "nothing beats base: don't train (best: dft, -",
        ),
        (  # what the candidate gains it loses in domain
            {"base": (0.3, 0.3), "sft": (0.7, 0.3), "dft": (0.4, 0.6)}, None, "keep", "sft", "keep sft (best: dft, +",
        ),
        ({"base": (0.3, 0.3), "sft": (0.7, 0.4)}, None, "keep", "sft", "keep sft: +"),
        (
            {"base": (0.3, 0.3), "sft": (0.6, 0.3), "dft": (0.6, 0.33)}, None, "undecided", None,
            "undecided between dft and sft: +",
        ),
        (
            {"base": (0.5, 0.5), "sft": (0.5, 0.52), "dft": (0.52, 0.5)}, None, "undecided", None,
            "undecided whether dft beats base: ",
        ),
        (  # base gains nothing out of domain, and the two have what the other lacks
            {"base": (0.3, 0.6), "sft": (0.8, 0.2), "dft": (0.6, 0.6)}, None, "undecided", None,
            "undecided: dft beats base but not sft, which does not beat base: +",
        ),
        (  # against the base model the gain is looked for in domain
            {"base": (0.3, 0.5), "sft": (0.7, 0.3), "sft_5": (0.6, 0.5)}, "base", "ship", "sft at 0.5",
            "ship sft at 0.5: +",
        ),
        ({"base": (0.3, 0.5), "dft": (0.5, 0.5)}, None, "ship", "dft", "ship dft: +"),  # no sft: against base
    ],
)  # fmt: skip
def test_outcomes(
    tmp_path: Path, arms: dict[str, Any], against: str | None, outcome: str, ship: str | None, sentence: str
) -> None:
    found = decide(comparison(tmp_path, **arms), tmp_path, margin=0.12, against=against)
    assert (found.outcome, found.ship) == (outcome, ship), found.sentence
    assert found.sentence.startswith(sentence)
    assert ("it would take" in found.sentence) == (outcome == "undecided" and "but not" not in sentence)


def test_the_choice_sees_validation_problems_only(tmp_path: Path) -> None:
    """What would be best on the verdict's problems is not looked at."""
    luck = {"evaluation": (0.6, 0.9), "validation": (0.6, 0.3), "greedy": (0.6, 0.9)}
    arms = {"base": (0.3, 0.3), "sft": (0.6, 0.3), "dft": (0.6, 0.6), "power": luck}
    found = decide(comparison(tmp_path, **arms), tmp_path, margin=0.1)
    assert (found.chosen, found.ship) == ("dft", "dft")


def test_the_base_model_is_beaten_at_its_best_decoding(tmp_path: Path) -> None:
    """As sampled dft is better; greedily the base model is, and greedy is what its validation problems say."""
    greedy = {"evaluation": (0.3, 0.3), "greedy": (0.7, 0.7), "validation-greedy": (0.7, 0.7)}
    found = decide(comparison(tmp_path, base=greedy, dft=(0.5, 0.5)), tmp_path, margin=0.05, against="base")
    assert not found.superior
    assert (found.outcome, found.base_temperature) == ("base", 0.0)
    assert ", against base, dft at temperature 1 and base greedily; 3 seeds," in found.sentence


def test_a_sharper_model_is_not_better(tmp_path: Path) -> None:
    """As sampled dft leads sft by twenty points; greedily, where both are better, it trails."""
    sft = {
        "evaluation": (0.3, 0.3),
        "greedy": (0.7, 0.7),
        "validation": (0.3, 0.3),
        "validation-greedy": (0.7, 0.7),
    }
    dft = dict.fromkeys(PROBLEMS, (0.5, 0.5))
    found = decide(comparison(tmp_path, base=(0.3, 0.3), sft=sft, dft=dft), tmp_path, margin=0.05)
    assert (found.outcome, found.ship, found.temperatures["sft"]) == ("keep", "sft", 0.0)


def test_one_seed_is_said(tmp_path: Path) -> None:
    found = decide(
        comparison(tmp_path, 1, base=(0.3, 0.3), sft=(0.6, 0.3), dft=(0.6, 0.6)), tmp_path, margin=0.1
    )
    assert found.outcome == "ship"
    assert "one seed, which says nothing about others" in found.sentence


def test_more_arms_to_choose_from_need_clearer_evidence(tmp_path: Path) -> None:
    """The arm whose seeds were lucky is the one that is chosen, and new problems do not undo that."""
    arms = {"base": (0.3, 0.3), "sft": (0.6, 0.3), "dft": (0.6, 0.6)}
    few = decide(comparison(tmp_path / "few", **arms), tmp_path / "few", margin=0.1)
    others = {f"arm{i}": (0.1, 0.1) for i in range(6)}
    many = decide(comparison(tmp_path / "many", **arms, **others), tmp_path / "many", margin=0.1)
    assert few.chosen == many.chosen == "dft"
    assert few.outside and many.outside
    assert few.outside.difference == many.outside.difference
    assert many.outside.low < few.outside.low


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"margin": -0.01}, "--margin: must be from 0 to below 100 points"),
        ({"margin": float("nan")}, "--margin: must be from 0 to below 100 points"),
        ({"margin": 1.0}, "--margin: must be from 0 to below 100 points"),
        ({"against": "dpo"}, "--against: unknown arm 'dpo'; known: base, dft, sft"),
    ],
)
def test_what_cannot_be_decided(tmp_path: Path, how: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        decide(
            comparison(tmp_path, base=(0.3, 0.3), sft=(0.6, 0.3), dft=(0.6, 0.6)),
            tmp_path,
            **{"margin": 0.1, **how},
        )


def test_a_comparison_without_validation_problems_has_no_decision(tmp_path: Path) -> None:
    sizes = {"evaluation": 20, "greedy": 20}
    record = comparison(tmp_path, 3, 4, sizes, base=(0.3, 0.3), sft=(0.6, 0.3), dft=(0.6, 0.6))
    with pytest.raises(UserError, match="no evaluation"):
        decide(record, tmp_path, margin=0.1)


def test_power_grows_with_problems_and_seeds_and_falls_with_the_choice() -> None:
    def chance(problems: int, seeds: int = 3, among: int = 1) -> tuple[float, float]:
        (kept, *gains) = plan_power(
            {"in": problems, "out": problems}, {"in": problems // 3, "out": problems // 3},
            seeds=seeds, samples=4, among=among, margin=0.03, protected="in",
        )  # fmt: skip
        return kept.chance, gains[1].chance

    few, many, five, chosen = chance(100), chance(800), chance(100, seeds=5), chance(100, among=8)
    assert all(low < high for low, high in zip(few, many, strict=True))
    assert all(low < high for low, high in zip(few, five, strict=True))
    assert all(low > high for low, high in zip(few, chosen, strict=True))


def test_power_is_what_happens() -> None:
    """The chance that is said is the share of comparisons, sampled as it assumes, whose limit is above 0."""
    rng, S, P, N = np.random.default_rng(0), 3, 120, 4
    (plan,) = [
        plan
        for plan in plan_power(
            {"in": P, "out": P},
            {"in": 40, "out": 40},
            seeds=S,
            samples=N,
            among=1,
            margin=0.02,
            protected="in",
        )
        if plan.difference == 0.05
    ]
    shown = []
    for _ in range(150):
        easy_P = rng.uniform(0.3, 0.7, P)
        change_SxP = (
            0.05
            + rng.normal(0, ASSUMED.problems, P)
            + rng.normal(0, ASSUMED.seeds, (S, 1))
            + rng.normal(0, ASSUMED.rest, (S, P))
        )
        a, b = (
            (rng.random((S, P, N)) < np.clip(chance, 0, 1)[..., None]).astype(float)
            for chance in (easy_P + change_SxP, np.broadcast_to(easy_P, (S, P)))
        )
        shown.append(paired_difference(a, b, 0.9).low > 0)
    assert abs(np.mean(shown) - plan.chance) < 0.15


def test_a_margin_that_can_hardly_be_shown_is_said_with_what_would_do() -> None:
    counts = {"in": 100, "out": 200}
    plans = plan_power(
        counts, {"in": 33, "out": 66}, seeds=3, samples=16, among=1, margin=0.01, protected="in"
    )
    first, hardly, assumed = power_sentences(plans, 0.01, 16)
    assert first.startswith(
        "with 3 seeds and 200 problems out of domain a true gain of 2 points is shown in "
    )
    assert "with 100 problems in domain a true loss of 0 is shown to be within 1 in " in first
    assert hardly.startswith("the margin of 1 can hardly be shown: about ")
    assert " problems in domain and " in hardly and " seeds would do; a margin of " in hardly
    assert assumed.startswith("this assumes differences that vary by 20 points among problems, 1 among seeds")
