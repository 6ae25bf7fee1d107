"""A toy to train on: a two-layer model in a local folder and forty short sums, and a quick way to train it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.records import TrainSummary
from rectune.training import drift
from rectune.training.trainer import train
from training_runs import make_toy

Toy = dict[str, Any]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(drift, "NEW_TOKENS", (8, 256))  # a toy's answers need no more
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Settings of a short run in float32, without `out`."""
    return make_toy(tmp_path_factory.mktemp("toy"))


Train = Callable[..., TrainSummary]


@pytest.fixture
def run(toy: Toy, tmp_path: Path) -> Train:
    """Train the toy: `run("name", resume=False, **settings)`; dots in names are written as two underscores."""

    def start(name: str = "run", *, resume: bool = False, **settings: Any) -> TrainSummary:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        return train(load_config(None, {**toy, "output_dir": tmp_path / name, **named}), resume=resume)

    return start
