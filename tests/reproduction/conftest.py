"""Every mini scale is the tiny one, with one cache for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe_runs import module, tiny_mini


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    monkeypatch.setattr(module("mini.task"), "load_mini", tiny_mini)
    cache = tmp_path_factory.getbasetemp() / "mini-cache"
    monkeypatch.setenv("RECTUNE_CACHE", str(cache))
    return cache
