"""Grading programs: find the code in a model's words, run it against tests in a sandbox.

The sandbox is `sandbox/`; what it guarantees is in `docs/grading.md`. `extra` of a problem holds, named as in
the data sets, `test` and `entry_point` and `prompt` (HumanEval), `test_list` and `test_setup_code` (MBPP), or
inputs and outputs; `cases.py` reads them.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import itertools
import json
import re
import subprocess
import symtable
import sys
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rectune.errors import UserError
from rectune.grading.cases import read_tests
from rectune.grading.fences import Block, before_first_fence, fenced_blocks
from rectune.grading.final_answer import final_part
from rectune.grading.sandbox.layouts import OWN_NAMES, bound_names, free_names
from rectune.records import Grade

MEMORY = 2**30
"""Bytes of address space for the candidate."""
MAX_BLOCKS = 30
"""Blocks that are looked through for a program; the last ones of an answer with more."""
CUTS = 8
"""Times that a text is cut where it stops being a program."""
_CODE_LINE = re.compile(r"(?:import|from|def|class|async def)\s+\w|@\w|#!|[A-Za-z_]\w*\s*(?::[^=\n]*)?=[^=]")
_READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\(0")
_DOES = re.compile(r"^\s*(?:def|class|import|from|print)\b", re.MULTILINE)
_WHOLE = re.compile(r"\A(?!.*^return\b).*^(?:def|class) ", re.MULTILINE | re.DOTALL)
"""A program, not the body of a function."""
_TAG = re.compile(r"^[^\S\n]*(?:\[(?P<open>BEGIN|PYTHON|CODE)\]|<(?P<tag>code|python)>|\[(?:DONE|END|/PYTHON|/CODE)\]"
                  r"|</(?:code|python)>)[^\S\n]*$", re.MULTILINE | re.IGNORECASE)  # fmt: skip
_NOTEBOOK = re.compile(r"^[!%].*$", re.MULTILINE)
_PROMPTS = re.compile(r"[^\S\n]*(?:>>>|\.\.\.:?|In \[\d+\]:)(?: |$)")
_BLANKS = {0xA0: " ", 0x3000: " ", 0x200B: None, 0x200E: None, 0xFEFF: None}
"""Characters that word processors and chat pages put between the words of a program."""
_IMPORTED = ("typing", "math", "collections", "itertools", "functools", "heapq", "bisect", "re", "string", "random",
             "operator", "copy", "statistics", "sys", "json", "datetime")  # fmt: skip
"""Modules that the graders of APPS and LiveCodeBench import, names and all, in front of each program."""
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)


def extract_code(text: str, *, prompt: str = "", entry_point: str = "", tests: str = "") -> str:
    """The program that a model means, whole: the blocks of its final part that define what the tests call.

    Of several versions the last one that is complete counts; blocks with helpers that it uses come along.
    Words that define nothing of it continue `prompt`, up to the first line that is not indented; a whole
    program gets the imports and helpers of `prompt` in front.
    """
    wanted = _wanted(entry_point, tests)
    part = final_part(text)
    code = _whole(part, prompt, wanted)
    if not part or len(part) == len(text) or _fits(code, wanted):
        return code
    longer = _whole(
        text[max(0, text.rfind(part)) :], prompt, wanted
    )  # a docstring may look like another question
    return longer if _fits(longer, wanted) else code


def _fits(code: str, wanted: list[str]) -> bool:
    return _names(code) is not None and (not wanted or _defines(code, wanted))


def _whole(text: str, prompt: str, wanted: list[str]) -> str:
    """The program in `text`, together with what it needs of `prompt`."""
    code = _defining(text, wanted)
    if not code.strip() or not prompt.strip():
        return code
    before, head = _split_prompt(prompt, wanted)
    body = re.split(r"\n(?=[^\s#])", code if code[0] in " \t\n" else f"    {code}")[0]
    if head and code[0] in " \t\n" and _names(code) is None and _names(head + body):
        return head + body  # what follows the body may define the function once more
    if not head or _defines(code, wanted) or (_names(code) and (not wanted or _WHOLE.search(code))):
        future = "".join(_FUTURE.findall(code)) if before else ""
        return f"{future}{before}\n\n{_FUTURE.sub('', code) if future else code}" if before else code
    whole = textwrap.indent(code, "    ")  # a body at the margin, or one whose first line alone is there
    if re.search(r"^return\b", code, re.MULTILINE) and _names(head + whole):
        return head + whole
    return head + body


def _defining(text: str, wanted: list[str]) -> str:
    """The part of `text` that is the program, blocks in their order."""
    text = text.lstrip("\ufeff\u200b")
    if "```" not in text and "~~~" not in text:  # marks of other prompts, as MBPP's [BEGIN] and [DONE]
        text = _TAG.sub(lambda mark: "```python" if mark["open"] or mark["tag"] else "```", text)
    blocks = [_mended(block) for block in fenced_blocks(text) if block.code.strip()][-MAX_BLOCKS:]
    python = [block for block in blocks if block.is_python is not False] or blocks
    chosen = _chosen(python, wanted)
    if not chosen:
        bare = before_first_fence(text) if blocks or "```" in text or "~~~" in text else text
        bare = bare if bare.strip() else text
        if not blocks or _defines(bare, wanted) or (bare[:1].isspace() and not blocks[0].closed):
            return _without_prose(bare)  # a body may end with a fence that its prompt has opened
        body = [(block.code[:1].isspace(), block.is_python is True, i) for i, block in enumerate(python)]
        chosen = [max(body)[-1]]
    while missing := _missing(python, chosen):
        chosen = sorted({*chosen, missing[0]})
    return "\n\n".join(python[i].code for i in chosen)


def _mended(block: Block) -> Block:
    """A block that is no program because of how it was written down, as the program that it shows."""
    first = re.sub(r"^(?:py|python)\d*\s+", "", block.info)
    if _names(block.code) is None and _CODE_LINE.match(first):  # ```python def f():
        block = block._replace(info="python", code=f"{first}\n{block.code}")
    return block._replace(code=_as_program(block.code))


def _as_program(code: str) -> str:
    """`code` without a notebook's commands, prompts or odd blanks, where these keep it from being a program."""
    for mend in (
        _without_prompts,
        lambda text: _NOTEBOOK.sub("", text),
        lambda text: text.translate(_BLANKS),
    ):
        if _names(code) is not None:
            break
        code = mend(code)
    return code


