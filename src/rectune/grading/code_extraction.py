"""Finding the program in a model's words: fenced blocks, prose around a program, the body of a prompt's function.

Blocks are paired line by line as CommonMark pairs them: a fence is a line of three or more backticks or tildes behind
at most blanks, quote or list marks; it is closed by a line of at least as many of the same character and nothing else.
Beyond it: a fence inside a triple-quoted string belongs to the program; a fence with a language inside an open block
without one opens another block; the closing fence of a list item may stand at the margin.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import itertools
import re
import symtable
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

from rectune.grading.final_answer import final_part
from rectune.grading.sandbox.layouts import OWN_NAMES, bound_names, free_names

T = TypeVar("T")
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


_FENCE = re.compile(
    r"(?P<lead>(?:[ \t]*(?:>|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t])))*[ \t]*)(?P<marks>`{3,}|~{3,})(?P<info>.*)"
)
_PYTHON = re.compile(r"\W*(?:i?py(?:thon)?[\d.]*|pycon|sage)(?![a-z])|\S*\.py\b", re.IGNORECASE)
_QUOTES = re.compile(r"#.*|\"\"\"|'''|\\.|(?P<one>[\"'])(?:\\.|(?!(?P=one)).)*(?:(?P=one)|$)")


def extract_code(text: str, *, prompt: str = "", entry_point: str = "", tests: str = "") -> str:
    """The program that a model means, whole: the blocks of its final part that define what the tests call.

    Of several versions the last one that is complete counts; blocks with helpers that it uses come along.
    Words that define nothing of it continue `prompt`, up to the first line that is not indented; a whole
    program gets the imports and helpers of `prompt` in front.
    """
    wanted = wanted_names(entry_point, tests)
    part = final_part(text)
    code = _whole(part, prompt, wanted)
    if not part or len(part) == len(text) or _fits(code, wanted):
        return code
    # a docstring may look like another question
    longer = _whole(text[max(0, text.rfind(part)) :], prompt, wanted)
    return longer if _fits(longer, wanted) else code


def _fits(code: str, wanted: list[str]) -> bool:
    return names_of(code) is not None and (not wanted or _defines(code, wanted))


def _whole(text: str, prompt: str, wanted: list[str]) -> str:
    """The program in `text`, together with what it needs of `prompt`."""
    code = _defining(text, wanted)
    if not code.strip() or not prompt.strip():
        return code
    before, head = split_prompt(prompt, wanted)
    body = re.split(r"\n(?=[^\s#])", code if code[0] in " \t\n" else f"    {code}")[0]
    if head and code[0] in " \t\n" and names_of(code) is None and names_of(head + body):
        return head + body  # what follows the body may define the function once more
    if not head or _defines(code, wanted) or (names_of(code) and (not wanted or _WHOLE.search(code))):
        return behind(f"{before}\n\n", code) if before else code
    whole = textwrap.indent(code, "    ")  # a body at the margin, or one whose first line alone is there
    if re.search(r"^return\b", code, re.MULTILINE) and names_of(head + whole):
        return head + whole
    return head + body


def behind(head: str, code: str) -> str:
    """`code` behind `head`, but for its imports from `__future__`, which have to come first."""
    return "".join(_FUTURE.findall(code)) + head + _FUTURE.sub("", code) if head else code


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
    if names_of(block.code) is None and _CODE_LINE.match(first):  # ```python def f():
        block = block._replace(info="python", code=f"{first}\n{block.code}")
    return block._replace(code=_as_program(block.code))


def _as_program(code: str) -> str:
    """`code` without a notebook's commands, prompts or odd blanks, where these keep it from being a program."""
    lines = code.splitlines()
    if names_of(code) is None and any(re.match(r"\s*(?:>>>|In \[)", line) for line in lines):
        code = "\n".join([line[match.end() :] for line in lines if (match := _PROMPTS.match(line))])
    if names_of(code) is None:
        code = _NOTEBOOK.sub("", code)
    return code if names_of(code) is not None else code.translate(_BLANKS)


