"""Judges one program: starts the confined processes, and says what they found.

The *candidate* runs the program and never sees the tests. The *tests* run in a process of their own and reach
the program through pipes (`peer.py`); only if they come to their end there, the verdict is `correct`. So leaving
early, printing, patching what the tests use or returning objects that equal everything cannot pass. If they do not
come to their end, and more than data was needed for that, both run once more in *one* process, as without any
protection: where they fail there, too, the verdict is `wrong`; where they pass, program and tests share what cannot be
carried between processes, and the verdict is `error`. Programs that read standard input run once for each input, in
processes that were forked before the expected outputs are read.

Reads a `SandboxJob` as JSON from standard input; writes `[verdict, reason, protected]` to standard output.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import io
import json
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, NoReturn

import candidate
from confine import confine
from layouts import Fault, Tests, describe, line_of
from peer import Closed, Peer, Uncarried, receive, send

Report = Callable[..., NoReturn]
"""Sends `kind, text, more` of a confined process, what became of the tests, and ends it."""
USUAL = ("numpy", "scipy", "pandas", "sympy", "networkx", "sklearn", "matplotlib", "torch", "requests")
"""Packages whose absence is this machine's, not the program's, fault."""
MAX_OUTPUT = 2**27
"""Bytes of the longest output in a message: no file is larger than 16 MiB, and escapes take six times that."""
TOLERANCE = "1e-5"
"""Relative or absolute, of numbers with a decimal point or an exponent, where the form of the tests allows any."""
_LIBC = ctypes.CDLL(None)
_CHILDREN: list[int] = []


class SandboxJob(NamedTuple):
    """What is to be judged.

    Attributes:
        prelude: Imports and helpers of `prompt`, for the tests.
        cases: Inputs and outputs of a program that reads standard input; there are no `tests` then.
        lenient: How outputs are compared; see `same_output`.
        memory: Bytes of address space.
    """

    program: str
    prompt: str
    prelude: str
    tests: str
    entry_point: str
    cases: list[tuple[str, str]]
    lenient: bool
    cpu_seconds: int
    memory: int


def main() -> None:
    """Fork the candidate before anything is known, then judge."""
    gc.freeze()  # its pages are shared with all that is forked
    _LIBC.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE off: no process of the same user can look into this one
    requests, replies = _start(_candidate)
    job = SandboxJob(**json.load(sys.stdin))
    signal.alarm(job.cpu_seconds + 1)  # the kernel ends this process, and so the others, if nobody does
    send(requests, [job.cpu_seconds, job.memory, bool(job.cases)])
    verdict, reason, protected = "error", "the candidate did not start", True
    try:
        kind, protected = receive(replies)
        if kind != "confined":
            verdict, reason, protected = "refused", str(protected), True
        elif job.cases:
            reason = "the program cannot be compiled"
            verdict, reason = _judge_outputs(job, requests, replies), ""
        else:
            verdict, reason = _judge(job, requests, replies)
    except Closed:
        pass
    sys.stdout.write(json.dumps([verdict, reason[:500], bool(protected)]))
    sys.stdout.flush()
    for pid in _CHILDREN:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)  # at once: nothing here needs to be taken down


def _judge(job: SandboxJob, requests: BinaryIO, replies: BinaryIO) -> tuple[str, str]:
    kind, text, used = _report_of(
        lambda report: _run_apart(job, requests, replies, report), job, requests, replies
    )
    if kind == "failed" and _is_over_time(_CHILDREN[0]):
        return "timeout", ""
    if kind != "failed":
        return kind, text if kind == "error" else ""
    together, why, missing = _report_of(lambda report: _run_together(job, bool(used), report), job)
    if together == "passed":
        return "error", f"passes in one process with its tests, but not apart from them: {text}"
    if together in ("error", "timeout"):
        return together, why
    return ("error", f"{missing} is not installed here") if missing in USUAL else ("wrong", "")


def _report_of(run: Callable[[Report], None], job: SandboxJob, *pipes: BinaryIO) -> list[Any]:
    """What a confined process, which keeps `pipes`, reports; one that ends without a word has failed."""
    secret = os.urandom(8).hex()

    def child(inward: BinaryIO, outward: BinaryIO) -> None:
        _close_all_but(outward, *pipes)

        def report(kind: str, text: str = "", more: str = "") -> NoReturn:
            send(outward, [secret, [kind, text, more]])
            os._exit(0)

        resource.setrlimit(resource.RLIMIT_AS, (job.memory, job.memory))
        confine(os.getcwd(), cpu_seconds=job.cpu_seconds)  # tests come from a file too
        sys.setrecursionlimit(10_000)
        sys.stdin, sys.stdout = io.StringIO(), open(os.devnull, "w")  # noqa: SIM115
        run(report)

    _, replies = _start(child)
    try:
        given, report = receive(replies)
        return report if given == secret else ["failed", "", ""]
    except (Closed, ValueError, TypeError):
        return ["timeout" if _is_over_time(_CHILDREN[-1], tries=50) else "failed", "", ""]


def _is_over_time(pid: int, *, tries: int = 1) -> bool:
    """Whether the kernel has ended a child for its processor time; polled each millisecond, while it is ending."""
    for _ in range(tries):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _CHILDREN.remove(pid)
            return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        time.sleep(0.001 * (tries > 1))
    return False


def _run_apart(job: SandboxJob, requests: BinaryIO, replies: BinaryIO, report: Report) -> None:
    """The tests here, the program in the candidate's process."""

    def standard_input(action: str, function: str, arguments: list[Any]) -> Any:
        """What the tests have patched in for the program to read."""
        if action != "input" or function not in ("input", "readline", "read"):
            raise NameError(function)
        return builtins.input(*arguments) if function == "input" else getattr(sys.stdin, function)()

    side = Peer(replies, requests, standard_input, guarded=True)
    module = candidate.new_module("tests")

    def find(name: str) -> Any:
        value = side.ask("get", name)
        side.used |= not callable(value)
        side.plain &= callable(value)  # the program may change it
        return value

    try:
        tests = Tests(job.tests, job.entry_point, find, lambda error: error is side.raised)
        try:
            exec(compile(job.prelude, "prompt.py", "exec", dont_inherit=True), vars(module))
        except BaseException as error:
            raise Fault(f"the prompt fails by itself: {describe(error, 'prompt')}") from None
        send(requests, job.program)
        kind, text = receive(replies)
        if kind != "ran":
            report("unparsed" if kind == "syntax" else "failed", str(text))
        for name, value in list(vars(module).items()):  # the prompt's classes: the program has its own
            if isinstance(value, type) and value.__module__ == "tests":
                vars(module)[name] = find(name)
        sys.modules["solution"] = _Lazy("solution", find)
        tests.run(module)
    except Fault as fault:
        report("error", str(fault))
    except Closed:
        report("failed", "the program ended")
    except Uncarried as reason:
        report("failed", str(reason))
    except BaseException as error:
        kind = "wrong" if side.forged or (side.plain and side.used and tests.blames(error)) else "failed"
        report(kind, describe(error), "used" if side.used else "")
    if not side.used:
        report("error", "the tests never call the program")
    if tests.failed:
        report("error", "an assertion fails, and the tests catch that")
    report("correct") if tests.held else report("error", "the tests reach no assertion")


