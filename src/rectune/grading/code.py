"""Grading programs: find the code in a model's words, run it against tests in a sandbox.

The sandbox is `sandbox/`; what it guarantees is in `docs/grading.md`. `extra` of a problem holds, named as in
the data sets, `test` and `entry_point` and `prompt` (HumanEval) or `test_list` and `test_setup_code` (MBPP).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rectune.errors import UserError
from rectune.grading.verdicts import Graded

MEMORY = 2**30
"""Bytes of address space for the candidate."""
_FENCE = re.compile(r"```(?:python|py)?[^\S\n]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def extract_code(text: str, *, prompt: str = "", entry_point: str = "") -> str:
    """The program that a model means: its last fenced block that fits, else all of `text`.

    A block fits that defines `entry_point` (any block where that is ""). Text that defines no such name
    continues `prompt`, up to its first line that is not indented; otherwise `prompt` is put in front, for its
    imports and helpers.
    """
    blocks = [block for block in _FENCE.findall(text) if block.strip()]
    defines = re.compile(  # blanks of one line only: over many empty lines it would take quadratic time
        rf"^[^\S\n]*(?:async[^\S\n]+)?(?:def|class)[^\S\n]+{re.escape(entry_point)}\b|^{re.escape(entry_point)}[^\S\n]*=",
        re.MULTILINE,
    )
    fitting = [block for block in blocks if not entry_point or defines.search(block)]
    code = (fitting or blocks or [text])[-1]
    if not code.strip() or not prompt:
        return code
    if defines.search(code):
        return f"{prompt}\n\n{code}"
    body = re.split(r"\n(?=[^\s#])", code if code[0] in " \t\n" else f"    {code}")[0]
    return prompt + body


def grade_code(
    text: str,
    extra: Mapping[str, Any],
    *,
    timeout: float = 5.0,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> Graded:
    """Run the code in `text` against the tests in `extra`, for at most `timeout` seconds.

    Args:
        extra: As the module says; it has passed `pool.check_item`.
        started: Called with the sandbox's process, so that another thread can kill it.

    Raises:
        UserError: `extra` has no tests, or this machine cannot confine a program.
    """
    entry_point, prompt = str(extra.get("entry_point") or ""), str(extra.get("prompt") or "")
    tests = extra.get("test") or "\n".join(extra.get("test_list") or [])
    if not tests:
        raise UserError("a code problem without tests", hint="give extra.test or extra.test_list")
    code = extract_code(text, prompt=prompt, entry_point=entry_point)
    if not code.strip():
        return Graded("unparsed", "")
    setup = str(extra.get("test_setup_code") or "").replace("\r\n", "\n")
    job = {"program": code, "prelude": prompt, "tests": f"{setup}\n{tests}", "entry_point": entry_point,
           "cpu_seconds": int(timeout) + 1, "memory": MEMORY}  # fmt: skip
    return Graded(_run(job, timeout, started), code[:1000])


def _run(job: dict[str, Any], timeout: float, started: Callable[[subprocess.Popen[bytes]], None]) -> Any:
    """The verdict of one sandbox, in a folder of its own that is removed afterwards."""
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
            process.kill()  # the candidate follows: it asked the kernel to die with its checker
            process.communicate()
            return "timeout"
    verdict, note = json.loads(output) if output else ("error", "")
    if verdict == "error" and note:
        raise UserError(
            f"programs cannot be confined here: {note}", hint="code needs Linux on x86-64 or arm64"
        )
    if verdict != "error" and not note:
        warnings.warn(
            "no Landlock in this kernel: files are protected by their permissions only", stacklevel=2
        )
    return verdict
