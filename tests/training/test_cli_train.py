"""`rectune train` as a user runs it: one JSON on stdout, progress on stderr, one line for a mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.config import flag
from training_runs import metrics


def flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (flag(name), str(value))]


@pytest.fixture
def settings(toy: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {**toy, "max_steps": 2, "output_dir": tmp_path / "run"}


def rectune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rectune.cli.app", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_from_flags(settings: dict[str, Any]) -> None:
    done = rectune("train", *flags(settings), "--objective", "power:alpha=0.5")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["steps"], result["out"]) == (2, str(settings["output_dir"]))
    assert result["after"]["nll"] != result["before"]["nll"]
    assert "objective: power alpha=0.5 until step 2" in done.stderr
    assert "step 2 of 2: objective" in done.stderr
    for noise in ("Warning", "Traceback", "Loading weights", "Writing model shards"):
        assert noise not in done.stderr


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own(settings: dict[str, Any]) -> None:
    done = rectune("train", *flags({**settings, "objective": "dftt"}))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "unknown objective 'dftt'; did you mean 'dft'?" in done.stderr


def test_from_a_recipe(settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    plain = {name: value for name, value in settings.items() if "." not in name and name != "output_dir"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    recipe.write_text("\n".join([*lines, 'objective = "sft@0.5+dft@0.5"']))
    assert main(["train", str(recipe), "--output-dir", str(settings["output_dir"]), "--max-steps", "4"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 4
    assert [line["phase"] for line in metrics(settings["output_dir"], "train")] == [
        "sft",
        "sft",
        "dft",
        "dft",
    ]
    assert "rows: 32 to train on, 8 held out" in err


def test_dry_run(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags(settings), "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["rows"], planned["steps"], planned["config"]["seed"]) == (32, 2, 0)
    assert planned["memory_mib"]["total"] > 0
    assert not settings["output_dir"].exists()


def test_resume(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags(settings), "--resume"]) == 0
    first = capsys.readouterr().out
    assert main(["train", *flags(settings), "--resume"]) == 0
    again = capsys.readouterr()
    assert (again.out, "the run is finished" in again.err) == (first, True)
    mistake(
        capsys,
        [*flags({**settings, "seed": 1}), "--resume"],
        "the run cannot be resumed with other settings: seed was 0, is 1",
    )
    mistake(capsys, flags(settings), "the folder already has a run; continue with --resume")


def mistake(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    """The command ends with code 2; its last line, the only one from rectune, says this."""
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    said = [shown for shown in err.splitlines() if shown.startswith("rectune: ")]
    assert said == err.splitlines()[-1:]
    assert line in said[0]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"objective": "nothing"}, "objective: unknown objective 'nothing'"),
        ({"objective": "power:beta=1"}, "unknown setting of power 'beta'; known: alpha"),
        ({"objective": "power:alpha=x"}, "objective: alpha of power: 'x' is not a number"),
        ({"objective": "power:alpha=nan"}, "objective: alpha of power: 'nan' is not a number"),
        (
            {"objective": "sft@0.3+dft@0.6"},
            "objective: 'sft@0.3+dft@0.6': the shares add up to 0.9, not to 1",
        ),
        ({"objective": "sft+dft"}, "objective: 'sft+dft': each phase needs a share"),
        ({"data": "nothing.jsonl"}, "nothing.jsonl"),
        ({"model": "/nothing"}, "/nothing: no such folder"),
        ({"output_dir": "/dev/null/run"}, "/dev/null/run: the folder cannot be written (Not a directory)"),
        ({"eval_data": "nothing.jsonl"}, "eval_data: no such file: nothing.jsonl"),
        ({"chat_template": "nothing.jinja"}, "nothing.jinja"),
        ({"lora_r": 2, "lora_target_modules": "lm_head"}, "lora_target_modules: an adapter on the head"),
        ({"max_length": 2}, "max_length: no row has a target within its first 2 tokens"),
    ],
)
def test_a_mistake_is_one_line(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str], change: dict[str, Any], line: str
) -> None:
    mistake(capsys, flags({**settings, **change}), line)
    assert not (
        settings["output_dir"] / "config.json"
    ).exists()  # so the mended command may use the same folder


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', "rows.jsonl:2: "),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "rows.jsonl:2: "),
        ("", "rows.jsonl"),
    ],
)
def test_a_broken_row_is_named(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    mistake(capsys, flags({**settings, "data": tmp_path / "rows.jsonl"}), line)


def test_a_model_without_tokenizer(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(settings["model"], folder, ignore=shutil.ignore_patterns("tokenizer*"))
    mistake(capsys, flags({**settings, "model": folder}), "model: no tokenizer (none of tokenizer.json")


def test_a_file_in_place_of_the_run_folder(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings["output_dir"].write_text("")
    assert main(["train", *flags(settings)]) == 2
    assert "run: the folder cannot be written (File exists)" in capsys.readouterr().err
