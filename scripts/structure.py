"""Print the structure: sizes, fragments, names used twice, circles, imports that point up, untyped dicts.

python scripts/structure.py [--write]

The exit code is 1 where a measure that must be 0 is not. With --write the table also goes into CONTRIBUTING.md.
FLOORS in tests/test_architecture.py say which way imports point.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TESTS = ROOT / "src" / "rectune", ROOT / "tests"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- table by make structure -->\n", "<!-- end of table -->\n"
SHORT = 60  # lines; a module below that with one importer is a fragment of it
SHOWN = 10  # of the longest files and functions

Graph = Mapping[str, set[str]]


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Files by dotted name below the package, such as `data.rows`; a package has the name of its folder."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(files: Mapping[str, Path], package: str = "rectune") -> dict[str, set[str]]:
    """What each module imports of the others: anywhere, for type checkers too, and by a name in a string."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        named = _named(ast.parse(path.read_text("utf-8")), {f"{package}.{name}" for name in files})
        own = {name.removeprefix(package).lstrip(".") for name in named if name.split(".")[0] == package}
        graph[module] = {name for name in own if name in files} - {module, ""}
    return graph


def _named(tree: ast.AST, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in full)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]  # a command that is loaded when it is called


def importers(graph: Graph) -> dict[str, set[str]]:
    """Which modules import each module."""
    found: dict[str, set[str]] = {module: set() for module in graph}
    for module, imported in graph.items():
        for name in imported:
            found[name].add(module)
    return found


def fragments(files: Mapping[str, Path], graph: Graph) -> list[str]:
    """Modules under SHORT lines that exactly one other imports."""
    single = (module for module, by in importers(graph).items() if len(by) == 1)
    return [m for m in single if files[m].name != "__init__.py" and lines(files[m]) < SHORT]


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or around a corner."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        reached[start] = seen
    groups = {tuple(sorted(o for o in reached[m] if m in reached[o])) for m in graph if m in reached[m]}
    return [list(group) for group in sorted(groups)]


def modules_named_twice(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Modules of one name in several folders; `__init__` and `__main__` aside."""
    found = defaultdict(list)
    for module, path in files.items():
        if not path.stem.startswith("__"):
            found[path.stem].append(module)
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def classes_named_twice(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Classes of one name at the top of several modules."""
    found = defaultdict(list)
    for module, path in files.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module)
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def untyped_dicts(files: Mapping[str, Path]) -> int:
    """How often `dict[str, Any]` is written."""
    return sum(path.read_text("utf-8").count("dict[str, Any]") for path in files.values())


def arrows_up(files: Mapping[str, Path]) -> list[str]:
    """Imports that do not point to a lower floor, but for those within a room."""
    sys.path.insert(0, str(TESTS))
    from test_architecture import floor, imports, room

    found = []
    for module, path in files.items():
        here = room(path)
        for name in sorted(set(imports(ast.parse(path.read_text("utf-8"))))):
            parts = name.split(".")
            if here == "__init__" or parts[0] != "rectune" or len(parts) == 1 or parts[1] == here:
                continue
            if floor(parts[1]) <= floor(here):
                found.append(f"{module} -> {name}")
    return found


def longest_functions(files: Mapping[str, Path]) -> list[tuple[int, str]]:
    """Lines and place of every function, the longest first, docstring included."""
    found = []
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{module}.{node.name}"))
    return sorted(found, reverse=True)


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def table(files: Mapping[str, Path], graph: Graph) -> str:
    """The measures beside their targets, as Markdown."""
    modules_twice, classes_twice = modules_named_twice(files), classes_named_twice(files)
    rows: list[tuple[str, object, str]] = [
        ("lines in src", f"{sum(map(lines, files.values())):,}", "16,000"),
        ("files in src", len(files), "110"),
        ("lines in tests", f"{sum(map(lines, TESTS.rglob('*.py'))):,}", "14,000"),
        (f"modules under {SHORT} lines that only one other imports", len(fragments(files, graph)), "0"),
        ("names of modules used twice", len(modules_twice), "0"),
        ("names of classes used twice", len(classes_twice), "0"),
        ("circles of imports", len(circles(graph)), "0"),
        ("imports that point up", len(arrows_up(files)), "0"),
        ("`dict[str, Any]`", untyped_dicts(files), "60"),
    ]
    body = "".join(f"| {measure} | {now} | {target} |\n" for measure, now, target in rows)
    return "| measure | now | at most |\n|---|---|---|\n" + body


def violations(files: Mapping[str, Path], graph: Graph) -> Iterator[str]:
    """What may not be there at all: fragments, names used twice, circles, imports that point up."""
    by = importers(graph)
    for module in fragments(files, graph):
        yield f"fragment   {module} ({lines(files[module])} lines), imported by {', '.join(by[module]) or 'none'}"
    for kind, found in (("module", modules_named_twice(files)), ("class", classes_named_twice(files))):
        for name, places in found.items():
            yield f"{kind:10} {name}: {', '.join(places)}"
    for group in circles(graph):
        yield f"circle     {', '.join(group)}"
    for arrow in arrows_up(files):
        yield f"up         {arrow}"


def longest(files: Mapping[str, Path]) -> Iterator[str]:
    """The longest files and functions."""
    for count, module in sorted(((lines(path), m) for m, path in files.items()), reverse=True)[:SHOWN]:
        yield f"file       {count:5} {module or '__init__'}"
    for count, place in longest_functions(files)[:SHOWN]:
        yield f"function   {count:5} {place}"


def main() -> int:
    files = modules()
    graph = import_graph(files)
    measured = table(files, graph)
    found = list(violations(files, graph))
    print("\n".join([measured, *found, *longest(files)]))
    if "--write" in sys.argv[1:]:
        head, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        PAGE.write_text(head + BEGIN + measured + END + rest.partition(END)[2], "utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
