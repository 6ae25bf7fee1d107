"""The temperature of the sharpening control, corrected by answers that are drawn at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.experiments import entropy_control as control
from rectune.experiments.evaluator import EvalSettings
from rectune.records import Evaluation, TaskResult, TemperatureMatch


class Model:
    """Its entropy at the states of T = 1 is T; answers drawn at T have the share `seen` of that."""

    model = "a model"

    def __init__(self, seen: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen, self.asked = seen, list[tuple[str, EvalSettings]]()
        monkeypatch.setattr(control, "match", self.match)
        monkeypatch.setattr(control, "entropy_of_answers", self.entropy)
        monkeypatch.setattr(
            control,
            "read_evaluation",
            lambda _: Evaluation.model_construct(
                benchmarks={"one": TaskResult.model_construct(problem_ids=[str(i) for i in range(40)])}
            ),
        )

    def loaded(self, draws: EvalSettings) -> None:
        return None

    def match(self, model: str, own: Path, target: float, *, loaded: None) -> TemperatureMatch:
        return TemperatureMatch(
            temperature=target,
            entropy=target,
            target=target,
            reached=target > 0.1,
            own=1.0,
            tokens=1,
            sentence="-",
        )

    def entropy(self, model: str, folder: Path, *, temperature: float, loaded: None) -> float:
        return self.seen * temperature

    def evaluate(self, folder: Path, files: list[Path], draws: EvalSettings) -> None:
        self.asked.append((folder.name, draws))

    def matched(self, folder: Path, target: float) -> dict[str, Any]:
        control.evaluate_matched(self, folder, "dft", target, [], EvalSettings(num_samples=16, seed=3))  # type: ignore[arg-type]
        record: dict[str, Any] = json.loads((folder / "matched-dft/match.json").read_text())
        return record


def test_a_miss_is_corrected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(0.5, monkeypatch)
    record = model.matched(tmp_path, 0.4)
    assert record["target"] == 0.4
    assert record["pilot"] == {"temperature": 0.4, "answers": 80, "drawn": 0.2}
    assert record["temperature"] == pytest.approx(0.8)
    assert record["drawn"] == pytest.approx(0.4)
    (first, few), (second, all_) = model.asked
    assert (first, few.num_samples, few.temperature, few.seed) == ("validation-matched-dft", 2, 0.4, 4)
    assert (second, all_.num_samples, all_.temperature, all_.seed) == (
        "matched-dft",
        16,
        record["temperature"],
        3,
    )


def test_what_does_not_miss_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Model(0.95, monkeypatch).matched(tmp_path, 0.4)
    assert record["temperature"] == 0.4
    assert record["pilot"]["drawn"] == pytest.approx(0.38)


@pytest.mark.parametrize("target", [0.05, 1.01])
def test_out_of_reach_or_at_one_no_pilot_is_drawn(
    target: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(0.5, monkeypatch)
    assert model.matched(tmp_path, target)["pilot"] is None
    assert [name for name, _ in model.asked] == ["matched-dft"]


def test_certain_answers_do_not_send_the_aim_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Model(0.0, monkeypatch).matched(tmp_path, 0.4)["temperature"] == pytest.approx(1.2)


def test_few_answers_are_not_worth_a_pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(0.5, monkeypatch)
    control.evaluate_matched(model, tmp_path, "dft", 0.4, [], EvalSettings(num_samples=8))  # type: ignore[arg-type]
    assert [name for name, _ in model.asked] == ["matched-dft"]