def _without_prompts(session: str) -> str:
    """What was typed in an interactive session; text without prompts stays as it is."""
    lines = session.splitlines()
    typed = [line[match.end() :] for line in lines if (match := _PROMPTS.match(line))]
    return "\n".join(typed) if any(re.match(r"\s*(?:>>>|In \[)", line) for line in lines) else session


def _chosen(blocks: list[Block], wanted: list[str]) -> list[int]:
    """Indices of the blocks that define what is wanted, the last complete version of each."""

    def rank(i: int) -> tuple[bool, bool, int]:
        return _names(blocks[i].code) is not None, blocks[i].is_python is True, i

    if not wanted:
        reading = [i for i, block in enumerate(blocks) if _READS_INPUT.search(block.code)]
        doing = [i for i, block in enumerate(blocks) if _DOES.search(block.code)]
        return [max(reading or doing or range(len(blocks)), key=rank)] if blocks else []
    defining = {
        name: [i for i, block in enumerate(blocks) if _defines(block.code, [name])] for name in wanted
    }
    found = {name for name in wanted if defining[name]}
    whole = [i for i in range(len(blocks)) if found and all(i in defining[name] for name in found)]
    if whole:
        return [max(whole, key=rank)]
    return sorted({max(defining[name], key=rank) for name in found})


def _missing(blocks: list[Block], chosen: list[int]) -> list[int]:
    """Blocks that define a name which the chosen ones use and do not have, the nearest one before them first."""
    names = [_names(block.code) for block in blocks]
    have = {name for i in chosen for name in (names[i] or ((), ()))[0]}
    need = {name for i in chosen for name in (names[i] or ((), ()))[1]} - have - set(dir(builtins))
    others = [i for i in range(len(blocks)) if i not in chosen and need & set((names[i] or ((), ()))[0])]
    return sorted(others, key=lambda i: (i > chosen[-1], -i if i < chosen[-1] else i))


