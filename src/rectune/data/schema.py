"""What the stages of rectune hand to each other (rows, problems, samples), and the faults of a source of them.

Plain dataclasses, light to import. How the fields of a foreign record are read is in `fields.py`, how records become
rows in `converters.py`, how rows become token ids in `tokenization.py`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from rectune.errors import UserError

log = logging.getLogger("rectune")

RawRecord = dict[str, object]
"""A JSON object, CSV line or Parquet row of a user's file, before anything is known about its fields."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. `supervised` turns are the targets of training.

    Attributes:
        fields: JSON object of what else the chat template may read of the message (`reasoning_content`,
            `tool_calls`, `name`, `tool_call_id`); "" for none.
        weight: What the loss of its targets is multiplied with, as the file has it (its row's weight included).
    """

    role: str
    content: str
    supervised: bool = False
    fields: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One demonstration: a conversation of which at least one turn is supervised.

    Attributes:
        turns: In order; a plain prompt/completion row is a user turn and a supervised assistant turn.
        where: `file:line` (or `dataset[index]`) that the row came from, for messages to the user.
        source: The row's own `source` field where it has one (NuminaMath, OpenR1), else "".
        tools: JSON list of the tools that the chat template is given; "" for none.
    """

    turns: tuple[Turn, ...]
    where: str
    source: str = ""
    tools: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a gold answer, to sample answers for and to grade them.

    Attributes:
        problem_id: Unique within its file or benchmark.
        prompt: The conversation up to the turn that the model has to write.
        answer: The gold answer, as its source prints it (several: a list).
        grader: Name of the grader: "math", "expression", "code", "exact".
        where: `file:line` or `benchmark[index]`.
        extra: What the grader needs beyond the answer (tolerance, tests, entry point).
    """

    problem_id: str
    prompt: tuple[Turn, ...]
    answer: str | list[str]
    grader: str = "math"
    where: str = ""
    extra: dict[str, object] | None = None


LISTED = 20
"""So many are named."""


class Faults:
    """What is wrong with the rows of one source.

    Attributes:
        count: Faulty rows.
        first: What is wrong with the first of them, each with its `file:line`.
    """

    def __init__(self, source: str, count: int = 0, first: list[str] | None = None) -> None:
        self.source, self.count, self.first = source, count, first or []
        self._only: UserError | None = None

    def add(self, error: UserError) -> Literal[False]:
        """Note one; False, for the condition of a comprehension that leaves it out."""
        self.count += 1
        self._only = error
        if len(self.first) < LISTED:
            self.first.append(str(error))
        return False

    def settle(self, rows: int, *, skip: bool = False, hint: str = "fix or remove these rows") -> None:
        """Say the faulty rows in the log, one a line, and their number.

        Args:
            rows: All rows, the faulty ones included.
            skip: They are left out; else they are an error.
            hint: What to do about them.

        Raises:
            UserError: There are faulty rows, and they are not to be skipped; says the first.
        """
        if not self.count:
            return
        if self.count == 1 and self._only is not None and not skip:
            raise self._only
        for line in self.first:
            (log.warning if skip else log.error)("%s", line)
        if (more := self.count - len(self.first)) > 0:
            (log.warning if skip else log.error)("and %s more", f"{more:,}")
        count = f"{self.count:,} of {rows:,} rows cannot be used"
        if not skip:
            raise UserError(f"{count}, the first: {self.first[0]}", where=self.source, hint=hint)
        log.warning("%s: %s; left out", self.source, count)
