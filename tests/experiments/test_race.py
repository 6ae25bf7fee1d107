"""Sweep and race: judged on validation problems by accuracy, and what goes on is what was never in a race."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comparisons import Task, compare_task, config_of
from rectune.errors import UserError
from rectune.experiments import successive_halving as racing
from rectune.experiments.compare import make_arms, make_grid
from rectune.experiments.comparison_tables import tables
from rectune.experiments.evaluator import Evaluator
from rectune.experiments.grid import ArmRun
from rectune.experiments.problem_sets import write_problems
from rectune.records import Comparison
from rectune.training.checkpoint import list_checkpoints
from rectune.training.trainer import train
from training_runs import metrics, weights

Record = dict[str, Any]
Start = Callable[..., Record]
HOPELESS = "threshold:q=0.99"
"""Learns nothing on a model that is sure of nothing, and its loss is 0: by its own loss it would win any race."""


RACED = {
    "settings": {"max_steps": 24}, "tasks_out": [], "num_samples": 4, "race": "60steps", "match_entropy": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def raced(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    out = tmp_path_factory.mktemp("raced") / "out"
    return out, compare_task(task, out, f"{HOPELESS},sft", **RACED)


@pytest.mark.slow
def test_the_clearly_worse_is_dropped_though_its_loss_is_lower(raced: tuple[Path, Record]) -> None:
    out, record = raced
    hopeless, sft = record["arms"]
    assert sft["dropped"] is None
    dropped = hopeless["dropped"]
    assert dropped["step"] == record["race"]["rungs"][-1]["step"]
    assert dropped["reason"].startswith(f"clearly worse than sft at step {dropped['step']}: ")
    assert "on 8 validation problems" in dropped["reason"]
    assert dropped["low"] > 0 and dropped["p_holm"] < 0.05
    losses = [metrics(out / arm["runs"]["0"], "train")[0]["objective"] for arm in (hopeless, sft)]
    assert losses[0] < losses[1]
    assert record["race"]["ended"] == "one left"
    assert list(record["verdict"]["benchmarks"]["inside"]["arms"]) == ["base", "sft"]
    shown = dict(tables(Comparison.model_validate(record)))
    assert shown["Dropped"] == [{"arm": hopeless["label"], "why": dropped["reason"]}]
    assert "Race: step 6, 8 validation problems" in shown


@pytest.mark.slow
def test_the_dropped_run_is_left_where_it_stopped(raced: tuple[Path, Record]) -> None:
    out, record = raced
    folder = out / record["arms"][0]["runs"]["0"]
    assert not (folder / "summary.json").exists()
    last = list_checkpoints(folder / "checkpoints")[-1]
    assert last.name == f"step-{record['arms'][0]['dropped']['step']:06d}"


@pytest.mark.slow
def test_the_verdict_has_none_of_the_problems_that_chose(raced: tuple[Path, Record]) -> None:
    out, record = raced
    folder = out / record["arms"][1]["runs"]["0"]
    chose = json.loads((folder / "validation-6" / "evaluation.json").read_text())["benchmarks"]["inside"]
    judged = json.loads((folder / "evaluation" / "evaluation.json").read_text())["benchmarks"]["inside"]
    assert (len(chose["problem_ids"]), len(judged["problem_ids"])) == (8, 24)
    assert not set(chose["problem_ids"]) & set(judged["problem_ids"])


@pytest.mark.slow
def test_who_wins_a_race_is_bit_for_bit_who_never_ran_one(
    raced: tuple[Path, Record], task: Task, tmp_path: Path
) -> None:
    out, record = raced
    train(config_of(task, tmp_path / "alone", max_steps=24, objective="sft"))
    alone, winner = weights(tmp_path / "alone"), weights(out / record["arms"][1]["runs"]["0"])
    assert all(torch.equal(alone[name], winner[name]) for name in alone)


@pytest.mark.slow
def test_again_the_race_is_not_run(raced: tuple[Path, Record], task: Task) -> None:
    out, record = raced
    assert compare_task(task, out, f"{HOPELESS},sft", **RACED) == record
    with pytest.raises(UserError, match="objectives was"):
        compare_task(task, out, f"{HOPELESS},sft,dft", **RACED)


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Answers by hand in place of training and evaluating: slug to accuracy; keeps the steps trained to."""
    state: Record = {"accuracy": {}, "trained": []}

    def train(run: ArmRun, *, until: int | None = None) -> None:
        state["trained"].append((run.folder.parent.name, run.config.seed, until))

    def answers(folder: Path, files: list[Path]) -> np.ndarray:
        share = state["accuracy"][folder.parent.parent.name]
        luck = np.random.default_rng([len(folder.parent.parent.name), int(folder.parent.name[-1])])
        return (luck.random((40, 4)) < share).astype(np.int8)

    monkeypatch.setattr(ArmRun, "train", train)
    monkeypatch.setattr(racing, "correct", answers)
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: None)
    return state


def race(task: Task, out: Path, specs: list[str], budget: str, *, seeds: int = 1, steps: int = 100) -> Record:
    config = config_of(
        task, out, max_steps=steps, objectives=specs, seeds=seeds, tasks_in=[task["inside"]], race=budget
    )
    grid = make_grid(config)
    assert grid.race
    racing.check_affordable(grid, grid.race)
    found = racing.race(grid, grid.arms, write_problems(out / "problems", grid.validation))
    assert found
    return found.model_dump()