def _run_together(job: SandboxJob, used: bool, report: Report) -> None:
    """Program and tests in this process. What it says is believed only where it is not `passed`."""
    solution = candidate.new_module("solution")
    called: list[bool] = []

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == "solution.py":
            called.append(True)
            sys.setprofile(None)

    tests = Tests(
        job.tests, job.entry_point, lambda name: candidate.look_up(solution, name),
        lambda error: line_of(error, "solution.py") is not None, job.prompt,
    )  # fmt: skip
    try:
        exec(candidate.compile_program(job.program), vars(solution))
        sys.setprofile(watch)
        tests.run(solution)
    except BaseException as error:
        sys.setprofile(None)
        at_fault = tests.is_at_fault(error, called=used or bool(called))
        missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        report("error" if at_fault else "failed", f"the tests fail by themselves: {describe(error)}", missing)
    report("passed")


class _Lazy(types.ModuleType):
    """The program as a module that tests import."""

    def __init__(self, name: str, find: Callable[[str], Any]) -> None:
        super().__init__(name)
        self.__find = find

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__find(name)
        except NameError:
            raise AttributeError(f"the program has no '{name}'", name=name, obj=self) from None


def _judge_outputs(job: SandboxJob, requests: BinaryIO, replies: BinaryIO) -> str:
    """The verdict on a program that reads standard input; the first case that fails decides."""
    for given, expected in job.cases:
        send(requests, [job.program, given])
        kind, printed = receive(replies, MAX_OUTPUT)
        if kind in ("timeout", "syntax"):
            return "timeout" if kind == "timeout" else "unparsed"
        if kind != "ran" or not same_output(str(printed), expected, lenient=job.lenient):
            return "wrong"
    return "correct"


