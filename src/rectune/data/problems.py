"""Questions with a gold answer, read from JSON Lines.

Known benchmarks and their prompts are left to `evaluation/benchmarks.py`, judging answers to `grading/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectune.data.formats import messages, text_field
from rectune.data.jsonl import json_type, read_jsonl
from rectune.data.rows import Problem, Turn
from rectune.errors import UserError

_QUESTIONS = ("prompt", "question", "problem")


def read_problems(path: Path | str) -> list[Problem]:
    """The problems of a `.jsonl` file, one object a line.

    Fields: `prompt` (a text or messages), `question`, `problem` or `messages`; `answer`, a text, a number or
    a list of them (a GSM8K answer counts from its `####` on); optional `problem_id` (else the line's number),
    `grader` (else "math") and `extra` (an object for the grader).

    Raises:
        UserError: A line is malformed, lacks a field, or repeats a problem_id; or the file has no problem.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for number, record in read_jsonl(path):
        problem = _problem(record, str(number), f"{path}:{number}")
        if problem.problem_id in seen:
            first = seen[problem.problem_id]
            raise UserError(f"repeats the problem_id '{problem.problem_id}' of {first}", where=problem.where)
        seen[problem.problem_id] = problem.where
        problems.append(problem)
    if not problems:
        raise UserError("has no problems", where=path)
    return problems


def _problem(record: Mapping[str, Any], number: str, where: str) -> Problem:
    if "answer" not in record:
        raise UserError("field 'answer' is missing", where=where, hint=f"has: {', '.join(record)}")
    extra = record.get("extra")
    if extra is not None and not isinstance(extra, dict):
        raise UserError(f"field 'extra' is {json_type(extra)}, not an object", where=where)
    grader = text_field(record, "grader", where) if "grader" in record else "math"
    name = record.get("problem_id", number)
    if not isinstance(name, str | int):
        raise UserError(f"field 'problem_id' is {json_type(name)}, not text", where=where)
    return Problem(str(name), _prompt(record, where), _answer(record["answer"], where), grader, where, extra)


def _prompt(record: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    if isinstance(record.get("prompt"), list):
        record = {"messages": record["prompt"]}
    if "messages" in record:
        turns = [Turn(turn.role, turn.content) for turn in messages(record, where)]
        while turns and turns[-1].role == "assistant":  # the answer is for the model to write
            turns.pop()
        if not turns:
            raise UserError("field 'messages' asks nothing", where=where)
        return tuple(turns)
    for key in _QUESTIONS:
        if key in record:
            return (Turn("user", text_field(record, key, where)),)
    raise UserError(
        "has no question", where=where, hint=f"expected one of {', '.join(_QUESTIONS)} or messages"
    )


def _answer(value: object, where: str) -> str | list[str]:
    if isinstance(value, list) and value:
        return [_one_answer(item, where) for item in value]
    return _one_answer(value, where)


def _one_answer(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"field 'answer' is {json_type(value)}, not text or a number", where=where)
    answer = str(value).rpartition("####")[2].strip()
    if not answer:
        raise UserError("field 'answer' is empty", where=where)
    return answer