def test_all_go_on_where_nobody_is_clearly_worse(task: Task, tmp_path: Path, rung: Record) -> None:
    rung["accuracy"] = {"sft": 0.5, "dft": 0.5}
    found = race(task, tmp_path, ["sft", "dft"], "200steps")
    assert (found["ended"], found["survivors"], found["dropped"]) == ("all rungs", ["sft", "dft"], {})
    assert [one["step"] for one in found["rungs"]] == [25, 50]
    assert [one["steps"] for one in found["rungs"]] == [50, 100]
    assert rung["trained"] == [("sft", 0, 25), ("dft", 0, 25), ("sft", 0, 50), ("dft", 0, 50)]


def test_the_budget_ends_the_race_and_the_leader_goes_on(task: Task, tmp_path: Path, rung: Record) -> None:
    rung["accuracy"] = {"sft": 0.5, "power-alpha-0.5": 0.55}
    found = race(task, tmp_path / "a", ["sft", "power:alpha=0.5"], "199steps")  # one short of both to the end
    assert (found["ended"], found["survivors"]) == ("budget", ["power-alpha-0.5"])
    assert found["dropped"]["sft"]["step"] == 50
    assert found["dropped"]["sft"]["reason"].startswith(
        "the budget of 199steps is spent; not clearly worse than power alpha=0.5"
    )
    found = race(task, tmp_path / "b", ["sft", "power:alpha=0.5"], "149steps")
    assert [one["step"] for one in found["rungs"]] == [25]
    assert found["survivors"] == ["power-alpha-0.5"]
    with pytest.raises(UserError, match=r"124steps is too little: 2 arms to step 25 .* are 125 steps"):
        race(task, tmp_path / "c", ["sft", "power:alpha=0.5"], "124steps")


def test_time_is_a_budget_too(
    task: Task, tmp_path: Path, rung: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(racing.time, "perf_counter", lambda: next(clock))
    rung["accuracy"] = {"sft": 0.5, "power-alpha-0.5": 0.55}
    found = race(task, tmp_path, ["sft", "power:alpha=0.5"], "3m")
    assert [one["step"] for one in found["rungs"]] == [25]
    assert found["ended"] == "budget"
    assert found["rungs"][0]["seconds"] >= 60


def test_seeds_count_together(task: Task, tmp_path: Path, rung: Record) -> None:
    rung["accuracy"] = {"sft": 0.7, "dft": 0.2, "focal": 0.68}
    found = race(task, tmp_path, ["sft", "dft", "focal"], "2000steps", seeds=3)
    assert found["survivors"] == ["sft", "focal"]
    assert found["dropped"]["dft"]["step"] == 25
    assert found["rungs"][0]["steps"] == 3 * 3 * 25
    assert found["rungs"][1]["steps"] == 3 * 3 * 25 + 2 * 3 * 25
    assert ("dft", 2, 25) in rung["trained"] and ("dft", 0, 50) not in rung["trained"]


def test_rungs_that_are_done_are_taken_as_they_are(task: Task, tmp_path: Path, rung: Record) -> None:
    rung["accuracy"] = {"sft": 0.7, "dft": 0.2}
    first = race(task, tmp_path, ["sft", "dft"], "200steps")
    rung["trained"].clear()
    rung["accuracy"] = {"sft": 0.1, "dft": 0.9}
    assert race(task, tmp_path, ["sft", "dft"], "200steps") == first
    assert rung["trained"] == []


@pytest.mark.slow
def test_a_sweep_takes_the_rate_that_answers_best(run: Start, tmp_path: Path) -> None:
    """A rate of 1e-7 teaches nothing; with 1e-2 the answer is learnt."""
    record = run("sft", sweep=[1e-2, 1e-7], sweep_steps=12, tasks_out=[], num_samples=4, match_entropy=False)
    (found,) = record["sweep"]["arms"].values()
    assert [trial["learning_rate"] for trial in found["trials"]] == [1e-7, 1e-2]
    assert found["trials"][0]["accuracy"]["mean"] < found["trials"][1]["accuracy"]["mean"]
    assert (found["learning_rate"], found["edge"]) == (1e-2, True)
    assert (record["sweep"]["steps"], record["sweep"]["problems"]) == (12, 8)
    assert record["arms"][0]["learning_rate"] == 1e-2
    config = json.loads((tmp_path / "out" / record["arms"][0]["runs"]["0"] / "config.json").read_text())
    assert config["learning_rate"] == 1e-2
    for trial in found["trials"]:
        folder = tmp_path / "out" / trial["run"]
        assert json.loads((folder / "config.json").read_text())["learning_rate"] == trial["learning_rate"]
        assert not (folder / "model").exists()
    assert "taken, at the edge" in str(dict(tables(Comparison.model_validate(record))))


def test_arms_know_their_names(task: Task, tmp_path: Path) -> None:
    config = config_of(task, tmp_path, min_eos_weight=0.5)
    arms = make_arms(["sft", "power:alpha=0.5", "sft@0.3+dft@0.7"], config)
    assert len({arm.slug for arm in arms}) == 3
    assert all("/" not in arm.slug and " " not in arm.slug for arm in arms)
    assert arms[2].config.objective == "sft@0.3+dft@0.7"
    assert {arm.config.min_eos_weight for arm in arms} == {0.5}
