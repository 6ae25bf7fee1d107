"""Short RFT runs of a model that says yes or no."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from online_runs import yes_no_task
from rectune.config import RFTConfig, load_config
from rectune.experiments.rft import RFTResult, train_rft

Run = Callable[..., RFTResult]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a short RFT run, without `output_dir`."""
    return yes_no_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path) -> Run:
    """An RFT run: `run("name", resume=False, **changes)`."""

    def start(name: str = "run", *, resume: bool = False, **changes: Any) -> RFTResult:
        config = load_config(None, {**settings, "output_dir": tmp_path / name, **changes}, RFTConfig)
        return train_rft(config, resume=resume)

    return start
