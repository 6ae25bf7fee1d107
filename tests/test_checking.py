"""`rectune check` says of rows, pairs and problems what would be made of them, and stops where training would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.config import DataConfig
from rectune.diagnosis.check import check, summary
from rectune.errors import UserError
from toys import save_toy

CASES = Path(__file__).parent / "cases"
ROW = {"prompt": "hi", "completion": "yo", "topic": "x"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("model"))


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_rows(tmp_path: Path, model: str) -> None:
    source = lines(tmp_path / "a.jsonl", ROW, ROW, {**ROW, "images": ["a"]}, {"prompt": "hi"})
    result = check(source, model=model)
    assert result.kind == "rows"
    assert result.format == "prompt_completion"
    assert (result.rows, result.duplicates) == (2, 1)
    assert result.read == {"prompt": 2, "completion": 2}
    assert result.ignored == {"topic": 2}
    assert result.refused == {"images": 1}
    assert result.faults.count == 2
    assert [fault.split(": ")[0] for fault in result.faults.first] == [f"{source}:3", f"{source}:4"]
    assert result.errors == [f"2 of 4 rows cannot be used, the first: {result.faults.first[0]}"]
    assert [piece.text for piece in result.rendered if piece.target] == ["yo<|im_end|>"]
    assert check(source, options=DataConfig(skip_bad_rows=True)).errors == []


def test_rows_that_are_cut(tmp_path: Path, model: str) -> None:
    source = lines(tmp_path / "a.jsonl", ROW, {**ROW, "completion": "y" * 50}, {**ROW, "prompt": "h" * 90})
    tokens = check(source, model=model, max_length=64).tokens
    assert tokens is not None
    assert (tokens.rows, tokens.truncated, tokens.dropped, tokens.of_rows) == (2, 1, 1, 3)
    result = check(source, model=model, max_length=2)
    assert result.errors == ["max_length: no row has a target within its first 2 tokens; make it larger"]
    result = check(str(CASES / "02-tools-column" / "rows.jsonl"), model=model)
    assert "tools" in result.errors[0]


def test_pairs(tmp_path: Path) -> None:
    result = check(str(CASES / "01-pair-question-inside" / "pairs.jsonl"))
    assert (result.kind, result.rows, result.also) == ("pairs", 6, [])
    assert result.example is not None
    assert result.example.turns[-1].content == "River 0."
    assert result.example.rejected[-1].content == "Bread."
    assert "  assistant (target): Bread." in summary(result)
    whole = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    both = {"messages": whole, "prompt": "q", "chosen": "a", "rejected": "b"}
    source = lines(tmp_path / "a.jsonl", both)
    assert (check(source).kind, check(source).also) == ("rows", ["pairs"])
    assert check(source, kind="pairs").ignored == {"messages": 1}


def test_problems(tmp_path: Path, model: str) -> None:
    problem = {"problem_id": "a", "question": "1+1?", "answer": 2, "tolerance": 0.1, "level": 3}
    source = lines(
        tmp_path / "p.jsonl",
        problem,
        {**problem, "problem_id": "b", "grader": "maths"},
        problem,
        {**problem, "problem_id": "c", "tools": [{"name": "f"}]},
    )
    result = check(source, model=model)
    assert (result.kind, result.also, result.rows) == ("problems", ["rows"], 1)
    assert result.ignored == {"level": 2}
    assert result.refused == {"tools": 1}
    assert [fault.split(": ")[0] for fault in result.faults.first] == [f"{source}:{i}" for i in (2, 3, 4)]
    assert result.example is not None
    assert result.example.extra == {"tolerance": 0.1}
    assert "1+1?" in result.rendered[0].text
    plain = lines(tmp_path / "q.jsonl", {"question": "1+1?", "answer": "2"})
    assert (check(plain).kind, check(plain).also) == ("rows", ["problems"])
    assert check(plain, kind="problems").rows == 1


def test_the_verb(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = lines(tmp_path / "a.jsonl", ROW, {**ROW, "score": 0.5})
    assert main(["check", source]) == 2
    told = capsys.readouterr()
    assert "fields refused: score (1)" in told.out
    assert "a.jsonl:2: field 'score' is not supported" in told.out
    assert told.err.splitlines()[-1].startswith(f"rectune: {source}: 1 of 2 rows cannot be used, the first: ")
    assert main(["check", source, "--ignore-fields", "score", "--model", model]) == 0
    assert "«yo<|im_end|>»" in capsys.readouterr().out
    assert main(["check", source, "--json", "--skip-bad-rows"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"]["count"] == 1
    assert main(["check", str(tmp_path / "nosuch.jsonl")]) == 2


def test_what_no_format_fits(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(UserError, match="no known row format has the fields text"):
        check(source)


def test_the_summary_names_all() -> None:
    tools = check(str(CASES / "10-tool-call-turns" / "null.jsonl"))
    assert any(line.startswith('  assistant (target):  {"tool_calls": [') for line in summary(tools))
    result = check(str(CASES / "06-kto-label" / "rows.jsonl"))
    assert "3 rows are marked as bad answers; left out" in summary(result)
    assert "fields read: completion (6), label (6), prompt (6)" in summary(result)


def test_a_run_is_asked_as_it_was_trained(tmp_path: Path, model: str) -> None:
    rows = lines(tmp_path / "rows.jsonl", *({"prompt": f"{n}?", "completion": "yes"} for n in range(4)))
    flags = ["--data", rows, "--system-prompt", "Be brief.", "--eval-split-size", "0", "--max-steps", "1"]
    run = tmp_path / "run"
    assert main(["train", "--model", model, *flags, "--max-length", "64", "--output-dir", str(run)]) == 0
    written = check(rows, model=str(run)).rendered
    assert "Be brief." in "".join(piece.text for piece in written)


def test_weights(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", {**ROW, "weight": 0.5}, {**ROW, "weight": 0}, {**ROW, "weight": 4})
    result = check(source)
    assert result.weights is not None
    assert "weights of the answers: mean 1.5, from 0 to 4, 33.3% are 0" in summary(result)
    assert "  assistant (target, weight 0.5): yo" in summary(result)
    assert result.duplicates == 2  # in what they say
    assert check(lines(tmp_path / "b.jsonl", {**ROW, "weight": 1})).weights is None
