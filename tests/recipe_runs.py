"""Recipes in tests: the modules of recipes/, and a mini scale of seconds."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from rectune.config import ReproduceConfig, load_config
from rectune.experiments import reproduce as verb
from rectune.experiments.reproduce import Recipe, load_recipe
from rectune.recipes import find_recipe, load_code, recipe_files

RECIPES: dict[str, Recipe] = {name: load_recipe(path) for name, path in recipe_files().items()}

TINY = {
    "model": {"width": 16, "inner": 32, "layers": 1, "heads": 2},
    "base": {"rows": 64, "steps": 6, "batch_size": 16},
    "task": {
        "demonstrations": 32, "problems": 8, "holdout": 4, "validation": 4, "in_domain": 6, "other_stories": 3,
        "more_steps": 3,
    },
    "settings": {"max_steps": 4, "batch_size": 8, "save_steps": 2},
    "draws": {"n": 2, "max_new_tokens": 12},
    "sweep": {"rates": [1e-2], "n": 1},
}  # fmt: skip


def module(name: str) -> ModuleType:
    """A module of recipes/."""
    found = load_code(find_recipe("table1"), name)
    assert found
    return found


whole_mini = module("mini.task").load_mini


def tiny_mini(budget: float = 1.0) -> dict[str, Any]:
    """In place of `load_mini`: the same code and files with a model of 16 features and a handful of rows."""
    return {name: {**table, **TINY.get(name, {})} for name, table in whole_mini(budget).items()}


def config_of(name: str, out: Path, **how: Any) -> ReproduceConfig:
    return load_config(None, {"recipe": name, "output_dir": out, **how}, ReproduceConfig)


def plan(name: str, out: Path, **how: Any) -> list[dict[str, Any]]:
    """The models of a plan, each with its runs."""
    models: list[dict[str, Any]] = verb.plan(config_of(name, out, **how))["models"]
    return models


def reproduce(name: str, out: Path, **how: Any) -> dict[str, Any]:
    return verb.reproduce(config_of(name, out, **how))
