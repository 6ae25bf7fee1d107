"""Foreign records become rows and problems: which format a file is in, and what its fields mean.

Each format is a schema with a method that gives the turns of one demonstration. What a message is, is in `messages.py`.
Opening files is left to `loading.py`; chat templates and tokens to `encoded_dataset.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import PlainValidator, ValidationInfo

from rectune.config import DataConfig
from rectune.data.fields import (
    JsonList,
    Names,
    Notes,
    Place,
    Refusal,
    Schema,
    Text,
    holds,
    is_number,
    loss_weight,
    place_of,
    text,
    truth,
)
from rectune.data.messages import (
    IN_RECORD,
    MEDIA,
    PARTS_OF_QUESTION,
    Choices,
    Conversation,
    Question,
    System,
    Tools,
    Turns,
    Words,
    answer_turn,
    read_message,
    right_choice,
    unsupervised,
    with_system,
    words_or_turns,
)
from rectune.data.readers import json_type
from rectune.data.schema import Problem, RawRecord, Row, Turn
from rectune.errors import UserError, unknown_name

LAST_LINE = re.compile(r"(?:^|\n)#### *(-?[$]?[\d.,]+%?)\s*$")
"""End of a GSM8K answer: `#### 72`."""

_MARK = re.compile(r"<<[-+*/().,%$=\d\s]*=[-+*/().,%$\d\s]*>>")  # <<48/2=24>>
_HH = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # how a turn begins in Anthropic's HH
_GOOD, _BAD = ("desirable", "chosen", "good"), ("undesirable", "rejected", "bad")


def _verdict(value: object, info: ValidationInfo) -> bool | None:
    """Whether an answer is good; a text that is not a verdict (a category) is left unread."""
    place, word = place_of(info), str(value).strip().lower()
    if word in _GOOD or (is_number(value) and float(word) == 1):
        return True
    if word in _BAD or (is_number(value) and float(word) in (0, -1)):
        return False
    if is_number(value):
        what = f"field {place.name(info)} is {word}: neither a good answer (1) nor a bad one (0)"
        raise place.error(what, "fix it, or leave the field unread with --ignore-fields")
    if truth(value) is None and holds(value):
        _unread(info)
    return truth(value)


def _answer(value: object, info: ValidationInfo) -> str:
    """A text, a number, true or false, or the first of a list of texts."""
    place = place_of(info)
    if isinstance(value, bool):
        place.said.add("rows have a true/false answer; written yes or no")
        return "yes" if value else "no"
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(set(value)) > 1:
            place.said.add("rows have several answers; the first is the target")
        return str(value[0])
    if isinstance(value, str) or is_number(value):
        return str(value)
    raise place.wrong(info, value, "text")


def _spans(value: object, info: ValidationInfo) -> str | None:
    """The first answer of SQuAD's `{"text": [...], "answer_start": [...]}`; None where there is none."""
    texts = value.get("text") if isinstance(value, Mapping) else value
    if isinstance(texts, list) and texts and all(isinstance(item, Mapping) for item in texts):
        texts = [item.get("text") for item in texts]
    return None if texts == [] else _answer(texts, info)


def _source(value: object, info: ValidationInfo) -> str:
    """A text; anything else is left unread."""
    if isinstance(value, str):
        return value
    _unread(info)
    return ""


def _thinking(value: object, info: ValidationInfo) -> str:
    """A text; whether a model was to think (on, off, true, false) is left unread."""
    if truth(value) is not None or (isinstance(value, str) and value.strip().lower() in ("on", "off")):
        _unread(info)
        return ""
    return text(value, info)


def _unread(info: ValidationInfo) -> None:
    """Mark a field as unread again."""
    place = place_of(info)
    name = place.name(info)[1:-1]
    place.read.discard(name)
    place.ignored.add(name)


WEIGHT_NAMES = ("weight", "loss_weight", "sample_weight")
"""Names of a row's weight."""


