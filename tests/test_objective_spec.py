"""Objectives of the user's own: trained, diagnosed, compared and resumed by FILE.py:FUNCTION, or refused clearly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rectune.cli.app import main
from rectune.config import TrainConfig, load_config
from rectune.errors import UserError
from rectune.objective_spec import label_of, make_phases, parse_objective, slug_of
from rectune.objectives import dft
from rectune.training.trainer import train
from training_runs import make_toy

CAUTIOUS = """
def cautious(logp, entropy, *, beta=1.0):
    return -(logp.exp() * (-beta * entropy).exp()).detach() * logp


def like_dft(logp):
    return -logp.exp().detach() * logp
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_losses.py"
    path.write_text(CAUTIOUS)
    return path


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Any]:
    return {**make_toy(tmp_path), "max_steps": 2}


def trained(toy: dict[str, Any], out: Path, objective: Any, **how: Any) -> list[dict[str, Any]]:
    train(load_config(None, {**toy, "output_dir": out, "objective": objective}), **how)
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def test_its_name_shows_the_file_without_its_folder(file: Path) -> None:
    phases = parse_objective(f"sft@0.5+{file}:cautious:beta=2@0.5")
    assert label_of(phases) == "sft 0.5 then my_losses.py:cautious beta=2 0.5"
    assert slug_of(phases) == "sft-0.5-my_losses-cautious-beta-2-0.5"
    assert phases[1].columns == ("logp", "entropy") and phases[1].settings == {"beta": 2.0}


def test_its_weights_come_from_the_base_or_in_another_order(file: Path) -> None:
    (phase,) = parse_objective(f"{file}:cautious:beta=2:signal=base:shuffled")
    assert label_of([phase]) == "my_losses.py:cautious beta=2 signal=base shuffled"
    assert phase.columns == ("logp", "ref_logp", "ref_entropy") and phase.step_columns
    file.write_text(
        "def f(logp, *, beta=1.0): return -beta * logp.exp()\ndef g(logp, *, signal=1.0): return -logp"
    )
    with pytest.raises(UserError, match="cannot be shuffled: its loss is not a detached weight"):
        parse_objective(f"{file}:f:shuffled")
    with pytest.raises(
        UserError, match=r"setting 'signal' of .* has a name that every objective has already"
    ):
        parse_objective(f"{file}:g")


def test_it_is_protected_as_a_known_one_is(file: Path, tmp_path: Path) -> None:
    (phase,) = make_phases(TrainConfig(data="d", output_dir=tmp_path, objective=f"{file}:like_dft"))
    assert phase.min_eos_weight == 1


def test_it_trains_as_the_known_one_with_the_same_formula(file: Path, toy: Any, tmp_path: Path) -> None:
    own = trained(toy, tmp_path / "own", f"{file}:like_dft")
    known = trained(toy, tmp_path / "known", dft)
    assert [line["grad_norm"] for line in own] == [line["grad_norm"] for line in known]
    assert (tmp_path / "own" / "objective" / "my_losses.py").read_text() == CAUTIOUS


def test_a_run_is_resumed_only_with_the_file_that_it_began_with(file: Path, toy: Any, tmp_path: Path) -> None:
    objective, out = f"{file}:cautious:beta=0.5", tmp_path / "run"
    trained({**toy, "save_steps": 1}, out, objective, until=1)
    file.write_text(CAUTIOUS.replace("-beta", "beta"))
    with pytest.raises(
        UserError, match=r"my_losses.py: the file has changed since the run began.*objective/my_losses.py"
    ):
        trained({**toy, "save_steps": 1}, out, objective, resume=True)
    file.write_text(CAUTIOUS)
    assert len(trained({**toy, "save_steps": 1}, out, objective, resume=True)) == 2


def test_it_is_diagnosed(file: Path, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(toy["model"]), "--data", str(toy["data"]), "--output-dir", str(tmp_path / "d")]
    assert main(["diagnose", *given, "--objectives", f"dft,{file}:like_dft,{file}:cautious", "--json"]) == 0
    shown = {one["label"]: one for one in json.loads(capsys.readouterr().out)["objectives"]}
    own, known = shown["my_losses.py:like_dft"], shown["dft"]
    assert own["mean_weight"] == pytest.approx(known["mean_weight"])
    assert shown["my_losses.py:cautious"]["mean_weight"] < known["mean_weight"]


def test_it_is_an_arm_of_a_comparison(
    file: Path, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"prompt": "1 + 1 =", "answer": "2"}')
    given = f"--model {toy['model']} --data {toy['data']} --output-dir {tmp_path / 'c'} --tasks {problems} --dry-run"
    assert main(["compare", *given.split(), "--objectives", f"sft,{file}:cautious:beta=0.5"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["objective"] for run in runs] == ["sft", "my_losses.py:cautious beta=0.5"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(logp, surprise): return -logp", "unknown column of .*'surprise'; known: advantage, .*top1"),
        (
            "def f(logp): return -logp.sum()",
            r"returned shape \(\) for 4 tokens; return a loss for each token",
        ),
        ("def f(logp): return 1.0", "returned float"),
        ("def f(logp): return -logp.detach()", "has no gradient"),
        ("def f(logp, *more): return -logp", r"takes \*more"),
        ("def f(logp, *, beta): return -logp", "setting 'beta' of .* needs a number as default"),
        ("def f(logp):\n    return -logp / len(missing)", r"f.py:2: .*raised NameError"),
        ("def g(logp): return -logp", "unknown function 'f'; .*known: g"),
        ("f = 3", "unknown function 'f'"),
        ("import nothing_like_it", "cannot be run .ModuleNotFoundError"),
    ],
)
def test_what_does_not_follow_the_contract_is_refused(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "f.py").write_text(source)
    with pytest.raises(UserError, match=says):
        parse_objective(f"{tmp_path}/f.py:f")


def test_a_column_of_rollouts_is_refused_in_training(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(logp, advantage): return -logp * advantage")
    with pytest.raises(UserError, match="reads the column 'advantage'; only rectune rl has it"):
        make_phases(TrainConfig(data="d", output_dir=tmp_path, objective=f"{tmp_path}/f.py:f"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective: no such file: nothing.py"):
        parse_objective("nothing.py:f")


def test_in_python_a_function_stands_for_its_text(tmp_path: Path) -> None:
    def nested(logp: Tensor) -> Tensor:
        return -logp

    assert TrainConfig(data="d", output_dir=tmp_path, objective=dft).objective == "dft"
    assert (
        TrainConfig(data="d", output_dir=tmp_path, objective=at_the_top).objective == f"{__file__}:at_the_top"
    )
    with pytest.raises(ValueError, match="not at the top of a Python file"):
        TrainConfig(data="d", output_dir=tmp_path, objective=nested)


def at_the_top(logp: Tensor) -> Tensor:
    return -torch.sigmoid(logp).detach() * logp
