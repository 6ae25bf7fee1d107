"""The messages of a conversation become turns: OpenAI's keys (`role`, `content`) and ShareGPT's (`from`, `value`).

What else a message holds that a chat template may read (thinking, tool calls) goes into the turn's fields; a weight
decides whether the turn is a target. Whole records are left to `converters.py`.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from pydantic import PlainValidator, ValidationInfo

from rectune.data.fields import (
    JsonList,
    Names,
    Place,
    Refusal,
    Schema,
    Text,
    is_number,
    json_list,
    loss_weight,
    place_of,
    text,
    truth,
)
from rectune.data.readers import json_type
from rectune.data.schema import Turn
from rectune.errors import UserError, unknown_name

Turns = tuple[Turn, ...]

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "tool": "tool", "function": "tool",
    "ipython": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
"""Role of a speaker, by every name in use."""

CALLS = ("function_call", "tool_call")
"""Speakers whose words are a call, as JSON of `name` and `arguments`."""

_PLAIN = {name: name for name in ("system", "developer", "user", "assistant", "tool")}
"""The names that are offered where one is misspelt."""


def _each(names: str, hint: str, when: Callable[[object], bool] = lambda value: True) -> dict[str, Refusal]:
    """Several names that are refused alike."""
    return dict.fromkeys(names.split(), Refusal(hint, when))


def _is_verdict(value: object) -> bool:
    return truth(value) is not None


_LEAVE = "or leave it unread with --ignore-fields"
MEDIA = _each(
    "image images video videos audio audios image_url image_path",
    "only text is trained on and sampled; remove these rows",
)
IN_MESSAGE: Mapping[str, Refusal] = {
    **MEDIA,
    **_each(
        "mask masked train_detail training_detail",
        'say "train": true or false on each assistant message instead',
    ),
    **_each("tools functions", "give them as the row's field 'tools'"),
    **_each("refusal", "put its words into 'content'"),
    **_each("label", "give it as the row's field 'label'", _is_verdict),
}
"""Fields of a message that change its meaning and are read nowhere."""

PARTS_OF_QUESTION = {
    **_each(
        "contexts passages paragraph paragraphs story document",
        f"rename the field to 'context' where the question is about it, {_LEAVE}",
    ),
    **_each(
        "A option_a option_A optionA option_1 option1 opa choice_a choice_A choice_1 choice1 distractor1 distractors",
        f"give all choices in one field 'choices', {_LEAVE}",
    ),
}
"""Fields without which a question would be another one, by names that are not read."""

IN_RECORD: Mapping[str, Refusal] = {
    **MEDIA,
    **PARTS_OF_QUESTION,
    **_each(
        "weight loss_weight sample_weight",
        f"pairs have no weights; remove or repeat pairs, {_LEAVE}",
        lambda value: truth(value) is not True,
    ),
    **_each(
        "train training mask loss_mask",
        f"give the row a 'weight' of 0 or remove it, {_LEAVE}",
        lambda value: truth(value) is not True,
    ),
    **_each(
        "score rating reward", f"keep the rows with a good score and remove the field, {_LEAVE}", is_number
    ),
    **_each("tools functions", "remove it: nothing here could call a tool"),
    **_each("function_call tool_calls", "give it on an assistant message of 'messages'"),
    **_each("reasoning_content thinking reasoning", f"give it on the assistant's message, {_LEAVE}"),
    **_each(
        "thinking_trajectory thinking_trajectories chain_of_thought think think_content",
        f"rename the field to 'reasoning_content', {_LEAVE}",
    ),
    **_each(
        "system system_prompt system_message system_instruction", f"give it as the first message, {_LEAVE}"
    ),
    **_each("history", f"give it as messages, {_LEAVE}"),
    **_each("documents", f"put their texts into the question, {_LEAVE}"),
    **_each(
        "chat_template_kwargs enable_thinking",
        f"rows have no settings for the template; write them into one of your own, {_LEAVE}",
    ),
    **_each("context passage", f"put its text into the question, {_LEAVE}"),
    **_each("choices options", f"put them into the question, {_LEAVE}"),
    **_each("label", f"remove the rows of bad answers, then the field, {_LEAVE}", _is_verdict),
}
"""Fields of a whole record that change its meaning, for schemas that do not read them."""

_TEXTS = ("text", "input_text", "output_text")
_PARTS = {
    **dict.fromkeys(("thinking", "reasoning"), "give it as the message's reasoning_content"),
    **dict.fromkeys(("tool_use", "tool_call", "function_call"), "give it in the message's tool_calls"),
    "tool_result": "give it as a message of role tool",
}
"""What to do about parts of a content that are neither text nor media."""


def _content(value: object, info: ValidationInfo) -> str:
    """A text, or parts that all are text."""
    if not isinstance(value, list):
        return text(value, info)
    place, words = place_of(info), []
    for i, part in enumerate(value):
        kind = part.get("type", "text") if isinstance(part, Mapping) else f"a bare {json_type(part)}"
        if kind not in _TEXTS or not isinstance(part.get("text"), str):
            hint = _PARTS.get(str(kind), MEDIA["image"].hint)
            raise place.error(f"'{place.name(info)[1:-1]}[{i}]' is not text but {kind}", hint)
        words.append(part["text"])
    return "".join(words)


def _trained(value: object, info: ValidationInfo) -> float:
    place, trained = place_of(info), truth(value)
    if trained is None and place.name(info).endswith("weight'"):
        return loss_weight(value, info)
    if trained is None:
        what = f"field {place.name(info)} is {json.dumps(value, default=str)}; it must be true or false"
        raise place.error(what, "true, false, 1 or 0")
    return float(trained)


class Message(Schema):
    """One message."""

    refused = IN_MESSAGE

    role: Annotated[Text, Names("role", "from")]
    """Speaker."""
    content: Annotated[str | None, PlainValidator(_content), Names("content", "value")] = None
    """Text; may be missing in an assistant message with tool calls."""
    reasoning_content: Annotated[Text, Names("reasoning_content", "thinking", "reasoning")] = ""
    """Thinking, passed to the chat template separately."""
    tool_calls: JsonList = ()
    """Calls for the chat template; arguments become an object."""
    function_call: JsonList = ()
    """The older spelling of one call."""
    name: Text = ""
    """Name of the tool, or of the speaker; given to the chat template."""
    tool_call_id: Text = ""
    """Which call a tool answers; given to the chat template."""
    train: Annotated[
        float | None, PlainValidator(_trained),
        Names("train", "weight", "loss", "training", "train_on_turn", "trainable", "loss_weight", "loss_mask"),
    ] = None  # fmt: skip
    """Whether an assistant's message is a target: true, false, 1, 0; as `weight` or `loss_weight` also what the loss
    of its targets is multiplied with."""


def read_messages(items: list[Any], field: str, place: Place) -> tuple[Turn, ...]:
    """The turns of a list of messages; an assistant's is supervised unless the message says no.

    Raises:
        UserError: A message lacks its role or words, has a field that is not supported, or an unknown speaker.
    """
    each = place.inside(f"{field}[].")
    return tuple(
        _plain_turn(item, each) or read_message(item, place.inside(f"{field}[{i}]."))
        for i, item in enumerate(items)
    )


def read_message(item: object, place: Place) -> Turn:
    """One message as a turn; see `read_messages`."""
    here = place.path[:-1]
    if not isinstance(item, Mapping):
        raise place.error(f"field '{here}' is {json_type(item)}, not an object")
    message = Message.read(item, place)
    if message.role not in ROLES:
        kind = "role" if item.get("role") is not None else "speaker"
        raise unknown_name(kind, message.role, _PLAIN if kind == "role" else ROLES, where=place.where)
    role, content, calls = ROLES[message.role], message.content, _calls(message, place)
    if content is None and not calls:
        name = "value" if "from" in item and "content" not in item else "content"
        kind = "null" if name in item else "missing"
        raise place.error(f"field '{here}.{name}' is {kind}, not text")
    if message.role in CALLS:
        content = ""
    if role != "assistant" and message.train:
        what = f"'{here}' is marked as a target, but is not an assistant message"
        raise place.error(what, "only assistant messages are trained on")
    if role != "assistant" and calls:
        raise place.error(f"'{here}' has tool calls, but is not an assistant message")
    thinking = message.reasoning_content
    fields = {
        "reasoning_content": "" if _thought(thinking, content or "") else thinking,
        "tool_calls": calls,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    weight = 1.0 if message.train is None or role != "assistant" else message.train
    return Turn(role, content or "", role == "assistant" and weight > 0, dump(fields), weight or 1.0)


def _plain_turn(item: object, place: Place) -> Turn | None:
    """The turn of a message of a role and words alone, as most are; None for any other, which the schema reads.

    Nothing is different about it, but that it takes a tenth of the time.
    """
    if not isinstance(item, dict) or len(item) != 2:
        return None
    for speaker, words in (("role", "content"), ("from", "value")):
        role, content = item.get(speaker), item.get(words)
        if type(role) is str and type(content) is str and role in ROLES and role not in CALLS:
            place.mark(place.read, speaker)
            place.mark(place.read, words)
            return Turn(role := ROLES[role], content, role == "assistant")
    return None


def words_or_turns(value: object, info: ValidationInfo) -> str | Turns:
    """A text as it is, or messages, also as JSON text (of a CSV file)."""
    if isinstance(value, str) and value[:1].isalnum():
        return value
    place = place_of(info)
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        with suppress(ValueError, RecursionError):
            found = json.loads(value)
            if found and all(isinstance(m, Mapping) and m.keys() & {"role", "from"} for m in found):
                place.said.add(f"rows have messages as JSON text in {place.name(info)}; read as messages")
                value = found
    if not isinstance(value, list):
        return text(value, info)
    return read_messages(value, place.name(info)[1:-1], place)


def _tools(value: object, info: ValidationInfo) -> list[Any]:
    """Tools as chat templates take them; each may be JSON text, or the bare function."""
    place, tools = place_of(info), list[Any]()
    for tool in json_list(value, info):
        if isinstance(tool, str):
            with suppress(ValueError, RecursionError):
                tool = json.loads(tool)
        if not isinstance(tool, Mapping) or not tool:
            raise place.error(f"field {place.name(info)} contains a tool that is not an object")
        bare = "name" in tool and not tool.keys() & {"type", "function"}
        tools.append({"type": "function", "function": tool} if bare else tool)
    return tools


def _conversation(value: object, info: ValidationInfo) -> Turns:
    """Messages: a list, also as JSON text, or an object with a list for each key (a `Sequence` of `datasets`)."""
    columns = list(value.values()) if isinstance(value, Mapping) else []
    if columns and all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        value = [dict(zip(value, item, strict=True)) for item in zip(*columns, strict=True)]  # type: ignore[call-overload]
    place, items = place_of(info), json_list(value, info)
    if not items:
        raise place.error(f"field {place.name(info)} is empty")
    return read_messages(_spoken(items), place.name(info)[1:-1], place)


def _spoken(items: Sequence[Any]) -> list[Any]:
    """The messages of LIMA (texts in turn) and Capybara (objects of `input` and `output`); others are there already."""
    if len(items) > 1 and all(isinstance(item, str) for item in items):
        return [{"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(items)]
    if all(isinstance(item, Mapping) and item.keys() == {"input", "output"} for item in items):
        names = {"input": "user", "output": "assistant"}
        return [{"role": role, "content": item[name]} for item in items for name, role in names.items()]
    return list(items)


def _history(value: object, info: ValidationInfo) -> Turns:
    """Earlier turns: pairs of what was asked and answered, or messages."""
    place, turns = place_of(info), list[Turn]()
    for i, item in enumerate(json_list(value, info)):
        if isinstance(item, Mapping):
            turns.append(read_message(item, place.inside(f"history[{i}].")))
        elif isinstance(item, list) and len(item) == 2 and all(isinstance(words, str) for words in item):
            turns += [Turn("user", item[0]), Turn("assistant", item[1])]
        else:
            raise place.error(f"field 'history[{i}]' is neither a pair of texts nor a message")
    return unsupervised(turns)


def _context(value: object, info: ValidationInfo) -> str:
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "\n\n".join(value)
    return text(value, info)


def unsupervised(turns: Iterable[Turn]) -> Turns:
    return tuple(replace(turn, supervised=False, weight=1.0) for turn in turns)


System = Annotated[Text, Names("system", "system_prompt", "system_message", "system_instruction")]
Words = Annotated[str | tuple[Turn, ...], PlainValidator(words_or_turns)]
Tools = Annotated[Sequence[Any], PlainValidator(_tools), Names("tools", "functions")]
Conversation = Annotated[tuple[Turn, ...], PlainValidator(_conversation)]


class Question(Schema):
    """What any record with a question may have besides."""

    refused = IN_RECORD

    system: System = ""
    """System message."""
    history: Annotated[tuple[Turn, ...], PlainValidator(_history)] = ()
    """Earlier turns, as pairs of question and answer or as messages; not targets."""
    context: Annotated[str, PlainValidator(_context), Names("context", "passage", "article")] = ""
    """Text that the question is about; put above it, after a blank line."""

    def prompt_turns(self, prompt: str | Turns, where: str) -> Turns:
        """The conversation up to the answer; what `prompt` already holds is not put in front of it again.

        Raises:
            UserError: A context, a history or another system message beside a prompt that is messages.
        """
        if isinstance(prompt, str):
            words = (
                f"{self.context}\n\n{prompt}"
                if self.context and not _quoted(self.context, prompt)
                else prompt
            )
            turns: Turns = (*self.history, Turn("user", words))
        else:
            for name in ("context", "history"):
                if getattr(self, name):
                    what = f"field '{name}' cannot be added to a prompt that is messages"
                    raise UserError(what, where=where, hint="make it part of the messages")
            turns = unsupervised(prompt)
        return with_system(turns, self.system, where)


def _quoted(context: str, prompt: str) -> bool:
    """Whether a prompt has the context already: as lines of its own, or so much of it that it is no chance."""
    text = context.strip()
    return f"\n{text}\n" in f"\n{prompt}\n" or (len(text) >= 40 and text in prompt)


def with_system(turns: Turns, system: str, where: str) -> Turns:
    """The turns behind a system message; UserError where they begin with another one."""
    if not system:
        return turns
    if turns and turns[0].role in ("system", "developer"):
        if turns[0].content.strip() == system.strip():
            return turns
        raise UserError("the row has two different system messages", where=where, hint="keep one")
    return (Turn("system", system), *turns)


def answer_turn(content: str, reasoning: str) -> Turn:
    """A supervised answer with its thinking, unless the words already have it."""
    if not reasoning or _thought(reasoning, content):
        return Turn("assistant", content, True)
    return Turn("assistant", content, True, dump({"reasoning_content": reasoning}))


def _thought(thinking: str, content: str) -> bool:
    """Whether the words hold the thinking already, between marks of their own."""
    return re.search(r"<\|?[\w/]*(think|reason|thought)", content) is not None and thinking.strip() in content


def dump(fields: Mapping[str, Any]) -> str:
    """The fields that hold something, as JSON; "" for none."""
    kept = {name: value for name, value in fields.items() if value}
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def _calls(message: Message, place: Place) -> list[Any]:
    """The message's tool calls in OpenAI's form, each with its arguments as an object."""
    here = place.path[:-1]
    if message.tool_calls and message.function_call:
        raise place.error(f"'{here}' has both tool_calls and function_call", "keep one")
    found: Any = message.tool_calls or message.function_call
    if message.role in CALLS:
        try:
            found = json.loads(message.content or "")
        except (ValueError, RecursionError):
            found = None
        found = found if isinstance(found, list) else [found]
    return [_call(call, here, place.where) for call in found]


def _call(call: object, here: str, where: str) -> dict[str, object]:
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
                f"'{here}' calls {inner['name']} with arguments that are not JSON", where=where
            ) from None
    kept = {k: v for k, v in given.items() if k in ("id", "type")}
    return {
        "type": "function",
        **kept,
        "function": {"name": inner["name"], "arguments": {} if arguments is None else arguments},
    }


class Options(NamedTuple):
    """The choices of one question, with the label that each has in the record."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    def ask(self, question: str) -> str:
        """The question with its choices below it, a capital letter before each."""
        lines = (
            f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, self.texts, strict=False)
        )
        return "\n".join([question, "", *lines])

    def letter(self, index: int) -> str:
        return string.ascii_uppercase[index]