class Demonstration(Schema):
    """Fields that any row may have."""

    refused = IN_RECORD

    label: Annotated[
        bool | None, PlainValidator(_verdict),
        Names("label", "kto_tag", "is_correct", "correct", "is_good", "desirable", "accepted"),
    ] = None  # fmt: skip
    """Whether the answer is good (unpaired preferences); rows with a bad answer are left out."""
    tools: Tools = ()
    """Tools for the chat template, also as JSON text."""
    source: Annotated[str, PlainValidator(_source)] = ""
    """Origin of the row, for reports."""
    weight: Annotated[float | None, PlainValidator(loss_weight), Names(*WEIGHT_NAMES)] = None
    """What the loss of the row's targets is multiplied with, relative to the other rows; 1 if it is missing."""

    def turns(self, place: Place) -> Turns:
        """The conversation; empty where the row has no target by its own marks, which `place` then says."""
        raise NotImplementedError


class Single(Demonstration, Question):
    """A question and its answer."""

    reasoning_content: Annotated[
        str, PlainValidator(_thinking), Names("reasoning_content", "thinking", "reasoning")
    ] = ""
    """Thinking before the answer, passed to the chat template separately; a switch (on, off) is left unread."""

    def pair(self, prompt: str | Turns, completion: str | Turns, place: Place) -> Turns:
        """The prompt and the answer; only the answer is supervised."""
        before = self.prompt_turns(prompt, place.where)
        if isinstance(prompt, str) and not prompt.strip():
            place.said.add("rows have an empty question; kept")
        if isinstance(completion, str):
            return (*before, answer_turn(completion, self.reasoning_content))
        if self.reasoning_content:
            raise place.error(
                "the row has a thinking field, but its completion is messages",
                "put the thinking into the messages",
            )
        return (*before, *completion)


class PromptCompletion(Single):
    """A prompt and its completion."""

    prompt: Words
    """Question or prompt, a text or messages."""
    completion: Words
    """The answer, a text or messages."""

    def turns(self, place: Place) -> Turns:
        return self.pair(self.prompt, self.completion, place)


class Messages(Demonstration):
    """A conversation; assistant messages are targets unless they are marked otherwise."""

    messages: Conversation
    """Messages of `role` and `content`, or of `from` and `value`."""
    system: System = ""
    """System message."""

    def turns(self, place: Place) -> Turns:
        return with_system(self.messages, self.system, place.where)


class ShareGPT(Demonstration):
    """A conversation in the layout of ShareGPT."""

    conversations: Annotated[Conversation, Names("conversations", "conversation")]
    """Messages of `from` (human, gpt, system, observation, function_call) and `value`, or of `role` and `content`."""
    system: System = ""
    """System message."""

    def turns(self, place: Place) -> Turns:
        return with_system(self.conversations, self.system, place.where)


class Alpaca(Single):
    """Stanford Alpaca, and Dolly."""

    instruction: Text
    """Question."""
    output: Annotated[Text, Names("output", "response")]
    """The answer."""
    input: Text = ""
    """Appended to the instruction, after a blank line."""

    def turns(self, place: Place) -> Turns:
        prompt = f"{self.instruction}\n\n{self.input}" if self.input else self.instruction
        return self.pair(prompt, self.output, place)


class QueryResponse(Single):
    """A question and its answer under other common names (OpenOrca, MetaMath, HelpSteer, firefly, FLAN and similar).

    The names of one side mean the same: a record with two of them that differ is refused.
    """

    query: Annotated[Words, Names("query", "question", "prompt", "input", "inputs")]
    """Question or prompt, a text or messages."""
    response: Annotated[Words, Names("response", "output", "target", "targets")]
    """The answer, a text or messages."""

    def turns(self, place: Place) -> Turns:
        return self.pair(self.query, self.response, place)


class QuestionAnswer(Single):
    """A question and its answer; only the calculator marks of answers that end as in GSM8K are removed."""

    question: Text
    """Question."""
    answer: Annotated[str, PlainValidator(_answer)]
    """The answer: a text, a number, true or false, or a list whose first item is the target."""

    def turns(self, place: Place) -> Turns:
        answer, marks = self.answer, 0
        if LAST_LINE.search(answer):
            answer, marks = _MARK.subn("", answer)
        if marks:
            place.said.add("rows had calculator marks such as <<48/2=24>>; removed")
        return self.pair(self.question, answer, place)


class GSM8K(QuestionAnswer):
    """GSM8K: calculator marks `<<48/2=24>>` are removed, the last line `#### 72` is kept."""


