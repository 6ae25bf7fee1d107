"""The pool: hostile answers cost their own verdict and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rectune.errors import UserError
from rectune.grading import Grader, grade_answers
from rectune.grading.pool import MEMORY

GOOD, BAD = ("42", r"\boxed{42}", "math", None), ("42", r"\boxed{41}", "math", None)
ENDLESS = r"\boxed{\sum_{k=1}^{10^{9}} \sin(k^2)}"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=2) as grader:
        yield grader


HOSTILE = [
    ("9**9**9", r"\boxed{9**9**9}"),
    ("tower", r"\boxed{((((10^{10})^{10})^{10})^{10})!}"),
    ("factorial", r"\boxed{(100000)!}"),
    ("million digits", r"\boxed{%s}" % ("7" * 10**6)),
    ("million digits without a box", "7" * 10**6),
    ("ten thousand open braces", r"\boxed{" + "{" * 10_000),
    ("ten thousand open boxes", r"\boxed{" * 10_000),
    ("deep brackets", r"\boxed{" + "(" * 900 + "1" + ")" * 900 + "}"),
    ("deep fractions", r"\boxed{" + r"\frac{1}{" * 150 + "2" + "}" * 151),
    ("box without end", r"\boxed{"),
    ("lone surrogate", "\ud800 \\boxed{\ud800}"),
    ("import", r"\boxed{__import__('os').system('touch pwned')}"),
    ("lambda", r"\boxed{(lambda: open('pwned', 'w'))()}"),
    ("sympy's own evaluation", r"The answer is sympify('open(\"pwned\", \"w\")')"),
    ("dollars", "$" * 20_000),
    ("many answers", "answer is " * 20_000),
    ("many numbers", "1," * 50_000),
    ("long sum", r"\boxed{%s1}" % ("1+" * 900)),
    ("one long word", "a" * 10**6),
    ("blanks", r"\boxed" + " " * 10**5),
    ("dashes", "-" * 10**5),
]


@pytest.mark.parametrize(("name", "text"), HOSTILE, ids=[name for name, _ in HOSTILE])
def test_hostile_answers_cost_little_and_are_not_correct(grader: Grader, name: str, text: str) -> None:
    started = time.monotonic()
    graded = grader.grade([GOOD, ("42", text, "math", None), BAD])
    assert [graded[0].verdict, graded[2].verdict] == ["correct", "wrong"]
    assert graded[1].verdict in ("wrong", "unparsed", "timeout", "error")
    assert time.monotonic() - started < 20  # five seconds of its own, on a machine that may be busy
    assert len(graded[1].extracted) <= 1000
    assert not Path("pwned").exists()


def test_nul_bytes_are_ignored(grader: Grader) -> None:
    assert grader.grade([("42", "\x00\\boxed{\x0042}\x00", "math", None)])[0].verdict == "correct"


def test_a_timeout_is_its_own_verdict_and_the_rest_is_graded() -> None:
    started = time.monotonic()
    with Grader(workers=1, timeout=0.5) as grader:
        graded = grader.grade([GOOD, ("42", ENDLESS, "math", None), BAD, ("42", ENDLESS, "math", None), GOOD])
    assert [one.verdict for one in graded] == ["correct", "timeout", "wrong", "timeout", "correct"]
    assert time.monotonic() - started < 10


def test_a_killed_worker_is_an_error_of_one_item_and_is_replaced() -> None:
    with Grader(workers=1) as grader:
        assert grader.grade([GOOD])[0].verdict == "correct"
        process = grader._workers[0]._process
        assert process is not None
        threading.Timer(0.5, process.kill).start()
        graded = grader.grade([("42", ENDLESS, "math", None), GOOD])
    assert [one.verdict for one in graded] == ["error", "correct"]


def test_memory_beyond_the_limit_is_an_error() -> None:
    """The limit is the worker's own, so it is tried in a worker whose grader is a memory hog."""
    code = """
import rectune.grading.math as math
import rectune.grading.pool as worker
from rectune.records import Grade
def hog(gold, text, extra):
    try:
        return Grade(str(len(bytearray(int(text)))), "")
    except MemoryError:
        return Grade("refused", "")
def swallow(gold, text):
    kept = []
    try:
        while True: kept.append(bytearray(2**24))
    except MemoryError:
        return Grade("wrong", "")
math.grade_math, worker.grade_exact = hog, swallow
worker.work(60.0)
"""
    items = f'[["1", "1000", "math", null], ["1", "{2 * MEMORY}", "math", null], ["1", "1", "exact", null]]'
    message = f"{len(items)}\n{items}"
    run = subprocess.run(
        [sys.executable, "-c", code], input=message, text=True, capture_output=True, timeout=60
    )
    assert [json.loads(line)[0] for line in run.stdout.splitlines()[1:]] == ["1000", "refused", "error"]


def test_order_is_kept_and_input_is_streamed() -> None:
    taken = 0

    def items() -> Iterator[tuple[str, str, str, None]]:
        nonlocal taken
        for i in range(2000):
            taken += 1
            yield "7", f"#### {i % 10}", "math", None

    with Grader(workers=2) as grader:
        stream = grader.stream(items())
        first = next(stream)
        assert taken < 1500
        verdicts = [first.verdict, *(one.verdict for one in stream)]
    assert verdicts == ["correct" if i % 10 == 7 else "wrong" for i in range(2000)]


def test_all_graders_in_one_call() -> None:
    tests, expression = {"test_list": ["assert f(2) == 4"]}, ("4", "2 + 2", "expression", None)
    programs = [("", f"def f(x): return {value}", "code", tests) for value in ("x * x", "x")]
    items = [GOOD, expression, programs[0], ("Paris", "paris", "exact", None), programs[1]]
    assert [one.verdict for one in grade_answers(items, workers=1)] == ["correct"] * 4 + ["wrong"]


def test_an_unknown_grader_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'math'"):
        grade_answers([("1", "1", "maths", None)], workers=1)


def test_closing_in_the_middle_is_quick_and_leaves_no_process() -> None:
    grader = Grader(workers=2)
    stream = grader.stream([GOOD] + [("42", ENDLESS, "math", None)] * 40, chunk=1)
    assert next(stream).verdict == "correct"
    processes = [worker._process for worker in grader._workers]
    started = time.monotonic()
    grader.close()
    assert time.monotonic() - started < 3
    assert all(process is None or process.poll() is not None for process in processes)


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored
from rectune.grading import Grader
with Grader(workers=2, timeout=2.0) as grader:
    grader.grade([("42", r"\\boxed{42}", "math", None)] * 4)
    print(*[w._process.pid for w in grader._workers if w._process], flush=True)
    grader.grade([("42", r"\\boxed{\\sum_{k=1}^{10^{9}} \\sin(k^2)}", "math", None)] * 40)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_no_orphan_outlives_its_parent(stop: signal.Signals) -> None:
    """Also after SIGKILL, when only the kernel's alarm clock is left; and a script needs no main guard."""
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert children
        time.sleep(0.3)
        parent.send_signal(stop)
        try:
            assert parent.wait(10) != 0
        finally:
            parent.kill()
    deadline = time.monotonic() + 7
    while any(_runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in children)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_file_in_the_working_directory_cannot_shadow_a_module(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('shadowed')")
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert grade_answers([GOOD], workers=1)[0].verdict == "correct"
    finally:
        os.chdir(before)
