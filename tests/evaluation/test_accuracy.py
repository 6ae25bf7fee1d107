"""Reading an evaluation's files, and the scores of one task, checked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluations import ONE, write_evaluation
from rectune.errors import UserError
from rectune.evaluation import accuracy
from rectune.evaluation.accuracy import (
    correct_matrix,
    count_operations,
    group_votes,
    read_evaluation,
    read_graded,
    score,
)
from rectune.grading import grade
from rectune.records import Graded


def line(problem, index, verdict, extracted="", **more):
    base = {"problem_id": problem, "sample_index": index, "verdict": verdict, "extracted": extracted,
            "text": extracted, "grader": "expression", "token_ids": [1] * (index + 1), "fingerprint": "f",
            "finish_reason": "stop"}  # fmt: skip
    return Graded(**base | more)


SAMPLES = {
    "a": [line("a", 0, "correct", "2 + 2"), line("a", 1, "correct", "4"), line("a", 2, "wrong", "3"),
          line("a", 3, "wrong", "1 + 2", finish_reason="length")],
    "b": [line("b", 0, "timeout", "9"), line("b", 1, "wrong", "6 - -1"), line("b", 2, "wrong", "14 / 2"),
          line("b", 3, "unparsed")],
}  # fmt: skip


def test_numbers_by_hand():
    numbers = score(SAMPLES)
    assert numbers.avg.mean == 0.25
    assert {k: v.mean for k, v in numbers.pass_at.items()} == pytest.approx(
        {"1": 0.25, "2": (1 - 1 / 6) / 2, "4": 0.5}
    )
    # a: correct 2, "3" = "1 + 2" 2: a tie; b: 7 twice, wrong
    assert numbers.maj_at["4"].mean == 0.25
    assert numbers.verdicts == {"correct": 2, "wrong": 4, "unparsed": 1, "timeout": 1, "error": 0}
    assert numbers.stopped == 7 / 8
    assert numbers.tokens == 2.5
    assert numbers.repeating == 0
    assert numbers.operations == {"0": 3, "1": 4, "none": 1}
    for kind in ("avg", "pass_at", "maj_at"):
        for interval in [getattr(numbers, kind)] if kind == "avg" else getattr(numbers, kind).values():
            assert interval.low < interval.mean < interval.high


def vote(*answers, **more):
    """maj@n of one problem from (verdict, extracted) pairs."""
    lines = [line("p", i, *answer, **({"grader": "math"} | more)) for i, answer in enumerate(answers)]
    return score({"p": lines}).maj_at[str(len(lines))].mean


def test_wrong_answers_vote_together_however_they_are_written():
    right = [("correct", "3"), ("correct", "3")]
    assert vote(*right, ("wrong", "1/2"), ("wrong", "0.5"), ("wrong", r"\frac{1}{2}")) == 0
    assert vote(*right, ("wrong", r"x^2-1"), ("wrong", "(x-1)(x+1)"), ("wrong", "(x+1)(x-1)")) == 0
    assert vote(*right, ("wrong", "x>2"), ("wrong", r"(2, \infty)"), ("wrong", "2<x")) == 0
    assert vote(*right, ("wrong", "1/2"), ("wrong", "1/3"), ("wrong", "1/4")) == 1
    assert vote(*right, ("wrong", "x"), ("wrong", "2x"), ("wrong", "3x")) == 1
    assert vote(*right, ("wrong", r"2^{-60}"), ("wrong", r"2^{-61}"), ("wrong", r"2^{-62}")) == 1
    assert vote(*right, ("wrong", "1, 2"), ("wrong", "2, 1"), extra={"multiple": True}) == 0.5
    words = [("wrong", "Paris"), ("wrong", "paris."), ("wrong", "the Paris")]
    assert vote(("correct", "Rome"), ("correct", "Rome"), *words, grader="exact") == 0


def test_a_majority_of_equal_wrong_answers_is_wrong(tmp_path):
    """facebookresearch/deepconf#15: one wrong answer in three spellings against two right ones."""
    case = Path(__file__).parents[1] / "cases" / "41-majority-of-equal-wrongs" / "in.jsonl"
    grade(case, tmp_path / "graded.jsonl", grading_workers=1)
    numbers = score(read_graded(tmp_path / "graded.jsonl", ["p"], 5))
    assert numbers.avg.mean == 0.4
    assert numbers.maj_at["5"].mean == 0


