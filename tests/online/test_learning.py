"""GRPO and PPO find the best policy where it is known: a bandit, and a short task of several tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training_runs import metrics

BANDIT = '''
def arm(prompt, text, answer, extra):
    """One pull: the first token decides. The best arm is the letter e of each problem's answer."""
    return 1.0 if text[:1] == answer else 0.1 * (text[:1].isalpha())


def count(prompt, text, answer, extra):
    """Ten tokens: the share of them that are the wanted letter."""
    return text.count(answer) / 10
'''

SETTINGS: dict[str, Any] = {"problems_per_step": 8, "n": 8, "learning_rate": 0.01, "weight_decay": 0.0}
PPO: dict[str, Any] = {
    "algorithm": "ppo", "epochs": 2, "minibatches": 2, "value_learning_rate": 0.01, "entropy_bonus": 0.003,
}  # fmt: skip


@pytest.fixture
def task(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tasks.py").write_text(BANDIT)
    problems = [{"prompt": f"{n}?", "answer": "e"} for n in range(8)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    return {"problems": str(tmp_path / "tasks.jsonl"), "file": str(tmp_path / "tasks.py")}


@pytest.mark.parametrize("algorithm", [{}, PPO], ids=["grpo", "ppo"])
@pytest.mark.parametrize(("function", "tokens", "steps"), [("arm", 1, 30), ("count", 10, 40)])
def test_the_known_optimum_is_found(
    run: Any,
    task: dict[str, str],
    tmp_path: Path,
    algorithm: dict[str, Any],
    function: str,
    tokens: int,
    steps: int,
) -> None:
    result = run(
        problems=task["problems"], reward=f"{task['file']}:{function}", max_new_tokens=tokens, steps=steps,
        **SETTINGS, **algorithm,
    )  # fmt: skip
    assert result.reward["first"] < 0.15
    assert result.reward["last"] > 0.9
    lines = metrics(tmp_path / "run", "train")
    assert lines[-1]["entropy"] < 0.5 * lines[0]["entropy"]
    if algorithm:  # the value head learns what to expect
        assert lines[-1]["value"] > 0.5
        assert max(line["explained_variance"] or 0 for line in lines) > 0.1


def test_without_a_reason_nothing_is_learnt(run: Any, tmp_path: Path) -> None:
    """All rewards equal: every group is degenerate, no update is made, and the run goes on."""
    result = run(reward="same", steps=3)
    lines = metrics(tmp_path / "run", "train")
    assert [(line["degenerate"], line["groups"], line["updates"]) for line in lines] == [(2, 2, 0)] * 3
    assert result.reward == {"first": 1.0, "last": 1.0}
