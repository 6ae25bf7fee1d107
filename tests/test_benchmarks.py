"""What the benchmarks keep: a history, and what got worse since the last run on such a machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    place = Path(__file__).parents[1] / "benchmarks/common.py"
    spec = importlib.util.spec_from_file_location("benchmarks_common", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_ratio_that_got_worse_by_more_than_a_tenth_is_said(
    common: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(speed: float, time: float) -> str:
        lines = [
            common.entry("speed", 1.0, ratio=speed, to="limit"),
            common.entry("time", 1.0, ratio=time, to="trl", smaller=True),
        ]
        common.save("x", {}, lines)
        return str(capsys.readouterr().out)

    assert run(1.0, 1.0) == ""
    assert run(0.95, 1.05) == ""
    assert run(0.8, 1.0).startswith("worse: speed, ratio to limit 0.80, was 0.95 on ")
    assert run(1.0, 1.2).startswith("worse: time, ratio to trl 1.20, was 1.00 on ")
    content = json.loads((tmp_path / "x.json").read_text())
    assert len(content["history"]) == 4
    content["history"][-1]["machine"]["threads"] += 1  # another machine
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert "was 1.00" in run(0.7, 1.2) and "time" not in run(0.7, 1.2)
