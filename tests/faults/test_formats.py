"""Every file says its format: one of a later version is refused by name, one from before formats is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluations import run_eval
from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.evaluation.accuracy import read_evaluation
from rectune.experiments.runner import read_comparison
from rectune.sampling.sample import sample
from rectune.sampling.types import EngineSpec, SamplingParams


def with_format(path: Path, version: int | None) -> None:
    content = {**json.loads(path.read_text()), "format": version}
    if version is None:
        del content["format"]
    path.write_text(json.dumps(content) + "\n")


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_run(run: Any, tmp_path: Path, name: str) -> None:
    result = run(max_steps=1)
    with_format(tmp_path / "run" / name, None)
    assert run(max_steps=1, resume=True) == result
    with_format(tmp_path / "run" / name, 2)
    words = (
        rf"{name}: the file has format 2, this version reads 1; use the later rectune version that wrote it,"
    )
    with pytest.raises(UserError, match=words):
        run(max_steps=1, resume=True)
    for file in ("environment.json", "config.json", "summary.json"):
        assert "format" in json.loads((tmp_path / "run" / file).read_text())


def test_samples_and_evaluation(toy: dict[str, Any], tmp_path: Path) -> None:
    problems = [Problem("0", (Turn("user", "0?"),), "1", "exact")]
    params, engine = SamplingParams(max_new_tokens=2), EngineSpec(dtype="float32")
    how: dict[str, Any] = {"num_samples": 1, "params": params, "engine": engine}
    path = sample(toy["model"], problems, out=tmp_path / "samples.jsonl", **how)
    with_format(path, None)
    sample(toy["model"], problems, out=path, **how)
    with_format(path, 2)
    with pytest.raises(UserError, match=r"samples.jsonl:1: the file has format 2, this version reads 1"):
        sample(toy["model"], problems, out=path, **how)

    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"prompt": "0?", "answer": "1", "grader": "exact"}) + "\n")
    out = tmp_path / "evaluation"
    result = run_eval(toy["model"], out, file, num_samples=1, max_new_tokens=2, dtype="float32")
    assert result.format == 1
    with_format(out / "evaluation.json", None)
    assert read_evaluation(out).benchmarks == result.benchmarks
    with_format(out / "evaluation.json", 2)
    with pytest.raises(UserError, match=r"evaluation.json: the file has format 2, this version reads 1"):
        read_evaluation(out)


def test_a_comparison(tmp_path: Path) -> None:
    record: dict[str, Any] = {"format": 7, "settings": {}, "arms": [], "seeds": []}
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"comparison.json: the file has format 7, this version reads 1"):
        read_comparison(tmp_path)


def test_a_setting_that_an_earlier_version_did_not_have(run: Any, tmp_path: Path) -> None:
    """It is at its default then; any other value is another run."""
    run(until=2)
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    del content["logits_memory_mb"], content["old_policy_interval"]
    path.write_text(json.dumps(content))
    run(until=3, resume=True)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="logits_memory_mb was 256, is 64"):
        run(resume=True, logits_memory_mb=64)