def same_output(printed: str, expected: str, *, lenient: bool) -> bool:
    """Equal lines, up to blanks around them and up to how a number is written.

    Args:
        lenient: Blank lines do not count, and inexact numbers may differ by `TOLERANCE`.
    """
    ours, theirs = ([line.split() for line in text.strip().splitlines()] for text in (printed, expected))
    if lenient:
        ours, theirs = [line for line in ours if line], [line for line in theirs if line]
    return [len(line) for line in ours] == [len(line) for line in theirs] and all(
        _same_word(a, b, lenient)
        for line, other in zip(ours, theirs, strict=True)
        for a, b in zip(line, other, strict=True)
    )


def _same_word(ours: str, theirs: str, lenient: bool) -> bool:
    if ours == theirs:
        return True
    from decimal import Decimal, InvalidOperation  # slow to import, seldom needed

    try:
        a, b = Decimal(ours), Decimal(theirs)
        inexact = lenient and any(mark in theirs.lower() for mark in ".e")
        return a == b or (inexact and abs(a - b) <= Decimal(TOLERANCE) * max(Decimal(1), abs(b)))
    except InvalidOperation:
        return False


def _start(child: Callable[[BinaryIO, BinaryIO], None]) -> tuple[BinaryIO, BinaryIO]:
    """Fork; the pipes to and from the new process, which runs `child` and ends."""
    inward, outward = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        _LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        try:
            child(os.fdopen(inward[0], "rb"), os.fdopen(outward[1], "wb"))
        finally:
            os._exit(1)
    _CHILDREN.append(pid)
    os.close(inward[0])
    os.close(outward[1])
    return os.fdopen(inward[1], "wb"), os.fdopen(outward[0], "rb")


def _candidate(requests: BinaryIO, replies: BinaryIO) -> None:
    """Keep the two pipes only, give everything up, then run the program."""
    os.setsid()
    cpu_seconds, memory, has_cases = receive(requests)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    inward = os.fdopen(os.dup2(requests.fileno(), 60), "rb")
    outward = os.fdopen(os.dup2(replies.fileno(), 61), "wb")
    _close_all_but(inward, outward)

    def limit() -> bool:
        return bool(confine(os.getcwd(), cpu_seconds=cpu_seconds))

    if has_cases:
        candidate.serve_inputs(inward, outward, limit)
        return
    try:
        send(outward, ["confined", limit()])
    except (OSError, ValueError) as error:
        send(outward, ["refused", str(error)])
        return
    candidate.serve_calls(receive(inward), inward, outward)


def _close_all_but(*pipes: BinaryIO) -> None:
    """Leave no descriptor to a process that runs foreign code but these."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    first = 3
    for kept in sorted(pipe.fileno() for pipe in pipes):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, 64)


if __name__ == "__main__":
    del sys.path[0]
    for _own in ("candidate", "confine", "layouts", "peer"):  # programs and tests may use these names
        sys.modules.pop(_own, None)
    main()
