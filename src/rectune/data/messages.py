"""The messages of a conversation become turns: OpenAI's keys (`role`, `content`) and ShareGPT's (`from`, `value`).

What else a message holds that a chat template may read (thinking, tool calls) goes into the turn's fields; a weight
decides whether the turn is a target. Whole records are left to `formats.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo

from rectune.data.jsonl import json_type
from rectune.data.rows import Turn
from rectune.data.schema import JsonList, Names, Place, Schema, Text, place_of, text, truth
from rectune.errors import UserError, unknown_name

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "tool": "tool", "function": "tool",
    "ipython": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
"""Who speaks, by every name in use."""

CALLS = ("function_call", "tool_call")
"""Speakers whose words are a call, as JSON of `name` and `arguments`."""

_PLAIN = {name: name for name in ("system", "developer", "user", "assistant", "tool")}
"""The names that are offered where one is misspelt."""

MEDIA = "only text is trained on; remove these rows"
_UNCLEAR = 'say "train": true or false on each assistant message instead'
REFUSED = {
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios", "image_url"), MEDIA),
    **dict.fromkeys(("mask", "masked", "loss_mask", "train_detail", "training_detail"), _UNCLEAR),
    **dict.fromkeys(("tools", "functions"), "give them as the row's field 'tools'"),
    "refusal": "put its words into 'content'",
    "label": "give it as the row's field 'label'",
}
"""Fields that change what a message means and that are read nowhere, and what to do about each."""


def _content(value: object, info: ValidationInfo) -> str:
    """A text, or parts that all are text."""
    if not isinstance(value, list):
        return text(value, info)
    place, words = place_of(info), []
    for i, part in enumerate(value):
        kind = part.get("type", "text") if isinstance(part, Mapping) else json_type(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            name = place.name(info)[1:-1]
            raise UserError(f"'{name}[{i}]' is no text but {kind}", where=place.where, hint=MEDIA)
        words.append(part["text"])
    return "".join(words)


def _trained(value: object, info: ValidationInfo) -> bool:
    place, trained = place_of(info), truth(value)
    if trained is None:
        what = f"field {place.name(info)} is {json.dumps(value, default=str)}: a turn is trained on or not"
        raise UserError(what, where=place.where, hint="true, false, 1 or 0")
    return trained


class Message(Schema):
    """One message."""

    role: Annotated[Text, Names("role", "from")]
    """Who speaks."""
    content: Annotated[str | None, PlainValidator(_content), Names("content", "value")] = None
    """The words; may be missing in an assistant's message with tool calls."""
    reasoning_content: Annotated[Text, Names("reasoning_content", "thinking", "reasoning")] = ""
    """Thinking, given to the chat template apart from the words."""
    tool_calls: JsonList = ()
    """Calls, given to the chat template; arguments become an object."""
    function_call: JsonList = ()
    """The older spelling of one call."""
    name: Text = ""
    """Name of the tool, or of the speaker; given to the chat template."""
    tool_call_id: Text = ""
    """Which call a tool answers; given to the chat template."""
    train: Annotated[
        bool | None, PlainValidator(_trained),
        Names("train", "weight", "loss", "training", "train_on_turn", "trainable", "loss_weight"),
    ] = None  # fmt: skip
    """Whether an assistant's message is a target: true, false, 1, 0."""


def read_messages(items: list[Any], field: str, place: Place) -> tuple[Turn, ...]:
    """The turns of a list of messages; an assistant's is supervised unless the message says no.

    Raises:
        UserError: A message lacks its role or words, has a field that cannot be honoured, or an unknown speaker.
    """
    return tuple(read_message(item, replace(place, path=f"{field}[{i}].")) for i, item in enumerate(items))


def read_message(item: object, place: Place) -> Turn:
    """One message as a turn; see `read_messages`."""
    here = place.path[:-1]
    if not isinstance(item, Mapping):
        raise UserError(f"field '{here}' is {json_type(item)}, not an object", where=place.where)
    message = Message.read(item, place, REFUSED)
    if message.role not in ROLES:
        kind = "role" if item.get("role") is not None else "speaker"
        raise unknown_name(kind, message.role, _PLAIN if kind == "role" else ROLES, where=place.where)
    role, content, calls = ROLES[message.role], message.content, _calls(message, place)
    if content is None and not calls:
        name = "value" if "from" in item and "content" not in item else "content"
        kind = "null" if name in item else "missing"
        raise UserError(f"field '{here}.{name}' is {kind}, not text", where=place.where)
    if message.role in CALLS:
        content = ""
    if role != "assistant" and message.train:
        what = f"'{here}' is to be trained on, but is no assistant's message"
        raise UserError(what, where=place.where, hint="only assistant messages are trained on")
    if role != "assistant" and calls:
        raise UserError(f"'{here}' has tool calls, but is no assistant's message", where=place.where)
    thinking = message.reasoning_content
    fields = {
        "reasoning_content": "" if thinking.strip() and thinking.strip() in (content or "") else thinking,
        "tool_calls": calls,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    return Turn(role, content or "", role == "assistant" and message.train is not False, dump(fields))


def dump(fields: Mapping[str, Any]) -> str:
    """The fields that hold something, as JSON; "" for none."""
    kept = {name: value for name, value in fields.items() if value}
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def _calls(message: Message, place: Place) -> list[Any]:
    """The message's tool calls in OpenAI's form, each with its arguments as an object."""
    here = place.path[:-1]
    if message.tool_calls and message.function_call:
        raise UserError(f"'{here}' has both tool_calls and function_call", where=place.where, hint="keep one")
    found: Any = message.tool_calls or message.function_call
    if message.role in CALLS:
        try:
            found = json.loads(message.content or "")
        except (ValueError, RecursionError):
            found = None
        found = found if isinstance(found, list) else [found]
    return [_call(call, here, place.where) for call in found]


def _call(call: object, here: str, where: str) -> dict[str, Any]:
    given = call if isinstance(call, Mapping) else {}
    inner = given.get("function", given)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise UserError(
            f"'{here}' has a tool call without a name", where=where, hint='{"name": ..., "arguments": ...}'
        )
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise UserError(
                f"'{here}' calls {inner['name']} with arguments that are no JSON", where=where
            ) from None
    kept = {k: v for k, v in given.items() if k in ("id", "type")}
    return {
        "type": "function",
        **kept,
        "function": {"name": inner["name"], "arguments": {} if arguments is None else arguments},
    }
