"""Conversations become text: the tokenizer's chat template, a plain one, a file of one's own, or none.

Splits the text where it matters for training: what stands before a supervised turn (exactly what generation
will see there) and what the model has to write, up to and including the token that ends its turn. Token ids
are left to `tokens.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from rectune.data.rows import Row, Turn
from rectune.data.skeletons import REFUSALS, Skeletons
from rectune.errors import UserError

PLAIN = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ 'Assistant: ' + message.content + eos_token + '\\n\\n' }}
{%- elif message.role == 'user' %}{{ 'User: ' + message.content + '\\n\\n' }}
{%- elif message.role == 'tool' %}{{ raise_exception('it has no place for tool turns') }}
{%- else %}{{ message.content + '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
"""For tokenizers without a chat template: `User: ...`, a blank line, `Assistant: ...` and the eos token."""

_PROBE = "probe"
_skeletons: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, Skeletons]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Template:
    """How a conversation is written.

    Attributes:
        text: Jinja text as chat templates have it; None for prompt and completion exactly as they are.
        closing: What ends an assistant's turn, such as `<|im_end|>`; its last token is the turn end.
        trailer: What the template writes behind `closing`, such as a line end; never a target.
        name: For messages: "the tokenizer's chat template", "the plain template", a file.
        bos: What is put in front because the tokenizer would; "" where the template's text decides.
    """

    text: str | None
    closing: str
    trailer: str
    name: str
    bos: str = ""


@dataclass(frozen=True)
class Piece:
    """An assistant's turn: the text since the one before, and what the model has to write."""

    before: str
    target: str
    supervised: bool


def choose_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template for `rows.template`: auto, none, or a Jinja file.

    Raises:
        UserError: No such file, a template that is no Jinja or ends turns without a token for it, or a
            tokenizer without an eos token where that has to end the turn.
    """
    if name == "none":
        return Template(None, _eos(tokenizer), "", "template none", _bos(tokenizer))
    if name != "auto":
        try:
            text, label = Path(name).expanduser().read_text(encoding="utf-8"), f"the template {name}"
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"template cannot be read ({error})", where=name, hint="or use auto or none"
            ) from None
    elif tokenizer.chat_template is None:
        _eos(tokenizer)
        return _probed(Template(PLAIN, "", "", "the plain template", _bos(tokenizer)), tokenizer)
    else:
        text, label = tokenizer.get_chat_template(), "the tokenizer's chat template"
    return _probed(Template(text, "", "", label), tokenizer)


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no eos token to end a turn with", where="model")
    return str(tokenizer.eos_token)


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-text token where the tokenizer puts one in front of a text by itself."""
    ids = tokenizer(_PROBE).input_ids
    return str(tokenizer.bos_token) if ids[0] == tokenizer.bos_token_id else ""


def _probed(template: Template, tokenizer: PreTrainedTokenizerBase) -> Template:
    """`template` with its closing and trailer, found out by example."""
    turns = (Turn("user", _PROBE), Turn("assistant", _PROBE))
    tail = Writer(template, tokenizer).text(turns, "rows.template").rpartition(_PROBE)[2]
    tokens = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, tokens)) or r"(?!)", tail)
    if found is None:
        raise UserError(
            f"{template.name} ends the assistant's turn without a token of its own",
            where="rows.template",
            hint="let it write {{ eos_token }} behind the assistant's content",
        )
    return replace(template, closing=tail[: found.end()], trailer=tail[found.end() :])


