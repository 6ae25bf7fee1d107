"""What fuzzing and reading with a hostile eye has found, one case each, so that it stays corrected."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fuzz.targets import SAMPLE
from hostile import comparison, write
from rectune.config import DataConfig, load_config
from rectune.data import readers as jsonl
from rectune.data.loading import read_problems, read_rows
from rectune.data.readers import read_jsonl
from rectune.errors import UserError
from rectune.evaluation.accuracy import read_graded
from rectune.grading import grade
from rectune.grading.code_extraction import extract_code
from rectune.grading.files import select
from rectune.grading.pool import check_item
from rectune.records import Sample
from rectune.reporting import load_runs as read
from rectune.reporting.report import markdown, report
from rectune.sampling.sample import SamplesFile


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c", "source": "\ud800"},
        {"prompt": "\ud800", "completion": "c"},
        {"prompt": "p", "completion": "c", "\ud800": 1},
    ],
)
@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_halves_of_surrogate_pairs_in_rows(row: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps([row]) if name == "r.json" else json.dumps(row) + "\n")
    with pytest.raises(UserError, match="half of a surrogate pair"):
        read_rows(str(tmp_path / name), options=DataConfig(), cache_dir=tmp_path)


def test_halves_of_surrogate_pairs_in_problems(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", {"prompt": "\ud800", "answer": "1"})
    with pytest.raises(UserError, match="half of a surrogate pair"):
        read_problems(tmp_path / "p.jsonl")


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv"])
def test_a_record_without_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 1 << 12)
    monkeypatch.setattr("rectune.data.readers.LONGEST", 1 << 12)
    start = {"r.jsonl": '{"prompt": "', "r.json": '[{"prompt": "', "r.csv": 'prompt,completion\n"'}[name]
    (tmp_path / name).write_text(start + "x" * (3 << 20))
    with pytest.raises(UserError):
        read_rows(str(tmp_path / name), options=DataConfig(), cache_dir=tmp_path)


def test_a_line_of_the_longest_kind_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 17)
    (tmp_path / "x.jsonl").write_text('{"a": "012345"}\n{"a": "01234567"}\n')
    lines = read_jsonl(tmp_path / "x.jsonl")
    assert next(lines) == (1, {"a": "012345"})
    with pytest.raises(UserError, match=r"x.jsonl:2: the line is longer than"):
        next(lines)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "1" * 5000, "a = {b = " * 50_000])
def test_recipes_beyond_reason(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UserError, match="not TOML"):
        load_config(tmp_path / "r.toml")


@pytest.mark.parametrize(
    "change", [{"problem_id": []}, {"problem_id": {}}, {"sample_index": None}, {"sample_index": [0]}]
)
def test_samples_with_keys_of_another_kind(change: Any, tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", {**SAMPLE, **change})
    expected = Sample(**{**SAMPLE, "turns": []})
    file = SamplesFile(tmp_path / "s.jsonl", {"p": expected})
    with pytest.raises(UserError, match="not a line of samples"), file:
        pass
    write(tmp_path / "g.jsonl", {**SAMPLE, "verdict": "wrong", **change})
    with pytest.raises(UserError, match="not a graded sample"):
        read_graded(tmp_path / "g.jsonl", ["p"], 1)


@pytest.mark.parametrize("turns", [5, ["x"], [{"role": "user"}], {"a": 1}])
def test_graded_samples_with_turns_of_another_kind(turns: Any, tmp_path: Path) -> None:
    write(tmp_path / "g.jsonl", {**SAMPLE, "verdict": "correct", "turns": turns})
    with pytest.raises(UserError, match="field 'turns"):
        select(tmp_path / "g.jsonl", tmp_path / "o.jsonl", purpose="sft")


@pytest.mark.parametrize("extra", [
    {"extract": 5}, {"extract": [[]]}, {"extract": "boxed"}, {"test_list": [1]}, {"tolerance": 10**400},
    {"tolerance": ["x"]},
])  # fmt: skip
def test_what_a_grader_needs_of_another_kind(extra: Any) -> None:
    with pytest.raises(UserError):
        check_item("code" if "test_list" in extra else "math", extra, where="here")


def test_lines_to_grade_that_are_too_deep(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match="not JSON"):
        grade(tmp_path / "s.jsonl", tmp_path / "g.jsonl", grading_workers=1)


def test_code_is_found_at_once_among_empty_lines() -> None:
    """It took time quadratic in their number: minutes here."""
    text = "\n" * 1_000_000 + "x = 1"
    assert extract_code(text, entry_point="f") == text


def test_a_report_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", "x")
    secret = tmp_path / "secret.json"
    line = {"format": 1, "python": "SECRET", "kind": "train", "step": 1, "text": "SECRET", "rows": ["SECRET"]}
    write(secret, line)
    run = folder / "runs/dft/seed-0"
    for name in ("environment.json", "config.json", "metrics.jsonl"):
        (run / name).unlink()
        (run / name).symlink_to(secret)
    for path in (run / "token_logprobs.json", run / "summary.json", run / "evaluation/graded.jsonl"):
        path.unlink()
        os.mkfifo(path)
    found = report([folder])
    assert "SECRET" not in json.dumps(found.to_dict()) + markdown(found)
    assert sum("not a regular file" in note.what for note in found.notes) >= 6


def test_a_report_reads_no_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = comparison(tmp_path / "c", "x")
    monkeypatch.setattr(read, "_LARGEST", 1 << 12)
    with (folder / "runs/dft/seed-0/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "kind": "train", "x": "x" * 100_000}) + "\n")
        file.write('{"step": 10, "kind": "train", "nll": 7.0}\n')
    found = report([folder])
    assert any("1 of 18 lines cannot be read" in note.what for note in found.notes)
    assert any(line.get("nll") == 7.0 for curve in found.curves for line in curve.train)
