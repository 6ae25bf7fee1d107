"""`rectune weigh`: rows get 1 minus the share of a model's answers to their problem that is correct."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.cli.app import main
from rectune.config import DataConfig, WeighConfig
from rectune.data.loading import read_rows, weights_of
from rectune.errors import UserError
from rectune.grading.row_weights import weigh
from rectune.records import WeighCounts
from reported import read_lines, write_lines

ROWS = [
    {"question": "1 + 1 =", "answer": "2", "topic": "sums", "answered": None},
    {"question": "2 + 2  =", "answer": "4"},
    {"question": "3 + 3 =", "answer": "6", "problem_id": "third"},
    {"question": "far away", "answer": "yes"},
    {"question": "4 + 4 =", "answer": "8"},
]


def answers(problem_id: str, question: str, verdicts: str, fingerprint: str = "f") -> list[dict[str, Any]]:
    """Graded answers to a problem: c(orrect), w(rong), u(nparsed), t(imeout), e(rror)."""
    names = {name[0]: name for name in ("correct", "wrong", "unparsed", "timeout", "error")}
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    return [
        {
            "problem_id": problem_id,
            "text": "",
            "verdict": names[v],
            "turns": turns,
            "fingerprint": fingerprint,
        }
        for v in verdicts
    ]


GRADED = [
    *answers("1", "1 + 1 =", "cccw"),
    *answers("2", "2 + 2 =", "wucet"),  # one of three that were judged
    *answers("third", "What is three and three?", "wwww"),
    *answers("4", "4 + 4 =", "te"),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "graded.jsonl", GRADED)
    return tmp_path


def weighed(folder: Path, **settings: Any) -> tuple[WeighCounts, list[Any]]:
    given = {
        "data": str(folder / "rows.jsonl"),
        "graded": folder / "graded.jsonl",
        "output": folder / "out.jsonl",
    }
    config = WeighConfig(**{**given, **settings})
    return weigh(config), read_lines(config.output)


def test_one_minus_the_share_of_correct_answers(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts, rows = weighed(files)
    assert [row.get("weight") for row in rows] == [0.25, 1 - 1 / 3, 1, None, None]
    assert [{k: v for k, v in row.items() if k != "weight"} for row in rows] == ROWS
    found = (counts.rows, counts.weighted, counts.by_question, counts.by_problem_id)
    assert found == (5, 3, 2, 1)
    assert (counts.unmatched, counts.unjudged) == (1, 1)
    assert (counts.problems, counts.samples, counts.correct) == (4, 15, 4)
    assert json.loads((files / "out.jsonl.counts.json").read_text())["weighted"] == 3
    assert "1 rows match no graded problem: they get no weight, which training reads as 1" in caplog.text
    weights = weights_of(read_rows(str(files / "out.jsonl"), options=DataConfig()))
    assert weights is not None
    assert weights.min == 0.25


def test_a_folder_of_an_evaluation_and_what_stands_around_questions(files: Path) -> None:
    """The rows ask with one prompt, the evaluation with another."""
    rows = [{"prompt": f"Question: {n} + 1?\nAnswer:", "completion": f"{n + 1}"} for n in range(25)]
    asked = (f"Solve:\n{n} + 1? Think." for n in range(25))
    write_lines(files / "rows.jsonl", rows)
    lines = [answers(f"t/{n}", question, "cw" if n % 2 else "cc") for n, question in enumerate(asked)]
    write_lines(files / "graded.jsonl", [line for of_one in lines for line in of_one])
    counts, found = weighed(files, graded=files)
    assert [row["weight"] for row in found] == [0.5 * (n % 2) for n in range(25)]
    assert counts.by_question == 25


def test_the_same_question_twice_is_one_problem(files: Path) -> None:
    write_lines(files / "graded.jsonl", [*answers("1", "1 + 1 =", "c"), *answers("9", "1 + 1 =", "www")])
    assert weighed(files)[1][0]["weight"] == 0.75


def test_shuffled_weights_are_the_same_ones(files: Path) -> None:
    write_lines(files / "rows.jsonl", [{"question": f"{n} + {n} =", "answer": "a"} for n in range(40)])
    lines = [answers(str(n), f"{n} + {n} =", "c" * (n % 5) + "w") for n in range(30)]
    write_lines(files / "graded.jsonl", [line for of_one in lines for line in of_one])
    _, rows = weighed(files)
    counts, control = weighed(files, output=files / "control.jsonl", shuffle_weights=0)
    again = weighed(
        files, output=files / "again.jsonl", data=str(files / "out.jsonl"), graded=None, shuffle_weights=0
    )
    ours, shuffled = ([row.get("weight") for row in found] for found in (rows, control))
    assert shuffled != ours
    assert sorted(shuffled[:30]) == sorted(ours[:30])
    assert shuffled[30:] == ours[30:] == [None] * 10
    assert again[1] == control
    assert weighed(files, output=files / "more.jsonl", shuffle_weights=1)[1] != control
    assert counts.shuffle_weights == 0
    spelled = [{"prompt": "a", "completion": "b", "loss_weight": w} for w in (True, "0.5", "false", 2)]
    write_lines(files / "rows.jsonl", spelled)
    counts, found = weighed(files, graded=None, shuffle_weights=3, output=files / "last.jsonl")
    assert counts.weights.mean == 0.875
    assert sorted(str(row["loss_weight"]) for row in found) == ["0.5", "2", "True", "false"]


@pytest.mark.parametrize(
    ("rows", "graded", "settings", "line"),
    [
        (
            [{**ROWS[0], "loss_weight": 2}],
            GRADED,
            {},
            "rows.jsonl:1: the row has a weight already .'loss_weight'",
        ),
        ([ROWS[3]], GRADED, {}, "no row is of a problem with judged answers in "),
        (ROWS[:1], answers("1", "1 + 1 =", "cc"), {}, "the weight of every row is 0"),
        (
            ROWS,
            [*GRADED, *answers("5", "x", "c", "g")],
            {},
            "graded.jsonl:16: the file has samples of two models",
        ),
        (ROWS, [{"text": "t"}], {}, "graded.jsonl:1: .* run rectune grade first"),
        (ROWS, [], {}, "graded.jsonl: the file has no samples"),
        ([{"question": "x"}], GRADED, {}, "rows.jsonl:1: no known row format"),
        (ROWS, GRADED, {"graded": None}, "--graded: missing"),
        (ROWS, GRADED, {"graded": None, "shuffle_weights": 0}, "rows.jsonl: no row has a weight"),
        (ROWS, GRADED, {"output": "rows.jsonl"}, "the input would be overwritten"),
    ],
)
def test_what_stops_it(
    files: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], graded: list[Any], settings: Any, line: str
) -> None:
    monkeypatch.chdir(files)
    write_lines(files / "rows.jsonl", rows)
    write_lines(files / "graded.jsonl", graded)
    settings = {name: Path(value) if name == "output" else value for name, value in settings.items()}
    with pytest.raises(UserError, match=line):
        weighed(files, **settings)
    assert not (files / "out.jsonl").exists()


def test_on_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, graded, out = (str(files / name) for name in ("rows.jsonl", "graded.jsonl", "out.jsonl"))
    assert main(["weigh", rows, "--graded", graded, "--output", out]) == 0
    printed = capsys.readouterr()
    assert "mean 0.6389, from 0.25 to 1, 0.0% are 0" in printed.out
    assert "weights of 3 of 5 rows: mean 0.6389, from 0.25 to 1, 0.0% are 0" in printed.err