def _defines(code: str, names: Iterable[str]) -> bool:
    """Whether `code` defines one of `names`, in a class too."""
    any_of = "|".join(map(re.escape, names))
    return bool(any_of) and bool(
        re.search(  # blanks of one line only: over many empty lines it would take quadratic time
            rf"^[^\S\n]*(?:async[^\S\n]+)?(?:def|class)[^\S\n]+(?:{any_of})\b|^(?:{any_of})[^\S\n]*(?::[^=\n]*)?=(?!=)"
            rf"|^(?:from[^\S\n]+(?!\.|(?:{'|'.join(OWN_NAMES)})\b)\S+[^\S\n]+)?import\b[^\n]*\b(?:{any_of})[^\S\n]*(?:,|$)",
            code,
            re.MULTILINE,
        )
    )


def _without_prose(text: str) -> str:
    """`text` from its first line that looks like a program's, up to where it stops being one.

    Text that is a program, or has no such line, stays as it is.
    """
    text = _as_program(text)
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if _CODE_LINE.match(line)), None)
    if _names(text) is not None or re.match(r"(?:[^\S\n]*\n)*(?: {2}|\t)", text):
        return text
    if first is None:
        return _indented(lines) or text
    end = len(lines)
    for _ in range(CUTS):
        tops = [i for i in range(first + 1, end) if lines[i][:1].strip()]
        error = _syntax_error("".join(lines[first:end]))
        if error is None:
            return "".join(lines[first:end])
        bad = first + error - 1
        end = max((i for i in tops if i <= bad), default=0)
        if not end:
            break
    return text


def _indented(lines: list[str]) -> str:
    """The indented code of Markdown from its first line that looks like a program's."""
    code = itertools.dropwhile(lambda line: line[:4].strip() or not _CODE_LINE.match(line[4:]), lines)
    return textwrap.dedent("".join(itertools.takewhile(lambda line: not line[:4].strip(), code)))


def _split_prompt(prompt: str, wanted: list[str]) -> tuple[str, str]:
    """Of a prompt that is or holds code: its imports and helpers, and all of it, for a body to follow; else ""."""
    if not prompt.strip():
        return "", ""
    lines = prompt.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if _CODE_LINE.match(line)), 0)
    for head in (
        prompt,
        *(block.code + "\n" for block in fenced_blocks(prompt)[::-1]),
        "".join(lines[first:]),
    ):
        for whole in (head, _with_body(head)):
            if _names(whole) is not None and (head is not prompt or _CODE_LINE.search(head)):
                return _helpers(whole, wanted), head
    return "", ""


def _with_body(head: str) -> str:
    """`head` with a body of one statement."""
    head = head.rstrip()
    last = head.rpartition("\n")[2]
    indent = len(last) - len(last.lstrip()) + (4 if last.endswith(":") else 0)
    return f"{head}\n{' ' * indent}pass\n"


def _helpers(program: str, wanted: list[str]) -> str:
    """The imports, definitions and constants of a program, without the function that is to be written."""
    lines = program.splitlines(keepends=True)
    for node in _quietly(lambda: ast.parse(program)).body:
        used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} & {*wanted, "__name__"}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kept = node.name not in wanted or not all(map(_is_empty, node.body))
        else:
            kept = isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef) or (
                isinstance(node, ast.Assign | ast.AnnAssign | ast.Try | ast.If) and not used
            )
        if kept:
            continue
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        lines[first - 1 : node.end_lineno] = [""] * ((node.end_lineno or first) - first + 1)
    return "".join(lines).strip()