class Writer:
    """Writes the conversations of one template for one tokenizer, whose special tokens stay as they are meanwhile."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self.tokenizer = template, tokenizer
        known = _skeletons.setdefault(tokenizer, {})
        specials = tokenizer.special_tokens_map.values()
        self._skeletons = [
            known.setdefault((template.text, g, *specials), Skeletons(template.text or ""))
            for g in (False, True)
        ]

    def text(self, turns: Sequence[Turn], where: str, *, generation: bool = False) -> str:
        """The conversation as one text; with `generation`, ready for the assistant to write.

        Raises:
            UserError: The template refuses the conversation, for example a system message.
        """
        if not turns:
            raise UserError("begins with the assistant's turn", where=where, hint="put a user turn before it")
        template = self.template
        if template.text is None:
            if [turn.role for turn in turns] != ["user", "assistant"][: 1 if generation else 2]:
                raise UserError(
                    "template none takes one prompt and one completion, not a conversation",
                    where=where,
                    hint="leave rows.system unset, or use another template",
                )
            text = turns[0].content + ("" if generation else turns[1].content + template.closing)
        else:
            text = self._rendered(turns, where, generation)
        return text if text.startswith(template.bos) else template.bos + text

    def _rendered(self, turns: Sequence[Turn], where: str, generation: bool) -> str:
        def run(messages: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=generation,
                    chat_template=self.template.text,
                )
            )

        try:
            written = self._skeletons[generation].written(turns, run)
            return (
                run([{"role": t.role, "content": t.content} for t in turns]) if written is None else written
            )
        except REFUSALS as error:
            raise UserError(
                f"{self.template.name} refuses this conversation ({error})",
                where=where,
                hint="change the row, or give a template of your own with --rows.template FILE",
            ) from None

    def prompt(self, turns: Sequence[Turn], where: str) -> tuple[list[Piece], str]:
        """The assistant's turns in a prompt, and the text behind them up to where the next one begins.

        A turn that is not supervised and that the template rewrites (earlier thinking is often dropped) is no
        piece: it is part of the text.

        Raises:
            UserError: The template refuses the conversation, or rewrites a supervised turn.
        """
        text = self.text(turns, where, generation=True)
        found, done = [], 0
        for i, turn in enumerate(turns):
            if turn.role != "assistant" or (i == 0 and not turn.supervised):
                continue
            before = self.text(turns[:i], where, generation=True)
            end = _turn_end(text, before, turn.content, self.template.closing)
            if end is not None:
                found.append(Piece(text[done : len(before)], text[len(before) : end], turn.supervised))
                done = end
            elif turn.supervised:
                raise UserError(
                    f"{self.template.name} rewrites turn {i} once later turns follow (often it drops the thinking)",
                    where=where,
                    hint='mark that turn "train": false, or make one row of each turn',
                )
        return found, text[done:]

    def row(self, row: Row) -> list[Piece]:
        """The assistant's turns of a row up to its last supervised one.

        Raises:
            UserError: The template refuses the conversation, or writes a supervised turn otherwise than
                generation would: not behind its generation prompt, or without some of its content.
        """
        last = max(i for i, turn in enumerate(row.turns) if turn.supervised)
        found, before = self.prompt(row.turns[:last], row.where)
        full = self.text(row.turns[: last + 1], row.where)
        prompt = "".join(piece.before + piece.target for piece in found) + before
        end = len(full) - len(self.template.trailer)
        if not (full.startswith(prompt) and full.endswith(self.template.closing, 0, end)) or not _holds(
            full, row.turns[last].content
        ):
            raise UserError(
                f"{self.template.name} does not write the answer as generation would: it drops or moves a part of it",
                where=row.where,
                hint="often the thinking; give a template of your own with --rows.template FILE",
            )
        return [*found, Piece(before, full[len(prompt) : end], True)]


def _turn_end(text: str, before: str, content: str, closing: str) -> int | None:
    """Where the turn behind `before` ends in `text`; None where it is not its content and the closing."""
    if not text.startswith(before):
        return None
    start = len(before)
    for written in (content + closing, content.strip() + closing):
        at = text.find(written, start)
        if at >= 0 and closing not in text[start:at]:
            return at + len(written)
    return None


def _holds(text: str, content: str) -> bool:
    """Whether `content` is in `text`, spaces aside: templates trim, and lay thinking out anew."""
    return content in text or "".join(content.split()) in "".join(text.split())
