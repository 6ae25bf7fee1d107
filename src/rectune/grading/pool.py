"""Grading many answers at once, in processes that a hostile answer may ruin without harm to the others.

One thread of this process drives one worker process over pipes; code goes from the thread to its sandbox (`code.py`).
Nothing is forked, so it is safe in a process with torch, and scripts need no `__main__` guard.

A worker grades everything but code. A message to it is a length line and a JSON list of items; it answers with a JSON
line for each. Each item runs under an alarm clock whose signal is left to the kernel, which ends the process even in
the middle of one long multiplication, and even where the parent is gone. An item that needs more than a gibibyte is an
`error`; the worker then ends, so that the next item starts clean.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any, BinaryIO

from rectune.errors import UserError, unknown_name
from rectune.grading.code import grade_code, read_tests
from rectune.grading.exact import grade_exact, grade_expression
from rectune.grading.final_answer import EXTRACTION
from rectune.records import MAX_EXTRACTED, Grade

GRADERS = ("math", "expression", "exact", "code")
CHUNK = 16
"""Items in one message to a worker: hides the pipe's latency, still shares out few items evenly."""
AHEAD = 32
"""Chunks that are read ahead for each worker, so that one answer on its way to a timeout holds up no other."""
MEMORY = 2**30
"""Bytes that an item may map beyond what the idle worker has."""
OVER = "takes too much memory or nests too deeply"
_START = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv[1]];"
    "from rectune.grading.pool import work; work(float(sys.argv[2]))"
)


Item = tuple[str | Sequence[str], str, str, Mapping[str, Any] | None]
"""Gold answer (or several, of which any one counts), the model's words, the grader's name, and its `extra`."""


def check_item(grader: object, extra: Mapping[str, Any] | None, *, where: str | None = None) -> None:
    """Raise UserError (at `where`) if there is no such grader, or `extra` is not what it needs."""
    extra = extra or {}
    if grader not in GRADERS:
        raise unknown_name("grader", str(grader), GRADERS, where=where)
    if grader == "code":
        read_tests(extra, where)
    rules = extra.get("extract") or []
    if not isinstance(rules, list | tuple) or not all(isinstance(rule, str) for rule in rules):
        raise UserError("extra.extract is not a list of texts", where=where)
    for rule in rules:
        if rule not in EXTRACTION:
            raise unknown_name("extraction rule", rule, EXTRACTION, where=where)
    try:
        float(extra.get("tolerance", extra.get("error")) or 0)
    except (TypeError, ValueError, OverflowError):
        raise UserError("the tolerance is not a number", where=where) from None