class ReadingComprehension(Single):
    """SQuAD and similar."""

    question: Text
    """Question about `context`."""
    answers: Annotated[str | None, PlainValidator(_spans)]
    """`{"text": [...]}` or a list; the first is the target, rows without one are left out."""

    def turns(self, place: Place) -> Turns:
        if self.answers is None:
            place.said.add("rows have no answer; left out")
            return ()
        return self.pair(self.question, self.answers, place)


class MultipleChoice(Single):
    """MMLU, ARC, CommonsenseQA, OpenBookQA and similar: the target is the letter and text of the right choice."""

    question: Annotated[Text, Names("question", "question_stem")]
    """Question; the choices are appended with letters."""
    choices: Annotated[Choices, Names("choices", "options")]
    """Texts, `{"text": [...], "label": [...]}`, a list of such, or `{"A": text}`."""
    answer: Annotated[Any, Names("answer", "correct_answer")] = None
    """The right choice: its letter, its number from 0, or its text."""
    answerKey: Annotated[Any, Names("answerKey", "answer_key", "answer_idx", "answer_index", "correct")] = (
        None
    )
    """The same under other names; both must agree."""
    label: Any = None
    """The same."""

    def turns(self, place: Place) -> Turns:
        answers = {"answer": self.answer, "answerKey": self.answerKey, "label": self.label}
        index = right_choice(self.choices, answers, place.where)
        if index is None:
            place.said.add("rows do not name the right choice; left out")
            return ()
        target = f"{self.choices.letter(index)}. {self.choices.texts[index]}"
        return self.pair(self.choices.ask(self.question), target, place)


class Numina(Single):
    """NuminaMath, LIMO and similar: the target is the whole solution, not its final answer."""

    problem: Annotated[Text, Names("problem", "question")]
    """Question."""
    solution: Text
    """The answer."""

    def turns(self, place: Place) -> Turns:
        return self.pair(self.problem, self.solution, place)


class OpenR1(Single):
    """OpenR1-Math: the first of the generations that is complete and marked correct.

    Marks that a record lacks do not count. A record without any correct generation is left out.
    """

    problem: Text
    """Question."""
    generations: JsonList
    """Answers; one is used."""
    is_reasoning_complete: Any = None
    """Marks, one for each generation."""
    correctness_math_verify: Any = None
    """Marks, one for each generation."""
    correctness_llama: Any = None
    """Marks by a language model as judge; used where math-verify has none."""

    def turns(self, place: Place) -> Turns:
        complete = self._marks("is_reasoning_complete", place)
        correct = [
            marks
            for name in ("correctness_math_verify", "correctness_llama")
            if (marks := self._marks(name, place)) is not None
        ]
        if not self.generations:
            raise place.error("field 'generations' is empty")
        for i, generation in enumerate(self.generations):
            if (complete is None or complete[i]) and (not correct or self._accepted(i, correct)):
                if not isinstance(generation, str):
                    raise place.error(f"field 'generations[{i}]' is {json_type(generation)}, not text")
                return self.pair(self.problem, generation, place)
        place.said.add("rows without a generation marked correct; left out")
        return ()

    def _accepted(self, i: int, marks: list[list[Any]]) -> bool:
        """Whether the first judge that has marks accepts generation i."""
        return bool(marks[0][i])

    def _marks(self, name: str, place: Place) -> list[Any] | None:
        marks = getattr(self, name)
        if marks is not None and (not isinstance(marks, list) or len(marks) != len(self.generations)):
            raise place.error(f"field '{name}' is not a list of {len(self.generations)} marks")
        return marks if holds(marks) else None  # nulls alone: nobody has judged


class OpenR1Judged(OpenR1):
    """As `openr1`, but one judge is enough: math-verify or the language model."""

    def _accepted(self, i: int, marks: list[list[Any]]) -> bool:
        return any(of_one[i] for of_one in marks)


def _side(value: object, info: ValidationInfo) -> str | Turns:
    """A text, one message, or messages."""
    place = place_of(info)
    name = place.name(info)[1:-1]
    if isinstance(value, Mapping):
        return (read_message(value, place.inside(f"{name}.")),)
    return words_or_turns(value, info)


Side = Annotated[str | tuple[Turn, ...], PlainValidator(_side)]


