"""What grading says about one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Verdict = Literal["correct", "wrong", "unparsed", "timeout", "error"]
"""correct and wrong; unparsed: no answer found, or not readable as one; timeout: over the limit, not known to
be wrong; error: it broke the grader (memory, a crash), not known to be wrong."""

VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "unparsed", "timeout", "error")


class Graded(NamedTuple):
    """A verdict and the answer that it is about, as found in the text ("" where none was)."""

    verdict: Verdict
    extracted: str


Item = tuple[str | Sequence[str], str, str, Mapping[str, Any] | None]
"""Gold answer (or several), the model's words, the grader's name, and what that needs beyond (`extra`)."""
