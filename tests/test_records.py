"""Records of files, and what rectune 0.1 wrote in them."""

from __future__ import annotations

from typing import Any

import pytest

from rectune.records import ComparedArm, EvalProtocol, Recommendation


@pytest.mark.parametrize(
    ("arm", "objective"),
    [
        ({"spec": "sft", "name": "sft", "settings": {}, "phases": None}, "sft"),
        ({"spec": "p", "name": "power", "settings": {"alpha": 0.5}, "phases": None}, "power:alpha=0.5"),
        ({"spec": "p", "name": "dft", "settings": {}, "phases": "sft:0.3,dft:0.7"}, "sft@0.3+dft@0.7"),
        ({"objective": "dft"}, "dft"),
    ],
)
def test_an_arm_of_version_0_1_is_read(arm: dict[str, Any], objective: str) -> None:
    rest = {"label": "a", "slug": "a", "learning_rate": 1e-5, "runs": {"0": "runs/a"}, "dropped": None}
    assert ComparedArm.model_validate({**arm, **rest}).to_dict() == {"objective": objective, **rest}


@pytest.mark.parametrize(("written", "name"), [("local", "hf"), ("server", "openai"), ("vllm", "vllm")])
def test_an_engine_of_version_0_1_is_read(written: str, name: str) -> None:
    assert EvalProtocol.model_validate({"n": 1, "temperature": 0.0, "engine": written}).engine == name


def test_a_recommendation_of_version_0_1_is_read() -> None:
    verdict = {
        "position": "intermediate", "label": "power alpha=0.5", "name": "power", "settings": {"alpha": 0.5},
        "alternatives": [], "confidence": "low", "sentence": "Use it.", "reasons": [], "next": [],
    }  # fmt: skip
    assert Recommendation.model_validate(verdict).objective == "power:alpha=0.5"
