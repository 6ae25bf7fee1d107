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

import pytest

from rectune.cli.app import main
from rectune.errors import UserError
from rectune.grading.exact import grade_exact
from rectune.reproduction.recipe import load_recipe, recipe_names
from rectune.reproduction.runner import reproduce
from rectune.reproduction.stories import EVERY_WAY, answered, apply, make_story, spoil
from training_runs import weights


@pytest.mark.parametrize("way", EVERY_WAY)
def test_stories_are_solved_as_they_say(way: str) -> None:
    rng = random.Random(way)
    for _ in range(200):
        story = make_story(rng, ("hands", "bus", "shelf"), rng.choice((1, 2, 3)))
        value = story.start
        for sign, n, to in story.steps:
            value = apply(sign, value, n)
            assert to == value
        assert grade_exact(str(story.answer), answered(story, way)).verdict == "correct"
        wrong = spoil(rng, story)
        assert wrong.text == story.text
        assert grade_exact(str(story.answer), answered(wrong, way)).verdict == "wrong"


@pytest.mark.parametrize("name", recipe_names())
def test_full_plan_of_every_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "reproduce",
                name,
                "--scale",
                "full",
                "--dry-run",
                "--output-dir",
                str(tmp_path / "out"),
                "--json",
            ]
        )
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["gpu_hours"] > 0 and len(plan["models"]) == len(load_recipe(name).models)
    for model in plan["models"]:
        for run in model["runs"]:
            assert run["steps"] > 0 and run["memory_gib"]["total"] > 0
            assert (run["launch"] is None) == (run["method"] != "train")
    assert (
        main(["reproduce", name, "--scale", "full", "--dry-run", "--output-dir", str(tmp_path / "out")]) == 0
    )
    assert "GPU hours" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_papers_settings_are_in_the_plan(tmp_path: Path) -> None:
    plan = reproduce("table2", scale="full", out=tmp_path, dry_run=True)
    runs = {run["arm"]: run["settings"] for run in plan["models"][0]["runs"]}
    assert list(runs) == ["SFT", "DFT", "RFT", "iw-SFT", "DPO", "PPO", "GRPO", "DFT-offline"]
    assert (runs["DFT"]["learning_rate"], runs["DFT"]["batch_size"], runs["DFT"]["max_length"]) == (
        5e-5,
        256,
        2048,
    )
    assert runs["DFT"]["min_eos_weight"] == 0  # Eq. 9 as it stands
    assert (runs["DPO"]["learning_rate"], runs["DPO"]["batch_size"], runs["DPO"]["warmup_ratio"]) == (
        1e-6,
        128,
        0.05,
    )
    assert runs["RFT"]["num_samples"] == runs["GRPO"]["num_samples"] == 4
    assert (
        runs["PPO"]["num_samples"],
        runs["PPO"]["problems_per_step"],
        runs["GRPO"]["problems_per_step"],
    ) == (
        1,
        256,
        256,
    )
    assert {run["rows"]["template"] for run in runs.values() if "rows" in run} == {"eos"}
    table1 = reproduce("table1", scale="full", out=tmp_path, dry_run=True)
    rates = {model["model"]: model["runs"][0]["settings"]["learning_rate"] for model in table1["models"]}
    assert rates.pop("meta-llama/Llama-3.1-8B") == 2e-5 and set(rates.values()) == {5e-5}


@pytest.mark.parametrize("name", ["table2", "table6", "table7"])
def test_iw_sft_is_called_as_its_source_calls_it(name: str) -> None:
    """One weight a row at temperature 1 (bounding_trainers.py), 8 rows a step on 8 GPUs (iw_sft.sh)."""
    arms = [arm for arm in load_recipe(name).arms if arm.label.startswith("iw-SFT")]
    assert arms
    for arm in arms:
        assert dict(arm.settings) == {
            "objective": "iw_sft_sequence:temperature=1.0", "learning_rate": 1e-5,
            "batch_size": 8, "weight_decay": 1e-4, "warmup_ratio": 0.05,
        }  # fmt: skip