class Preference(Question):
    """A pair: two answers to one prompt.

    The prompt is a field of its own, or the common start of two whole conversations, or both; texts in the form of
    Anthropic's HH (`\\n\\nHuman: ... \\n\\nAssistant: ...`) are conversations.
    """

    chosen: Side
    """The better answer: a text, a message, or messages, with or without the prompt in front."""
    rejected: Side
    """The worse answer, in the same form."""
    prompt: Annotated[Words | None, Names("prompt", "question", "instruction", "query", "problem")] = None
    """Prompt, a text or messages; may be missing if both answers contain the whole conversation."""
    input: Text = ""
    """Appended to the prompt, after a blank line; the prompt itself if there is no other."""
    conversations: Annotated[Conversation | None, Names("conversations", "messages")] = None
    """Prompt as messages, if there is no `prompt`."""
    tools: Tools = ()
    """Tools for the chat template."""

    def sides(self, place: Place) -> tuple[Turns, Turns, Turns]:
        """The turns of the prompt, of the better answer and of the worse one.

        Raises:
            UserError: The answers are the same or empty, there is no prompt, or it is not their start.
        """
        sides = [_turns(side) for side in (self.chosen, self.rejected)]
        if sides[0] == sides[1]:
            raise place.error("chosen and rejected are the same answer", "remove the pair")
        common = 0
        if any(turn.role == "user" for side in sides for turn in side):
            pairs = zip(*map(unsupervised, sides), strict=False)
            common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(map(len, sides)))
            common = min(common, *(len(side) - 1 for side in sides))
        for name, side in (("chosen", sides[0][common:]), ("rejected", sides[1][common:])):
            if side[0].role != "assistant":
                what = f"'{name}' does not begin with an answer behind what both have in common"
                raise place.error(what)
            if not any(turn.content.strip() or turn.fields for turn in side):
                raise place.error(f"field '{name}' is empty")
        prompt = self._joined(unsupervised(sides[0][:common]), place)
        if not prompt or prompt[-1].role == "assistant":
            raise place.error("field 'prompt' does not end with a turn to answer")
        return prompt, sides[0][common:], sides[1][common:]

    def _joined(self, start: Turns, place: Place) -> Turns:
        """The prompt, said by a field of its own, by the common start of the answers, or by both alike."""
        own = next(
            (one for one in (self.prompt, self.conversations, self.input or None) if one is not None), None
        )
        if self.conversations is not None and (start or self.prompt is not None):
            place.read.discard("messages")
            place.ignored.add("messages")
            own = self.prompt
        if own is None:
            if not start:
                hint = "give it, or whole conversations as chosen and rejected"
                raise place.error("field 'prompt' is missing", hint)
            return self.prompt_turns(start, place.where)
        if isinstance(own, str) and _HH.match(own):
            given = unsupervised(turn for turn in _turns(own) if turn.content)
        elif isinstance(own, str) and self.input and own is self.prompt:
            given = self.prompt_turns(f"{own}\n\n{self.input}", place.where)
        else:
            given = self.prompt_turns(own, place.where)
        said, known = ([(t.role, t.content.strip()) for t in turns] for turns in (given, start))
        if not start:
            return given
        if said[-len(known) :] == known:
            return (*given[: -len(known)], *start)
        if all(turn in known for turn in said):
            return start
        what = "field 'prompt' is not what chosen and rejected begin with"
        raise place.error(what, "remove it, or remove the question from the answers")


def _turns(side: str | Turns) -> Turns:
    """An answer, or the conversation that it stands in, as turns; the assistant's are supervised."""
    if not isinstance(side, str):
        return side
    marks = list(_HH.finditer(side))
    if not marks or marks[0].start() != 0:
        return (Turn("assistant", side, True),)
    ends = [mark.start() for mark in marks[1:]] + [len(side)]
    turns = (
        Turn(
            "user" if mark[1] == "Human" else "assistant", side[mark.end() : end].strip(), mark[1] != "Human"
        )
        for mark, end in zip(marks, ends, strict=True)
    )
    return tuple(turn for turn in turns if turn.content or turn.role == "assistant")


