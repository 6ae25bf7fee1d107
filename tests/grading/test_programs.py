"""Programs in the words of a model, and tests, as people have them: each line of a file has the right verdict.

`tests/cases/NN-*/in.jsonl` are situations from public reports; `code-variants` are fences, layouts of tests, values,
prompts and inputs around them. The verdict is the one of program and tests in one plain Python process, except
where a program could fake that, or cannot be reached by its tests from outside: there it is `error`.
"""

# ruff: noqa: E501  (answers are one-line texts)

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rectune.errors import UserError
from rectune.grading.code import grade_code
from rectune.grading.code_extraction import extract_code, fenced_blocks
from rectune.grading.pool import check_item

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are graded on Linux only")
CASES = Path(__file__).parents[1] / "cases"


def check_rows(rows: list[dict]) -> None:
    def judge(row: dict) -> tuple[str, str, str]:
        check_item("code", row["extra"])
        limit = 2.0 if row["want"] == "timeout" else 30.0
        graded = grade_code(row["text"], row["extra"], timeout=limit)
        return row["name"], graded.verdict, graded.reason

    with ThreadPoolExecutor(2) as threads:
        graded = list(threads.map(judge, rows))
    assert [
        (one, row["want"])
        for one, row in zip(graded, rows, strict=True)
        if one[1] not in row["want"] or (one[1] == "error") != bool(one[2])
    ] == []


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (CASES / name / "in.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name",
    [
        "27-code-fences",
        "31-uncalled-tests",
        "32-rich-values",
        "33-stdin-tests",
        "44-prompt-and-test-faults",
    ],
)
def test_reported_situations_get_their_verdict(name: str) -> None:
    check_rows(rows_of(name))


def test_some_variants_get_their_verdict() -> None:
    check_rows([row for row in rows_of("code-variants")[::9] if row["want"] != "timeout"])


@pytest.mark.slow
def test_all_variants_get_their_verdict() -> None:
    check_rows(rows_of("code-variants"))


def test_fences_are_paired_by_line() -> None:
    text = "Inline ```x```.\n```sh\nls\n```\n1. A:\n   ~~~ {.python}\n   a\n     b\n   ~~~~\n> ```py\n> c\n> ```\n````\n```\n````\n```\nopen"
    assert [(block.info, block.code, block.closed) for block in fenced_blocks(text)] == [
        ("sh", "ls", True),
        ("{.python}", "a\n  b", True),
        ("py", "c", True),
        ("", "```", True),
        ("", "open", False),
    ]


def test_many_fences_take_linear_time() -> None:
    assert len(fenced_blocks("```python\n'''\n```\n" * 3000)) > 0
    extract_code("```python\ndef f():\n    pass\n```\n" * 3000, tests="assert f() is None")


def test_helpers_come_along_and_usage_does_not() -> None:
    text = "```python\nimport math\n```\n```python\ndef g(x):\n    return math.pi * x\n```\n```python\ndef f(x):\n    return g(x)\n```\n```python\nprint(f(1))\n```"
    assert extract_code(text, entry_point="f") == (
        "import math\n\ndef g(x):\n    return math.pi * x\n\ndef f(x):\n    return g(x)"
    )


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({}, "has no tests"),
        ({"tests_to_run": "assert f"}, "tests_to_run"),
        ({"test_list": [1]}, "has no tests"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "1 inputs, but 0 outputs"),
        ({"input_output": {"input": 3}}, "no 'inputs' and 'outputs'"),
        ({"private_test_cases": "eJxrYJmaxQABPdwA"}, "not JSON"),
        ({"public_test_cases": [{"input": "1"}]}, "not a list of tests"),
        ({"public_test_cases": [{"input": "1", "output": "1", "testtype": "functional"}]}, "function's name"),
        ({"public_test_cases": [{"input": "1", "output": "1", "testtype": "graphic"}]}, "no such test type"),
        ({"test": "assert f(1)", "prompt": 3}, "extra.prompt is not text"),
    ],
)
def test_tests_that_cannot_be_read_are_refused(extra: dict, says: str) -> None:
    with pytest.raises(UserError) as raised:
        check_item("code", extra, where="x.jsonl:3")
    assert "x.jsonl:3" in str(raised.value) and says in f"{raised.value} {raised.value.hint}"


def test_processor_time_of_threads_is_a_timeout_and_long_output_counts() -> None:
    burn = "import hashlib, threading\ndef burn():\n    while True: hashlib.sha256(b'x' * 10**6).digest()\n"
    threads = burn + "def f(x):\n    for _ in range(8): threading.Thread(target=burn).start()\n    burn()"
    many = {"input_output": {"inputs": [""], "outputs": ["x\n" * 2_000_000]}}
    check_rows(
        [
            {"name": "threads", "text": threads, "extra": {"test": "assert f(2) == 4"}, "want": "timeout"},
            {"name": "long", "text": "print('x\\n' * 2_000_000)", "extra": many, "want": "correct"},
            {"name": "endless", "text": "while True: print('x' * 999)", "extra": many, "want": "wrong"},
        ]
    )
