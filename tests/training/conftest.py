"""A toy to train on: a two-layer model in a local folder and forty short sums, and a quick way to train it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.training import drift
from rectune.training.loop import TrainResult, train
from toys import byte_tokenizer, tiny_model

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
    folder = tmp_path_factory.mktemp("toy")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"{n} and {n % 7}?", "completion": f"{n + n % 7}{'!' * (n % 5)}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(folder / "model"),
        "data": str(folder / "rows.jsonl"),
        "steps": 6,
        "batch_size": 7,
        "max_length": 64,
        "micro_batch_tokens": 96,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "rows.holdout": 0.2,
    }


Train = Callable[..., TrainResult]


@pytest.fixture
def run(toy: Toy, tmp_path: Path) -> Train:
    """Train the toy: `run("name", resume=False, **settings)`; dots in names are written as two underscores."""

    def start(name: str = "run", *, resume: bool = False, **settings: Any) -> TrainResult:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        return train(load_config(None, {**toy, "out": tmp_path / name, **named}), resume=resume)

    return start
