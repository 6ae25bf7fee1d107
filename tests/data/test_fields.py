"""No format drops a field: whatever a record holds is honoured, refused with its place, or noted as unread."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectune.data.converters import FORMATS, ProblemRecord, detect_format, to_row
from rectune.data.fields import Notes, Place, holds, is_number, truth
from rectune.data.messages import IN_MESSAGE, IN_RECORD, Message
from rectune.data.schema import Problem, Row
from rectune.errors import UserError

ROOT = Path(__file__).parents[2]
SAID = {"role": "assistant", "content": "yo"}
CHAT = [{"role": "user", "content": "hi"}, SAID]
BASE: dict[str, dict[str, Any]] = {
    "openr1": {"problem": "hi", "generations": ["no", "yo"], "correctness_llama": [False, True]},
    "openr1_judged": {"problem": "hi", "generations": ["no", "yo"], "correctness_llama": [False, True]},
    "numina": {"problem": "hi", "solution": "yo"},
    "sharegpt": {"conversations": CHAT},
    "messages": {"messages": CHAT},
    "prompt_completion": {"prompt": "hi", "completion": "yo"},
    "alpaca": {"instruction": "hi", "output": "yo"},
    "multiple_choice": {"question": "hi", "choices": ["no", "yo"], "answer": 1},
    "reading_comprehension": {"question": "hi", "answers": {"text": ["yo"]}},
    "gsm8k": {"question": "hi", "answer": "<<1+1=2>>2\n#### 2"},
    "question_answer": {"question": "hi", "answer": "yo"},
    "query_response": {"query": "hi", "response": "yo"},
    "chosen": {"prompt": "hi", "chosen": "yo", "rejected": "no"},
    "rejected": {"prompt": "hi", "chosen": "no", "rejected": "yo"},
    "problems": {"question": "hi", "answer": "yo"},
}
KNOWN = sorted(
    {name for schema in (*FORMATS.values(), ProblemRecord) for name in schema.names()}
    | IN_RECORD.keys()
    | {"x"}
)
WORDS = st.text("abc ", min_size=1, max_size=8)
CALL = st.builds(lambda name: {"name": name, "arguments": {}}, WORDS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(-2, 5) | WORDS | st.just(""),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
USUAL = st.sampled_from([CHAT, [["u", "v"]], ["a", "b"], {"text": ["a"]}, [True, False]])
VALUES = st.one_of(WORDS, WORDS, st.integers(-2, 5), JSON, USUAL, CALL, st.lists(CALL))


def test_every_format_has_a_base() -> None:
    assert set(BASE) == {*FORMATS, "problems"}
    for name in FORMATS:
        assert made(name, BASE[name], Notes()) is not None
        if name not in ("chosen", "rejected", "openr1_judged"):
            assert detect_format([BASE[name]], "f") == name


def made(format: str, record: dict[str, Any], notes: Notes) -> Row | Problem | None:
    if format != "problems":
        return to_row(record, "f:1", format, notes=notes)
    place = Place("f:1")
    problem = ProblemRecord.read(record, place).problem("1", record, place)
    notes.add(place)
    return problem


def tried(format: str, record: dict[str, Any], notes: Notes) -> Row | Problem | UserError | None:
    try:
        return made(format, record, notes)
    except UserError as error:
        return error


def leaves(value: object) -> Iterator[str]:
    """Every text in a value, objects in JSON text included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str):
        yield value
        if value[:1] in "[{" and value[:1]:
            yield from leaves(json.loads(value))
    else:
        yield json.dumps(value)


MARKS = {"label", "kto_tag", "is_reasoning_complete", "correctness_math_verify", "correctness_llama", "answerKey",
         "answer_key", "answer_idx", "answer_index", "correct", "correct_answer"}  # fmt: skip
"""Fields that decide, and are not themselves written anywhere."""


@pytest.mark.parametrize("format", BASE)
def test_no_field_is_dropped(format: str) -> None:
    for name in KNOWN:
        for value in ("zebra", ["zebra"], [["zebra", "gnu"]], 0.5, True, False, {"name": "zebra"}):
            check_field(format, name, value)


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(sorted(BASE)), st.sampled_from(KNOWN), VALUES)
def test_no_field_is_dropped_whatever_it_holds(format: str, name: str, value: object) -> None:
    check_field(format, name, value)


def check_field(format: str, name: str, value: object) -> None:
    """A record with one more field: it is in the row, refused, or noted; the row without it is the base's."""
    if name in BASE[format]:
        return
    record, notes = {**BASE[format], name: value}, Notes()
    row = tried(format, record, notes)
    if isinstance(row, UserError):
        assert str(row).startswith("f:1: ")
        return
    if not holds(value):
        assert row is not None
        return
    assert (name in notes.read) != (name in notes.ignored), "neither read nor noted"
    if name in notes.ignored:
        assert row == made(format, BASE[format], Notes())
    elif row is None:
        assert notes.said, "left out without a word"
    elif name not in MARKS and not (name == "source" and not isinstance(value, str)):
        written = " ".join(leaves(asdict(row)))
        assert all(
            text.strip() in written for text in leaves(value) if text not in ("role", "content", "text")
        )


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(sorted({*Message.names(), *IN_MESSAGE, "x"} - {"role", "from", "content", "value"})),
    VALUES,
)
def test_no_field_of_a_message_is_dropped(name: str, value: object) -> None:
    notes = Notes()
    row = tried("messages", {"messages": [*CHAT, CHAT[0], {**SAID, name: value}]}, notes)
    if isinstance(row, UserError):
        assert str(row).startswith("f:1: ")
        assert "messages[3]" in str(row)
        return
    assert isinstance(row, Row)
    field = f"messages[].{name}"
    if holds(value):
        assert (field in notes.read) != (field in notes.ignored)
    if field in notes.ignored:
        assert row.turns[3] == row.turns[1]
    elif holds(value) and Message.names()[name] == "train":
        number = float(value) if is_number(value) else truth(value)
        assert number is not None
        assert row.turns[3].supervised is (number > 0)
        assert row.turns[3].weight == (float(number) or 1)
    elif holds(value) and not isinstance(value, bool | int | float):
        written = " ".join(leaves(asdict(row)))
        assert all(text.strip() in written for text in leaves(value))


def test_the_documented_fields_are_these() -> None:
    spec = importlib.util.spec_from_file_location("data_docs", ROOT / "scripts" / "make_data_docs.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.written() == script.PAGE.read_text("utf-8"), "run python scripts/make_data_docs.py"


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_field_is_in_the_table(name: str) -> None:
    assert name == "x" or f"`{name}`" in (ROOT / "docs" / "data.md").read_text("utf-8")
