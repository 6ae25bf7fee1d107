"""Rewards by graders and by a user's function; what goes wrong there is one line, and nothing is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.config import flag
from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.rl import rl_trainer as loop
from rectune.rl import rollout
from rectune.rl.rollout import Rewards
from training_runs import metrics

PROBLEM = Problem("p1", (Turn("user", "2 + 2?"),), "4", "exact", "problems.jsonl:1")


def test_graders_give_one_or_nothing() -> None:
    with Rewards("grader", 5.0) as rewards:
        earned = rewards.judge([(PROBLEM, "4"), (PROBLEM, "5"), (PROBLEM, "")])
    assert [one.reward for one in earned] == [1.0, 0.0, 0.0]
    assert [one.correct for one in earned] == [True, False, False]
    with Rewards("math", 5.0) as rewards:  # in place of the problem's own
        assert rewards.judge([(PROBLEM, "So it is \\boxed{\\frac{8}{2}}.")])[0].reward == 1.0


def test_what_could_not_be_judged_is_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout.Grader, "grade", lambda self, items: [("timeout", ""), ("error", "")])
    with Rewards("grader", 5.0) as rewards:
        earned = rewards.judge([(PROBLEM, "4"), (PROBLEM, "4")])
    assert all(math.isnan(one.reward) for one in earned)


def test_a_function_gets_what_is_documented(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "def f(prompt, text, answer, extra):\n    return len(f'{prompt}|{text}|{answer}|{extra}')\n"
    )
    with Rewards(f"{tmp_path / 'r.py'}:f", 5.0) as rewards:
        assert rewards.judge([(PROBLEM, "four")])[0] == (len("2 + 2?|four|4|{}"), None, "")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", "raised KeyError: 'no such thing' for problem '"),
        ("nan", "returned nan, not a finite number for problem '"),
        ("none", "returned None, not a finite number"),
        ("infinite", "returned inf, not a finite number"),
        ("several", "returned [1.0, 2.0], not a finite number"),
        ("words", "returned '1.0', not a finite number"),
        ("nothing_of_the_kind", "unknown function 'nothing_of_the_kind'"),
        ("not_a_function", "unknown function 'not_a_function'"),
    ],
)
def test_a_bad_function_is_one_line_and_exit_2(
    toy: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], function: str, words: str
) -> None:
    flags = {**toy, "output_dir": tmp_path / "run", "reward": toy["reward"].replace("even", function)}
    arguments = [part for name, value in flags.items() for part in (flag(name), str(value))]
    assert main(["rl", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rectune: ")
    assert words in last


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.py:f", "reward: no such file: nowhere.py"),
        ("maths", "unknown reward 'maths'; did you mean 'math'?"),
        ("rewards.py", "'rewards.py' is not of the form FILE.py:FUNCTION"),
    ],
)
def test_a_reward_that_is_not_there(run: Any, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        run(reward=name)
    assert words in str(caught.value)


def test_a_file_that_cannot_be_run(run: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_like_it\n")
    with pytest.raises(UserError, match=r"broken.py: the file cannot be run \(ModuleNotFoundError"):
        run(reward=f"{tmp_path / 'broken.py'}:f")


def test_a_failure_in_the_middle_loses_nothing(run: Any, tmp_path: Path) -> None:
    """It fails in the third step; with no checkpoint due, one is written, and the run goes on from there."""
    with pytest.raises(
        UserError, match=r"the service is gone for problem '.*fix it and continue with --resume"
    ):
        run(reward="from_third", save_steps=0)
    assert len(metrics(tmp_path / "run", "train")) == 2
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    # again at its 17th call, two steps further on
    with pytest.raises(UserError, match="the service is gone"):
        run(reward="from_third", save_steps=0, resume=True)
    assert run(reward="from_third", save_steps=0, resume=True).steps == 5
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [1, 2, 3, 4, 5]


def test_a_verifier_that_always_fails(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer times out: counted, no update, and after ten steps one line."""
    monkeypatch.setattr(rollout.Grader, "grade", lambda self, items: [("timeout", "") for _ in items])
    with pytest.raises(UserError, match=r"no answer could be graded.*in 10 consecutive steps"):
        run(reward="grader", max_steps=12)
    lines = metrics(tmp_path / "run", "train")
    assert len(lines) == loop._MAX_IDLE_STEPS == 10
    assert all(line["unjudged"] == line["answers"] == 8 and line["reward"] is None for line in lines)
    run(reward="grader", max_steps=3, num_samples=2, name="short")


def test_a_problem_that_its_grader_cannot_judge(run: Any, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b", "grader": "code"}) + "\n")
    with pytest.raises(UserError, match=r"p.jsonl:1: the code problem has no tests"):
        run(reward="grader", problems=tmp_path / "p.jsonl")
