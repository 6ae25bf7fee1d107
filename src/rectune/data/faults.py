"""Faulty rows of a source: the first of them are named one by one, the others counted."""

from __future__ import annotations

import logging
from typing import Literal

from rectune.errors import UserError

log = logging.getLogger("rectune")

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

    def settle(self, rows: int, *, skip: bool = False, hint: str = "mend or remove these rows") -> None:
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
