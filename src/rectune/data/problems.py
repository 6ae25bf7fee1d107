"""Questions with a gold answer, read from JSON Lines.

Known benchmarks and their prompts are left to `evaluation/tasks.py`, judging answers to `grading/`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import PlainValidator, ValidationInfo

from rectune.data.faults import Faults
from rectune.data.jsonl import jsonl_records
from rectune.data.messages import IN_RECORD, MEDIA, PARTS_OF_QUESTION, Conversation, Question, Turns, Words
from rectune.data.multiple_choice import Choices, right_choice
from rectune.data.rows import Problem
from rectune.data.schema import Names, Notes, Place, Record, Refusal, Text, place_of
from rectune.errors import UserError

log = logging.getLogger("rectune")

FOR_THE_GRADER = (
    "tolerance", "unit", "multiple", "tests", "test", "test_list", "test_imports", "test_setup_code", "entry_point",
    "input_output",
)  # fmt: skip
"""Fields of a problem that are handed to the grader in `extra`."""


def _extra(value: object, info: ValidationInfo) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place_of(info).wrong(info, value, "an object")
    return value


def _gold(value: object, info: ValidationInfo) -> str | list[str] | int:
    if isinstance(value, list) and value:
        return [_one(item, info) for item in value]
    return value if isinstance(value, int) and not isinstance(value, bool) else _one(value, info)


def _one(value: object, info: ValidationInfo) -> str:
    place = place_of(info)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise place.wrong(info, value, "text or a number")
    lines = str(value).rsplit("\n", 1)
    answer = (lines[-1][4:] if lines[-1].startswith("####") else str(value)).strip()
    if not answer:
        raise UserError(f"field {place.name(info)} is empty", where=place.where)
    return answer


def last_box(text: str) -> str:
    r"""What stands in the last `\boxed{}` of a text, braces balanced to any depth; "" where there is none."""
    start = text.rfind(r"\boxed{") + len(r"\boxed{")
    depth = 1
    for i in range(start, len(text)) if start >= len(r"\boxed{") else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i].strip()
    return ""


def _id(value: object, info: ValidationInfo) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise place_of(info).wrong(info, value, "text")
    return str(value)


class ProblemRecord(Question):
    """A problem, as `rectune sample` and `rectune eval` read it."""

    refused: ClassVar[Mapping[str, Refusal]] = {
        **MEDIA,
        **PARTS_OF_QUESTION,
        **{name: IN_RECORD[name] for name in ("tools", "functions", "function_call", "tool_calls")},
    }

    answer: Annotated[Any, PlainValidator(_gold)] = None
    """The gold answer: a text, a number, or a list of which any counts; of a GSM8K answer what follows `####`."""
    solution: Any = None
    """Where there is no `answer`, the gold answer is in its last box, as MATH and Minerva have it."""
    prompt: Annotated[Words | None, Names("prompt", "question", "problem", "question_stem")] = None
    """What is asked, a text or messages."""
    messages: Conversation | None = None
    """What is asked, as messages; assistant messages at the end are left to the model."""
    choices: Annotated[Choices | None, Names("choices", "options")] = None
    """Put below the question with letters; the gold answer is then the letter or the text of the right one."""
    answerKey: Annotated[Any, Names("answerKey", "answer_key", "answer_idx", "answer_index")] = None
    """The right choice, where `answer` does not say it."""
    problem_id: Annotated[str, PlainValidator(_id)] = ""
    """Unique in the file; else the line's number."""
    grader: Text = "math"
    """math, exact, expression or code."""
    extra: Annotated[dict[str, Any], PlainValidator(_extra)] = {}  # noqa: RUF012  (pydantic copies it)
    """What else the grader needs."""
    tolerance: Any = None
    """Handed to the grader in `extra`, as the following are."""
    unit: Any = None
    """Unit of the gold answer."""
    multiple: Any = None
    """Whether all of the gold answers are asked for."""
    tests: Any = None
    """Tests of a program."""
    test: Any = None
    """Tests of a program."""
    test_list: Any = None
    """Tests of a program."""
    test_imports: Any = None
    """Imports of the tests."""
    test_setup_code: Any = None
    """Set-up of the tests."""
    entry_point: Any = None
    """Function that the tests call."""
    input_output: Any = None
    """Inputs and outputs of a program."""

    def problem(self, number: str, record: Record, place: Place) -> Problem:
        """The problem, whose id is `number` where it has none."""
        if self.answer is not None and "solution" in place.read:
            place.read.remove("solution")
            place.ignored.add("solution")
        answer = last_box(str(self.solution)) or None if self.answer is None else self.answer
        gold: Any = answer if isinstance(answer, list | None) else str(answer)
        turns = self._asked(place)
        if self.choices is not None:
            index = right_choice(
                self.choices, {"answer": self.answer, "answerKey": self.answerKey}, place.where
            )
            if index is None:
                raise UserError("does not say which choice is right", where=place.where)
            gold = list(dict.fromkeys((self.choices.letter(index), self.choices.texts[index])))
        if gold is None:
            hint = f"has: {', '.join(record)}"
            what = "field 'answer' is missing" + (", and 'solution' has no box" if self.solution else "")
            raise UserError(what, where=place.where, hint=hint)
        return Problem(
            self.problem_id or number, turns, gold, self.grader, place.where, self._for_grader(place)
        )

    def _asked(self, place: Place) -> Turns:
        own = self.prompt if self.messages is None or isinstance(self.prompt, tuple) else self.messages
        if own is None:
            hint = "expected one of prompt, question, problem or messages"
            raise UserError("has no question", where=place.where, hint=hint)
        if self.choices is not None:
            if not isinstance(own, str):
                what = "field 'choices' cannot be put below a question that is messages"
                raise UserError(what, where=place.where, hint="make them part of the messages")
            own = self.choices.ask(own)
        turns = self.prompt_turns(own, place.where)
        while turns and turns[-1].role == "assistant":  # the answer is for the model to write
            turns = turns[:-1]
        if not turns:
            raise UserError("field 'messages' asks nothing", where=place.where)
        return turns

    def _for_grader(self, place: Place) -> dict[str, Any] | None:
        extra = dict(self.extra)
        for name in FOR_THE_GRADER:
            value = getattr(self, name)
            if value is not None and extra.setdefault(name, value) != value:
                raise UserError(
                    f"fields '{name}' and 'extra.{name}' differ", where=place.where, hint="keep one"
                )
        return extra or None


