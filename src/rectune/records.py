"""What stages write into files and read from them again: a pydantic model for each line or object.

A record is checked when it is read; fields that a model does not name pass through.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from rectune.errors import UserError, unknown_name

Verdict = Literal["correct", "wrong", "unparsed", "timeout", "error"]
"""unparsed: no answer found, or not readable as one; timeout: over the limit; error: it broke the grader, or its tests
are at fault. The last two are not known to be wrong."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MAX_EXTRACTED = 1000
"""Characters of an extracted answer that are kept."""
ADDED = frozenset({"verdict", "extracted", "verdict_reason"})
"""Fields that grading adds to a line."""


class Grade(NamedTuple):
    """A verdict, the answer that it is about, as found in the text ("" where none was), and why (`error` only)."""

    verdict: Verdict
    extracted: str
    reason: str = ""

    def fields(self) -> dict[str, str]:
        """The fields that grading adds to a line; see `Graded`."""
        added = {"verdict": self.verdict, "extracted": self.extracted}
        return added | ({"verdict_reason": self.reason} if self.reason else {})


class JsonLine(BaseModel):
    """One line of a JSONL file. Types are not converted."""

    model_config = ConfigDict(extra="allow", strict=True)


class SampledTurn(JsonLine):
    """One turn of the conversation that a prompt was made of."""

    role: str
    content: str


class Graded(JsonLine):
    """One line of graded.jsonl: a sample (see `Sample`) with its verdict."""

    problem_id: str
    sample_index: int = 0
    text: str
    grader: str = "math"
    extra: dict[str, Any] | None = None
    prompt: str | None = None
    turns: list[SampledTurn] | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    temperature: float | None = None
    fingerprint: str | None = None
    verdict: Verdict
    extracted: str | None = None
    verdict_reason: str | None = None


AnyLine = TypeVar("AnyLine", bound=JsonLine)


def parse_line(kind: type[AnyLine], content: object, what: str, where: str, hint: str) -> AnyLine:
    """`content` as a record of `kind`.

    Args:
        what: What it should be, such as "a graded sample".
        where: `file:line`.
        hint: What to do where it is something else.

    Raises:
        UserError: It does not fit; says the first field that is missing or of another type.
    """
    if not isinstance(content, dict):
        raise UserError(f"is not {what} (not a JSON object)", where=where, hint=hint)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = first["loc"][0]
    if field == "verdict" and isinstance(first["input"], str):
        raise unknown_name("verdict", first["input"], VERDICTS, where=where)
    reason = f"field '{field}': {first['msg'][:1].lower()}{first['msg'][1:]}"
    if first["type"] == "missing":
        reason = f"no field '{field}'"
    raise UserError(f"is not {what} ({reason})", where=where, hint=hint)
