"""The toy of tests/training_runs.py, its uninterrupted run, and a quick way to train it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.records import TrainSummary
from rectune.training.trainer import train
from training_runs import make_toy

Train = Callable[..., TrainSummary]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a short run, without `out`; a checkpoint after every second step."""
    return {**make_toy(tmp_path_factory.mktemp("toy")), "save_steps": 2, "drift_rows": 0}


@pytest.fixture(scope="session")
def whole(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's run, uninterrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(load_config(None, {**toy, "output_dir": out}))
    return out


@pytest.fixture
def run(toy: dict[str, Any], tmp_path: Path) -> Train:
    """Train the toy in a folder of that name: `run("name", resume=False, until=None, **settings)`."""

    def start(
        name: str = "run", *, resume: bool = False, until: int | None = None, **settings: Any
    ) -> TrainSummary:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        config = load_config(None, {**toy, "output_dir": tmp_path / name, **named})
        return train(config, resume=resume, until=until)

    return start
