"""Grading programs: the tests of a problem, and running a program against them in a sandbox.

The sandbox is `sandbox/`; what it guarantees is in `docs/grading.md`. `extra` of a problem holds, named as in
the data sets, `test` and `entry_point` and `prompt` (HumanEval), `test_list` and `test_setup_code` (MBPP), or
pairs of an input and an output in the forms of APPS, TACO, LiveCodeBench and CodeContests.
"""

from __future__ import annotations

import builtins
import importlib
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from rectune.errors import UserError
from rectune.grading.code_extraction import behind, extract_code, names_of, split_prompt, wanted_names
from rectune.records import AnswerVerdict, Grade

MEMORY = 2**30
"""Bytes of address space for the candidate."""
_IMPORTED = ("typing", "math", "collections", "itertools", "functools", "heapq", "bisect", "re", "string", "random",
             "operator", "copy", "statistics", "sys", "json", "datetime")  # fmt: skip
"""Modules that the graders of APPS and LiveCodeBench import, names and all, in front of each program."""
PROGRAMS = ("test", "tests", "unit_tests", "test_list", "test_cases")
"""Fields of `extra` that hold a program, or a list of its lines; the first one that does so counts."""
PAIRS = ("input_output", "test_cases", "public_test_cases", "private_test_cases", "public_tests", "private_tests",
         "generated_tests", "official_tests", "tests")  # fmt: skip
"""Fields of `extra` that hold pairs; all that are there count together, and `inputs` with `outputs` too."""
_INPUTS = ("input", "inputs", "stdin")
_OUTPUTS = ("output", "outputs", "expected_output", "expected", "stdout")
_SETUP = ("test_setup_code", "test_imports")
_NAMES = ("fn_name", "func_name", "function_name")
_CHECK = """
def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value

def check(candidate):
    for arguments, wanted in CASES:
        result = plain(candidate(*arguments))
        assert result in wanted
"""


