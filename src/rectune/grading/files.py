"""Grading a file: the same lines with a verdict, in the same order, resumable after any kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rectune.errors import UserError
from rectune.grading.pool import Grader, check_item
from rectune.grading.verdicts import ADDED, VERDICTS, Graded, Item
from rectune.runtime.locks import check_output, writing
from rectune.runtime.signals import saying

_Pending = deque[tuple[bytes, bool]]


@dataclass
class Summary:
    """How many lines got which verdict, those of earlier runs included.

    Attributes:
        counts: Every verdict, also those that did not occur.
        resumed: Lines that an earlier run had already graded.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    resumed: int = 0

    def __str__(self) -> str:
        total = sum(self.counts.values())
        kept = f" ({self.resumed} of them by an earlier run)" if self.resumed else ""
        shares = (f"{name} {n} ({n / max(total, 1):.1%})" for name, n in self.counts.items())
        return f"graded {total}{kept}: {', '.join(shares)}"


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

    An `error` has its `verdict_reason`, too.

    A line needs `answer` (gold) and `text` (the model's words); `grader` is "math" where it is missing,
    `extra` is for the grader, and other fields pass through as they are written. `out` grows
    line by line; a run that was killed goes on where it stopped, and so does one whose `samples` has grown.

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
    if timeout <= 0 or (workers is not None and workers < 1):
        raise UserError("timeout and workers must be positive")
    if out.exists() and samples.samefile(out):
        raise UserError("input and output are the same file", where=out)
    summary, found = Summary(), out.exists()
    pending: _Pending = deque()
    failure: list[UserError] = []
    words = "lines are graded; run it again, it goes on"
    with writing(out, "run it again"), open(samples, "rb") as lines, _opened(out, anew=not resume) as graded:
        number = _skip_graded(samples, lines, out, graded, summary)
        with (
            saying(lambda: f"{out}: {sum(summary.counts.values())} {words}"),
            Grader(workers, timeout) as grader,
        ):
            for verdict in grader.stream(_items(samples, lines, number, pending, failure)):
                graded.write(_with_verdict(*pending.popleft(), verdict))
                graded.flush()
                summary.counts[verdict.verdict] += 1
                progress(sum(summary.counts.values()))
    if failure:
        if not found and not out.stat().st_size:
            out.unlink()
        raise failure[0]
    return summary


@contextmanager
def _opened(out: Path, *, anew: bool) -> Iterator[BinaryIO]:
    """The output, made if it is missing, for this process alone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(out, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as graded:
        try:
            fcntl.flock(graded, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another process is writing to this file", where=out) from None
        if anew:
            graded.truncate()
        yield graded


def _items(
    path: Path, lines: BinaryIO, number: int, pending: _Pending, failure: list[UserError]
) -> Iterator[Item]:
    """The items of the remaining lines; each line is kept in `pending` until its verdict comes.

    A bad line ends the file and goes to `failure`, so that every line before it is graded and written.
    """
    for at, line in enumerate(lines, number + 1):
        if not line.strip():
            continue
        try:
            record = _record(line, f"{path}:{at}")
        except UserError as error:
            failure.append(error)
            return
        pending.append((line, any(name in record for name in ADDED)))
        yield record["answer"], record["text"], record.get("grader", "math"), record.get("extra")


def _record(line: bytes, where: str) -> dict[str, Any]:
    """One line, checked for what grading reads."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=where, hint="a torn last line can be deleted") from None
    if not isinstance(record, dict):
        raise UserError("not a JSON object", where=where)
    for name in ("answer", "text"):
        if name not in record:
            raise UserError(f"no field '{name}'", where=where, hint="a line needs 'answer' and 'text'")
    answer = record["answer"]
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        record["answer"] = answer = str(answer)
    if not (
        isinstance(answer, str) or (isinstance(answer, list) and all(isinstance(a, str) for a in answer))
    ):
        raise UserError("'answer' is neither a string, a number nor a list of strings", where=where)
    if not isinstance(record["text"], str):
        raise UserError("'text' is not a string", where=where)
    if not isinstance(record.get("extra"), (dict, type(None))):
        raise UserError("'extra' is not an object", where=where)
    check_item(record.get("grader", "math"), record.get("extra"), where=where)
    return record


def _with_verdict(line: bytes, regraded: bool, graded: Graded) -> bytes:
    """`line` with the verdict put behind its fields, which stay byte for byte, unless it had a verdict."""
    added = json.dumps(graded.fields()).encode()
    if regraded:
        kept = {name: value for name, value in json.loads(line).items() if name not in ADDED}
        return json.dumps({**kept, **graded.fields()}).encode() + b"\n"
    return line.strip()[:-1].rstrip() + b", " + added[1:] + b"\n"


def _skip_graded(samples: Path, lines: BinaryIO, out: Path, graded: BinaryIO, summary: Summary) -> int:
    """Pass over what `out` already holds, cut off its torn last line; the number of the last line read."""
    number = end = 0
    for line in iter(graded.readline, b""):
        if not line.endswith(b"\n"):
            break
        original = b""
        while not original.strip():
            original, number = lines.readline(), number + 1
            if not original:
                raise UserError("holds more lines than the samples", where=out, hint=_OTHER)
        _check_same(original, line, f"{out}:{number}", summary)
        summary.resumed += 1
        end += len(line)
    graded.seek(end)
    graded.truncate()
    return number


_OTHER = "it belongs to other samples: choose another output or start anew without resuming"


def _check_same(original: bytes, line: bytes, where: str, summary: Summary) -> None:
    try:
        before, after = json.loads(original), json.loads(line)
        verdict = after["verdict"]
        same = {k: v for k, v in after.items() if k not in ADDED} == {
            k: v for k, v in before.items() if k not in ADDED
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same, verdict = False, None
    if not same or not isinstance(verdict, str) or verdict not in summary.counts:
        raise UserError("is not the graded form of this line of the samples", where=where, hint=_OTHER)
    summary.counts[verdict] += 1
