"""The tests of a code problem: programs, lists of assertions, and pairs of an input and an output.

Pairs come in the forms of APPS, TACO, LiveCodeBench and CodeContests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rectune.errors import UserError

PROGRAMS = ("test", "tests", "unit_tests", "test_list", "test_cases")
"""Fields of `extra` that hold a program, or a list of its lines; the first one that does so counts."""
PAIRS = ("input_output", "test_cases", "public_test_cases", "private_test_cases", "public_tests", "private_tests",
         "generated_tests", "official_tests", "tests")  # fmt: skip
"""Fields of `extra` that hold pairs; all that are there count together, and `inputs` with `outputs` too."""
_INPUTS, _OUTPUTS = (
    ("input", "inputs", "stdin"),
    ("output", "outputs", "expected_output", "expected", "stdout"),
)
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
            raise UserError(f"extra.{name} is no text", where=where)
    setup = [str(extra.get("test_setup_code") or ""), *_texts(extra.get("test_imports")), ""]
    for name in PROGRAMS:
        if program := "\n".join(_texts(extra.get(name))):
            given = "\n".join(line for line in setup if line.strip())
            source = f"{given}\n{program}" if given else program
            return CodeTests(source.replace("\r\n", "\n"), str(extra.get("entry_point") or ""))
    tests = _read_pairs(extra, where)
    if tests is None:
        others = [
            name for name in extra if "test" in name and name not in ("test_setup_code", "test_imports")
        ]
        raise UserError(
            "a code problem without tests"
            + (f" that can be read (extra has {', '.join(others)})" if others else ""),
            where=where,
            hint="give extra.test or extra.test_list, or inputs and outputs in extra.input_output",
        )
    return tests


def _texts(value: Any) -> list[str]:
    """A text, or a list of texts, as a list without empty ones; no texts where it is anything else."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) for one in values):
        return []
    return (
        []
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{")
        else [one for one in values if one.strip()]
    )


def _read_pairs(extra: Mapping[str, Any], where: str | None) -> CodeTests | None:
    """The pairs in `extra`; None where it has no such field."""
    found: list[tuple[Any, Any, bool]] = []
    fields = [(name, extra[name]) for name in PAIRS if extra.get(name)]
    if extra.get("inputs") and extra.get("outputs") is not None:
        fields.append(
            ("inputs", {name: extra[name] for name in ("inputs", "outputs", *_NAMES) if name in extra})
        )
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
        raise UserError("a code problem without tests", where=where, hint=f"extra.{fields[0][0]} is empty")
    if not function and any(functional for *_, functional in found):
        raise UserError(
            "functional tests without the function's name", where=where, hint="give extra.fn_name"
        )
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
        raise UserError(
            f"extra.{name} is a text, but no JSON", where=where,
            hint="LiveCodeBench's packed private tests are a pickle: unpack them to JSON first",
        ) from None  # fmt: skip


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
    for one in value if isinstance(value, list | tuple) else [value]:
        kind = one.get("testtype", one.get("type")) if isinstance(one, Mapping) else None
        if None in (_side(one, _INPUTS), _side(one, _OUTPUTS)):
            raise UserError(f"extra.{name} is no list of tests with 'input' and 'output'", where=where)
        if kind not in (None, "stdin", "stdin_stdout", "functional", "function_call"):
            raise UserError(f"extra.{name}: no such test type: {kind}", where=where)
        pairs.append(
            (_side(one, _INPUTS), _side(one, _OUTPUTS), None if kind is None else kind.startswith("function"))
        )
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
    given, wanted = [_with_numbers(one) for one in given], _with_numbers(wanted)
    return given, [wanted, _with_numbers(wanted[0])] if isinstance(wanted, list) and len(wanted) == 1 else [
        wanted
    ]


def _with_numbers(value: Any) -> Any:
    """A mapping whose keys were numbers before JSON made texts of them."""
    if isinstance(value, Mapping) and value and all(key.lstrip("-").isdigit() for key in value):
        return {int(key): one for key, one in value.items()}
    return value
