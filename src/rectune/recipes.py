"""Finds recipes: those of the repository's recipes/ folder, which the wheel leaves out, and TOML files of one's own.

The Python modules beside a recipe are loaded by path: recipes/ is one package with relative imports.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from rectune.errors import UserError, unknown_name

PACKAGE = "rectune_recipes"


def recipes_folder() -> Path | None:
    """The recipes/ folder of the checkout that rectune runs from, else of the current folder; None without one."""
    for parent in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (parent / "recipes" / "paper" / "_main.toml").is_file():
            return parent / "recipes"
    return None


def recipe_files(folder: Path | None = None) -> dict[str, Path]:
    """Name to file of the recipes in a folder, by default of the paper; files with _ are parts of others."""
    if folder is None:
        folder = (found := recipes_folder()) and found / "paper"
    return {path.stem: path for path in sorted(folder.glob("[!_]*.toml"))} if folder else {}


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: Of the paper's recipes, such as table2, or the path of a TOML file.

    Raises:
        UserError: An unknown name, or no recipes/ folder (says where to get it).
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise UserError("no such recipe", where=name)
        return Path(name)
    recipes = recipe_files()
    if not recipes:
        hint = "run it in a checkout of the repository, or give the path of a recipe: rectune reproduce PATH.toml"
        raise UserError("the wheel has no recipes of the paper", where=name, hint=hint)
    if name not in recipes:
        raise unknown_name("recipe of the paper", name, recipes)
    return recipes[name]


def load_code(recipe: Path, module: str) -> ModuleType | None:
    """A module of the package of recipes that a recipe belongs to, such as `mini`; None for a recipe of one's own."""
    folder = recipe.resolve().parent.parent
    if not (folder / "__init__.py").is_file() or not (folder / "paper").is_dir():
        return None
    package = sys.modules.get(PACKAGE)
    if package is None or Path(package.__file__ or "").parent != folder:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        spec = spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec and spec.loader
        sys.modules[PACKAGE] = package = module_from_spec(spec)
        spec.loader.exec_module(package)
    return import_module(f"{PACKAGE}.{module}")