def _options(value: object, info: ValidationInfo) -> Options:
    place = place_of(info)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts, labels = value["text"], value.get("label") or value.get("labels")
    elif isinstance(value, Mapping):
        texts, labels = list(value.values()), list(value)
    else:
        texts, labels = list(json_list(value, info)), None
        if texts and all(isinstance(item, Mapping) for item in texts):
            labels = [item.get("label", item.get("key")) for item in texts]
            texts = [item.get("text", item.get("value")) for item in texts]
    labels = labels or list(string.ascii_uppercase[: len(texts)])
    if not 2 <= len(texts) <= 26 or len(labels) != len(texts):
        raise place.error(f"field {place.name(info)} does not hold 2 to 26 choices")
    for choice in texts:
        if isinstance(choice, bool) or not isinstance(choice, str | int | float):
            raise place.error(
                f"field {place.name(info)} holds a choice that is {json_type(choice)}, not text"
            )
    return Options(tuple(map(str, labels)), tuple(map(_unlettered, map(str, texts), string.ascii_uppercase)))


def _unlettered(text: str, letter: str) -> str:
    """A choice without its own letter in front, as in `A) 21`."""
    return re.sub(rf"^\(?{letter}[).:]\s*", "", text)


Choices = Annotated[Options, PlainValidator(_options)]