def grade_code(
    text: str,
    extra: Mapping[str, Any],
    *,
    timeout: float = 5.0,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> Grade:
    """Run the code in `text` against the tests in `extra`, for at most `timeout` seconds.

    Args:
        extra: See above; it has passed `pool.check_item`.
        started: Called with the sandbox's process, so that another thread can kill it.

    Raises:
        UserError: `extra` has no tests, or this machine cannot confine a program.
    """
    tests = read_tests(extra)
    prompt = "" if tests.streams else str(extra.get("prompt") or "")
    code = extract_code(text, prompt=prompt, entry_point=tests.function, tests=tests.program)
    if not code.strip():
        return Grade("unparsed", "")
    if tests.pairs:
        code = _with_imports(code)
    prelude, _ = split_prompt(prompt, wanted_names(tests.function, tests.program))
    job = {"program": code, "prompt": prompt, "prelude": prelude, "tests": tests.program,
           "entry_point": tests.function or _function_of(prompt, code), "cases": tests.streams,
           "lenient": tests.lenient, "cpu_seconds": int(timeout) + 1, "memory": MEMORY}  # fmt: skip
    verdict, reason = _run(job, timeout, started)
    return Grade(verdict, code[:1000], reason)


def _with_imports(code: str) -> str:
    """`code` behind imports of the names that it uses without defining them, where usual modules have them."""
    names, lines = names_of(code), []
    for name in sorted(names.free - set(dir(builtins))) if names else []:
        having = (module for module in _IMPORTED if hasattr(importlib.import_module(module), name))
        if name in _IMPORTED:
            lines.append(f"import {name}\n")
        elif module := next(having, ""):
            lines.append(f"from {module} import {name}\n")
    return behind("".join(lines), code)


def _function_of(prompt: str, code: str) -> str:
    """The function to write, where no field names it: the prompt's last, else the program's."""
    for source in (prompt, code):
        names = re.findall(r"^(?:async[^\S\n]+)?(?:def|class)[^\S\n]+(\w+)", source, re.MULTILINE)
        if functions := [name for name in names if not re.match(r"main$|test", name)]:
            return str(functions[-1])
    return ""


def _run(
    job: Mapping[str, object], timeout: float, started: Callable[[subprocess.Popen[bytes]], None]
) -> tuple[AnswerVerdict, str]:
    """Verdict and reason of one sandbox, in a folder of its own that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="rectune-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).parent / "sandbox")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        started(process)
        try:
            output, _ = process.communicate(json.dumps(job).encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()  # the others follow: the kernel ends them with it
            process.communicate()
            return "timeout", ""
    verdict, reason, protected = json.loads(output) if output else ("error", "the sandbox died", True)
    if verdict == "refused":
        what = f"programs cannot be confined here: {reason}"
        raise UserError(what, hint="code needs Linux on x86-64 or arm64")
    if not protected:
        warnings.warn("no Landlock here: files are protected by their permissions only", stacklevel=2)
    return cast(AnswerVerdict, verdict), reason


class CodeTests(NamedTuple):
    """The tests of one problem, as the code grader needs them.

    Attributes:
        program: A program of tests, "" where there are `streams`.
        function: What it calls, "" where that is not said.
        streams: Text on standard input and the text to be printed, for programs that read it.
        pairs: Whether they are pairs of an input and an output.
        lenient: Whether outputs are compared as APPS, TACO and CodeContests do: inexact numbers within a tolerance.
    """

    program: str
    function: str = ""
    streams: Sequence[tuple[str, str]] = ()
    pairs: bool = False
    lenient: bool = False


def read_tests(extra: Mapping[str, Any], where: str | None = None) -> CodeTests:
    """The tests in `extra`.

    Raises:
        UserError: There are none, or it names the field (at `where`) that cannot be read.
    """
    for name in ("prompt", "entry_point", "test_setup_code"):
        if not isinstance(extra.get(name), str | None):
            raise UserError(f"extra.{name} is not text", where=where)
    setup = [str(extra.get("test_setup_code") or ""), *_texts(extra.get("test_imports"))]
    for name in PROGRAMS:
        if program := _texts(extra.get(name)):
            source = "\n".join([*(line for line in setup if line.strip()), *program])
            return CodeTests(source.replace("\r\n", "\n"), str(extra.get("entry_point") or ""))
    tests = _read_pairs(extra, where)
    if tests is None:
        others = [name for name in extra if "test" in name and name not in _SETUP]
        unread = f" that can be read (extra has {', '.join(others)})" if others else ""
        hint = "give extra.test or extra.test_list, or inputs and outputs in extra.input_output"
        raise UserError(f"the code problem has no tests{unread}", where=where, hint=hint)
    return tests


def _texts(value: Any) -> list[str]:
    """A text, or a list of texts, as a list without empty ones; no texts where it is anything else."""
    if isinstance(value, str):
        value = [] if value.lstrip()[:1] in ("[", "{") else [value]  # JSON is no program
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        return []
    return [text for text in value if text.strip()]


def _read_pairs(extra: Mapping[str, Any], where: str | None) -> CodeTests | None:
    """The pairs in `extra`; None where it has no such field."""
    found: list[tuple[Any, Any, bool]] = []
    fields = [(name, extra[name]) for name in PAIRS if extra.get(name)]
    if extra.get("inputs") and extra.get("outputs") is not None:
        fields.append(("inputs", {name: extra[name] for name in ("inputs", "outputs")}))
    if not fields:
        return None
    function = _function(extra) or _function(_parsed(extra.get("metadata") or {}, "metadata", where))
    lenient = True
    for name, value in fields:
        value = _parsed(value, name, where)
        function = function or _function(value)
        pairs = _pairs(value, name, where)
        lenient = lenient and not any(functional is not None for *_, functional in pairs)
        found += [(given, wanted, bool(functional)) for given, wanted, functional in pairs]
    if not found:
        raise UserError("the code problem has no tests", where=where, hint=f"extra.{fields[0][0]} is empty")
    if not function and any(functional for *_, functional in found):
        what = "functional tests without the function's name"
        raise UserError(what, where=where, hint="give extra.fn_name")
    if function:
        cases = [_call(given, wanted, functional, where) for given, wanted, functional in found]
        program = f"nan, inf = float('nan'), float('inf')\nCASES = {cases!r}\n{_CHECK}"
        return CodeTests(program, function, pairs=True)
    return CodeTests("", "", [(_lines(given), _lines(wanted)) for given, wanted, _ in found], True, lenient)


def _function(record: Any) -> str:
    named = [record[name] for name in _NAMES if record.get(name)] if isinstance(record, Mapping) else []
    return str(named[0]) if named else ""


def _parsed(value: Any, name: str, where: str | None) -> Any:
    """The value of a field that may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        hint = "LiveCodeBench's packed private tests are a pickle: unpack them to JSON first"
        raise UserError(f"extra.{name} is text, but not JSON", where=where, hint=hint) from None


def _pairs(value: Any, name: str, where: str | None) -> list[tuple[Any, Any, bool | None]]:
    """Input, output and whether it is a call's (None where it does not say) of each test."""
    if isinstance(value, Mapping):
        inputs, outputs = _side(value, _INPUTS), _side(value, _OUTPUTS)
        if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence):
            raise UserError(f"extra.{name} has no 'inputs' and 'outputs'", where=where)
        if isinstance(inputs, str) and isinstance(outputs, str):
            inputs, outputs = [inputs], [outputs]
        if len(inputs) != len(outputs):
            raise UserError(f"extra.{name} has {len(inputs)} inputs, but {len(outputs)} outputs", where=where)
        return [(given, wanted, None) for given, wanted in zip(inputs, outputs, strict=True)]
    pairs: list[tuple[Any, Any, bool | None]] = []
    for test in value if isinstance(value, list | tuple) else [value]:
        kind = test.get("testtype", test.get("type")) if isinstance(test, Mapping) else None
        if None in (_side(test, _INPUTS), _side(test, _OUTPUTS)):
            raise UserError(f"extra.{name} is not a list of tests with 'input' and 'output'", where=where)
        if kind not in (None, "stdin", "stdin_stdout", "functional", "function_call"):
            raise UserError(f"extra.{name}: no such test type: {kind}", where=where)
        is_call = None if kind is None else kind.startswith("function")
        pairs.append((_side(test, _INPUTS), _side(test, _OUTPUTS), is_call))
    return pairs


