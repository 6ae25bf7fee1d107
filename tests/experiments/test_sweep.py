"""When learning rates are tried without being asked for, and what is said where they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comparisons import Task, config_of, problem, write
from rectune.config import CompareConfig
from rectune.experiments.compare import make_grid
from rectune.experiments.lr_sweep import automatic_rates, rate_warnings
from rectune.records import Accuracy, Comparison, SweepResult, SweepTrial, SweptArm, write_record

TRIED = (3.3e-3, 1e-2, 3e-2)


@pytest.fixture
def many(tmp_path: Path) -> str:
    """In-domain problems enough to choose on."""
    return str(write(tmp_path / "many.jsonl", [problem(f"{i}?") for i in range(1000, 1200)]))


def config(task: Task, tmp_path: Path, many: str, **how: Any) -> CompareConfig:
    asked = {"objectives": "sft,dft", "seeds": 3, "tasks_in": [many], "tasks_out": [task["outside"]], **how}
    return config_of(task, tmp_path / "out", **asked)


def test_the_rates_of_auto_lie_around_the_given_one() -> None:
    assert automatic_rates(5e-5) == (1.7e-5, 5e-5, 1.5e-4)


def test_rates_are_tried_where_seeds_and_problems_allow(task: Task, tmp_path: Path, many: str) -> None:
    grid = make_grid(config(task, tmp_path, many))
    assert grid.sweep is not None
    assert grid.sweep.rates == TRIED
    assert (len(grid.validation["many"]), len(grid.problems["many"])) == (50, 150)
    assert grid.settings["sweep"] == list(TRIED)
    assert rate_warnings(grid, None) == []


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"sweep": "none"}, "--sweep none"),
        ({"seeds": 2}, "with --seeds 2 the trials would add 38% to the training"),
        ({"limit": 100}, "25 validation problems are too few to judge them on; 50 are needed"),
        ({"tasks_in": []}, "there are no in-domain problems to judge them on"),
        ({"race": "1h"}, "a race has a budget of its own"),
    ],
)
def test_what_speaks_against_it_is_said(
    task: Task, tmp_path: Path, many: str, how: dict[str, Any], why: str
) -> None:
    if "race" in how:
        how = how | {
            "validation": str(write(tmp_path / "apart.jsonl", [problem(f"{i}?") for i in range(2000, 2060)]))
        }
    grid = make_grid(config(task, tmp_path, many, **how))
    assert grid.sweep is None
    (warning,) = rate_warnings(grid, None)
    assert warning == (
        "learning rates are not matched: every arm uses 0.01; --sweep 0.0033,0.01,0.03 tries others for each"
    )
    assert grid.unmatched.startswith(why)


def test_one_objective_has_nothing_to_match(task: Task, tmp_path: Path, many: str) -> None:
    grid = make_grid(config(task, tmp_path, many, objectives="dft"))
    assert (grid.sweep, rate_warnings(grid, None)) == (None, [])


@pytest.mark.parametrize("kept", [[], [0.002, 0.004]])
def test_a_comparison_keeps_the_rates_that_it_was_begun_with(
    task: Task, tmp_path: Path, many: str, kept: list[float]
) -> None:
    asked = config(task, tmp_path, many)
    begun = make_grid(asked.model_copy(update={"sweep": tuple(kept)}))
    (tmp_path / "out").mkdir()
    record = Comparison(
        rectune="0", model=begun.model, data=begun.data, seeds=[0, 1, 2], arms=[], base="runs/base",
        benchmarks={}, problems={}, validation={}, settings=begun.settings,
    )  # fmt: skip
    write_record(tmp_path / "out" / "comparison.json", record)
    grid = make_grid(asked)
    assert (list(grid.sweep.rates) if grid.sweep else []) == kept
    assert json.dumps(grid.settings) == json.dumps(begun.settings)
    assert grid.unmatched == ("" if kept else "the comparison was begun without one")


def test_a_rate_at_the_edge_is_in_the_warnings(task: Task, tmp_path: Path, many: str) -> None:
    trials = [
        SweepTrial(learning_rate=rate, accuracy=Accuracy(mean=0.5, low=0.4, high=0.6), run="-")
        for rate in TRIED
    ]
    arms = {
        name: SweptArm(label=name, learning_rate=rate, edge=edge, trials=trials)
        for name, rate, edge in (("sft", 1e-2, False), ("dft", 3e-2, True))
    }
    swept = SweepResult(steps=3, seed=0, problems=50, arms=arms)
    assert rate_warnings(make_grid(config(task, tmp_path, many)), swept) == [
        "the learning rate of dft, 0.03, is at the edge of the sweep (0.0033, 0.01, 0.03): a better one may lie beyond"
    ]
