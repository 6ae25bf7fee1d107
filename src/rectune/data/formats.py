"""Foreign records become rows: which format a file is in, and what its fields mean.

Each converter takes one record (a decoded JSON object, CSV line or Parquet row) and gives the turns of one
demonstration. Opening files is left to `reading.py`; chat templates and tokens to `encoding.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rectune.data.jsonl import json_type
from rectune.data.messages import read_messages
from rectune.data.rows import Row, Turn
from rectune.data.schema import Place
from rectune.errors import UserError, unknown_name

Record = Mapping[str, Any]
Turns = tuple[Turn, ...]

MAPPABLE = ("prompt", "completion", "system")


def text_field(record: Record, key: str, where: str) -> str:
    """`record[key]` as text; UserError where it is missing or something else."""
    if key not in record:
        raise UserError(f"field '{key}' is missing", where=where, hint=f"has: {', '.join(map(str, record))}")
    value = record[key]
    if not isinstance(value, str):
        raise UserError(f"field '{key}' is {json_type(value)}, not text", where=where)
    return value


def prompt_completion(record: Record, where: str) -> Turns:
    """`prompt` and `completion`: texts, or lists of messages (the completion's are supervised)."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list):
        before = tuple(replace(t, supervised=False) for t in _messages(prompt, "prompt", where))
    else:
        before = (Turn("user", text_field(record, "prompt", where)),)
    if isinstance(completion, list):
        return (*before, *_messages(completion, "completion", where))
    return (*before, Turn("assistant", text_field(record, "completion", where), True))


def messages(record: Record, where: str) -> Turns:
    """OpenAI style: `messages` of `role` and `content`.

    Assistant turns are supervised, except one with `train` false or `weight` 0 (in ShareGPT too).
    """
    return _messages(_list_field(record, "messages", where), "messages", where)


def sharegpt(record: Record, where: str) -> Turns:
    """`conversations` of `from` (human, gpt, system) and `value`, with an optional `system` text."""
    turns = (Turn("system", text_field(record, "system", where)),) if record.get("system") else ()
    return (*turns, *_messages(_list_field(record, "conversations", where), "conversations", where))


def alpaca(record: Record, where: str) -> Turns:
    """`instruction`, optional `input` (put below it, after a blank line) and `output`."""
    prompt = text_field(record, "instruction", where)
    if record.get("input"):
        prompt = f"{prompt}\n\n{text_field(record, 'input', where)}"
    return _pair(prompt, text_field(record, "output", where))


def gsm8k(record: Record, where: str) -> Turns:
    """`question` and `answer`; the calculator marks `<<48/2=24>>` go, the last line `#### 72` stays."""
    answer = re.sub(r"<<[^<>]*>>", "", text_field(record, "answer", where))
    return _pair(text_field(record, "question", where), answer)


def numina(record: Record, where: str) -> Turns:
    """NuminaMath: `problem` and `solution`."""
    return _pair(text_field(record, "problem", where), text_field(record, "solution", where))


def chosen(record: Record, where: str) -> Turns:
    """The better answer of a pair: `prompt`, `chosen` and `rejected`, texts or lists of messages."""
    return prompt_completion(_side(record, "chosen", where), where)


def rejected(record: Record, where: str) -> Turns:
    """The worse answer of a pair."""
    return prompt_completion(_side(record, "rejected", where), where)


def openr1(record: Record, where: str) -> Turns:
    """OpenR1-Math: `problem` and the first of its `generations` that is complete and marked correct.

    Marks are `correctness_math_verify`, `correctness_llama` and `is_reasoning_complete`, lists beside
    `generations`; one that a record lacks does not count. A record without any correct generation has no
    target: its turns are empty.
    """
    problem, generations = text_field(record, "problem", where), _list_field(record, "generations", where)
    complete = _marks(record, "is_reasoning_complete", len(generations), where)
    correct = [
        marks
        for key in ("correctness_math_verify", "correctness_llama")
        if (marks := _marks(record, key, len(generations), where)) is not None
    ]
    for i, generation in enumerate(generations):
        if (complete is None or complete[i]) and (not correct or any(marks[i] for marks in correct)):
            if not isinstance(generation, str):
                raise UserError(f"field 'generations[{i}]' is {json_type(generation)}, not text", where=where)
            return _pair(problem, generation)
    return ()


FORMATS: dict[str, Callable[[Record, str], Turns]] = {
    "openr1": openr1,
    "numina": numina,
    "sharegpt": sharegpt,
    "messages": messages,
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "gsm8k": gsm8k,
    "chosen": chosen,
    "rejected": rejected,
}
"""Converters by name, in the order in which `detect_format` tries them (the more particular first)."""

PAIR = ("chosen", "rejected")
"""The formats that read the two answers of a pair; never told from the fields."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "openr1": ("problem", "generations"),
    "numina": ("problem", "solution"),
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "gsm8k": ("question", "answer"),
}
"""The fields that a record of each format has at least."""


def detect_format(records: Sequence[Record], where: str) -> str:
    """The first format whose fields at least half of `records` have; the others are named when read.

    Raises:
        UserError: No format fits; says which fields there are, and how to map them.
    """
    for name, fields in REQUIRED.items():
        if records and 2 * sum(all(f in record for f in fields) for record in records) >= len(records):
            return name
    fields_seen = ", ".join(map(str, records[0])) if records else "none"
    raise UserError(
        f"no known row format has the fields {fields_seen}",
        where=where,
        hint="say which is which: --rows.columns prompt=FIELD,completion=FIELD",
    )


def check_columns(columns: Mapping[str, str], record: Record, where: str) -> None:
    """UserError where the mapping lacks a side, names an unknown one, or a field that `record` has not."""
    for key in columns:
        if key not in MAPPABLE:
            raise unknown_name("column", key, MAPPABLE, where="rows.columns")
    for key in ("prompt", "completion"):
        if key not in columns:
            raise UserError("does not say which field it is", where=f"rows.columns.{key}")
    for field in columns.values():
        if field not in record:
            raise unknown_name("field", field, map(str, record), where=where)


def to_row(
    record: Record, where: str, *, format: str, columns: Mapping[str, str], system: str | None
) -> Row | None:
    """The row that one record stands for; None where it has no target by its own marks (see `openr1`).

    Args:
        record: The decoded record.
        where: `file:line`, for messages and for `Row.where`.
        format: A key of `FORMATS`, or "mapping".
        columns: With "mapping", the fields that are the prompt, the completion and the system message.
        system: System message for rows that have none.

    Raises:
        UserError: A field is missing or mistyped, a supervised turn is empty, or no turn is supervised.
    """
    turns = _mapped(record, columns, where) if format == "mapping" else FORMATS[format](record, where)
    if not turns:
        return None
    _check_targets(turns, where)
    if system is not None and turns[0].role not in ("system", "developer"):
        turns = (Turn("system", system), *turns)
    source = record.get("source")
    return Row(turns, where, source if isinstance(source, str) else "", _tools(record, where))


def _tools(record: Record, where: str) -> str:
    tools = record.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            raise UserError("field 'tools' is no JSON", where=where) from None
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"field 'tools' is {json_type(tools)}, not a list", where=where)
    return json.dumps(tools, ensure_ascii=False) if tools else ""


def _mapped(record: Record, columns: Mapping[str, str], where: str) -> Turns:
    for field in columns.values():
        if not isinstance(record.get(field), list):
            text_field(record, field, where)  # names the field as the file does
    fields = {key: record[field] for key, field in columns.items()}
    turns = prompt_completion(fields, where)
    return (Turn("system", text_field(fields, "system", where)), *turns) if fields.get("system") else turns


def _check_targets(turns: Turns, where: str) -> None:
    if not any(turn.supervised for turn in turns):
        raise UserError("no assistant turn to learn from", where=where)
    if any(
        turn.supervised and not turn.content.strip() and '"tool_calls"' not in turn.fields for turn in turns
    ):
        raise UserError("the completion is empty", where=where, hint="remove the row, or give it a text")


def _pair(prompt: str, completion: str) -> Turns:
    return (Turn("user", prompt), Turn("assistant", completion, True))


def _side(record: Record, side: str, where: str) -> Record:
    for key in ("prompt", *PAIR):
        if key not in record:
            what = f"is no pair: field '{key}' is missing"
            raise UserError(what, where=where, hint=f"has: {', '.join(map(str, record))}")
    if record["chosen"] == record["rejected"]:
        raise UserError("chosen and rejected are the same answer", where=where, hint="remove the pair")
    return {"prompt": record["prompt"], "completion": record[side]}


def _list_field(record: Record, key: str, where: str) -> list[Any]:
    if key not in record:
        raise UserError(f"field '{key}' is missing", where=where, hint=f"has: {', '.join(map(str, record))}")
    value = record[key]
    if not isinstance(value, list):
        raise UserError(f"field '{key}' is {json_type(value)}, not a list", where=where)
    if not value:
        raise UserError(f"field '{key}' is empty", where=where)
    return value


def _messages(items: list[Any], field: str, where: str) -> Turns:
    return read_messages(items, field, Place(where))


def _marks(record: Record, key: str, count: int, where: str) -> list[Any] | None:
    marks = record.get(key)
    if marks is None:
        return None
    if not isinstance(marks, list) or len(marks) != count:
        raise UserError(f"field '{key}' is not a list of {count} marks", where=where)
    return marks
