"""Grading a file: the same lines with a verdict, in the same order, resumable after any kill."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import BinaryIO

from pydantic import field_validator

from rectune.data.readers import read_jsonl
from rectune.errors import UserError
from rectune.grading.pool import Grader, Item, check_item
from rectune.records import ADDED, VERDICTS, Grade, Graded, Record, parse_line
from rectune.runtime.io import check_output, translate_disk_errors
from rectune.runtime.locks import lock_file
from rectune.runtime.signals import on_interrupt

_OTHER = "it belongs to other samples: choose another output or start anew without resuming"


@dataclass
class Summary:
    """How many lines got which verdict, those of earlier runs included.

    Attributes:
        counts: Every verdict, also those that did not occur.
        resumed: Lines that an earlier run had already graded.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    resumed: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        kept = f" ({self.resumed} of them by an earlier run)" if self.resumed else ""
        shares = (f"{name} {n} ({n / max(self.total, 1):.1%})" for name, n in self.counts.items())
        return f"graded {self.total}{kept}: {', '.join(shares)}"


class Ungraded(Record):
    """What grading reads of a line."""

    answer: str | list[str]
    text: str
    grader: str = "math"
    extra: dict[str, object] | None = None

    @field_validator("answer", mode="before")
    @classmethod
    def _number_as_text(cls, answer: object) -> object:
        is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
        return str(answer) if is_number else answer


def grade(
    samples: Path,
    out: Path,
    *,
    workers: int | None = None,
    timeout: float = 5.0,
    resume: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Grade every line of `samples` and write it to `out` with `verdict` and `extracted` added.

    An `error` has its `verdict_reason`, too. A line needs `answer` (gold) and `text` (the model's words); `grader` is
    "math" where it is missing, `extra` is for the grader, and other fields pass through as they are written. A run that
    was killed resumes where it stopped, and so does one whose `samples` has grown.

    Args:
        workers: Answers graded at once; all cores if None.
        timeout: Seconds for one answer.
        resume: False starts `out` anew.
        progress: Called with the number of lines done, after each.

    Raises:
        UserError: A line that cannot be graded (lines before it are kept), or `out` is of other samples.
    """
    samples, out = Path(samples), Path(out)
    if not samples.is_file():
        raise UserError("no such file", where=samples)
    check_output(out)
    if not 0 < timeout < math.inf:
        raise UserError(f"must be above 0 (got {timeout})", where="--grading-timeout")
    if workers is not None and workers < 1:
        raise UserError(f"must be at least 1 (got {workers})", where="--grading-workers")
    existed = out.exists()
    if existed and samples.samefile(out):
        raise UserError("input and output are the same file", where=out)
    summary = Summary()
    words = "lines are graded; run it again, it resumes"
    with translate_disk_errors(out), open(samples, "rb") as source, _opened(out, anew=not resume) as graded:
        number = _skip_graded(samples, source, out, graded, summary)
        lines, ahead = tee(_lines(samples, source, number))
        with on_interrupt(lambda: f"{out}: {summary.total} {words}"), Grader(workers, timeout) as grader:
            try:
                for verdict in grader.stream(item for _, item in ahead):
                    graded.write(_with_verdict(next(lines)[0], verdict))
                    graded.flush()
                    summary.counts[verdict.verdict] += 1
                    progress(summary.total)
                if not summary.total:
                    raise UserError("the file has no samples", where=samples)
            except UserError:
                if not existed and not summary.total:
                    out.unlink()
                raise
    return summary


def graded_lines(path: Path) -> Iterator[tuple[str, Graded]]:
    """Place and content of each line of a graded file.

    Raises:
        UserError: A line is something else.
    """
    for number, content in read_jsonl(path):
        where = f"{path}:{number}"
        yield where, parse_line(Graded, content, "a graded sample", where, "run rectune grade first")


@contextmanager
def _opened(out: Path, *, anew: bool) -> Iterator[BinaryIO]:
    """The output, made if it is missing, for this process alone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(out, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as graded:
        lock_file(graded, out)
        if anew:
            graded.truncate()
        yield graded


def _lines(path: Path, source: BinaryIO, number: int) -> Iterator[tuple[bytes, Item]]:
    """The lines behind line `number`, as they stand in the file, and what is to be graded of them."""
    for at, line in enumerate(source, number + 1):
        if not line.strip():
            continue
        where = f"{path}:{at}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "a torn last line can be deleted"
            raise UserError(f"not JSON ({error})", where=where, hint=hint) from None
        asked = parse_line(Ungraded, content, "a sample to grade", where, "a line needs 'answer' and 'text'")
        check_item(asked.grader, asked.extra, where=where)
        yield line, (asked.answer, asked.text, asked.grader, asked.extra)


def _with_verdict(line: bytes, grade: Grade) -> bytes:
    """`line` with the verdict put behind its fields, which stay byte for byte, unless it had a verdict."""
    fields = json.loads(line)
    if fields.keys() & ADDED:
        return json.dumps({**_ungraded(fields), **grade.fields()}).encode() + b"\n"
    return line.strip()[:-1].rstrip() + b", " + json.dumps(grade.fields()).encode()[1:] + b"\n"


def _ungraded(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in ADDED}


def _skip_graded(samples: Path, source: BinaryIO, out: Path, graded: BinaryIO, summary: Summary) -> int:
    """Pass over what `out` already holds, cut off its torn last line; the number of the last line read."""
    number = end = 0
    for line in iter(graded.readline, b""):
        if not line.endswith(b"\n"):
            break
        original = b""
        while not original.strip():
            original, number = source.readline(), number + 1
            if not original:
                raise UserError("the output has more lines than the samples", where=out, hint=_OTHER)
        try:
            before, after = json.loads(original), json.loads(line)
            same, verdict = _ungraded(before) == _ungraded(after), after.get("verdict")
        except (ValueError, AttributeError, RecursionError):
            same, verdict = False, None
        if not same or verdict not in VERDICTS:
            what = "is not the graded form of this line of the samples"
            raise UserError(what, where=f"{out}:{number}", hint=_OTHER)
        summary.counts[verdict] += 1
        summary.resumed += 1
        end += len(line)
    graded.seek(end)
    graded.truncate()
    return number