def read_problems(path: Path | str) -> list[Problem]:
    """The problems of a `.jsonl` file, one object a line; the fields are those of `ProblemRecord`.

    Says in the log ("rectune") which fields were left unread, and each faulty line.

    Raises:
        UserError: A line is malformed, lacks a field, or repeats a problem_id; or the file has no problem.
    """
    notes, faults = Notes(), Faults(str(path))
    problems = [
        found for found in problems_of(path, notes) if isinstance(found, Problem) or faults.add(found)
    ]
    faults.settle(len(problems) + faults.count)
    if not problems:
        raise UserError("has no problems", where=path)
    notes.say(str(path))
    return problems


def problems_of(path: Path | str, notes: Notes) -> Iterator[Problem | UserError]:
    """Each problem of a file, or what is wrong with it."""
    seen: dict[str, str] = {}
    for number, record in jsonl_records(path):
        if isinstance(record, UserError):
            yield record
            continue
        place = Place(f"{path}:{number}")
        try:
            problem = ProblemRecord.read(record, place).problem(str(number), record, place)
            if problem.problem_id in seen:
                first = seen[problem.problem_id]
                what = f"repeats the problem_id '{problem.problem_id}' of {first}"
                raise UserError(what, where=place.where)
        except UserError as error:
            notes.refused.update(place.refused)
            yield error
            continue
        seen[problem.problem_id] = place.where
        notes.add(place)
        yield problem
