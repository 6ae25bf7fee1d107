"""GRPO and PPO find the best policy where it is known: a bandit, and a short task of several tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training_runs import metrics

BANDIT = '''
def arm(prompt, text, answer, extra):
    """One token: a small letter is best, a digit is better than nothing."""
    return 1.0 if "a" <= text[:1] <= "z" else 0.2 * text[:1].isdigit()


def vowels(prompt, text, answer, extra):
    """Six tokens: the share of them that are vowels."""
    return sum(text.count(vowel) for vowel in "aeiou") / 6
'''

SETTINGS: dict[str, Any] = {
    "problems_per_step": 4,
    "num_samples": 8,
    "learning_rate": 0.02,
    "weight_decay": 0.0,
}
PPO: dict[str, Any] = {
    "algorithm": "ppo", "num_iterations": 2, "value_learning_rate": 0.02, "lam": 0.9,
}  # fmt: skip


@pytest.fixture
def task(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tasks.py").write_text(BANDIT)
    problems = [{"prompt": f"{n}?", "answer": "e"} for n in range(8)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    return {"problems": str(tmp_path / "tasks.jsonl"), "file": str(tmp_path / "tasks.py")}


@pytest.mark.parametrize("algorithm", [{}, PPO], ids=["grpo", "ppo"])
@pytest.mark.parametrize(("function", "tokens", "steps"), [("arm", 1, 20), ("vowels", 6, 20)])
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
        problems=task["problems"], reward=f"{task['file']}:{function}", max_new_tokens=tokens, max_steps=steps,
        **SETTINGS, **algorithm,
    )  # fmt: skip
    assert result.reward["first"] < 0.3
    assert result.reward["last"] > 0.9
    lines = metrics(tmp_path / "run", "train")
    assert lines[-1]["sample_nll"] < 0.7 * lines[0]["sample_nll"]
    if algorithm:  # the value head has learnt what to expect
        assert lines[0]["value"] == 0
        assert lines[-1]["value"] == pytest.approx(lines[-1]["reward"], abs=0.3)


def test_without_a_reason_nothing_is_learnt(run: Any, tmp_path: Path) -> None:
    """All rewards equal: every group is degenerate, no update is made, and the run goes on."""
    result = run(reward="same", max_steps=3)
    lines = metrics(tmp_path / "run", "train")
    assert [(line["degenerate"], line["groups"], line["updates"]) for line in lines] == [(2, 2, 0)] * 3
    assert result.reward == {"first": 1.0, "last": 1.0}
