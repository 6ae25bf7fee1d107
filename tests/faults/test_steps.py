"""What can go wrong within a step: a loss or gradient that is not finite, and memory that runs out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rectune.data.packing import Batch
from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.runtime.memory import is_out_of_memory
from rectune.training.accumulation import Gradients
from rectune.training.checkpoint import last_good_checkpoint
from rectune.training.run_dir import keep_limit
from training_runs import metrics, same_runs, weights

Losses = Callable[..., tuple[dict[str, Tensor], Tensor]]


def nan_loss(loss: Tensor, mask: Tensor) -> Tensor:
    """The gradient stays, which is that of the sum."""
    return loss + torch.where(mask, math.nan, 0.0)


def nan_gradient(loss: Tensor, mask: Tensor) -> Tensor:
    """The value stays: sqrt has an infinite slope at 0, and one of 1/2 at 1."""
    other = (~mask).float()
    return loss + ((loss * 0).abs() + other).sqrt() - other


def poisoned(poison: Callable[[Tensor, Tensor], Tensor], guilty: set[int], steps: set[int]) -> Losses:
    """The losses of a real forward pass, those of some rows broken."""
    losses_of = Gradients._losses

    def broken(
        self: Gradients, rows: list[int], phase: Any, step: int, of_step: Any
    ) -> tuple[dict[str, Tensor], Tensor]:
        columns, losses = losses_of(self, rows, phase, step, of_step)
        if torch.initial_seed() % 1_000_003 not in steps:
            return columns, losses
        mask = torch.tensor(
            [rows[place] in guilty for place in columns["row"].tolist()], device=losses.device
        )
        return columns, poison(losses, mask)

    return broken


@pytest.mark.parametrize(
    ("poison", "objective"), [(nan_loss, "dft"), (nan_gradient, "dft"), (nan_loss, "cadft:shuffled")]
)
def test_the_rows_of_a_broken_step_are_named(
    run: Any, toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    poison: Callable[[Tensor, Tensor], Tensor], objective: str,
) -> None:  # fmt: skip
    every = list(range(40))
    monkeypatch.setattr(Gradients, "_losses", poisoned(poison, set(every[:3]), {0, 1, 2, 3, 4}))
    out = Path(run(objective=objective, eval_split_size=0, max_steps=5, batch_size=8).out)
    lines = [record.message for record in caplog.records if "is not finite" in record.message]
    named = [line.split("finite, in ")[1].split(";")[0].split(", ") for line in lines]
    assert sorted(row for rows in named for row in rows) == [f"{toy['data']}:{line}" for line in (1, 2, 3)]
    broken = [line["step"] for line in metrics(out, "train") if line["grad_norm"] is None]
    assert len(broken) == len(lines)
    assert all(torch.isfinite(weight).all() for weight in weights(out).values())


def test_it_gives_up_at_the_last_good_checkpoint(
    run: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three good steps, then broken ones; once they are corrected the run resumes from the third."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Gradients, "_losses", poisoned(nan_loss, set(range(32)), {3, 4, 5}))
        words = r"run: no finite gradient in 2 consecutive steps, up to step 5; the last good .*/step-000003"
        with pytest.raises(UserError, match=words):
            run(max_nonfinite_steps=2)
    good = last_good_checkpoint(out / "checkpoints")
    assert good is not None and json.loads((good / "state.json").read_text())["skipped"] == 0
    run(resume=True, max_nonfinite_steps=3)
    same_runs(whole, out)


@pytest.mark.parametrize(("limit", "words"), [
    (3, "up to step 3; there is no checkpoint yet"),
    (10, "no finite gradient in 6 consecutive steps, up to step 6"),  # though there are fewer than the limit
])  # fmt: skip
def test_a_run_whose_steps_are_all_skipped_fails(
    run: Any, monkeypatch: pytest.MonkeyPatch, limit: int, words: str
) -> None:
    monkeypatch.setattr(Gradients, "_losses", poisoned(nan_loss, set(range(32)), set(range(6))))
    with pytest.raises(UserError, match=words):
        run(max_nonfinite_steps=limit)


def test_skipped_steps_are_counted(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Gradients, "_losses", poisoned(nan_loss, set(range(32)), {2, 4}))
    assert run().skipped == 2
    assert "2 of 6 steps were skipped: no finite loss or gradient" in caplog.text


def cuda_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_error() -> Exception:
    """As this machine says it."""
    try:
        torch.empty(1 << 48)
    except RuntimeError as error:
        return error
    raise AssertionError("256 TiB fit into memory")


def fits(tokens: int, error: Callable[[], Exception], *, backward: bool) -> Callable[[Scorer, Batch], Tensor]:
    """A body that does its work and then runs out of memory beyond so many tokens; training only."""
    hidden = Scorer.hidden

    def limited(self: Scorer, batch: Batch) -> Tensor:
        states = hidden(self, batch)
        if torch.is_grad_enabled() and sum(batch.row_lengths) > tokens:
            if not backward:
                raise error()
            states = _Fails.apply(states, error)
        return states

    return limited


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, error: Callable[[], Exception]) -> Tensor:
        ctx.error = error
        return states.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise ctx.error()


@pytest.mark.parametrize(
    ("error", "backward", "settings"),
    [
        (cpu_error, False, {}),
        (cpu_error, True, {"objective": "cadft:shuffled", "tokens_per_micro_batch": 4096}),
        pytest.param(cuda_error, True, {"dtype": "bfloat16"}, marks=pytest.mark.faults),
        pytest.param(cpu_error, True, {"normalization": "micro-batch"}, marks=pytest.mark.faults),
        pytest.param(MemoryError, False, {"lora_r": 2, "merge_adapter": True}, marks=pytest.mark.faults),
    ],
)
def test_out_of_memory_halves_the_micro_batch(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    error: Callable[[], Exception], backward: bool, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Same gradients up to the order of floats; remembered for all later steps, and by a run that resumes."""
    run("plenty", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "hidden", fits(40, error, backward=backward))
        run("little", until=3, **settings)
        said = [record.message for record in caplog.records if "out of memory" in record.message]
        assert len(said) == len(set(said)) <= 3
        run("little", resume=True, **settings)
        again = [record.message for record in caplog.records if "out of memory" in record.message]
    assert again == said, "it did not remember"
    plenty, little = (metrics(tmp_path / name, "train") for name in ("plenty", "little"))
    assert [a["supervised"] for a in plenty] == [b["supervised"] for b in little]
    close = {"rel": 2e-2 if "dtype" in settings else 1e-4}
    for name in ("nll", "objective", "grad_norm"):
        assert [a[name] for a in plenty] == pytest.approx([b[name] for b in little], **close)


