"""What a message holds beside its words is carried to the chat template, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.config import DataConfig
from rectune.data.fields import Place
from rectune.data.loading import read_rows, row_at
from rectune.data.messages import read_messages
from rectune.data.schema import Turn
from rectune.errors import UserError

CALL = {"id": "1", "type": "function", "function": {"name": "sky", "arguments": '{"day": 1}'}}
CARRIED = {"id": "1", "type": "function", "function": {"name": "sky", "arguments": {"day": 1}}}
ANONYMOUS = {"type": "function", "function": CARRIED["function"]}


def one(message: dict[str, Any]) -> Turn:
    return read_messages([message], "messages", Place("f:1"))[0]


def said(**message: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "yo", **message}


@pytest.mark.parametrize(
    ("message", "content", "fields"),
    [
        (said(content=None, tool_calls=[CALL]), "", {"tool_calls": [CARRIED]}),
        (said(tool_calls=json.dumps([CALL])), "yo", {"tool_calls": [CARRIED]}),
        (said(function_call=CALL["function"]), "yo", {"tool_calls": [ANONYMOUS]}),
        ({"from": "function_call", "value": json.dumps(CALL["function"])}, "", {"tool_calls": [ANONYMOUS]}),
        (said(reasoning_content="since"), "yo", {"reasoning_content": "since"}),
        (said(thinking="y"), "yo", {"reasoning_content": "y"}),
        (said(thinking="since", reasoning=None), "yo", {"reasoning_content": "since"}),
        (said(reasoning="since", content="<think>since</think>yo"), "<think>since</think>yo", {}),
        ({"role": "tool", "content": "wet", "tool_call_id": "1", "name": "sky"}, "wet",
         {"name": "sky", "tool_call_id": "1"}),
        (said(content=[{"type": "text", "text": "y"}, {"type": "text", "text": "o"}]), "yo", {}),
        (said(tool_calls=None, function_call=None, images=[], name=None), "yo", {}),
    ],
)  # fmt: skip
def test_fields(message: dict[str, Any], content: str, fields: dict[str, Any]) -> None:
    turn = one(message)
    assert turn.content == content
    assert (json.loads(turn.fields) if turn.fields else {}) == fields


@pytest.mark.parametrize(
    "name", ["train", "weight", "loss", "training", "train_on_turn", "trainable", "loss_mask"]
)
@pytest.mark.parametrize(("value", "trained"), [
    (False, False), (0, False), (0.0, False), ("false", False), ("0", False), ("False", False),
    (True, True), (1, True), (1.0, True), ("true", True), (None, True),
])  # fmt: skip
def test_weights(name: str, value: object, trained: bool) -> None:
    turn = one(said(**{name: value}))
    assert (turn.supervised, turn.weight) == (trained, 1)


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("gpt", "assistant"), ("observation", "tool"), ("system", "system")],
)
def test_speakers(speaker: str, role: str) -> None:
    assert one({"from": speaker, "value": "x"}).role == role
    assert one({"role": speaker, "content": "x"}).role == role


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (said(weight=-0.5), r"field 'messages\[0\].weight' is -0.5; a weight is a number from 0 to 1e\+30"),
        (said(loss=0.5), r"field 'messages\[0\].loss' is 0.5; it must be true or false"),
        (said(train="maybe"), "must be true or false"),
        (said(weight=1, train=False), r"'messages\[0\].weight' and 'messages\[0\].train' differ"),
        (said(mask=1), r"field 'messages\[0\].mask' is not supported; say \"train\""),
        ({"role": "user", "content": "hi", "train": True}, "is not an assistant message"),
        (
            {"role": "user", "content": "hi", "tool_calls": [CALL]},
            "has tool calls, but is not an assistant message",
        ),
        (said(content=None), r"field 'messages\[0\].content' is null, not text"),
        ({"from": "gpt"}, r"field 'messages\[0\].value' is missing, not text"),
        ({"content": "hi"}, r"field 'messages\[0\].role' is missing; has: content"),
        (said(tool_calls=[CALL], function_call=CALL["function"]), "both tool_calls and function_call"),
        (
            said(tool_calls=[{"function": {"name": "sky", "arguments": "{day"}}]),
            "arguments that are not JSON",
        ),
        ({"from": "function_call", "value": "{}"}, "a tool call without a name"),
        (
            said(content=[{"type": "image", "image": "a.png"}]),
            r"'messages\[0\].content\[0\]' is not text but image",
        ),
        (said(content=["a"]), r"'messages\[0\].content\[0\]' is not text but a bare text; only text"),
        (
            said(content=[{"type": "thinking", "thinking": "a"}]),
            "not text but thinking; .* reasoning_content",
        ),
        (said(content=[{"type": "tool_use", "name": "f"}]), "not text but tool_use; .* tool_calls"),
        (said(images=["a.png"]), r"'messages\[0\].images' is not supported"),
        (said(audio={"id": "a"}), r"'messages\[0\].audio' is not supported"),
        (said(refusal="no"), "refusal"),
        (said(reasoning=["since"]), r"'messages\[0\].reasoning' is list, not text"),
    ],
)
def test_what_is_refused(message: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=f"^f:1: .*{line}"):
        one(message)


def test_what_is_not_read_is_noted() -> None:
    place = Place("f:1")
    read_messages([said(id=7), said(id=8, name="b")], "messages", place)
    assert place.ignored == {"messages[].id"}
    assert place.read == {"messages[].role", "messages[].content", "messages[].name"}


def test_the_file_on_disk_carries_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    tools = [{"type": "function", "function": {"name": "sky"}}]
    record = {"messages": [{"role": "user", "content": "hi"}, said(content=None, tool_calls=[CALL])]}
    other = {"messages": [{"role": "user", "content": "hi"}, said()], "tools": json.dumps(tools)}
    path.write_text("".join(json.dumps(r) + "\n" for r in ({**record, "tools": tools}, other)))
    dataset = read_rows(str(path), options=DataConfig(), cache_dir=tmp_path / "cache")
    assert json.loads(row_at(dataset, 0).turns[1].fields) == {"tool_calls": [CARRIED]}
    assert json.loads(row_at(dataset, 0).tools) == json.loads(row_at(dataset, 1).tools) == tools
