"""The task of tests/comparisons.py, and a quick way to compare on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comparisons import Task, compare_task, make_task

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def run(task: Task, tmp_path: Path) -> Run:
    """`run("sft,dft", out="name", settings={...}, **fields of CompareConfig)`."""

    def start(objectives: str = "sft,dft", *, out: str = "out", **how: Any) -> dict[str, Any]:
        return compare_task(task, tmp_path / out, objectives, **how)

    return start
