"""What is asked, and that choices are judged by other problems than the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from comparisons import Task, compare_task, config_of, problem, write
from rectune.errors import UserError
from rectune.evaluation.tasks import load_task
from rectune.experiments.problem_sets import (
    check_apart,
    load_problems,
    name_domains,
    set_aside,
    write_problems,
)


def test_problems_are_asked_as_the_rows_ask(task: Task, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question: {i} more?\nCalculation:", "completion": "yes"} for i in range(30)]
    config = config_of(
        {**task, "data": str(write(tmp_path / "rows.jsonl", rows))},
        tmp_path / "out",
        system_prompt="Be brief.",
    )
    svamp = [
        {"ID": f"chal-{i}", "Body": f"There are {i} cups.", "Question": "How many?", "Answer": float(i)}
        for i in range(5)
    ]
    write(tmp_path / "svamp.jsonl", svamp)
    (asked,) = load_problems(["svamp"], config, benchmark_dir=tmp_path, limit=3).values()
    assert len(asked) == 3
    assert [(turn.role, turn.content) for turn in asked[0].prompt] == [
        ("system", "Be brief."),
        ("user", f"Question: There are {asked[0].answer} cups. How many?\nCalculation:"),
    ]


def test_what_is_written_reads_back_and_stays(task: Task, tmp_path: Path) -> None:
    extra = {
        "prompt": "é?",
        "answer": ["1", "2"],
        "grader": "math",
        "extra": {"tolerance": "0.1"},
        "problem_id": "x/y",
    }
    path = write(
        tmp_path / "own.jsonl",
        [extra, problem("1?"), {"prompt": [{"role": "user", "content": " a\n"}], "answer": "3"}],
    )
    problems = load_problems([str(path)], config_of(task, tmp_path / "out"))
    (written,) = write_problems(tmp_path / "problems", problems)
    again = load_task(written)
    for one, other in zip(problems["own"], again, strict=True):
        assert (one.problem_id, one.prompt, one.answer, one.grader, one.extra) == (
            other.problem_id, other.prompt, other.answer, other.grader, other.extra,
        )  # fmt: skip
    assert write_problems(tmp_path / "problems", problems) == [written]
    with pytest.raises(UserError, match="the problems of own have changed since this folder was created"):
        write_problems(tmp_path / "problems", {"own": problems["own"][:2]})


def test_a_quarter_in_domain_is_set_aside_and_nothing_else(task: Task, tmp_path: Path) -> None:
    problems = load_problems([task["inside"], task["outside"]], config_of(task, tmp_path / "out"))
    domains = {"inside": "in", "outside": "out"}
    chosen, rest = set_aside(problems, domains, 0)
    assert {name: len(some) for name, some in chosen.items()} == {"inside": 8}
    assert {name: len(some) for name, some in rest.items()} == {"inside": 24, "outside": 6}
    assert not {p.problem_id for p in chosen["inside"]} & {p.problem_id for p in rest["inside"]}
    assert set_aside(problems, domains, 0)[0] == chosen
    assert set_aside(problems, domains, 1)[0] != chosen
    check_apart(chosen, rest)
    with pytest.raises(
        UserError, match="--validation: 8 of the 8 problems of inside are also used for the verdict"
    ):
        check_apart(chosen, problems)
    with pytest.raises(
        UserError, match=r"sweep and race need other problems.*give --validation, or --tasks-in"
    ):
        set_aside({"outside": problems["outside"]}, domains, 0)


def test_domains() -> None:
    groups = {"in": ["a", "dir/b.jsonl"], "out": ["c"], "": []}
    assert name_domains(groups) == {"a": "in", "b": "in", "c": "out"}
    with pytest.raises(UserError, match="'b' is given twice"):
        name_domains({**groups, "": ["b"]})
    with pytest.raises(UserError, match="nothing to compare on; give --tasks-in"):
        name_domains({"in": [], "out": [], "": []})


def test_problems_in_the_rows(task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are said before training and in the verdict, which is given without them as well; or they are left out."""
    rows = [{"prompt": f"{i}?", "completion": "yes"} for i in [*range(30), 101, 131]]
    seen = [{"prompt": f"and {i}?", "completion": "yes"} for i in range(6)]
    names = ["inside/2", "inside/32"]
    leaky = {**task, "data": str(write(tmp_path / "rows.jsonl", rows))}
    planned = compare_task(leaky, tmp_path / "out", "sft", dry_run=True)
    assert planned["overlap"] == names
    assert f"2 of 38 problems occur in {leaky['data']}" in caplog.text
    assert not (tmp_path / "out").exists()

    record = compare_task(leaky, tmp_path / "out", "sft", max_steps=2, match_entropy=False)
    assert [one["problem_id"] for one in record["overlap"]["found"]] == names
    assert record["overlap"]["found"][0]["where"] == f"{leaky['data']}:31"
    verdict = record["verdict"]
    assert list(verdict["without_overlap"]) == ["inside"]
    assert verdict["without_overlap"]["inside"]["problems"] == 30
    (warning,) = verdict["warnings"]
    assert warning.startswith("2 of 32 problems of inside occur in the training rows; without them base has ")
    assert warning in caplog.text
    with pytest.raises(UserError, match="exclude_overlap was False, is True"):
        compare_task(leaky, tmp_path / "out", "sft", max_steps=2, match_entropy=False, exclude_overlap=True)

    apart = {"exclude_overlap": True, "max_steps": 2, "match_entropy": False}
    record = compare_task(leaky, tmp_path / "apart", "sft", **apart)
    assert record["problems"] == {"inside": 30, "outside": 6}
    assert record["verdict"]["warnings"] == []
    assert record["overlap"]["problems"] == 38
    assert compare_task(leaky, tmp_path / "apart", "sft", **apart)["verdict"] == record["verdict"]

    all_of_them = {**task, "data": str(write(tmp_path / "all.jsonl", [*rows, *seen]))}
    with pytest.raises(UserError, match=r"all problems of outside occur in .*all.jsonl"):
        compare_task(all_of_them, tmp_path / "none", "sft", **apart)