def test_a_vote_of_one_is_the_mean():
    for n in (1, 3, 7):
        numbers = score({"a": [line("a", i, "correct" if i % 3 == 1 else "wrong", str(i)) for i in range(n)],
                         "b": [line("b", i, "unparsed") for i in range(n)]})  # fmt: skip
        assert dict(numbers.maj_at["1"]) == pytest.approx(dict(numbers.avg), abs=0.2)
        assert numbers.maj_at["1"].mean == pytest.approx(numbers.avg.mean, abs=1e-12)


def test_many_answers_are_grouped_without_comparing_all_pairs(monkeypatch):
    compared = []
    group = accuracy.Grader.grade
    monkeypatch.setattr(
        accuracy.Grader, "grade", lambda self, items: compared.extend(items) or group(self, items)
    )
    lines = [line("p", i, "wrong", f"x+{i % 40}", grader="math") for i in range(80)]
    assert len(set(group_votes({"p": lines})[0])) == 40
    assert 0 < len(compared) <= 40 * accuracy.MAX_COMPARED


def test_ks_are_powers_of_two_and_n():
    six = {"a": [line("a", i, "wrong", str(i)) for i in range(6)]}
    assert list(score(six).pass_at) == ["1", "2", "4", "6"]


def test_programs_do_not_vote_and_foreign_samples_need_no_tokens():
    code = {"a": [Graded(problem_id="a", sample_index=0, verdict="correct", text="x", grader="code")]}
    numbers = score(code)
    assert numbers.avg.mean == 1
    assert (numbers.maj_at, numbers.tokens, numbers.operations) == (None, None, None)


@pytest.mark.parametrize(
    ("expression", "count"),
    [("48 + (48 / 2)", 2), ("-3", 0), ("3 - -2", 1), ("2*(-3)", 1), ("(1 + 2) * 3", 2), ("", 0)],
)
def test_operations(expression, count):
    assert count_operations(expression) == count


def write(path, *lines):
    records = (one if isinstance(one, dict) else one.model_dump(exclude_unset=True) for one in lines)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_read_graded_takes_the_first_n_in_order(tmp_path):
    lines = [line("a", 2, "wrong"), line("b", 0, "wrong"), line("a", 0, "correct"), line("a", 1, "wrong")]
    path = write(tmp_path / "g.jsonl", *lines)
    found = read_graded(path, ["a"], 2)
    assert [one.sample_index for one in found["a"]] == [0, 1]
    assert correct_matrix(found).tolist() == [[1, 0]]


GOOD = line("a", 0, "wrong").to_dict()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line("a", 0, "wrong")], "g.jsonl: 1 of 2 samples of problem a are missing"),
        ([line("a", 0, "wrong"), line("a", 1, "wrong", fingerprint="g")], "g.jsonl:2: the folder has samples of two"),
        ([{"problem_id": "a", "sample_index": 0, "text": "4"}], "g.jsonl:1: is not a graded sample"),
        ([{**GOOD, "verdict": "maybe"}], "g.jsonl:1: unknown verdict 'maybe'"),
        ([{**GOOD, "grader": ["math"]}], "g.jsonl:1: is not a graded sample"),
        ([{**GOOD, "token_ids": [1, [2]]}], "g.jsonl:1: is not a graded sample"),
        ([{**GOOD, "extracted": 4}], "g.jsonl:1: is not a graded sample"),
        ([line("a", -1, "wrong"), line("a", 0, "wrong")], "g.jsonl: 1 of 2 samples of problem a are missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_named(tmp_path, lines, said):
    with pytest.raises(UserError) as error:
        read_graded(write(tmp_path / "g.jsonl", *lines), ["a"], 2)
    assert said in str(error.value)


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
