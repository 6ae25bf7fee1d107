"""What the fields of each benchmark's records mean: the question, the gold answer, what the grader needs.

Field names are those of the files in wide use and of their copies on the hub, where they differ. Where the
records come from is in `benchmarks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rectune.errors import UserError
from rectune.grading.final_answer import extract_answer

QUESTION = ("question", "problem", "input", "prompt")
ANSWER = ("answer", "target", "final_ans", "gold", "solution_number")
ID = ("problem_id", "unique_id", "task_id", "ID", "id")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What one record asks, its gold answer, and what the grader needs beyond it."""

    question: str
    answer: str | list[str]
    id: str | None = None
    extra: dict[str, object] = field(default_factory=dict)


def plain(record: Record, where: str) -> Asked:
    """A question and its answer, under any of the usual names; without one, the last box of its solution."""
    return Asked(_text(record, QUESTION, where), _answer(record, where), _id(record))


def gsm8k(record: Record, where: str) -> Asked:
    """The gold answer stands behind `####`."""
    solution = _text(record, ("answer",), where)
    answer = solution.rpartition("####")[2].strip().replace(",", "") if "####" in solution else ""
    if not answer:
        raise UserError("no answer behind '####'", where=where)
    return Asked(_text(record, ("question",), where), answer, _id(record))


def svamp(record: Record, where: str) -> Asked:
    """Body and question are two fields."""
    question = f"{_text(record, ('Body',), where).strip()} {_text(record, ('Question',), where).strip()}"
    return Asked(question, _written(_first(record, ("Answer",), where), "Answer", where), _id(record))


def olympiadbench(record: Record, where: str) -> Asked:
    """Extras for the math grader: `multiple` (several values asked for), `tolerance` (absolute), `unit`."""
    question = _text(record, ("question",), where)
    if record.get("context"):
        question = f"{record['context']}\n{question}"
    answers = _first(record, ("final_answer",), where)
    if not isinstance(answers, list) or not answers:
        raise UserError("field 'final_answer' is no list of answers", where=where)
    extra: dict[str, object] = {}
    if record.get("is_multiple_answer"):
        extra["multiple"] = True
    if record.get("error"):
        extra["tolerance"] = str(record["error"])
    if record.get("unit"):
        extra["unit"] = str(record["unit"])
    return Asked(question, answers[0] if len(answers) == 1 else [str(a) for a in answers], _id(record), extra)


def humaneval(record: Record, where: str) -> Asked:
    """The function's head is the question; the code grader takes `prompt`, `test` and `entry_point`."""
    extra: dict[str, object] = {
        name: _text(record, (name,), where) for name in ("prompt", "test", "entry_point")
    }
    question = f"Complete this Python function.\n\n```python\n{str(extra['prompt']).rstrip()}\n```"
    return Asked(question, _text(record, ("canonical_solution",), where), _id(record), extra)


def mbpp(record: Record, where: str) -> Asked | None:
    """Tasks 11 to 510, the test split; the tests are shown, since they give the function its name."""
    number = _first(record, ("task_id",), where)
    if not isinstance(number, int) or not 11 <= number <= 510:
        return None
    tests = _first(record, ("test_list",), where)
    if not isinstance(tests, list) or not tests:
        raise UserError("field 'test_list' is no list of tests", where=where)
    shown = "\n".join(map(str, tests))
    extra: dict[str, object] = {
        "test_list": tests,
        "test_setup_code": str(record.get("test_setup_code") or ""),
    }
    if record.get("test_imports"):  # of the sanitized version
        extra["test_imports"] = record["test_imports"]
    question = f"{_text(record, ('text', 'prompt'), where)}\nYour code has to pass these tests:\n\n{shown}"
    return Asked(question, _text(record, ("code",), where), str(number), extra)


def _first(record: Record, names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in record:
            return record[name]
    has = ", ".join(map(str, record)) or "nothing"
    raise UserError(f"no field '{names[0]}'", where=where, hint=f"has: {has}")


def _text(record: Record, names: tuple[str, ...], where: str) -> str:
    value = _first(record, names, where)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"field '{names[0]}' is empty or no text", where=where)
    return value


def _answer(record: Record, where: str) -> str | list[str]:
    solution = record.get("solution")
    if isinstance(solution, str) and not any(record.get(name) not in (None, "") for name in ANSWER):
        if boxed := extract_answer(solution, ["boxed"]):  # MATH's and Minerva's own files
            return boxed
        raise UserError("neither an answer nor a box in its solution", where=where)
    value = _first(record, ANSWER, where)
    if isinstance(value, list) and value:
        return [_written(one, "answer", where) for one in value]
    return _written(value, "answer", where)


def _written(value: object, name: str, where: str) -> str:
    """A gold answer as text; 51.0 is written 51."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise UserError(f"no answer (field '{name}' is {value!r})", where=where)
    return str(value).strip()


def _id(record: Record) -> str | None:
    for name in ID:
        if isinstance(record.get(name), (str, int)):
            return str(record[name]).removeprefix("HumanEval/")
    return None
