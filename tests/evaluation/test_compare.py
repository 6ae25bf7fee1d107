"""Reading an evaluation's folder when something else has changed its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluations import ONE, write_evaluation
from rectune.errors import UserError
from rectune.evaluation.metrics import read_evaluation


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"protocol": {"temperature": 1.0}}, "no field 'protocol.n'"),
        ({"protocol": {"n": 0, "temperature": 1.0}}, "field 'protocol.n': input should be greater than 0"),
        ({"protocol": {"n": 2}}, "no field 'protocol.temperature'"),
        ({"protocol": None}, "field 'protocol': input should be"),
        ({"benchmarks": []}, "field 'benchmarks': input should be"),
        ({"benchmarks": {"b": None}}, "field 'benchmarks.b': input should be"),
        ({"benchmarks": {"b": {}}}, "no field 'benchmarks.b.problems'"),
    ],
)
def test_a_damaged_evaluation_is_one_line(changed: dict[str, Any], field: str, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", {"b": [[(ONE, True)]]})
    path = folder / "evaluation.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, **changed}))
    with pytest.raises(UserError) as error:
        read_evaluation(folder)
    assert str(error.value).startswith(f"{path}: is not an evaluation ({field}")
    assert str(error.value).endswith("; remove it and run the evaluation again: it resumes")


@pytest.mark.parametrize("ids", [[["b/0"]], ["b/0", "b/0"]])
def test_each_problem_is_listed_once(ids: list[Any], tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", {"b": [[(ONE, True)]]})
    path = folder / "evaluation.json"
    whole = json.loads(path.read_text())
    whole["benchmarks"]["b"]["problem_ids"] = ids
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"field 'benchmarks\.b\.problem_ids"):
        read_evaluation(folder)


def test_an_evaluation_nested_beyond_reason_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON"):
        read_evaluation(tmp_path)
