"""What is read of an evaluation's folder, when something else has changed its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.errors import UserError
from rectune.evaluation.results import read_evaluation

WHOLE: dict[str, Any] = {
    "protocol": {"n": 2, "temperature": 1.0, "stop": []},
    "benchmarks": {"b": {"problem_ids": ["p"]}},
}


@pytest.mark.parametrize(
    "changed",
    [
        {"protocol": {"temperature": 1.0}},
        {"protocol": {"n": 0, "temperature": 1.0}},
        {"protocol": {"n": 2}},
        {"protocol": None},
        {"benchmarks": []},
        {"benchmarks": {"b": None}},
        {"benchmarks": {"b": {}}},
        {"benchmarks": {"b": {"problem_ids": [["p"]]}}},
        {"benchmarks": {"b": {"problem_ids": ["p", "p"]}}},
    ],
)
def test_a_damaged_evaluation_is_one_line(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(WHOLE))
    assert read_evaluation(tmp_path) == WHOLE
    path.write_text(json.dumps({**WHOLE, **changed}))
    with pytest.raises(UserError) as error:
        read_evaluation(tmp_path)
    assert str(error.value) == f"{path}: is damaged; remove it and run the evaluation again, it goes on"


def test_an_evaluation_nested_beyond_reason_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON"):
        read_evaluation(tmp_path)
