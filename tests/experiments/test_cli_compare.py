"""`rectune compare` as a user types it: a table and sentences on stdout, progress on stderr, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comparisons import SETTINGS, Task
from rectune.cli.app import main
from rectune.config import flag


@pytest.fixture
def words(task: Task, tmp_path: Path) -> list[str]:
    settings = {
        **SETTINGS,
        "model": task["model"],
        "data": task["data"],
        "output_dir": tmp_path / "out",
        "max_steps": 3,
    }
    asked = {"tasks_in": task["inside"], "limit": "6", "max_new_tokens": "6"}
    flags = [part for name, value in {**settings, **asked}.items() for part in (flag(name), str(value))]
    return ["compare", *flags, "-n", "2"]


@pytest.mark.slow
def test_from_flags(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--objectives", "sft, dft"]) == 0
    out, err = capsys.readouterr()
    assert "inside (in domain), 6 problems" in out
    for label in ("base", "sft", "dft"):
        assert any(line.split()[:1] == [label] for line in out.splitlines())
    assert "greedy" in out
    assert f"Page: {tmp_path / 'out' / 'report.html'}" in out
    assert "runs, 1 of 6: train sft, seed 0" in err
    assert " left)" in err
    verdict = json.loads((tmp_path / "out" / "comparison.json").read_text())["verdict"]
    assert all(sentence in out for sentence in verdict["sentences"])
    assert main([*words, "--objectives", "sft,dft", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict


def test_dry_run(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--objectives", "sft,power:alpha=0.5", "--seeds", "2", "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [run["objective"] for run in planned["runs"]] == [
        "sft",
        "sft",
        "power alpha=0.5",
        "power alpha=0.5",
    ]
    assert planned["steps_per_run"] == 3
    assert not (tmp_path / "out").exists()


def test_from_a_recipe(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's objective is ignored, and the log says so."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('learning_rate = 2e-3\nobjective = "floor:minimum=0.2"\n')
    place = words.index("--learning-rate")
    assert main(["compare", str(recipe), *words[1:place], *words[place + 2 :], "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert [(run["objective"], run["learning_rate"]) for run in json.loads(out)["runs"]] == [
        ("sft", 2e-3),
        ("dft", 2e-3),
    ]
    assert "objective of the recipe is ignored" in err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--objectives", "sft,dftt"], "unknown objective 'dftt'; did you mean 'dft'? known: "),
        (["--objectives", "power:beta=1"], "'beta'; known: alpha"),
        (
            ["--objective", "dft"],
            "unknown option --objective; use --objectives",
        ),
        (["--sweep", "1e-4,x"], "--sweep: must be a number (got 'x')"),
        (["--race", "soon"], "--race: 'soon' is not a budget"),
        (["--tasks", "gsm9k"], "unknown task or file 'gsm9k'"),
        (["--seeds", "x"], "--seeds"),
        (["--bach-size", "3"], "--bach-size"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    assert main([*words, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err.splitlines()[-1]
    assert err.count("rectune: ") == 1
    assert not (tmp_path / "out").exists()
