"""The tables of `rectune list`: objectives, columns, tasks, models and recipes, without loading torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from rectune.columns import COLUMNS
from rectune.config import read_toml
from rectune.models.folder import model_sources
from rectune.recipes import recipe_files

Table = Iterator[dict[str, str]]


def objectives() -> Table:
    """The functions that `OBJECTIVES` names, read from the source text: importing them would load torch."""
    tree = ast.parse(files("rectune").joinpath("objectives.py").read_text("utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "OBJECTIVES" and node.value
    )
    for name in dict.fromkeys(n.id for n in ast.walk(table) if isinstance(n, ast.Name) and n.id in functions):
        arguments = functions[name].args
        settings = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        yield {
            "objective": name,
            "columns": ", ".join(a.arg for a in arguments.args),
            "settings": ", ".join(f"{a.arg} = {ast.unparse(d)}" if d else a.arg for a, d in settings),
            "suffixes": ", ".join(_suffixes(functions[name])),
            "about": (ast.get_docstring(functions[name]) or "").partition("\n")[0],
        }


def _suffixes(function: ast.FunctionDef) -> Iterator[str]:
    """What may stand behind its name: for a loss that is a detached weight times -log p, by its last line."""
    if not ast.unparse(function.body[-1]).startswith("return -sg("):
        return
    if not any(argument.arg.startswith("ref_") for argument in function.args.args):
        yield "signal=base"
    yield "shuffled"


def columns() -> Table:
    """The columns that an objective may read."""
    for name, column in COLUMNS.items():
        yield {"column": name, "from": column.source, "meaning": column.meaning}


def tasks() -> Table:
    """The benchmarks of `evaluation/tasks.py`."""
    from rectune.evaluation.tasks import TASKS

    for name, benchmark in TASKS.items():
        yield {
            "task": name,
            "grader": benchmark.grader,
            "origin": benchmark.origin,
            "licence": benchmark.licence,
        }


def recipes() -> Table:
    """The recipe of the demo and, in a checkout, those of the paper; the first comment line says what each is for."""
    demo = Path(str(files("rectune").joinpath("assets", "demo.toml")))
    for recipe in (demo, *recipe_files().values()):
        settings = read_toml(recipe)
        models = settings.get("model", "")
        first = recipe.read_text("utf-8").partition("\n")[0]
        yield {
            "recipe": str(recipe),
            "model": models if isinstance(models, str) else ", ".join(models),
            "objective": settings.get("objective", ""),
            "about": first.removeprefix("#").strip() if first.startswith("#") else "",
        }


LISTS: Mapping[str, Callable[[], Table]] = {
    "objectives": objectives,
    "columns": columns,
    "tasks": tasks,
    "models": model_sources,
    "recipes": recipes,
}