def _side(record: Any, names: Sequence[str]) -> Any:
    """The input or the output of a test, under any of its names; None where it has none."""
    named = [record[name] for name in names if name in record] if isinstance(record, Mapping) else []
    return named[0] if named else None


def _lines(value: Any) -> str:
    """Standard input or output: text, or its lines in a list."""
    if isinstance(value, str):
        return value
    return "\n".join(map(_lines, value)) if isinstance(value, list | tuple) else str(value)


def _call(given: Any, wanted: Any, functional: bool, where: str | None) -> tuple[list[Any], list[Any]]:
    """Arguments of a call, and the results that count."""
    if functional and isinstance(given, str):  # LiveCodeBench: one argument a line
        given = [_parsed(line, "input", where) for line in given.split("\n") if line.strip()]
    if functional and isinstance(wanted, str):
        return given, [_parsed(wanted, "output", where)]
    if not isinstance(given, list | tuple):
        given = [given]
    wanted = _with_numbers(wanted)
    in_list = isinstance(wanted, list) and len(wanted) == 1  # APPS: a result in a list of its own
    results = [wanted, _with_numbers(wanted[0])] if in_list else [wanted]
    return [_with_numbers(argument) for argument in given], results


def _with_numbers(value: Any) -> Any:
    """A mapping whose keys were numbers before JSON made texts of them."""
    if isinstance(value, Mapping) and value and all(key.lstrip("-").isdigit() for key in value):
        return {int(key): item for key, item in value.items()}
    return value
