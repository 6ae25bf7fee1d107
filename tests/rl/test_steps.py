"""What can go wrong within a step: memory that runs out, and losses that are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.rl import update
from training_runs import metrics, weights

PPO = {"algorithm": "ppo", "num_iterations": 2, "num_mini_batches": 2, "beta": 0.05, "max_new_tokens": 8}


def little(monkeypatch: pytest.MonkeyPatch, tokens: int, *, training: bool) -> None:
    """A body that runs out of memory beyond so many tokens; with `training`, only where there is a gradient."""
    hidden = Scorer.hidden

    def limited(self: Scorer, batch: Any) -> Tensor:
        if sum(batch.row_lengths) > tokens and (torch.is_grad_enabled() or not training):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return hidden(self, batch)

    monkeypatch.setattr(Scorer, "hidden", limited)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", [{"num_iterations": 2, "reward": "length"}, PPO])
def test_out_of_memory_halves_the_micro_batch(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any], training: bool,
) -> None:  # fmt: skip
    """The same update up to the order of floats; remembered by later steps and by a run that goes on, to the bit."""
    run("plenty", **settings)
    with monkeypatch.context() as patch:
        little(patch, 60, training=training)
        run("little", **settings)
        said = [record.message for record in caplog.records if "out of memory" in record.message]
        assert 1 <= len(said) == len(set(said)) <= 2
    plenty, few = (metrics(tmp_path / name, "train") for name in ("plenty", "little"))
    for name in ("reward", "objective", "grad_norm", "kl_old"):
        assert [a[name] for a in plenty[:3]] == pytest.approx([b[name] for b in few[:3]], rel=1e-3, abs=1e-6)


def test_memory_and_bits(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    little(monkeypatch, 60, training=True)
    run("whole", save_steps=2)
    original = update.update

    def dying(*args: Any) -> Any:
        if args[6] == 3:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr("rectune.rl.rl_trainer.update", dying)
        with pytest.raises(KeyboardInterrupt):
            run("died", save_steps=2)
    run("died", resume=True, save_steps=2)
    whole, died = (weights(tmp_path / name, "model/model.safetensors") for name in ("whole", "died"))
    assert all(torch.equal(whole[name], died[name]) for name in whole)


def test_an_answer_that_does_not_fit(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    little(monkeypatch, 10, training=True)
    with pytest.raises(
        UserError, match=r"max_new_tokens: \d+ tokens of one prompt and answer do not fit into memory"
    ):
        run()


def test_answers_without_a_finite_gradient_are_named(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = update._Minibatch._loss

    def poisoned(self: update._Minibatch, chosen: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        columns, loss = original(self, chosen)
        return columns, loss * torch.nan if 2 in chosen else loss

    monkeypatch.setattr(update._Minibatch, "_loss", poisoned)
    run(max_steps=2, reward="length")
    said = [record.message for record in caplog.records if "not finite" in record.message]
    assert len(said) == 2
    assert "step 1" in said[0]
    assert said[0].count("answer 2 to problem") == said[0].count("answer") == 1
    assert [line["skipped"] for line in metrics(tmp_path / "run", "train")] == [1, 1]


def test_answers_end_at_stop_texts(run: Any) -> None:
    """A third of a byte-level toy's answers has one of these letters; trained on is what stands before it."""
    out = run("stopped", stop=("a", "e", "1"), save_rollout_steps=1, max_steps=2, max_new_tokens=40).out
    files = sorted((Path(out) / "rollouts").iterdir())
    answers = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert answers
    texts = [answer["text"] for answer in answers]
    assert not any(letter in text for text in texts for letter in "ae1")
    assert any(len(text) < 38 for text in texts)
