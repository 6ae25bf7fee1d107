"""The process that grades everything but code: reads items, writes verdicts, dies when an item is too much.

Started by `pool.py`. Each item runs under an alarm clock whose signal is left to the kernel, which ends the
process even in the middle of one long multiplication, and even where the parent is gone. An item that needs
more than a gibibyte is an `error`; the process then ends, so that the next item starts clean.

A message in is a length line and a JSON list of `[gold, text, grader, extra]`; out is one JSON line per item.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from time import monotonic
from typing import BinaryIO

from rectune.grading.exact import grade_exact, grade_expression
from rectune.grading.math import grade_math
from rectune.grading.verdicts import MAX_EXTRACTED, Graded, Item

MEMORY = 2**30
"""Bytes that an item may map beyond what the idle process has."""
OVER = "takes too much memory or nests too deeply"


def main(timeout: float) -> None:
    """Grade items from standard input until it ends. `timeout` is in seconds for each item."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    if sys.platform == "linux":  # elsewhere neither the limit nor the account of it exists
        limit = _status("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    full = _status("VmHWM") + MEMORY // 2
    _reply(replies, "ready")
    while size := sys.stdin.buffer.readline():
        for item in json.loads(sys.stdin.buffer.read(int(size))):
            started = monotonic()
            signal.setitimer(signal.ITIMER_REAL, timeout)
            graded = _grade(item)
            signal.setitimer(signal.ITIMER_REAL, 0)
            # sympy swallows MemoryError, so an item that came near the limit cannot be believed
            swollen = monotonic() - started > 0.05 and _status("VmHWM") > full
            _reply(replies, Graded("error", graded.extracted, OVER) if swollen else graded)
            if swollen:
                return


def _grade(item: Item) -> Graded:
    gold, text, grader, extra = item
    try:
        if grader == "exact":
            graded = grade_exact(gold, text)
        elif grader == "expression":
            graded = grade_expression(gold, text)
        else:
            graded = grade_math(gold, text, extra)
    except (MemoryError, RecursionError):
        return Graded("error", "", OVER)
    except Exception as error:  # sympy raises what it likes; what was not judged is neither right nor wrong
        return Graded("error", "", f"{type(error).__name__}: {error}"[:MAX_EXTRACTED])
    return Graded(graded.verdict, graded.extracted[:MAX_EXTRACTED])


def _reply(replies: BinaryIO, message: object) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _status(field: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))
