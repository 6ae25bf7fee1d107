"""What grading says about one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Verdict = Literal["correct", "wrong", "unparsed", "timeout", "error"]
"""correct and wrong; unparsed: no answer found, or not readable as one; timeout: over the limit, not known to
be wrong; error: it broke the grader (memory, a crash), not known to be wrong."""

VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "unparsed", "timeout", "error")


MAX_EXTRACTED = 1000
"""Characters of an extracted answer that are kept."""
ADDED = ("verdict", "extracted", "verdict_reason")
"""Fields that grading adds to a line of a file."""


class Graded(NamedTuple):
    """A verdict, the answer that it is about, as found in the text ("" where none was), and why (`error` only)."""

    verdict: Verdict
    extracted: str
    reason: str = ""

    def fields(self) -> dict[str, str]:
        """What stands in a graded file, where the reason, if there is one, is `verdict_reason`."""
        named = dict(zip(ADDED, self, strict=True))
        return named if self.reason else {name: named[name] for name in ADDED[:2]}


Item = tuple[str | Sequence[str], str, str, Mapping[str, Any] | None]
"""Gold answer (or several), the model's words, the grader's name, and what that needs beyond (`extra`)."""
