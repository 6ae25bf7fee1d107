"""The house of rectune, checked on its source text: imports point down, each thing has one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "rectune"

FLOORS = (
    ("demo", "__main__"),
    ("cli",),
    ("experiments",),
    ("rl",),
    ("reporting",),
    ("diagnosis", "analysis"),
    ("evaluation",),
    ("training", "integrations"),
    ("sampling", "grading"),
    ("models",),
    ("data", "pages"),
    ("records",),
    ("config", "logprobs", "recipes"),
    ("objective_spec",),
    ("objectives",),
    ("runtime",),
    ("columns", "errors"),
)
"""From the top down. A folder is one room: what happens among its files is its own affair."""

STOP_GRADIENT = {
    "objectives.py": "the losses themselves",
    "objective_spec.py": "the least weight of turn ends, and columns as constants of the effective weight",
    "logprobs/__init__.py": "the hand-written backward pass keeps its inputs",
    "models/scorer.py": "columns of a reference model",
}
"""Files that may write a stop-gradient, and why."""

HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "matplotlib",
    "numpy",
    "trl",
    "tokenizers",
}

LIGHT = (
    "__init__.py",
    "__main__.py",
    "cli/app.py",
    "cli/commands.py",
    "cli/catalog.py",
    "cli/options.py",
    "config/__init__.py",
    "config/groups.py",
    "config/parsing.py",
    "config/names.py",
    "config/verbs.py",
    "errors.py",
    "recipes.py",
    "data/schema.py",
    "models/__init__.py",
    "models/load.py",
    "models/folder.py",
    "records.py",
)
"""Read for `import rectune`, `--help` and `list`: they may load nothing heavy at the top."""

FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def floor(name: str) -> int:
    for height, rooms in enumerate(FLOORS):
        if name in rooms:
            return height
    raise AssertionError(f"src/rectune/{name} has no floor; add it to FLOORS")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules of rectune that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            if node.module == "rectune":
                yield from (f"rectune.{alias.name}" for alias in node.names)
            else:
                yield node.module


def at_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, without those for type checkers."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from at_top(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from at_top(node.body)


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":  # hands out names of all rooms, when they are asked for
        return
    for module in imports(ast.parse(path.read_text("utf-8"))):
        parts = module.split(".")
        if parts[0] != "rectune" or len(parts) == 1 or parts[1] == here:
            continue
        assert floor(parts[1]) > floor(here), f"{name(path)} imports {module}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_stop_gradient_has_one_home(path: Path) -> None:
    if name(path) in STOP_GRADIENT:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert not text.endswith(".detach"), f"{name(path)}:{node.lineno} writes a stop-gradient"
        assert text != "sg", f"{name(path)}:{node.lineno} uses the stop-gradient"


@pytest.mark.parametrize("file", LIGHT)
def test_light_modules_load_nothing_heavy(file: str) -> None:
    for node in at_top(ast.parse((SOURCE / file).read_text("utf-8")).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            roots = {module.split(".")[0] for module in imports(ast.Module([node], []))}
            assert not roots & HEAVY, f"{file}:{node.lineno} imports {roots & HEAVY} at its top"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_say_what_they_do(path: Path) -> None:
    text = path.read_text("utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{name(path)} has no docstring"


def test_every_floor_is_checked() -> None:
    """The checks can fail: an import that points up, and a sideways one, are seen."""
    assert floor("cli") < floor("training") < floor("objectives") < floor("errors")
    assert floor("config") == floor("logprobs")
    assert list(imports(ast.parse("def f():\n    from rectune.cli.app import app"))) == ["rectune.cli.app"]