class Grader:
    """A pool of workers; a context manager. Starting costs about a second, so keep one for many answers.

    Args:
        workers: Answers graded at once; all cores that this process may use, if None.
        timeout: Seconds that one answer may take; its verdict is `timeout` beyond that.
    """

    def __init__(self, workers: int | None = None, timeout: float = 5.0) -> None:
        count = workers or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
        self._workers = [Worker(timeout) for _ in range(count)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="grading")

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes at once, also in the middle of an answer."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.end()

    def grade(self, items: Iterable[Item]) -> list[Grade]:
        """Grade all `items`, in their order.

        Raises:
            UserError: As `check_item`, or this machine cannot confine programs.
        """
        items = list(items)
        for _, _, grader, extra in items:
            check_item(grader, extra)
        share = -(-len(items) // (2 * len(self._workers)))
        return list(self.stream(items, chunk=max(1, min(CHUNK, share))))

    def stream(self, items: Iterable[Item], *, chunk: int = CHUNK) -> Iterator[Grade]:
        """Grade `items`, which have passed `check_item`, in their order, reading only a few chunks ahead.

        Raises:
            UserError: This machine cannot confine programs; or what `items` raises, after the verdicts on those before.
        """
        source = iter(items)
        waiting: deque[Future[list[Grade]]] = deque()
        failure: UserError | None = None
        while failure is None:
            ready: list[Item] = []
            try:
                for item in islice(source, chunk):
                    ready.append(item)
            except UserError as error:
                failure = error
            if not ready:
                break
            waiting.append(self._threads.submit(self._grade_chunk, ready))
            if len(waiting) >= AHEAD * len(self._workers):
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
        if failure is not None:
            raise failure

    def _grade_chunk(self, chunk: Sequence[Item]) -> list[Grade]:
        worker = self._idle.get()
        try:
            return worker.grade(chunk)
        finally:
            self._idle.put(worker)


def grade_answers(items: Iterable[Item], *, workers: int | None = None, timeout: float = 5.0) -> list[Grade]:
    """Grade `items` in a pool of their own; see `Grader` for many calls."""
    with Grader(workers, timeout) as grader:
        return grader.grade(items)


class Worker:
    """One worker process, started when needed and replaced when it dies. Used by one thread at a time."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.closed = timeout, False
        self._process: subprocess.Popen[bytes] | None = None
        self._sandbox: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """Grade `items` in order."""
        plain = iter(self._grade_plain([item for item in items if item[2] != "code"]))
        return [self._grade_code(item) if item[2] == "code" else next(plain) for item in items]

    def close(self) -> None:
        """Kill the processes; `grade` in another thread then raises RuntimeError."""
        self.closed = True
        for process in (self._process, self._sandbox):
            if process is not None:
                process.kill()

    def _grade_code(self, item: Item) -> Grade:
        def started(process: subprocess.Popen[bytes]) -> None:
            self._sandbox = process
            if self.closed:
                process.kill()

        return grade_code(item[1], item[3] or {}, timeout=self.timeout, started=started)

    def _grade_plain(self, items: Sequence[Item]) -> list[Grade]:
        done: list[Grade] = []
        while len(done) < len(items):
            self._send(items[len(done) :])
            while len(done) < len(items):
                line = self._read(self.timeout + 1)
                done.append(self._verdict_of_death() if line is None else Grade(*json.loads(line)))
                if line is None:
                    break
        return done

    def _send(self, items: Sequence[Item]) -> None:
        message = json.dumps(items).encode()
        for _ in range(2):
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(b"%d\n" % len(message) + message)
                process.stdin.flush()
                return
            except BrokenPipeError:  # it ended after its last reply, to be replaced
                self.end()
        raise RuntimeError("a grading worker ends before its first item")

    def _start(self) -> subprocess.Popen[bytes]:
        if self.closed:
            raise RuntimeError("the grader is closed")
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(Path(__file__).parents[2]), str(self.timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the worker
        )
        if self.closed:
            self._process.kill()
        if self._read(120) is None:
            raise RuntimeError("the grader is closed" if self.closed else "a grading worker did not start")
        return self._process

    def _read(self, timeout: float) -> bytes | None:
        """The next line of the worker; None where it died or stayed silent for `timeout` seconds."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), monotonic() + timeout
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while b"\n" not in self._unread:
            if not poll.poll(max(0, (deadline - monotonic()) * 1000)):
                return None
            piece = os.read(pipe, 65536)
            if not piece:
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _verdict_of_death(self) -> Grade:
        """End a worker that died over an item or is overdue, and say which."""
        code = self.end()
        if self.closed:
            raise RuntimeError("the grader is closed")
        if code in (-signal.SIGALRM, None):
            return Grade("timeout", "")
        return Grade("error", "", "the grading process died")

    def end(self) -> int | None:
        """Remove the process, if there is one; its exit code, or None where it had to be killed."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            code: int | None = process.wait(0.2)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # unsent bytes of a message that it did not live to read
                pipe.close()
        return code


def work(timeout: float) -> None:
    """What a worker process does: grade items from standard input until it ends. `timeout` is in seconds for each."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    from rectune.grading.math import grade_math

    if sys.platform == "linux":  # elsewhere neither the limit nor the account of it exists
        limit = _status("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    full = _status("VmHWM") + MEMORY // 2
    _reply(replies, "ready")
    while size := sys.stdin.buffer.readline():
        for gold, text, grader, extra in json.loads(sys.stdin.buffer.read(int(size))):
            started = monotonic()
            signal.setitimer(signal.ITIMER_REAL, timeout)
            try:
                if grader == "math":
                    grade = grade_math(gold, text, extra)
                else:
                    grade = (grade_exact if grader == "exact" else grade_expression)(gold, text)
            except (MemoryError, RecursionError):
                grade = Grade("error", "", OVER)
            except (
                Exception
            ) as error:  # sympy raises what it likes; what was not judged is neither right nor wrong
                grade = Grade("error", "", f"{type(error).__name__}: {error}"[:MAX_EXTRACTED])
            signal.setitimer(signal.ITIMER_REAL, 0)
            # sympy swallows MemoryError, so an item that came near the limit cannot be believed
            swollen = monotonic() - started > 0.05 and _status("VmHWM") > full
            if swollen:
                grade = Grade("error", grade.extracted, OVER)
            _reply(replies, grade._replace(extracted=grade.extracted[:MAX_EXTRACTED]))
            if swollen:
                return


def _reply(replies: BinaryIO, message: object) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _status(field: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))
