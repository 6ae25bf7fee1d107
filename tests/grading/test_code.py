"""The sandbox for programs: right answers pass, and attacks neither pass nor reach outside."""

# ruff: noqa: E501  (attacks are one-line programs)

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rectune.grading import code as code_module
from rectune.grading.code import grade_code
from rectune.grading.code_extraction import extract_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are graded on Linux only")

TESTS = {
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n",
    "entry_point": "f",
}
SQUARE = "def f(x):\n    return x * x\n"
WRONG = "def f(x):\n    return 0\n"


def verdict(program: str, timeout: float = 5.0, **extra: object) -> str:
    return grade_code(f"```python\n{program}\n```", {**TESTS, **extra}, timeout=timeout).verdict


def test_right_wrong_and_unreadable_programs() -> None:
    assert verdict(SQUARE) == "correct"
    assert verdict(WRONG) == "wrong"
    assert verdict("def f(x): return x +") == "unparsed"
    assert verdict("def g(x): return x * x") == "wrong"
    assert verdict("def f(x): raise ValueError(x)") == "wrong"
    assert grade_code("", TESTS).verdict == "unparsed"


EQUAL_TO_ALL = "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n"
CHEATS = {
    "leave with success": "import sys; sys.exit(0)",
    "leave hard": "import os; os._exit(0)",
    "leave in the call": "import os\ndef f(x): os._exit(0)",
    "exit in the call": "def f(x): raise SystemExit(0)",
    "print the mark": WRONG + 'print("correct", \'["correct", true]\', flush=True)',
    "write to every descriptor": WRONG
    + "import os\nfor i in range(256):\n    try: os.write(i, b'[\"correct\", true]\\n')\n    except OSError: pass",
    "equal to everything": EQUAL_TO_ALL + "def f(x): return A()",
    "equal object": "class A:\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return A()",
    "patch the built-ins": WRONG
    + "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.compile = None",
    "patch assert's error": WRONG + "class AssertionError(Exception): pass",
    "replace the checker": WRONG + "def check(candidate): pass",
    "replace it in every module": WRONG
    + "import sys\nfor m in list(sys.modules.values()):\n    m.check = lambda c: None\n    m._judge = lambda *a: ['correct', True]",
    "patch unittest": WRONG + "import unittest\nunittest.TestCase.assertEqual = lambda *a: None",
    "climb the frames": WRONG
    + "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_globals['check'] = lambda c: None\n    frame = frame.f_back",
    "trace": WRONG + "import sys\nsys.settrace(lambda *a: None)",
    "exit handler": WRONG + "import atexit, os\natexit.register(os._exit, 0)",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheating_does_not_pass(name: str) -> None:
    assert verdict(CHEATS[name]) == "wrong"


def probe(body: str) -> str:
    """A right program if `body`, run inside, is refused with an OSError; else a wrong one."""
    indented = "\n".join("    " + line for line in body.splitlines())
    return (
        f"import os, socket, subprocess, ctypes, signal\ntry:\n{indented}\nexcept (OSError, ValueError):\n    refused = True\n"
        + ("else:\n    refused = False\ndef f(x):\n    return x * x if refused else 0\n")
    )


REFUSED = {
    "tcp": "socket.create_connection(('127.0.0.1', 80), 1)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "fork": "os.fork()",
    "run": "subprocess.run(['true'])",
    "replace itself": "os.execv('/bin/true', ['true'])",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill all": "os.kill(-1, 9)",
    "read its parent's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "read its parent's environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "read its parent's input": "open(f'/proc/{os.getppid()}/fd/0', 'rb')",
    "read a home folder": "os.listdir('/root' if os.path.isdir('/root') else '/home')",
    "read passwords": "open('/etc/passwd')",
    "read temporary files": "os.listdir('/tmp')",
    "write to tmp": "open('/tmp/rectune-escape', 'w')",
    "write to shared memory": "open('/dev/shm/rectune-escape', 'w')",
    "write above": "open('../escape', 'w')",
    "link out": "os.symlink('/etc', 'etc'); open('etc/passwd')",
    "raise the limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "change a mode": "os.chmod('/tmp', 0o777)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_kernel_refuses(name: str) -> None:
    assert verdict(probe(REFUSED[name])) == "correct"


def test_environment_is_empty_and_the_folder_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(code_module.tempfile, "tempdir", None)
    program = (
        "import os\nopen('note', 'w').write('x')\nok = sorted(os.environ) == ['HOME', 'LANG', 'TMPDIR']"
        " and os.environ['HOME'] == os.getcwd() and os.listdir('.') == ['note']\n"
        "def f(x): return x * x if ok else 0"
    )
    assert verdict(program) == "correct"
    assert list(tmp_path.iterdir()) == []


GREEDY = {
    "memory": ("x = bytearray(2**31)\n" + SQUARE, {"wrong"}),
    "memory in small pieces": ("x = []\nwhile True: x.append(bytearray(2**20))", {"wrong", "timeout"}),
    "fork bomb": ("import os\nwhile True: os.fork()", {"wrong"}),
    "swallowing fork bomb": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", {"timeout"}),
    "thread bomb": ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()", {"wrong", "timeout"}),
    "endless loop": ("while True: pass", {"timeout"}),
    "endless call": ("def f(x):\n    while True: pass", {"timeout"}),
    "endless sleep": ("import time\ntime.sleep(1000)", {"timeout"}),
    "deaf to signals": ("import signal\nfor s in (1, 2, 15, 14, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", {"timeout"}),
    "endless output": ("while True: print('x' * 10**6)", {"timeout"}),
    "huge file": ("import signal\nsignal.signal(25, signal.SIG_IGN)\nf = open('big', 'wb')\nwhile True: f.write(bytes(2**20))", {"wrong"}),
    "huge answer": ("def f(x): return 'x' * 10**8", {"wrong", "timeout"}),
    "deep answer": ("def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a", {"wrong"}),
    "endless answer": ("def f(x): return iter(int, 1)", {"wrong"}),
    "deep source": ("(" * 10**5, {"unparsed"}),
    "crash": ("import ctypes\nctypes.string_at(0)", {"wrong"}),
    "forged replies": ("import os\nwhile True: os.write(61, b'[[[[' * 10**4)", {"wrong"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_greed_is_bounded(name: str) -> None:
    program, allowed = GREEDY[name]
    started = time.monotonic()
    assert verdict(program, timeout=1.0) in allowed
    assert time.monotonic() - started < 4


def test_nothing_is_left_running() -> None:
    marker = f"{time.time_ns()}"
    verdict(f"import time\nx = '{marker}'\nwhile True: time.sleep(1)", timeout=0.5)
    time.sleep(0.2)
    left = [int(p) for p in os.listdir("/proc") if p.isdigit() and _sandboxed(int(p))]
    assert left == []


def test_nothing_outlives_a_killed_grader() -> None:
    call = "grade_code('import time\\ntime.sleep(1000)', {'test': 'assert f(1)'}, timeout=3.0)"
    grader = subprocess.Popen([sys.executable, "-c", f"from rectune.grading.code import grade_code; {call}"])
    assert _becomes(True, seconds=60)
    time.sleep(1)  # it has got its program by then
    grader.kill()
    grader.wait()
    assert _becomes(False, seconds=10)


def _becomes(running: bool, seconds: int) -> bool:
    """Whether a sandbox runs, or none does, before the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running == any(_sandboxed(int(p)) for p in os.listdir("/proc") if p.isdigit()):
            return True
        time.sleep(0.05)
    return False


def _sandboxed(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(f"{code_module.tempfile.gettempdir()}/rectune-")
    except OSError:
        return False


NODE = """class Node:
    def __init__(self, v): self.v, self.left = v, None
def depth(n): return 0 if n is None else 1 + depth(n.left)"""
TREE = {"test_setup_code": "root = Node(1)\r\nroot.left = Node(2)"}
VALUES = "[1, -2**70, 7**6000, 0.1, float('inf'), 1j, 'é\\ud800', b'x', None, True, (1, [2]), {1: {2}, (3,): 'a'}, frozenset({4}), range(3)]"
CHANGE = "def f(a, d, s):\n    a.sort()\n    d['k'] = a\n    s.clear()"
CHANGED = [
    "a, d, s = [3, 1], {}, {5}",
    "assert f(a, d, s) is None",
    "assert (a, d, s) == ([1, 3], {'k': [1, 3]}, set())",
]


@pytest.mark.parametrize(("program", "tests", "more", "wanted"), [
    # classes, instances and their attributes work through handles, as some MBPP tests need
    (NODE, ["assert depth(root) == 2", "assert root.left.v == 2"], TREE, "correct"),
    (NODE, ["assert depth(root) == 3"], TREE, "wrong"),
    # values are the same on both sides of the pipe
    ("def f(x): return x", [f"assert f({VALUES}) == {VALUES}",
     f"assert [type(v) for v in f({VALUES})] == [type(v) for v in {VALUES}]"], {}, "correct"),
    # changes to arguments come back
    (CHANGE, CHANGED, {}, "correct"),
    (CHANGE.replace("a.sort()", ""), CHANGED, {}, "wrong"),
    # the tests are confined and bounded, too
    (SQUARE, ["assert f(2) == 4", "import socket; socket.socket()"], {}, "wrong"),
    (SQUARE, ["assert f(2) == 4", "open('/tmp/rectune-escape', 'w')"], {}, "wrong"),
    (SQUARE, ["assert f(2) == 4", "import os; os.fork()"], {}, "wrong"),
    ("def f(): return range(10**12)", ["assert list(f()) == [0]"], {}, "wrong"),
], ids=range(9))  # fmt: skip
def test_tests_reach_the_program_through_the_pipe(
    program: str, tests: list[str], more: dict, wanted: str
) -> None:
    assert grade_code(program, {"test_list": tests, **more}).verdict == wanted


def test_code_is_found_in_prose() -> None:
    prompt = "import math\n\ndef area(r):\n    '''Area of a disc.'''\n"
    whole = "def area(r):\n    return math.pi * r * r"
    talk = f"Sure!\n```python\n{whole}\n```\nFor example:\n```python\nprint(area(1))\n```"
    for text in (talk, whole, "    return math.pi * r * r\n\nprint(area(1))", "return math.pi * r * r"):
        names: dict = {}
        exec(extract_code(text, prompt=prompt, entry_point="area"), names)
        assert round(names["area"](2), 3) == 12.566
    assert extract_code("```\nx = 1") == "x = 1"


DATA = Path(__file__).parents[3] / "shared" / "data"


def _solutions(name: str) -> list[tuple[str, dict]]:
    """The reference solutions of HumanEval or MBPP, each with its tests."""
    file, solution, count = {"humaneval": ("HumanEval.jsonl.gz", "canonical_solution", 164),
                             "mbpp": ("mbpp.jsonl", "code", 974)}[name]  # fmt: skip
    path = DATA / name / file
    if not path.exists():
        pytest.skip(f"{name} is not next to the repository")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    assert len(rows) == count
    return [(row[solution], row) for row in rows]


@pytest.mark.parametrize(("name", "every"), [
    ("humaneval", 16), ("mbpp", 80),
    pytest.param("humaneval", 1, marks=pytest.mark.slow), pytest.param("mbpp", 1, marks=pytest.mark.slow),
])  # fmt: skip
def test_reference_solutions_pass(name: str, every: int) -> None:
    rows = _solutions(name)[::every]
    with ThreadPoolExecutor(2) as threads:
        verdicts = list(threads.map(lambda row: grade_code(row[0], row[1], timeout=20).verdict, rows))
    # on a busy machine
    late = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict == "timeout"]
    again = [grade_code(code, row, timeout=60).verdict for code, row in late]
    assert [v for v in verdicts if v != "timeout"] + again == ["correct"] * len(rows)
