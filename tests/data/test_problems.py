"""Problems with gold answers, and the packaged data, which has to be what its makers' files give."""

from __future__ import annotations

import importlib.util
import json
import logging
from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import pytest

from rectune.config import DataConfig
from rectune.data.loading import read_problems, read_rows, row_at
from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.grading.exact import evaluate_expression

ASSETS = Path(str(files("rectune"))) / "assets"
ROOT = Path(__file__).parents[2]


def test_fields(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "answer": 5}\n'
        '{"question": "b", "answer": "2 = 2\\n#### 2", "grader": "exact", "problem_id": "x", "extra": {"t": 1}}\n'
        '{"problem": "c", "answer": ["1", 2.5]}\n'
        '{"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "no"}], "answer": "e"}\n'
    )
    asked = [(Turn("user", text),) for text in "abcd"]
    assert read_problems(path) == [
        Problem("1", asked[0], "5", "math", f"{path}:1"),
        Problem("x", asked[1], "2", "exact", f"{path}:2", {"t": 1}),
        Problem("3", asked[2], ["1", "2.5"], "math", f"{path}:3"),
        Problem("4", asked[3], "e", "math", f"{path}:4"),
    ]


def one(tmp_path: Path, **record: object) -> Problem:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a", **record}))
    return read_problems(path)[0]


def test_what_the_grader_is_given(tmp_path: Path) -> None:
    assert one(tmp_path, tolerance=0.01, unit="m").extra == {"tolerance": 0.01, "unit": "m"}
    tests = {"test_list": ["assert f(1) == 2"], "entry_point": "f"}
    assert one(tmp_path, grader="code", extra={"prompt": "p"}, **tests).extra == {"prompt": "p", **tests}
    stdin = {"inputs": ["3\n"], "outputs": ["6\n"]}
    assert one(tmp_path, grader="code", input_output=stdin).extra == {"input_output": stdin}
    assert one(tmp_path, tolerance=None, extra=None).extra is None
    with pytest.raises(UserError, match=r"fields 'tolerance' and 'extra.tolerance' differ"):
        one(tmp_path, tolerance=0.1, extra={"tolerance": 0.2})


def test_what_the_question_is_about(tmp_path: Path) -> None:
    asked = one(tmp_path, system="s", history=[["u", "v"]], passage="p")
    assert asked.prompt == (
        Turn("system", "s"), Turn("user", "u"), Turn("assistant", "v"), Turn("user", "p\n\nq"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "record", [{"answer": 1}, {"answer": "y"}, {"answer": "B"}, {"answer": None, "answerKey": "B"}]
)
def test_choices(record: dict[str, object], tmp_path: Path) -> None:
    problem = one(tmp_path, choices=["x", "y"], **record)
    assert problem.prompt == (Turn("user", "q\n\nA. x\nB. y"),)
    assert problem.answer == ["B", "y"]


def test_only_the_last_line_is_gsm8k(tmp_path: Path) -> None:
    assert one(tmp_path, answer="1+1 = 2\n#### 2").answer == "2"
    assert one(tmp_path, answer="use #### for\nheadings", grader="exact").answer == "use #### for\nheadings"


def test_all_faulty_lines_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "a"}\n{"prompt": \n{"answer": "b"}\n')
    with pytest.raises(
        UserError, match=r"p.jsonl: 3 of 4 rows cannot be used, the first: .*p.jsonl:2: field 'answer'"
    ):
        read_problems(path)
    assert [message.split(": ")[0] for message in caplog.messages] == [f"{path}:{i}" for i in (2, 3, 4)]


def test_unread_fields_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rectune")
    one(tmp_path, level=3, reasoning="r")
    assert caplog.messages == [
        f"{tmp_path / 'p.jsonl'}: fields left unread: level (1 rows), reasoning (1 rows)"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "answer": "1", "tools": [{"name": "f"}]}', "field 'tools' is not supported"),
        ('{"prompt": "a", "answer": "1", "images": ["a.png"]}', "field 'images' is not supported"),
        ('{"question": "a", "answer": "C", "choices": ["x", "y"]}', "none of the choices"),
        ('{"messages": [{"role": "user", "content": "a"}], "answer": 0, "choices": ["x", "y"]}', "'choices' cannot"),
        ("", "has no problems"),
        ('{"prompt": "a"}', "p.jsonl:1: field 'answer' is missing; has: prompt"),
        ('{"answer": "a"}', "p.jsonl:1: the problem has no question"),
        ('{"prompt": 1, "answer": "a"}', "p.jsonl:1: field 'prompt' is number"),
        ('{"prompt": "a", "answer": true}', "field 'answer' is true/false"),
        ('{"prompt": "a", "answer": "####"}', "field 'answer' is empty"),
        ('{"prompt": "a", "answer": "1", "extra": 1}', "field 'extra' is number"),
        ('{"prompt": "a", "answer": "1", "problem_id": "2"}\n{"prompt": "b", "answer": "1"}', "problem_id '2' of"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_problems(path)


@pytest.mark.parametrize(("split", "count"), [("train", 2101), ("test", 305)])
def test_packaged_calculations(split: str, count: int, tmp_path: Path) -> None:
    path = ASSETS / f"gsm8k_calculations_{split}.jsonl"
    dataset = read_rows(str(path), options=DataConfig(), cache_dir=tmp_path)
    problems = read_problems(path)
    assert len(dataset) == len(problems) == count
    for i, problem in enumerate(problems):
        row = row_at(dataset, i)
        assert row.turns[0] == problem.prompt[0]
        assert row.turns[0].content.endswith("\nCalculation: ")
        assert evaluate_expression(row.turns[1].content) == Fraction(str(problem.answer))
        assert problem.grader == "expression"


def test_packaged_svamp() -> None:
    problems = read_problems(ASSETS / "svamp_excerpt.jsonl")
    assert len(problems) == 400
    assert all(isinstance(p.answer, str) and Fraction(p.answer) is not None for p in problems)


def test_packaged_data_is_what_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the published files are not beside the repository")
    spec = importlib.util.spec_from_file_location("make_assets", ROOT / "scripts" / "make_assets.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "ASSETS", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_assets.py", "--data", str(data)])
    script.main()
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (ASSETS / made.name).read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_the_gold_answer_is_the_last_box_of_a_solution(tmp_path: Path) -> None:
    """The layout of MATH and Minerva, with braces in the box."""
    path = tmp_path / "math.jsonl"
    solution = r"First \boxed{1}. No: $\boxed{\frac{a_{1}}{\sqrt{b^{2}}}}$, as {said}."
    path.write_text(json.dumps({"problem": "What?", "solution": solution, "level": "Level 5"}) + "\n")
    assert [problem.answer for problem in read_problems(path)] == [r"\frac{a_{1}}{\sqrt{b^{2}}}"]
    path.write_text(json.dumps({"problem": "What?", "solution": r"It is \boxed{open"}) + "\n")
    with pytest.raises(UserError, match="field 'answer' is missing, and 'solution' has no box"):
        read_problems(path)
