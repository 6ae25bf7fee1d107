"""`rectune reproduce`: plans of every recipe, a whole run of seconds, and going on after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recipe_runs import RECIPES, module, plan, reproduce
from rectune import recipes
from rectune.cli.app import main
from rectune.errors import UserError
from rectune.grading.exact import grade_exact
from rectune.recipes import find_recipe
from training_runs import weights

stories = module("mini.stories")


@pytest.mark.parametrize("way", stories.EVERY_WAY)
def test_stories_are_solved_as_they_say(way: str) -> None:
    rng = random.Random(way)
    for _ in range(200):
        story = stories.make_story(rng, ("hands", "bus", "shelf"), rng.choice((1, 2, 3)))
        value = story.start
        for sign, n, to in story.steps:
            value = stories.apply(sign, value, n)
            assert to == value
        assert grade_exact(str(story.answer), stories.answered(story, way)).verdict == "correct"
        wrong = stories.spoil(rng, story)
        assert wrong.text == story.text
        assert grade_exact(str(story.answer), stories.answered(wrong, way)).verdict == "wrong"


@pytest.mark.parametrize("name", RECIPES)
def test_full_plan_of_every_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", name, "--scale", "full", "--dry-run", "--output-dir", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["gpu_hours"] > 0 and len(planned["models"]) == len(RECIPES[name].model)
    for run in (run for model in planned["models"] for run in model["runs"]):
        assert run["steps"] > 0 and run["memory_gib"]["total"] > 0
        assert (run["launch"] is None) == (run["method"] != "train")
    assert main(command) == 0
    assert "GPU hours" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_papers_settings_are_in_the_plan(tmp_path: Path) -> None:
    runs = {run["arm"]: run["settings"] for run in plan("table2", tmp_path, scale="full")[0]["runs"]}
    assert list(runs) == ["SFT", "DFT", "RFT", "iw-SFT", "DPO", "PPO", "GRPO", "DFT-offline"]
    for label, settings in {
        "DFT": {
            "learning_rate": 5e-5,
            "batch_size": 256,
            "max_length": 2048,
            "min_eos_weight": 0,
        },  # Eq. 9 as it is
        "DPO": {"learning_rate": 1e-6, "batch_size": 128, "warmup_ratio": 0.05},
        "RFT": {"num_samples": 4},
        "GRPO": {"num_samples": 4, "problems_per_step": 256},
        "PPO": {"num_samples": 1, "problems_per_step": 256},
    }.items():
        assert {name: runs[label][name] for name in settings} == settings, label
    assert {runs[label]["chat_template"] for label in runs if label not in ("PPO", "GRPO")} == {"eos"}
    rates = {
        m["model"]: m["runs"][0]["settings"]["learning_rate"] for m in plan("table1", tmp_path, scale="full")
    }
    assert rates.pop("meta-llama/Llama-3.1-8B") == 2e-5 and set(rates.values()) == {5e-5}


@pytest.mark.parametrize("name", ["table2", "table6", "table7"])
def test_iw_sft_is_called_as_its_source_calls_it(name: str) -> None:
    """One weight a row at temperature 1 (bounding_trainers.py), 8 rows a step on 8 GPUs (iw_sft.sh)."""
    arms = [arm for arm in RECIPES[name].arms if arm.label.startswith("iw-SFT")]
    assert arms
    for arm in arms:
        assert arm.objective == "iw_sft_sequence:temperature=1.0"
        assert arm.settings == {
            "learning_rate": 1e-5,
            "batch_size": 8,
            "weight_decay": 1e-4,
            "warmup_ratio": 0.05,
        }


def test_planned_steps_are_those_of_training(tmp_path: Path) -> None:
    """100,000 rows, 200 of them kept aside, 256 a step: 390 steps, as in the paper's figure."""
    steps = {
        name: {run["arm"]: run["steps"] for run in plan(name, tmp_path, scale="full")[0]["runs"]}
        for name in ("table2", "table8")
    }
    assert steps["table2"]["SFT"] == steps["table2"]["DFT"] == 390
    assert steps["table2"]["iw-SFT"] == 99_800 // 8
    assert steps["table8"]["SFT"] == -(-3 * (45_000 - 90) // 256)


def test_openr1_rows_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    run = plan("table8", tmp_path, scale="full")[0]["runs"][0]["settings"]
    assert (run["max_length"], run["too_long"], run["data_format"]) == (8192, "drop", "openr1")


@pytest.mark.parametrize("name", RECIPES)
def test_mini_plan_or_refusal(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["reproduce", name, "--dry-run", "--output-dir", str(tmp_path / "out")])
    said = capsys.readouterr()
    if RECIPES[name].no_mini:
        assert code == 2 and name in said.err and "this recipe has no mini scale" in said.err
    else:
        assert code == 0 and "minutes" in said.out
    assert not (tmp_path / "out").exists()


def test_every_arm_reads_as_many_answers(tmp_path: Path) -> None:
    for name in ("table2", "figure3"):
        assert len({run["answers_trained"] for run in plan(name, tmp_path)[0]["runs"]}) == 1, name


def test_from_nothing_to_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["reproduce", "table1", "--output-dir", str(out), "--seeds", "1"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "order in the paper: DFT > SFT > base" in first and "Llama's AIME24" in first
    found = json.loads((out / "reproduction.json").read_text())
    assert found["format"] == 1
    (model,) = found["models"]
    assert {(row["arm"], row["domain"]) for row in model["beside"]} == {
        (arm, domain) for arm in ("base", "SFT", "DFT") for domain in ("in", "out")
    }
    assert {(one["arm"], one["seed"]) for one in model["cost"]} == {("SFT", 0), ("DFT", 0)}
    assert {one["answers_trained"] for one in model["cost"]} == {32}
    assert set(model["rates"].values()) == {1e-2}
    page = (out / "report.html").read_text()
    assert "Comparison with the paper" in page and "paper - SFT" in page
    before = (out / "runs" / "dft" / "seed-0" / "summary.json").stat().st_mtime_ns
    assert main(command) == 0  # all is there
    assert capsys.readouterr().out == first
    assert (out / "runs" / "dft" / "seed-0" / "summary.json").stat().st_mtime_ns == before


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from recipe_runs import module, reproduce, tiny_mini
module("mini.task").load_mini = tiny_mini
reproduce("table1", Path({out!r}), seeds=1, arms=["DFT"])
"""


@pytest.mark.faults
def test_goes_on_after_a_kill(tmp_path: Path, tiny: Path) -> None:
    """Killed when the first run has a checkpoint, and again later: the same weights as a run that was never killed."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    reproduce("table1", whole, seeds=1, arms=["DFT"])
    code = KILLED.format(path=[str(Path(__file__).parents[1])], out=str(out))
    for sign in ("sweep/dft/lr-0.01/checkpoints/*", "runs/dft/seed-0/config.json"):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "RECTUNE_CACHE": str(tiny)}
        )
        while process.poll() is None and not list(out.glob(sign)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    reproduce("table1", out, seeds=1, arms=["DFT"])
    a, b = (json.loads((folder / "reproduction.json").read_text())["models"][0] for folder in (whole, out))
    assert a["beside"] == b["beside"]
    run = "runs/dft/seed-0"
    assert all(value.equal(weights(out / run)[name]) for name, value in weights(whole / run).items())


@pytest.mark.parametrize(
    ("name", "how", "line"),
    [
        ("table2", {"arms": ["KTO"]}, "unknown arm 'KTO'"),
        ("table2", {"scale": "tiny"}, "--scale: must be 'full' or 'mini'"),
        ("table2", {"seeds": 0}, "--seeds: must be at least 1"),
        ("table2", {"budget": 2.0}, r"--budget: must be at most 1 \(got 2.0\)"),
        ("table4", {}, "unknown recipe of the paper 'table4'"),
        ("nothing.toml", {}, "nothing.toml: no such recipe"),
    ],
)
def test_what_cannot_be_done_is_refused(name: str, how: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        plan(name, tmp_path, **how)


def test_without_the_repository_it_says_where_recipes_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a wheel, which has no recipes."""
    file = tmp_path / "site" / "rectune" / "recipes.py"
    monkeypatch.setattr(recipes, "__file__", str(file))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="table2: the wheel has no recipes of the paper; run it in a checkout"
    ):
        plan("table2", tmp_path)


def test_a_recipe_by_its_path(tmp_path: Path) -> None:
    """It may lie anywhere with all of its tables; the mini scale and the tables of the paper are beside the paper's."""
    paper = find_recipe("table1")
    by_path, by_name = (plan(str(name), tmp_path, scale="full") for name in (paper, "table1"))
    assert by_path == by_name
    own = tmp_path / "own.toml"
    own.write_text(paper.read_text() + "[settings]\nbach_size = 3\n")
    with pytest.raises(UserError, match="benchmarks: missing"):
        plan(str(own), tmp_path, scale="full")