def _chosen(blocks: list[Block], wanted: list[str]) -> list[int]:
    """Indices of the blocks that define what is wanted, the last complete version of each."""

    def rank(i: int) -> tuple[bool, bool, int]:
        return names_of(blocks[i].code) is not None, blocks[i].is_python is True, i

    if not wanted:
        reading = [i for i, block in enumerate(blocks) if _READS_INPUT.search(block.code)]
        doing = [i for i, block in enumerate(blocks) if _DOES.search(block.code)]
        return [max(reading or doing or range(len(blocks)), key=rank)] if blocks else []
    defining = [{i for i, block in enumerate(blocks) if _defines(block.code, [name])} for name in wanted]
    found = [blocks_of_name for blocks_of_name in defining if blocks_of_name]
    if found and (whole := set.intersection(*found)):
        return [max(whole, key=rank)]
    return sorted({max(blocks_of_name, key=rank) for blocks_of_name in found})


def _missing(blocks: list[Block], chosen: list[int]) -> list[int]:
    """Blocks that define a name which the chosen ones use and do not have, the nearest one before them first."""
    names = [names_of(block.code) or ProgramNames() for block in blocks]
    have = {name for i in chosen for name in names[i].bound}
    need = {name for i in chosen for name in names[i].free} - have - set(dir(builtins))
    others = [i for i in range(len(blocks)) if i not in chosen and need & names[i].bound]
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
    if names_of(text) is not None or re.match(r"(?:[^\S\n]*\n)*(?: {2}|\t)", text):
        return text
    if first is None:
        # the indented code of Markdown
        code = itertools.dropwhile(lambda line: line[:4].strip() or not _CODE_LINE.match(line[4:]), lines)
        return textwrap.dedent("".join(itertools.takewhile(lambda line: not line[:4].strip(), code))) or text
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


def split_prompt(prompt: str, wanted: list[str]) -> tuple[str, str]:
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
        open_block = head.rstrip()  # it may lack its body
        last = open_block.rpartition("\n")[2]
        indent = len(last) - len(last.lstrip()) + (4 if last.endswith(":") else 0)
        for whole in (head, f"{open_block}\n{' ' * indent}pass\n"):
            if names_of(whole) is not None and (head is not prompt or _CODE_LINE.search(head)):
                return _helpers(whole, wanted), head
    return "", ""


def _helpers(program: str, wanted: list[str]) -> str:
    """The imports, definitions and constants of a program, without the function that is to be written."""
    lines = program.splitlines(keepends=True)
    tree = _quietly(lambda: ast.parse(program))
    for node in tree.body if tree else []:
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} & {*wanted, "__name__"}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # a body of docstrings, `...`, `pass` or `raise NotImplementedError`
            is_empty = all(
                isinstance(part, ast.Pass | ast.Raise)
                or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
                for part in node.body
            )
            kept = node.name not in wanted or not is_empty
        else:
            kept = isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef) or (
                isinstance(node, ast.Assign | ast.AnnAssign | ast.Try | ast.If) and not used
            )
        if kept:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        lines[first - 1 : node.end_lineno] = [""] * ((node.end_lineno or first) - first + 1)
    return "".join(lines).strip()


def wanted_names(entry_point: str, tests: str) -> list[str]:
    """ProgramNames that the program is to define: the function under test, or what the tests use and import."""
    if entry_point:
        return [entry_point.split(".")[-1].rstrip("()")]
    names, tree = names_of(tests), _quietly(lambda: ast.parse(tests))
    if names is None or tree is None:
        return []
    free = sorted(names.free - set(dir(builtins))) or sorted(names.free)
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


def _quietly(parse: Callable[[], T]) -> T | None:
    """What `parse` returns; None where there is no program. Its warnings are about what a model wrote."""
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return parse()
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
            return None


class ProgramNames(NamedTuple):
    """ProgramNames that a program defines, and those that it uses without defining them."""

    bound: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()


@lru_cache(maxsize=256)
def names_of(code: str) -> ProgramNames | None:
    """The names of a program; None for what is no program."""
    table = _quietly(lambda: symtable.symtable(code, "program.py", "exec"))
    return (
        None if table is None else ProgramNames(frozenset(bound_names(table)), frozenset(free_names(table)))
    )


