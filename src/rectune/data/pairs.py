"""A better and a worse answer to one prompt: how records say them, and where the prompt ends and the answers begin.

The prompt is a field of its own, or the common start of two whole conversations, or both; texts in the form of
Anthropic's HH (`\\n\\nHuman: ... \\n\\nAssistant: ...`) are conversations. Files are left to `reading.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import PlainValidator, ValidationInfo

from rectune.data.messages import (
    Conversation,
    Question,
    Tools,
    Turns,
    Words,
    read_message,
    unsupervised,
    words_or_turns,
)
from rectune.data.rows import Turn
from rectune.data.schema import Names, Place, Text, place_of
from rectune.errors import UserError

_HH = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _side(value: object, info: ValidationInfo) -> str | Turns:
    """A text, one message, or messages."""
    place = place_of(info)
    name = place.name(info)[1:-1]
    if isinstance(value, Mapping):
        return (read_message(value, place.inside(f"{name}.")),)
    return words_or_turns(value, info)


Side = Annotated[str | tuple[Turn, ...], PlainValidator(_side)]


class Preference(Question):
    """A pair: two answers to one prompt."""

    chosen: Side
    """The better answer: a text, a message, or messages, with or without the prompt in front."""
    rejected: Side
    """The worse answer, in the same form."""
    prompt: Annotated[Words | None, Names("prompt", "question", "instruction")] = None
    """What is answered, a text or messages; may be missing where both answers hold the whole conversation."""
    input: Text = ""
    """Put below the prompt, after a blank line."""
    conversations: Annotated[Conversation | None, Names("conversations", "messages")] = None
    """What is answered, as messages, where there is no prompt."""
    tools: Tools = ()
    """Tools that the chat template is given."""

    def sides(self, place: Place) -> tuple[Turns, Turns, Turns]:
        """The turns of the prompt, of the better answer and of the worse one.

        Raises:
            UserError: The answers are the same or empty, there is no prompt, or it is not their start.
        """
        sides = [_turns(side) for side in (self.chosen, self.rejected)]
        if sides[0] == sides[1]:
            raise UserError(
                "chosen and rejected are the same answer", where=place.where, hint="remove the pair"
            )
        common = 0
        if any(turn.role == "user" for side in sides for turn in side):
            pairs = zip(*map(unsupervised, sides), strict=False)
            common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(map(len, sides)))
            common = min(common, *(len(side) - 1 for side in sides))
        for name, side in (("chosen", sides[0][common:]), ("rejected", sides[1][common:])):
            if side[0].role != "assistant":
                what = f"'{name}' does not begin with an answer behind what both have in common"
                raise UserError(what, where=place.where)
            if not any(turn.content.strip() or turn.fields for turn in side):
                raise UserError(f"field '{name}' is empty", where=place.where)
        prompt = self._joined(unsupervised(sides[0][:common]), place)
        if not prompt or prompt[-1].role == "assistant":
            raise UserError("field 'prompt' does not end with a turn to answer", where=place.where)
        return prompt, sides[0][common:], sides[1][common:]

    def _joined(self, start: Turns, place: Place) -> Turns:
        """The prompt, said by a field of its own, by the common start of the answers, or by both alike."""
        own = self.conversations if self.prompt is None else self.prompt
        if self.conversations is not None and (start or self.prompt is not None):
            place.read.discard("messages")
            place.ignored.add("messages")
            own = self.prompt
        if own is None:
            if not start:
                hint = "give it, or whole conversations as chosen and rejected"
                raise UserError("field 'prompt' is missing", where=place.where, hint=hint)
            return self.prompt_turns(start, place.where)
        if isinstance(own, str) and _HH.match(own):
            given = unsupervised(turn for turn in _turns(own) if turn.content)
        elif isinstance(own, str) and self.input:
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
        raise UserError(what, where=place.where, hint="remove it, or remove the question from the answers")


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
