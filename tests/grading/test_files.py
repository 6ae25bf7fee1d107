"""`grade` on files: what is written, and how a killed run resumes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rectune.errors import UserError
from rectune.grading import VERDICTS, grade
from rectune.grading.pool import Grader, Worker


def write(path: Path, rows: list[dict]) -> list[str]:
    lines = [json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return lines


ROWS = [
    {"answer": "4", "text": r"\boxed{4}", "sample_index": 0, "logprobs": [-0.1, 1e-7], "x": {"ä": [1, None]}},
    {"answer": "4", "text": "the answer is 5", "problem_id": "p/1"},
    {"answer": 4, "text": "no idea"},
    {"answer": ["Paris", "paris"], "text": "Paris", "grader": "exact", "extra": None},
    {"answer": "7", "text": "3 + 4", "grader": "expression"},
    {
        "answer": "",
        "text": "def f(): return 1",
        "grader": "code",
        "extra": {"test_list": ["assert f() == 1"]},
    },
]
VERDICTS_OF_ROWS = ["correct", "wrong", "unparsed", "correct", "correct", "correct"]


def test_lines_keep_their_bytes_and_order_and_get_a_verdict(tmp_path: Path) -> None:
    lines = write(tmp_path / "in.jsonl", ROWS)
    summary = grade(tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl", grading_workers=2)
    graded = (tmp_path / "new" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in graded] == VERDICTS_OF_ROWS
    assert [json.loads(line)["extracted"] for line in graded][:2] == ["4", "5"]
    assert [line.startswith(before[:-1]) for line, before in zip(graded, lines, strict=True)] == [True] * 6
    assert summary.counts == {"correct": 4, "wrong": 1, "unparsed": 1, "timeout": 0, "error": 0}
    assert "timeout 0 (0.0%)" in str(summary)
    assert tuple(summary.counts) == VERDICTS


def test_grading_a_graded_file_again_replaces_its_verdicts(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"verdict": "wrong", "answer": "4", "text": "4", "extracted": "?", "z": 1}])
    grade(tmp_path / "in.jsonl", tmp_path / "out.jsonl", grading_workers=1)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row == {"verdict": "correct", "answer": "4", "text": "4", "extracted": "4", "z": 1}


def test_processes_that_are_given_serve_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = [], Worker._start
    monkeypatch.setattr(Worker, "_start", lambda worker: (started.append(worker), start(worker))[1])
    write(tmp_path / "in.jsonl", ROWS[:4])
    with Grader(1) as grader:
        for name in ("one", "two"):
            summary = grade(tmp_path / "in.jsonl", tmp_path / name, grader=grader)
            assert summary.counts["correct"] == 2
    assert len(started) == 1


def test_a_run_resumes_after_a_torn_line_and_after_growth(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ROWS[:3])
    out = tmp_path / "out.jsonl"
    grade(tmp_path / "in.jsonl", out, grading_workers=1)
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])  # torn in its last line
    summary = grade(tmp_path / "in.jsonl", out, grading_workers=1)
    assert (out.read_bytes(), summary.resumed) == (whole, 2)
    write(tmp_path / "in.jsonl", ROWS)
    summary = grade(tmp_path / "in.jsonl", out, grading_workers=1)
    assert out.read_bytes().startswith(whole)
    assert [json.loads(line)["verdict"] for line in out.read_text().splitlines()] == VERDICTS_OF_ROWS
    assert (summary.resumed, sum(summary.counts.values())) == (3, 6)
    assert grade(tmp_path / "in.jsonl", out, grading_workers=1, resume=False).resumed == 0


def test_a_killed_run_is_finished_by_the_next_without_loss_or_duplicates(tmp_path: Path) -> None:
    roots = [{"answer": str(i), "text": rf"\boxed{{\sqrt{{{i * i}}}}}"} for i in range(600)]
    lines = write(tmp_path / "in.jsonl", roots)
    out = tmp_path / "out.jsonl"
    command = "import sys; from pathlib import Path; from rectune.grading import grade; "
    command += "grade(*map(Path, sys.argv[1:]))"
    run = subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "in.jsonl"), str(out)])
    while not out.exists() or out.stat().st_size < 5000:
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    summary = grade(tmp_path / "in.jsonl", out)
    graded = out.read_text().splitlines()
    assert 0 < summary.resumed < 600
    assert [line.startswith(before[:-1]) for line, before in zip(graded, lines, strict=True)] == [True] * 600
    assert summary.counts["correct"] == 600


BAD = [
    ('{"answer": "4", "text": "4"', "not JSON"),
    ("[]", "not a JSON object"),
    ('{"text": "4"}', "no field 'answer'"),
    ('{"answer": "4"}', "no field 'text'"),
    ('{"answer": null, "text": "4"}', "field 'answer': input should be"),
    ('{"answer": [1], "text": "4"}', "field 'answer': input should be"),
    ('{"answer": "4", "text": 4}', "field 'text': input should be a valid string"),
    ('{"answer": "4", "text": "4", "extra": []}', "field 'extra': input should be a valid dict"),
    ('{"answer": "4", "text": "4", "grader": "maths"}', "did you mean 'math'"),
    ('{"answer": "4", "text": "4", "extra": {"extract": ["box"]}}', "did you mean 'boxed'"),
    ('{"answer": "4", "text": "4", "extra": {"tolerance": "small"}}', "tolerance"),
    ('{"answer": "4", "text": "x", "grader": "code"}', "has no tests"),
    ('{"answer": "4", "text": "\udce9"}', "not JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named_and_lines_before_it_are_kept(tmp_path: Path, line: str, message: str) -> None:
    good = '{"answer": "4", "text": "4"}\n'
    text = good + "\n" + good + line + "\n" + good
    (tmp_path / "in.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        grade(tmp_path / "in.jsonl", tmp_path / "out.jsonl", grading_workers=1)
    assert caught.value.where == f"{tmp_path / 'in.jsonl'}:4"
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    if line is BAD[0][0]:
        (tmp_path / "in.jsonl").write_text(good + "\n" + good + good)
        assert grade(tmp_path / "in.jsonl", tmp_path / "out.jsonl", grading_workers=1).counts["correct"] == 3


def test_an_output_of_other_samples_is_refused_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(tmp_path / "a.jsonl", ROWS[:2])
    write(tmp_path / "b.jsonl", [ROWS[1]])
    grade(tmp_path / "a.jsonl", out, grading_workers=1)
    before = out.read_bytes()
    for other, message in [
        ("b.jsonl", "not the graded form"),
        ("out.jsonl", "same file"),
        ("none", "no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            grade(tmp_path / other, out, grading_workers=1)
    write(tmp_path / "b.jsonl", ROWS[:1])
    with pytest.raises(UserError, match="more lines than the samples"):
        grade(tmp_path / "b.jsonl", out, grading_workers=1)
    assert out.read_bytes() == before


@pytest.mark.parametrize(("content", "settings", "says"), [
    (ROWS[:1], {"grading_timeout": 0.0}, "--grading-timeout: must be above 0"),
    (ROWS[:1], {"grading_workers": 0}, "at least 1"),
    ([], {}, "the file has no samples"),
    ([{"prompt": "1 + 1?", "completion": "2"}], {}, "no field 'answer'"),
])  # fmt: skip
def test_what_cannot_be_graded_leaves_no_output(
    tmp_path: Path, content: list[dict], settings: dict, says: str
) -> None:
    write(tmp_path / "in.jsonl", content)
    with pytest.raises(UserError, match=says):
        grade(tmp_path / "in.jsonl", tmp_path / "out.jsonl", **settings)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_error_says_why_and_own_fields_named_reason_stay(tmp_path: Path) -> None:
    source, out, again = (tmp_path / f"{name}.jsonl" for name in ("in", "out", "again"))
    nothing = {"test": "def check(candidate):\n    pass", "entry_point": "f"}
    rows = [
        {"answer": "1", "text": "def f(): return 1", "grader": "code", "extra": nothing, "reason": "mine"},
        {"answer": "1", "text": "1", "reason": "mine"},
    ]
    write(source, rows)
    grade(source, out, grading_workers=1)
    error, right = [json.loads(line) for line in out.read_text().splitlines()]
    assert {name: error[name] for name in rows[0]} == rows[0]
    assert error["verdict"] == "error" and error["verdict_reason"] == "the tests never call the program"
    assert right == {**rows[1], "verdict": "correct", "extracted": "1"}
    error["grader"] = "math"
    write(source, [error])
    grade(source, again, grading_workers=1)
    assert "verdict_reason" not in json.loads(again.read_text())