def _syntax_error(code: str) -> int | None:
    """The line of the first one; None where there is none."""

    def line() -> int | None:
        try:
            ast.parse(code)
        except SyntaxError as error:
            return error.lineno or 1
        return None

    return _quietly(line)


class Block(NamedTuple):
    """One fenced block: its info string, its lines, and whether a closing fence ends it."""

    info: str
    code: str
    closed: bool

    @property
    def is_python(self) -> bool | None:
        """Whether it says that it is Python; None where it says nothing."""
        return bool(_PYTHON.match(self.info)) if self.info.strip(" {}.") else None


def fenced_blocks(text: str, depth: int = 0) -> list[Block]:
    """All blocks of `text`, in order; the last one may be open. Linear in its length.

    A block of another language around blocks of Python, as of a whole answer in Markdown, gives way to these.
    """
    lines = text.splitlines()
    blocks: list[Block] = []
    start = 0
    while start < len(lines):
        opening = _opening(lines[start])
        start += 1
        if opening is None:
            continue
        end = _closing(lines, start, opening)
        code = "\n".join(_unquoted(lines[start:end], opening["lead"]))
        block = Block(opening["info"].strip(), code, end < len(lines) and not _opens(lines[end]))
        inner = [] if block.is_python or depth > 1 else fenced_blocks(code, depth + 1)
        blocks += inner if any(inner_block.is_python for inner_block in inner) else [block]
        start = end if end < len(lines) and _opens(lines[end]) else end + 1
    return blocks


def before_first_fence(text: str) -> str:
    """What stands in front of the first line that is a fence: the program, where only its end is fenced."""
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if _opening(line.rstrip("\r\n"))), len(lines))
    return "".join(lines[:first])


def _opening(line: str) -> re.Match[str] | None:
    match = _FENCE.fullmatch(line)
    return None if match is None or (match["marks"][0] == "`" and "`" in match["info"]) else match


def _opens(line: str) -> bool:
    """Whether a line can only open a block: it names a language."""
    match = _opening(line)
    return match is not None and bool(match["info"].strip())


def _closing(lines: list[str], start: int, opening: re.Match[str]) -> int:
    """The line that ends the block: a closing fence, or one that opens the next; beyond the last if there is none."""
    python = Block(opening["info"], "", True).is_python
    first = None
    quote = ""
    for number in range(start, len(lines)):
        ends = _ends(lines[number], opening, python)
        if ends and not quote:
            return number
        first = number if ends and first is None else first
        if python is not False:
            quote = _quote_after(lines[number], quote)
    return len(lines) if first is None else first  # a string that never ends hides no fence


def _ends(line: str, opening: re.Match[str], python: bool | None) -> bool:
    match = _opening(line)
    if match is None or match["marks"][0] != opening["marks"][0]:
        return False
    deeper = len(match["lead"].expandtabs()) - len(opening["lead"].expandtabs())
    if deeper > 3 or len(match["marks"]) < len(opening["marks"]):
        return False
    info = match["info"].strip()
    if python:
        return len(info.split()) != 1  # words behind a closing fence
    return not info or bool(_PYTHON.match(info))


def _quote_after(line: str, quote: str) -> str:
    """The triple quote that is open behind `line`, given the one that was open before it."""
    at = 0
    while at < len(line):
        if quote:
            end = line.find(quote, at)
            if end < 0:
                return quote
            at, quote = end + 3, ""
        match = _QUOTES.search(line, at)
        if match is None:
            return ""
        at = match.end()
        quote = match.group() if match.group() in ('"""', "'''") else ""
    return quote


def _unquoted(lines: list[str], lead: str) -> Iterator[str]:
    """Lines without the indentation, and the quote marks, of the block's fence."""
    width = len(re.sub(r"[^\s>]", " ", lead).expandtabs()) if ">" not in lead else 0
    for line in lines:
        if ">" in lead:
            yield re.sub(r"^[ \t]*>[ \t]?", "", line)
        else:
            line = line.expandtabs() if line[:1] == "\t" and width else line
            yield line[min(width, len(line) - len(line.lstrip(" "))) :]
