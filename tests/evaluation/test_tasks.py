"""Benchmarks: declarations, local files, a user's own files, and what is said when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from rectune.data.schema import Turn
from rectune.errors import UserError
from rectune.evaluation.tasks import BOXED, TASKS, load_task
from rectune.grading.code import grade_code

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files (../shared/data) are not here")


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@needs_data
@pytest.mark.parametrize(
    ("name", "count", "answer"),
    [
        ("gsm8k", 1319, "18"),
        ("svamp", 1000, "51"),
        ("multiarith", 600, "39"),
        ("singleop", 562, "14"),
        ("math500", 500, "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("olympiadbench", 675, "2"),
    ],
)
def test_whole_benchmarks_load_from_a_folder(name, count, answer):
    problems = load_task(name, include_path=DATA)
    assert len(problems) == count == len({p.problem_id for p in problems})
    assert problems[0].answer == answer
    assert problems[0].problem_id.startswith(f"{name}/")
    assert all(p.grader == "math" and p.answer and p.prompt[-1].content.strip() for p in problems)
    assert (
        problems[0]
        .prompt[0]
        .content.endswith("\nPlease reason step by step, and put your final answer within \\boxed{}.")
    )


@needs_data
def test_olympiadbench_keeps_what_its_grading_needs():
    extras = [p.extra or {} for p in load_task("olympiadbench", include_path=DATA)]
    assert sum(bool(e.get("multiple")) for e in extras) == 94
    assert [e for e in extras if "tolerance" in e] == [{"tolerance": "1e-1", "unit": "%"}]


@needs_data
def test_code_benchmarks_carry_tests_that_their_reference_passes():
    humaneval = load_task("humaneval", include_path=DATA)
    mbpp = load_task("mbpp", include_path=DATA)
    assert (len(humaneval), len(mbpp)) == (164, 500)
    assert {p.grader for p in humaneval + mbpp} == {"code"}
    for problem in (humaneval[0], mbpp[0]):
        assert grade_code(problem.answer, problem.extra).verdict == "correct"
        assert grade_code("def f(): pass", problem.extra).verdict == "wrong"


def test_every_benchmark_says_where_it_is_from():
    assert {"gsm8k", "minerva", "aime25", "natural_questions", "svamp-calculations"} <= set(TASKS)
    for benchmark in TASKS.values():
        assert benchmark.origin
        assert benchmark.licence
        assert "{question}" in benchmark.prompt
    assert TASKS["math500"].prompt == BOXED


HUB = {
    "multiarith": ({"question": "1+1?", "final_ans": "2"}, "2"),
    "aime24": ({"id": 60, "problem": "1+1?", "answer": "204"}, "204"),
    "minerva": ({"question": "1+1?", "answer": "2"}, "2"),
    "natural_questions": ({"question": "who?", "answer": ["Ada", "A. Lovelace"]}, ["Ada", "A. Lovelace"]),
    "olympiadbench": (
        {"id": 1, "question": "1+1?", "context": None, "final_answer": ["$2$"], "is_multiple_answer": False,
         "unit": None, "answer_type": "Numerical", "error": None},
        "$2$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_records_from_the_hub_are_understood(name, monkeypatch):
    """The hub itself is not reached here: only ids, splits and field names as declared are followed."""
    record, answer = HUB[name]
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((*args, kwargs["split"]))
        return datasets.Dataset.from_list([record])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (problem,) = load_task(name)
    hub, _, config = TASKS[name].hub.partition(":")
    assert asked == [(hub, config or None, TASKS[name].split)]
    assert problem.answer == answer
    assert problem.where == f"{TASKS[name].hub}[0]"


def test_packaged_calculations_need_no_folder():
    inside, outside = load_task("gsm8k-calculations"), load_task("svamp-calculations", limit=7)
    assert (len(inside), len(outside)) == (305, 7)
    assert {p.grader for p in inside + outside} == {"expression"}
    assert inside[0].prompt[0].content.endswith("\nCalculation: ")
    assert inside[0].problem_id == "gsm8k-calculations/gsm8k-test-1"


def test_a_file_named_after_the_benchmark_serves(tmp_path):
    write(tmp_path / "aime24.jsonl", {"id": 7, "problem": "1+1?", "answer": 2.0})
    (problem,) = load_task("aime24", include_path=tmp_path)
    assert (problem.problem_id, problem.answer) == ("aime24/7", "2")


@pytest.mark.parametrize(
    "gold",
    [
        "1.6",
        r"\frac{a_{0}}{\sqrt{2}}",
        # row 113 of the published minerva_math/test.jsonl: braces four deep
        r"-\frac{\zeta \omega_{n}^{2}}{\sqrt{1-\zeta^{2}}} \sin \left(\omega_{n} \sqrt{1-\zeta^{2^{a_{b}}}} t\right)",
        r"\left\{x : x > \frac{1}{2}\right\}",
    ],
)
@pytest.mark.parametrize("name", ["minerva", "math500", "aime24"])
def test_a_record_without_an_answer_has_it_in_the_last_box_of_its_solution(tmp_path, name, gold):
    solution = f"first \\boxed{{1}}, so that $\\boxed{{{gold}}}$."
    folder = {"minerva": "minerva_math"}.get(name, name)
    write(tmp_path / folder / "test.jsonl", {"problem": "x?", "solution": solution, "idx": 0})
    assert load_task(name, include_path=tmp_path)[0].answer == gold


def test_several_gold_answers_stay_a_list(tmp_path):
    write(tmp_path / "natural_questions.jsonl", {"question": "who?", "answer": ["Ada", "Ada Lovelace"]})
    (problem,) = load_task("natural_questions", include_path=tmp_path)
    assert (problem.answer, problem.grader) == (["Ada", "Ada Lovelace"], "exact")


def test_limit_draws_the_same_problems_for_the_same_seed(tmp_path):
    write(tmp_path / "gsm8k.jsonl", *({"question": f"q{i}", "answer": f"#### {i}"} for i in range(50)))

    def draw(**k):
        return [p.problem_id for p in load_task("gsm8k", include_path=tmp_path, **k)]

    assert len(draw(limit=9)) == 9
    assert draw(limit=9) == draw(limit=9) != draw(limit=9, seed=1)
    assert draw(limit=9) == sorted(draw(limit=9), key=lambda i: int(i.split("/")[1]))
    assert len(draw(limit=99)) == 50


def test_prompt_and_system_replace_the_default(tmp_path):
    write(tmp_path / "gsm8k.jsonl", {"question": "How {many}?", "answer": "#### 1,000"})
    (problem,) = load_task("gsm8k", include_path=tmp_path, prompt="Q: {question}\nA:", system="Be brief.")
    assert problem.prompt == (Turn("system", "Be brief."), Turn("user", "Q: How {many}?\nA:"))
    assert problem.answer == "1000"


def test_own_file_takes_prompts_messages_graders_and_extras(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "2+2?", "answer": 4},
        {"question": "3+3?", "answer": "6"},
        {"prompt": [{"role": "user", "content": "Add."}], "answer": "1", "grader": "expression",
         "problem_id": "x", "extra": {"tolerance": "1e-2"}},
    )  # fmt: skip
    first, second, third = load_task(path)
    assert first.prompt == (Turn("user", "2+2?"),)
    assert (first.problem_id, first.answer, first.grader) == ("mine/1", "4", "math")
    assert second.prompt == (Turn("user", "3+3?"),)
    assert (third.problem_id, third.grader, third.extra) == ("mine/x", "expression", {"tolerance": "1e-2"})
    assert third.where == f"{path}:3"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"problem": "x?"}, "no field 'answer'; has: problem"),
        ({"problem": "x?", "answer": None}, "no answer (field 'answer' is None)"),
        ({"problem": "x?", "answer": " "}, "no answer"),
        ({"problem": "x?", "answer": []}, "no answer"),
        ({"text": "x?", "answer": "1"}, "no field 'question'; has: text, answer"),
        ({"problem": "", "answer": "1"}, "field 'question' is empty"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path, record, said):
    path = write(tmp_path / "aime24.jsonl", {"problem": "2+2?", "answer": "4"}, record)
    with pytest.raises(UserError) as error:
        load_task("aime24", include_path=tmp_path)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{path}:2: ")


def test_bad_records_of_special_layouts_are_named(tmp_path):
    for name, record, said in (
        ("gsm8k", {"question": "x?", "answer": "so it is 4"}, "no answer after '####'"),
        ("minerva", {"problem": "x?", "solution": "no box"}, "the problem has no answer"),
        ("olympiadbench", {"question": "x?", "final_answer": "2"}, "is not a list of answers"),
        ("mbpp", {"task_id": 11, "text": "x", "code": "y", "test_list": []}, "is not a list of tests"),
    ):
        write(tmp_path / f"{name}.jsonl", record)
        with pytest.raises(UserError, match=said):
            load_task(name, include_path=tmp_path)


def test_other_mistakes_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="unknown task or file 'gsm8'; did you mean 'gsm8k'"):
        load_task("gsm8")
    with pytest.raises(UserError, match=r"aime24: not in .*American Invitational.*licence: none stated"):
        load_task("aime24", include_path=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_task("aime24", include_path=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"singleop: not packaged.*redistributed under MIT"):
        load_task("singleop")
    write(tmp_path / "aime25.jsonl", *[{"problem": "x?", "answer": "1", "id": "a"}] * 2)
    with pytest.raises(UserError, match=r"aime25.jsonl:2: problem id aime25/a is used in .*:1 too"):
        load_task("aime25", include_path=tmp_path)
    one = write(tmp_path / "one.jsonl", {"prompt": "x?", "answer": "1"})
    with pytest.raises(UserError, match=r"must contain \{question\}"):
        load_task(one, prompt="Answer!")
    bad = write(tmp_path / "bad.jsonl", {"prompt": "x?", "answer": "1", "grader": "maths"})
    with pytest.raises(UserError, match=r"bad.jsonl:1: unknown grader 'maths'; did you mean 'math'"):
        load_task(bad)
    with pytest.raises(UserError, match="must be at least 1"):
        load_task(one, limit=0)
