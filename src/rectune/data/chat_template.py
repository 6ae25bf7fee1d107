"""Conversations become text: the tokenizer's chat template, a plain one, a file of one's own, or none.

Splits the text where it matters for training: what stands before a supervised turn (exactly what generation
will see there) and what the model has to write, up to and including the token that ends its turn. Control
tokens that stand in contents as text are marked; token ids are left to `tokenization.py`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rectune.data.schema import Row, Turn
from rectune.errors import UserError

log = logging.getLogger("rectune")

START, END = "\ufdd0", "\ufdd1"
"""Stand around a control token that is text; Unicode keeps these two out of all texts."""

_ENDS = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|end_of_turn|return)\|>|<end_of_turn>|</s>|<eos>"
    "|<｜end▁of▁sentence｜>"
)  # which of a tokenizer's special tokens end a text or turn, besides its eos
_THINKING = re.compile("think|thought|reason", re.IGNORECASE)


@dataclass(frozen=True)
class Marks:
    """What a tokenizer and a template make of tokens in texts.

    Attributes:
        bos: The tokenizer's beginning-of-text token; "" for none.
        ends: Tokens that end a turn or a text.
        control: Tokens that are text in a content, the longest first: special ones, and those that the template
            writes, but marks of thinking. None for template none, whose texts are read as they are.
    """

    bos: str
    ends: tuple[str, ...]
    control: tuple[str, ...]

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str], written: Sequence[str] | None
    ) -> Marks:
        """Those of a template with these `ends`, which writes these tokens; None for template none."""
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        bos = str(tokenizer.bos_token or "")
        if written is None:
            return cls(bos, tuple(ends), ())
        control = {*special, *map(str, tokenizer.all_special_tokens), *written}
        kept = (token for token in control if token.strip() and not _THINKING.search(token))
        longest_first = sorted(kept, key=lambda token: (-len(token), token))
        every_end = dict.fromkeys([*ends, *filter(_ENDS.fullmatch, sorted(special))])
        return cls(bos, tuple(every_end), tuple(longest_first))

    def without_start(self, text: str) -> str:
        """The text without the beginning-of-text token at its start; `<s>` that is closed later is HTML."""
        if not self.bos or not text.startswith(self.bos) or self.bos.replace("<", "</", 1) in text:
            return text
        return self.without_start(text.removeprefix(self.bos))

    def without_end(self, text: str) -> tuple[str, str]:
        """The text without the tokens that end it, and the first of them; `</s>` that closes an `<s>` is HTML."""
        bare, first = text.rstrip(), ""
        while end := next((end for end in self.ends if bare.endswith(end) and not _is_html(end, bare)), ""):
            text, first = bare.removesuffix(end), end
            bare = text.rstrip()
        return text, first

    def found(self, text: str) -> list[str]:
        """The control tokens in a text."""
        pattern = _any_of(self.control)
        return pattern.findall(text) if pattern else []

    def marked(self, value: Any, where: str) -> Any:
        """`value` with the control tokens in its texts marked, also in lists and values of dicts.

        Raises:
            UserError: A text holds one of the marks.
        """
        if isinstance(value, dict):
            return {key: self.marked(inner, where) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.marked(inner, where) for inner in value]
        if not isinstance(value, str):
            return value
        if START in value or END in value:
            raise UserError("the text contains U+FDD0 or U+FDD1, which are not characters", where=where)
        pattern = _any_of(self.control)
        return pattern.sub(rf"{START}\g<0>{END}", value) if pattern else value


@lru_cache
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def _is_html(end: str, text: str) -> bool:
    """Whether a token such as `</s>` closes an element that the text opened."""
    return end.startswith("</") and text.count(end.replace("/", "", 1)) >= text.count(end)


PLAIN = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ 'Assistant: ' + message.content + eos_token + '\\n\\n' }}
{%- elif message.role == 'user' %}{{ 'User: ' + message.content + '\\n\\n' }}
{%- elif message.role == 'tool' %}{{ raise_exception('it has no place for tool turns') }}
{%- else %}{{ message.content + '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
"""For tokenizers without a chat template: `User: ...`, a blank line, `Assistant: ...` and the eos token."""

BARE = """\
{%- for message in messages %}{{ message.content }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"""
"""Template none, as far as a chat template can say it: what a saved tokenizer gets."""

_ASK = """\
{%- if messages[-1].role == 'assistant' %}
{%- set answer, messages, add_generation_prompt = messages[-1].content, messages[:-1], true %}
{%- endif %}"""
_ANSWER = "{%- if answer is defined %}{{ answer + eos_token }}{% endif %}"
"""Around a chat template: the last answer stands behind the generation prompt and ends with the eos token."""

REFUSALS = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
)  # fmt: skip
"""What a template raises over a conversation that it does not take; the last six by an expression."""

_PROBE = "probe"
_CLOCK = "strftime_now"  # what transformers gives a template to read the clock with
_FIXED = re.compile(r"\{#- the clock stands at (\d{4}-\d\d-\d\d) -#\}.*\n")
_DIRECTIVES = ("-d", "-m", "-j", *"aAbBdmyYjuwUWGVHIMSpZz")


@dataclass(frozen=True)
class Template:
    """How a conversation is written.

    Attributes:
        text: Jinja text as chat templates have it; None for prompt and completion exactly as they are.
        closing: What ends an assistant's turn, such as `<|im_end|>`; its last token is the turn end.
        trailer: What the template writes behind `closing`, such as a line end; never a target.
        name: For messages: "the tokenizer's chat template", "the plain template", a file.
        bos: What is put in front because the tokenizer would; "" where the template's text decides.
        ends: Tokens that end a turn, in a text that brings its own.
        written: Added tokens that the template writes around contents.
        today: Whether the date in it is the day's, not one that was kept.
    """

    text: str | None
    closing: str
    trailer: str
    name: str
    bos: str = ""
    ends: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    today: bool = False

    def marks(self, tokenizer: PreTrainedTokenizerBase) -> Marks:
        """What this template and a tokenizer make of tokens in texts."""
        return Marks.of(tokenizer, self.ends, None if self.text is None else self.written)

    def kept(self) -> str:
        """The template as one text that writes the same, the day included; template none as far as one can say it."""
        text = BARE if self.text is None else self.text
        return "{{- bos_token }}" * bool(self.bos) + text

    def saved(self) -> str:
        """The template as a saved tokenizer has it: as `kept`, but it reads the clock."""
        return without_date(self.kept())


@dataclass(frozen=True)
class Piece:
    """An assistant's turn: the text since the one before, and what the model has to write."""

    before: str
    target: str
    supervised: bool
    weight: float = 1.0


def choose_template(name: str | Template, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template for `chat_template`: auto, eos, none, the name of one of the tokenizer's, or a Jinja file.

    A template that reads the clock writes the day of this call from then on. One that was chosen before stays.

    Raises:
        UserError: No such file, a template that is no Jinja or ends turns without a token for it, several templates
            of which none is the default, or a tokenizer without an eos token where that has to end the turn.
    """
    if isinstance(name, Template):
        return name
    if name == "none":
        eos = _eos(tokenizer)
        ends = (eos, *_turn_ends(tokenizer))
        return Template(None, eos, "", "template none", _bos(tokenizer), ends)
    by_eos = name == "eos" and not (isinstance(known := tokenizer.chat_template, dict) and name in known)
    text, label = _named_text("auto" if by_eos else name, tokenizer)
    if text is None:
        _eos(tokenizer)
        return _probed(Template(PLAIN, "", "", "the plain template", _bos(tokenizer)), tokenizer)
    if by_eos:
        text, label = f"{_ASK}{text}{_ANSWER}", f"{label}, answers ended by eos"
    today = reads_clock(text)
    found = _probed(Template(fixed(text) if today else text, "", "", label, today=today), tokenizer)
    if by_eos:
        found = replace(found, ends=tuple(dict.fromkeys((*found.ends, *_turn_ends(tokenizer)))))
    return found


def _named_text(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, str]:
    """The template of that name, None where the tokenizer has none at all, and what it is called in messages."""
    known = tokenizer.chat_template
    named = known if isinstance(known, dict) else {}
    if name in named:
        text, label = named[name], f"the tokenizer's chat template '{name}'"
    elif name != "auto":
        text, label = _read(name, named), f"the template {name}"
    elif named and "default" not in named:
        raise UserError(
            f"the tokenizer has several chat templates and none is the default: {', '.join(sorted(named))}",
            where="chat_template",
            hint="choose one by its name, as in --chat-template " + min(named),
        )
    else:
        text, label = named.get("default", known), "the tokenizer's chat template"
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{label} is not text", where="chat_template", hint="give one with --chat-template FILE"
        )
    return text, label


def _read(name: str, named: dict[str, str]) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError, ValueError) as error:
        also = f", or one of the tokenizer's: {', '.join(sorted(named))}" if named else ""
        raise UserError(
            f"the template cannot be read ({error})", where=name[:200], hint=f"or use auto or none{also}"
        ) from None


def reads_clock(text: str) -> bool:
    """Whether a template writes the day on which it runs."""
    return _CLOCK in text and not _FIXED.match(text)


def template_date(name: str) -> str | None:
    """The day that a template file writes, as 2026-11-30; None where it reads no clock, or is no file."""
    try:
        found = _FIXED.match(Path(name).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found[1] if found else None


def without_date(text: str) -> str:
    """A template with its clock running again."""
    return _FIXED.sub("", text, count=1)


def fixed(text: str, day: date | None = None) -> str:
    """A template that reads the clock, with the clock standing at `day`, today where that is None."""
    day = day or date.today()
    filters = "".join(f" | replace('%{d}', '{day.strftime('%' + d)}')" for d in _DIRECTIVES)
    long = {"F": "%Y-%m-%d", "D": "%m/%d/%y", "e": "%-d", "T": "%H:%M:%S", "x": "%m/%d/%y", "R": "%H:%M"}
    wide = "".join(f" | replace('%{d}', '{text}')" for d, text in long.items())
    macro = f"{{%- macro {_CLOCK}(format) %}}{{{{ format{wide}{filters} }}}}{{% endmacro %}}"
    return f"{{#- the clock stands at {day.isoformat()} -#}}{macro}\n{text}"


def _turn_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What ends a turn in the tokenizer's chat template; nothing where that cannot be used."""
    try:
        return choose_template("auto", tokenizer).ends
    except UserError:
        return ()


def check_template(name: str) -> None:
    """Raise `UserError` for a path without a file, before there is a tokenizer."""
    path = Path(name).expanduser()
    if (path.suffix or len(path.parts) > 1) and not path.is_file():
        raise UserError("no such template", where=name, hint="or use auto or none")


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no eos token to end a turn with", where="model")
    return str(tokenizer.eos_token)


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-text token where the tokenizer puts one in front of a text by itself."""
    ids = tokenizer(_PROBE).input_ids
    return str(tokenizer.bos_token) if ids[0] == tokenizer.bos_token_id else ""


def _probed(template: Template, tokenizer: PreTrainedTokenizerBase) -> Template:
    """`template` with its closing, its trailer and the tokens that it writes, found out by example."""
    turns = (Turn("user", _PROBE), Turn("assistant", _PROBE))
    writer = Writer(template, tokenizer)
    tail = _behind_probe(writer.text(turns, "chat_template"), template)
    tokens = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    any_token = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    found = any_token.search(tail)
    if found is None:
        raise UserError(
            f"{template.name} ends the assistant's turn without a token of its own",
            where="chat_template",
            hint="let it write {{ eos_token }} after the assistant's content",
        )
    prompt = writer.text(turns[:1], "chat_template", generation=True)
    written = sorted(token for token in {found[0], *any_token.findall(prompt)} if token.strip())
    ends = [found[0]] if tokenizer.eos_token is None else [found[0], str(tokenizer.eos_token)]
    return replace(
        template,
        closing=tail[: found.end()],
        trailer=tail[found.end() :],
        ends=tuple(dict.fromkeys(ends)),
        written=tuple(written),
    )


def _behind_probe(text: str, template: Template) -> str:
    if _PROBE not in text:
        raise UserError(
            f"{template.name} does not write contents that are plain text",
            where="chat_template",
            hint="it may be for contents in parts (images); give another with --chat-template FILE",
        )
    return text.rpartition(_PROBE)[2]


Message = dict[str, Any]


@dataclass(frozen=True)
class _Conversation:
    """What a template is given; control tokens in its texts are marked. `where` is for messages to the user."""

    messages: list[Message]
    tools: list[Any] | None
    where: str

    def first(self, count: int) -> _Conversation:
        """The first `count` messages."""
        return replace(self, messages=self.messages[:count])

    def with_message(self, index: int, message: Message) -> _Conversation:
        return replace(self, messages=[*self.messages[:index], message, *self.messages[index + 1 :]])


class Writer:
    """Writes the conversations of one template for one tokenizer, whose special tokens stay as they are meanwhile.

    Tokens that stand in contents are marked in what it writes, see `Marks`.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.marks = template.marks(tokenizer)
        self._closing = re.compile(f"(?<!{START}){re.escape(template.closing)}")

    def text(self, turns: Sequence[Turn], where: str, *, tools: str = "", generation: bool = False) -> str:
        """The conversation as one text; with `generation`, ready for the assistant to write.

        Raises:
            UserError: The template refuses the conversation, for example a system message.
        """
        return self._text(self._conversation(turns, tools, where), generation)

    def _conversation(self, turns: Sequence[Turn], tools: str, where: str) -> _Conversation:
        messages = [self._message(turn, where, first=i == 0) for i, turn in enumerate(turns)]
        marked = self.marks.marked(json.loads(tools), "tools") if tools else None
        return _Conversation(messages, marked or None, where)

    def _message(self, turn: Turn, where: str, *, first: bool) -> Message:
        content, end = turn.content, ""
        if first and self.template.text is not None:
            content = self.marks.without_start(content)
        if turn.role == "assistant":
            content, end = self.marks.without_end(content)
        if turn.supervised and end and not content.strip() and not turn.fields:
            raise UserError(f"an answer contains only {end}", where=where, hint="remove the row")
        fields: Message = json.loads(turn.fields) if turn.fields else {}
        for call in fields.get("tool_calls") or ():
            function = call.get("function", call)
            if isinstance(function.get("arguments"), str):
                with suppress(ValueError):  # else the template has to take it as it is
                    function["arguments"] = json.loads(function["arguments"])
        if "reasoning_content" in fields:
            fields["thinking"] = fields["reasoning_content"]  # its name in gpt-oss's template
        marked: Message = self.marks.marked({"role": turn.role, "content": content, **fields}, where)
        return marked if self.template.text is not None else {**marked, "end": end}

    def _text(self, conversation: _Conversation, generation: bool) -> str:
        if not conversation.messages:
            hint = "put a user turn before it"
            raise UserError(
                "the conversation begins with the assistant's turn", where=conversation.where, hint=hint
            )
        write = self._bare if self.template.text is None else self._rendered
        text = write(conversation, generation)
        return text if text.startswith(self.template.bos) else self.template.bos + text

    def _bare(self, conversation: _Conversation, generation: bool) -> str:
        prompt, *answer = conversation.messages
        if [message["role"] for message in conversation.messages] != ["user", "assistant"][: 2 - generation]:
            raise UserError(
                "template none takes one prompt and one completion, not a conversation",
                where=conversation.where,
                hint="leave system_prompt unset, or use another template",
            )
        return str(prompt["content"]) + "".join(
            m["content"] + (m["end"] or self.template.closing) for m in answer
        )

    def _rendered(self, conversation: _Conversation, generation: bool) -> str:
        def run(messages: list[Message]) -> str:
            text = self.tokenizer.apply_chat_template(
                messages, tools=conversation.tools, tokenize=False,
                add_generation_prompt=generation, chat_template=self.template.text,
            )  # fmt: skip
            return str(text)

        try:
            try:
                return run(conversation.messages)
            except TypeError:  # some, such as DeepSeek's, take arguments of a call as text
                return run([_with_text_arguments(message) for message in conversation.messages])
        except TemplateSyntaxError as error:
            what = f"{self.template.name} is not a Jinja template (line {error.lineno}: {error.message})"
            hint = "fix it, or give another with --chat-template FILE"
            raise UserError(what, where="chat_template", hint=hint) from None
        except REFUSALS as error:
            what = f"{self.template.name} refuses this conversation ({error})"
            hint = "change the row, or give your own template with --chat-template FILE"
            raise UserError(what, where=conversation.where, hint=hint) from None

    def prompt(self, turns: Sequence[Turn], where: str, *, tools: str = "") -> tuple[list[Piece], str]:
        """The assistant's turns in a prompt, and the text behind them up to where the next one begins.

        A turn that is not supervised and that the template rewrites (earlier thinking is often dropped) is no
        piece: it is part of the text.

        Raises:
            UserError: The template refuses the conversation, drops a part of it, or rewrites a supervised turn.
        """
        return self._prompt(turns, self._conversation(turns, tools, where))

    def _prompt(self, turns: Sequence[Turn], conversation: _Conversation) -> tuple[list[Piece], str]:
        text = self._text(conversation, True)
        self._check_context(text, conversation)
        pieces, done = list[Piece](), 0
        for i, turn in enumerate(turns):
            if turn.role != "assistant" or (i == 0 and not turn.supervised):
                continue
            before = self._text(conversation.first(i), True)
            end = self._turn_end(text, before, conversation.first(i + 1))
            if end is not None:
                target = text[len(before) : end]
                pieces.append(Piece(text[done : len(before)], target, turn.supervised, turn.weight))
                done = end
            elif turn.supervised:
                raise UserError(
                    f"{self.template.name} rewrites turn {i} once later turns follow (often it drops the thinking)",
                    where=conversation.where,
                    hint='mark that turn "train": false, or make one row of each turn',
                )
        return pieces, text[done:]

    def row(self, row: Row) -> list[Piece]:
        """The assistant's turns of a row up to its last supervised one.

        Raises:
            UserError: The template refuses the conversation, or writes a supervised turn otherwise than
                generation would: not behind its generation prompt, or without some of its content.
        """
        last = max(i for i, turn in enumerate(row.turns) if turn.supervised)
        conversation = self._conversation(row.turns[: last + 1], row.tools, row.where)
        answer = conversation.messages[-1]
        pieces, before = self._prompt(row.turns[:last], conversation.first(last))
        full = self._text(conversation, False)
        prompt = "".join(piece.before + piece.target for piece in pieces) + before
        end = len(full) - len(self.template.trailer)
        whole = full.endswith(answer.get("end") or self.template.closing, 0, end)
        if answer.get("tool_calls"):
            end = self._call_end(full)
            whole = end > len(prompt)
        self._check_answer(full, conversation)
        if not (full.startswith(prompt) and whole and _holds(full, answer["content"])):
            raise UserError(
                f"{self.template.name} does not write the answer as generation would: it drops or moves a part of it",
                where=row.where,
                hint="often the thinking; give your own template with --chat-template FILE",
            )
        return [*pieces, Piece(before, full[len(prompt) : end], True, row.turns[last].weight)]

    def _turn_end(self, text: str, before: str, conversation: _Conversation) -> int | None:
        """Where the last message, behind `before`, ends in `text`; None where that is not what it says."""
        if not text.startswith(before):
            return None
        message = conversation.messages[-1]
        if message.get("tool_calls"):
            alone = self._text(conversation, False)
            end = self._call_end(alone)
            if end > len(before) and text.startswith(alone[:end]):
                return end
            if not alone[:end].endswith(self.template.closing):  # so the next closing is not this turn's
                return None
        closing = self._closing.search(text, len(before))
        if closing is None:
            return None
        written = text[len(before) : closing.start()]
        parts = (message["content"], message.get("reasoning_content") or "")
        whole = all(_holds(written, part) for part in parts) and _calls(written, message)
        return closing.end() if whole else None

    def _call_end(self, text: str) -> int:
        """Where a text ends that closes with a tool call, whose turn may end with a token of its own; 0 without one."""
        tokens = "|".join(map(re.escape, self.marks.control)) or r"(?!)"
        ends = [found.end() for found in re.finditer(f"(?<!{START})(?:{tokens})", text)]
        return ends[-1] if ends and not text[ends[-1] :].strip() else 0

    def _check_context(self, text: str, conversation: _Conversation) -> None:
        """Raise `UserError` for tools, and turns that are not the assistant's, that leave no trace in a prompt."""

        def same(changed: _Conversation) -> bool:
            try:
                return self._text(changed, True) == text
            except UserError:  # it asks for what was left out
                return False

        tools = conversation.tools
        if tools and same(replace(conversation, tools=None)):
            named = ", ".join(str(tool.get("function", tool).get("name")) for tool in tools)
            raise self._dropped(f"tools ({named})", conversation)
        for i, message in enumerate(conversation.messages):
            empty = {**message, "content": ""}
            other = message["role"] != "assistant" and not _holds(text, message["content"])
            if other and same(conversation.with_message(i, empty)):
                raise self._dropped(f"turn {i} ({message['role']})", conversation)
            if message.get("tool_calls"):
                without = {k: v for k, v in message.items() if k != "tool_calls"}
                if not _calls(text, message) or same(conversation.with_message(i, without)):
                    raise self._dropped(f"tool_calls of turn {i}", conversation)

    def _check_answer(self, full: str, conversation: _Conversation) -> None:
        """Raise `UserError` for fields of the last turn, the answer, that are not in the text."""
        last, answer = len(conversation.messages) - 1, conversation.messages[-1]
        thinking = answer.get("reasoning_content")
        for name, written in (
            ("reasoning_content", bool(thinking) and _holds(full, str(thinking))),
            ("tool_calls", _calls(full, answer)),
        ):
            if answer.get(name):
                without = {k: v for k, v in answer.items() if k not in (name, "thinking")}
                if not written or self._text(conversation.with_message(last, without), False) == full:
                    raise self._dropped(f"{name} of turn {last}", conversation)

    def _dropped(self, what: str, conversation: _Conversation) -> UserError:
        known = self.tokenizer.chat_template
        named = f" (the tokenizer has {', '.join(sorted(known))})" if isinstance(known, dict) else ""
        return UserError(
            f"{self.template.name} does not write the {what}",
            where=conversation.where,
            hint=f"give a template that does with --chat-template{named}, or remove the field from the rows",
        )


def _with_text_arguments(message: Message) -> Message:
    calls = [
        {
            **call,
            "function": {**function, "arguments": json.dumps(function.get("arguments"), ensure_ascii=False)},
        }
        for call in message.get("tool_calls") or ()
        if isinstance(function := call.get("function"), dict)
    ]
    return {**message, "tool_calls": calls} if calls else message


def _calls(text: str, message: Message) -> bool:
    """Whether the names and arguments of a message's tool calls are in `text`."""
    functions = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return all(
        _holds(text, str(function.get("name"))) and all(_holds(text, leaf) for leaf in _leaves(function))
        for function in functions
    )


def _leaves(value: Any) -> list[str]:
    """Texts and numbers in a JSON value; keys left out."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return [leaf for one in inner for leaf in _leaves(one)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _holds(text: str, content: str) -> bool:
    """Whether `content` is in `text`, spaces aside (templates trim, and lay thinking out anew) or as JSON writes it."""
    if content in text:
        return True
    escaped = json.dumps(content, ensure_ascii=False)[1:-1]
    return escaped in text or "".join(content.split()) in "".join(text.split())