FORMATS: dict[str, type[Schema]] = {
    "openr1": OpenR1,
    "multiple_choice": MultipleChoice,
    "reading_comprehension": ReadingComprehension,
    "numina": Numina,
    "sharegpt": ShareGPT,
    "messages": Messages,
    "prompt_completion": PromptCompletion,
    "alpaca": Alpaca,
    "gsm8k": GSM8K,
    "question_answer": QuestionAnswer,
    "query_response": QueryResponse,
    "chosen": Preference,
    "rejected": Preference,
    "openr1_judged": OpenR1Judged,
}
"""Schemas by name, in the order in which `detect_format` tries them (the more particular first)."""

PAIR = ("chosen", "rejected")
"""The formats that read the two answers of a pair; never inferred from the fields."""


def fits(name: str, record: RawRecord) -> bool:
    """Whether a record has all required fields of a format."""
    for names in FORMATS[name].required():
        if not any(key in record for key in names):
            return False
    return name != "gsm8k" or LAST_LINE.search(str(record["answer"])) is not None


def detect_format(records: Sequence[RawRecord], where: str) -> str:
    """The first format that at least half of `records` fit, or else most of them; the others are named when read.

    Raises:
        UserError: No format fits any; says which fields there are, and how to map them.
    """
    counts = {name: sum(fits(name, record) for record in records) for name in FORMATS if name not in PAIR}
    most = max(counts.values())
    if most:
        return next(name for name, count in counts.items() if 2 * count >= len(records) or count == most)
    first = records[0] if records else {}
    hint = "name its fields with --columns prompt=FIELD,completion=FIELD"
    if set(PAIR) <= set(first):
        hint = "pairs: train on them with --objective dpo, or on the better answers with --data-format chosen"
    fields_seen = ", ".join(map(str, first)) or "none"
    raise UserError(f"no known row format has the fields {fields_seen}", where=where, hint=hint)


def check_columns(columns: Mapping[str, str], record: RawRecord, where: str, format: str) -> None:
    """UserError where a mapping onto a format lacks a side, or names a field that the format or `record` has not."""
    known = _schema(format).model_fields
    for key in columns:
        if key not in known:
            raise unknown_name("column", key, known, where="columns")
    for key in ("prompt", "completion") if format == "mapping" else ():
        if key not in columns:
            raise UserError("no field is named", where=f"columns.{key}")
    for field in columns.values():
        if field not in record:
            raise unknown_name("field", field, map(str, record), where=where)


def _schema(format: str) -> type[Schema]:
    return PromptCompletion if format == "mapping" else FORMATS[format]


def to_row(
    record: RawRecord,
    where: str,
    format: str,
    options: DataConfig | None = None,
    notes: Notes | None = None,
) -> Row | None:
    """The row that one record stands for; None where it has no target by its own marks, which the notes say.

    Args:
        record: The decoded record.
        where: `file:line`, for messages and for `Row.where`.
        format: A key of `FORMATS`, or "mapping".
        options: `columns` (for fields of the format, their names in the record; the others keep theirs),
            `system_prompt` (for rows that have none) and `ignore_fields`.
        notes: Gets what was read, left unread and decided.

    Raises:
        UserError: A field is missing, mistyped or refused, a supervised turn is empty, or no turn is supervised.
    """
    options, notes, place = options or DataConfig(), notes or Notes(), Place(where)
    if ignore := options.ignore_fields:
        place.ignored.update(name for name in ignore if holds(record.get(name)))
        record = {name: value for name, value in record.items() if name not in ignore}
    try:
        row = _row(record, place, format, options.columns)
    except UserError:
        notes.refused.update(place.refused)
        raise
    notes.add(place)
    system = options.system_prompt
    if row is None or system is None or row.turns[0].role in ("system", "developer"):
        return row
    return replace(row, turns=(Turn("system", system), *row.turns))