def test_what_did_not_fit_where_weights_were_sharded_is_not_tried_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rectune")
    run("run", until=2)
    kept = tmp_path / "run" / "micro_batch_limit-1.json"
    kept.write_text('{"format": 1, "micro_batch_tokens": "few"}\n')
    with pytest.raises(UserError, match=r"micro_batch_limit-1.json: the file is damaged; remove it"):
        run("run", resume=True)
    kept.unlink()
    keep_limit(tmp_path / "run", 1, 40)
    keep_limit(tmp_path / "run", 0, 48)
    monkeypatch.setattr(Scorer, "hidden", fits(40, cuda_error, backward=False))
    run("run", resume=True)
    said = [record.message for record in caplog.records if "memory" in record.message]
    assert said == ["micro-batches of at most 40 tokens: more did not fit into memory"]


def test_a_row_that_does_not_fit_is_named(
    run: Any, toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "hidden", fits(10, cuda_error, backward=False))
    with pytest.raises(
        UserError, match=r"rows.jsonl:\d+: its \d+ tokens do not fit into memory; lower max_length"
    ):
        run()


def test_other_errors_are_not_memory(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "hidden", fits(40, lambda: RuntimeError("shape mismatch"), backward=False))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run()
    assert all(map(is_out_of_memory, (cuda_error(), cpu_error(), MemoryError())))


@pytest.mark.faults
def test_memory_and_bits(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with little memory that was stopped is, to the bit, one with little memory that was not."""
    monkeypatch.setattr(Scorer, "hidden", fits(60, cuda_error, backward=True))
    run("one")
    for step in (1, 3, 4):
        run("other", resume=True, until=step)
    run("other", resume=True)
    same_runs(tmp_path / "one", tmp_path / "other")