def right_choice(options: Options, answers: Mapping[str, Any], where: str) -> int | None:
    """The index of the right choice; None where the record leaves it open (a hidden test split).

    Args:
        options: The choices.
        answers: Field names and values that say which is right, for example `answer` and `answerKey`.

    Raises:
        UserError: No field says it, one names no choice or two of them, or two fields disagree.
    """
    found = {
        name: _index(options, value, name, where) for name, value in answers.items() if value is not None
    }
    indices = {index for index in found.values() if index is not None}
    if len(indices) > 1:
        raise UserError(f"{' and '.join(found)} name different choices", where=where)
    if not found:
        raise UserError("the right choice is missing", where=where, hint="expected answer or answerKey")
    return indices.pop() if indices else None


def _index(options: Options, value: object, name: str, where: str) -> int | None:
    if value in ("", -1, "-1"):
        return None
    texts = [text.strip() for text in options.texts]
    indices = set[int]()
    if is_number(value) and not isinstance(value, str):
        indices = {i for i in range(len(texts)) if i == value}
    elif isinstance(value, str):
        word = value.strip()
        label = re.fullmatch(r"\(?([A-Za-z]|\d+)\)?[.:]?", word)
        indices |= {i for i, text in enumerate(texts) if text == word}
        if label:
            named = {i for i, own in enumerate(options.labels) if own.strip() == label[1]}
            named |= {i for i, own in enumerate(options.labels) if own.strip() == label[1].upper()}
            if not named and label[1].isdecimal() and int(label[1]) < len(texts):
                named = {int(label[1])}
            indices |= named
        elif not indices:  # `B. Paris`
            indices = {i for i, text in enumerate(texts) if _unlettered(word, options.labels[i]) == text}
    if len(indices) != 1:
        several = "several choices" if indices else "none of the choices"
        raise UserError(f"field '{name}' ({str(value)[:40]}) is {several}", where=where)
    return indices.pop()
