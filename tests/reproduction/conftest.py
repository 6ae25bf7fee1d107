"""A mini scale of seconds: the same code and files with a model of 16 features and a handful of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rectune.reproduction import recipe, runner

TINY = {
    "model": {"width": 16, "inner": 32, "layers": 1, "heads": 2},
    "base": {"rows": 64, "max_steps": 6, "batch_size": 16},
    "task": {
        "demonstrations": 32, "problems": 8, "holdout": 4, "validation": 4, "in_domain": 6, "other_stories": 3,
        "more_steps": 3,
    },
    "settings": {"max_steps": 4, "batch_size": 8, "save_steps": 2},
    "draws": {"n": 2, "max_new_tokens": 12},
    "sweep": {"rates": [1e-2], "n": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every mini scale is the tiny one, with one cache for all tests."""
    whole = recipe.load_mini

    def load(budget: float = 1.0) -> dict[str, Any]:
        settings = whole(budget)
        return {name: {**table, **TINY.get(name, {})} for name, table in settings.items()}

    monkeypatch.setattr(runner, "load_mini", load)
    cache = tmp_path_factory.getbasetemp() / "mini-cache"
    monkeypatch.setenv("RECTUNE_CACHE", str(cache))
    return cache