def test_planned_steps_are_those_of_training(tmp_path: Path) -> None:
    """100,000 rows, 200 of them kept aside, 256 a step: 390 steps, as in the paper's figure."""
    steps = {
        name: {
            run["arm"]: run["steps"]
            for run in reproduce(name, scale="full", out=tmp_path, dry_run=True)["models"][0]["runs"]
        }
        for name in ("table2", "table8")
    }
    assert steps["table2"]["SFT"] == steps["table2"]["DFT"] == 390
    assert steps["table2"]["iw-SFT"] == 99_800 // 8
    assert steps["table8"]["SFT"] == -(-3 * (45_000 - 90) // 256)


def test_openr1_rows_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    run = reproduce("table8", scale="full", out=tmp_path, dry_run=True)["models"][0]["runs"][0]["settings"]
    assert (run["max_length"], run["rows"]["too_long"], run["rows"]["format"]) == (8192, "drop", "openr1")


@pytest.mark.parametrize("name", recipe_names())
def test_mini_plan_or_refusal(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["reproduce", name, "--dry-run", "--output-dir", str(tmp_path / "out")])
    said = capsys.readouterr()
    if load_recipe(name).no_mini:
        assert code == 2 and name in said.err and "cannot be done at mini scale" in said.err
    else:
        assert code == 0 and "minutes" in said.out
    assert not (tmp_path / "out").exists()


def test_every_arm_reads_as_many_answers(tmp_path: Path) -> None:
    for name in ("table2", "figure3"):
        plan = reproduce(name, out=tmp_path, dry_run=True)
        assert len({run["answers_trained"] for run in plan["models"][0]["runs"]}) == 1, name


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
    assert "Beside the paper" in page and "paper - SFT" in page
    before = (out / "runs" / "dft" / "seed-0" / "summary.json").stat().st_mtime_ns
    assert main(command) == 0  # all is there
    assert capsys.readouterr().out == first
    assert (out / "runs" / "dft" / "seed-0" / "summary.json").stat().st_mtime_ns == before


KILLED = """
import sys
sys.path[:0] = {path!r}
import conftest as own
from rectune.reproduction import recipe, runner
whole = recipe.load_mini
runner.load_mini = lambda budget=1.0: {{k: {{**t, **own.TINY.get(k, {{}})}} for k, t in whole(budget).items()}}
runner.reproduce("table1", out=__import__("pathlib").Path({out!r}), seeds=1, arms=["DFT"])
"""


@pytest.mark.faults
def test_goes_on_after_a_kill(tmp_path: Path, tiny: Path) -> None:
    """Killed when the first run has a checkpoint, and again later: the same weights as a run that was never killed."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    reproduce("table1", out=whole, seeds=1, arms=["DFT"])
    code = KILLED.format(path=[str(Path(__file__).parent)], out=str(out))
    for sign in ("sweep/dft/lr-0.01/checkpoints/*", "runs/dft/seed-0/config.json"):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "RECTUNE_CACHE": str(tiny)}
        )
        while process.poll() is None and not list(out.glob(sign)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    reproduce("table1", out=out, seeds=1, arms=["DFT"])
    a, b = (json.loads((folder / "reproduction.json").read_text())["models"][0] for folder in (whole, out))
    assert a["beside"] == b["beside"]
    run = "runs/dft/seed-0"
    assert all(value.equal(weights(out / run)[name]) for name, value in weights(whole / run).items())


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown arm 'KTO'"):
        reproduce("table2", out=tmp_path, arms=["KTO"], dry_run=True)
    with pytest.raises(UserError, match="unknown scale 'tiny'"):
        reproduce("table2", out=tmp_path, scale="tiny", dry_run=True)
    with pytest.raises(UserError, match="0 seeds"):
        reproduce("table2", out=tmp_path, seeds=0, dry_run=True)