def _is_empty(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, `...`, `pass` or `raise NotImplementedError`."""
    return isinstance(node, ast.Pass | ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _wanted(entry_point: str, tests: str) -> list[str]:
    """Names that the program is to define: the function under test, or what the tests use and import."""
    if entry_point:
        return [entry_point.split(".")[-1].rstrip("()")]
    names, tree = _names(tests), _quietly(lambda: ast.parse(tests))
    if names is None or tree is None:
        return []
    free = sorted(names[1] - set(dir(builtins))) or sorted(names[1])
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_missing(node.module or ""):
            free += [alias.name for alias in node.names if alias.name != "*"]
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in OWN_NAMES
        ):
            free.append(node.attr)
    return list(dict.fromkeys(free))


def _is_missing(module: str) -> bool:
    """Whether a module can only be the program."""
    root = module.partition(".")[0]
    try:
        return not root or root in OWN_NAMES or importlib.util.find_spec(root) is None
    except ValueError:  # __main__
        return True


_PARSING = threading.Lock()


def _quietly(parse: Callable[[], Any]) -> Any:
    """What `parse` returns; None where there is no program. Its warnings are about what a model wrote."""
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return parse()
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
            return None


@lru_cache(maxsize=256)
def _names(code: str) -> tuple[set[str], set[str]] | None:
    """Names that a program defines, and those that it uses without defining them; None for what is no program."""
    table = _quietly(lambda: symtable.symtable(code, "program.py", "exec"))
    return None if table is None else (bound_names(table), set(free_names(table)))


def _syntax_error(code: str) -> int | None:
    """The line of the first one; None where there is none."""

    def line() -> int | None:
        try:
            ast.parse(code)
        except SyntaxError as error:
            return error.lineno or 1
        return None

    return _quietly(line)


def grade_code(
    text: str,
    extra: Mapping[str, Any],
    *,
    timeout: float = 5.0,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> Grade:
    """Run the code in `text` against the tests in `extra`, for at most `timeout` seconds.

    Args:
        extra: As the module says; it has passed `pool.check_item`.
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
    prelude, _ = _split_prompt(prompt, _wanted(tests.function, tests.program))
    job = {"program": code, "prompt": prompt, "prelude": prelude, "tests": tests.program,
           "entry_point": tests.function or _function_of(prompt, code), "cases": tests.streams,
           "lenient": tests.lenient, "cpu_seconds": int(timeout) + 1, "memory": MEMORY}  # fmt: skip
    verdict, reason = _run(job, timeout, started)
    return Grade(verdict, code[:1000], reason)


def _with_imports(code: str) -> str:
    """`code` behind imports of the names that it uses without defining them, where usual modules have them."""
    lines = []
    for name in sorted((_names(code) or (set(), set()))[1] - set(dir(builtins))):
        having = (module for module in _IMPORTED if hasattr(importlib.import_module(module), name))
        if name in _IMPORTED:
            lines.append(f"import {name}\n")
        elif module := next(having, ""):
            lines.append(f"from {module} import {name}\n")
    future = "".join(_FUTURE.findall(code)) if lines else ""
    return future + "".join(lines) + (_FUTURE.sub("", code) if future else code)


def _function_of(prompt: str, code: str) -> str:
    """The function that is asked for, where no field names it: the prompt's last, else the program's."""
    for source in (prompt, code):
        names = re.findall(r"^(?:async[^\S\n]+)?(?:def|class)[^\S\n]+(\w+)", source, re.MULTILINE)
        if own := [name for name in names if not re.match(r"main$|test", name)]:
            return str(own[-1])
    return ""


def _run(
    job: dict[str, Any], timeout: float, started: Callable[[subprocess.Popen[bytes]], None]
) -> tuple[Any, str]:
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
            process.kill()  # the others follow: they asked the kernel to die with it
            process.communicate()
            return "timeout", ""
    verdict, reason, protected = json.loads(output) if output else ("error", "the sandbox died", True)
    if verdict == "refused":
        raise UserError(
            f"programs cannot be confined here: {reason}", hint="code needs Linux on x86-64 or arm64"
        )
    if not protected:
        warnings.warn(
            "no Landlock in this kernel: files are protected by their permissions only", stacklevel=2
        )
    return verdict, reason