def _row(record: RawRecord, place: Place, format: str, columns: Mapping[str, str]) -> Row | None:
    read = _schema(format).read(record, place, {field: key for key, field in columns.items()})
    source = ""
    if isinstance(read, Preference):
        prompt, *answers = read.sides(place)
        for answer in answers:  # both, so that the rows of the two formats stay those of the same pairs
            _check_targets(answer, place.where)
        if any(turn.weight != 1 for answer in answers for turn in answer):
            raise place.error("a message has a weight, and pairs have none", "remove it")
        turns = (*prompt, *answers[PAIR.index(format)])
    else:
        assert isinstance(read, Demonstration)
        turns, source = read.turns(place), read.source
        if read.weight is not None:
            weight = read.weight
            turns = tuple(replace(t, weight=t.weight * weight) if t.supervised else t for t in turns)
        if read.label is False and format != "multiple_choice":
            place.said.add("rows are marked as bad answers; left out")
            return None
    if not turns:
        return None
    _check_targets(turns, place.where)
    tools = json.dumps(read.tools, ensure_ascii=False) if read.tools else ""
    return Row(turns, place.where, source, tools)


def _check_targets(turns: Turns, where: str) -> None:
    targets = [turn for turn in turns if turn.supervised]
    if not targets:
        raise UserError("no assistant turn to learn from", where=where)
    for turn in targets:
        if not turn.content.strip() and '"tool_calls"' not in turn.fields:
            raise UserError("the completion is empty", where=where, hint="remove the row, or give it a text")


FOR_THE_GRADER = (
    "tolerance", "unit", "multiple", "tests", "test", "test_list", "test_imports", "test_setup_code", "entry_point",
    "input_output",
)  # fmt: skip
"""Fields of a problem that are handed to the grader in `extra`."""


def _extra(value: object, info: ValidationInfo) -> RawRecord:
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
        raise place.error(f"field {place.name(info)} is empty")
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
    """Gold answer: a text, a number, or a list of accepted answers; of a GSM8K answer the part after `####`."""
    solution: Any = None
    """Solution whose last box is the gold answer if there is no `answer`, as in MATH and Minerva."""
    prompt: Annotated[Words | None, Names("prompt", "question", "problem", "question_stem")] = None
    """Question or prompt, a text or messages."""
    messages: Conversation | None = None
    """Prompt as messages; assistant messages at the end are removed."""
    choices: Annotated[Choices | None, Names("choices", "options")] = None
    """Appended to the question with letters; the gold answer is then the letter or text of the right one."""
    answerKey: Annotated[Any, Names("answerKey", "answer_key", "answer_idx", "answer_index")] = None
    """The right choice, if `answer` does not give it."""
    problem_id: Annotated[str, PlainValidator(_id)] = ""
    """Unique in the file; by default the line number."""
    grader: Text = "math"
    """math, exact, expression or code."""
    extra: Annotated[RawRecord, PlainValidator(_extra)] = {}  # noqa: RUF012  (pydantic copies it)
    """Other input of the grader."""
    tolerance: Any = None
    """Passed to the grader in `extra`, as are the fields below."""
    unit: Any = None
    """Unit of the gold answer."""
    multiple: Any = None
    """Whether all gold answers are required."""
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

    def problem(self, number: str, record: RawRecord, place: Place) -> Problem:
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
                raise place.error("the right choice is missing")
            gold = list(dict.fromkeys((self.choices.letter(index), self.choices.texts[index])))
        if gold is None:
            hint = f"has: {', '.join(record)}"
            what = "field 'answer' is missing" + (", and 'solution' has no box" if self.solution else "")
            raise place.error(what, hint)
        return Problem(
            self.problem_id or number, turns, gold, self.grader, place.where, self._for_grader(place)
        )

    def _asked(self, place: Place) -> Turns:
        own = self.prompt if self.messages is None or isinstance(self.prompt, tuple) else self.messages
        if own is None:
            raise place.error(
                "the problem has no question", "expected one of prompt, question, problem or messages"
            )
        if self.choices is not None:
            if not isinstance(own, str):
                what = "field 'choices' cannot be put below a question that is messages"
                raise place.error(what, "make them part of the messages")
            own = self.choices.ask(own)
        turns = self.prompt_turns(own, place.where)
        while turns and turns[-1].role == "assistant":  # the answer is for the model to write
            turns = turns[:-1]
        if not turns:
            raise place.error("field 'messages' has no question")
        return turns

    def _for_grader(self, place: Place) -> RawRecord | None:
        extra = dict(self.extra)
        for name in FOR_THE_GRADER:
            value = getattr(self, name)
            if value is not None and extra.setdefault(name, value) != value:
                raise place.error(f"fields '{name}' and 'extra.{name}' differ", "keep one")
        return extra or None
