"""Weights of rows and turns: the loss of a target times its weight over the mean weight of the training targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rectune.config import load_config
from rectune.errors import UserError
from rectune.objectives import dft, sft
from rectune.training import trainer as loop
from rectune.training.dataloader import load_data
from rectune.training.dry_run import plan
from rectune.training.trainer import train
from reported import read_lines, write_lines
from training_runs import Died, dies_at, metrics, same_runs, together, weights

Weighted = Callable[..., str]


@pytest.fixture
def weighted(toy: dict[str, Any], tmp_path: Path) -> Weighted:
    """Writes the toy's rows with the weight that a function gives to the number of each."""

    def write(weight: Callable[[int], object], name: str = "weighted.jsonl") -> str:
        rows = [{**row, "weight": weight(n)} for n, row in enumerate(read_lines(Path(toy["data"])))]
        write_lines(tmp_path / name, rows)
        return str(tmp_path / name)

    return write


def uneven(n: int) -> float:
    return (n % 4) / 2


def near(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """How far two runs' updates are apart, as a share of their size."""
    off = sum(float((one[name] - other[name]).square().sum()) for name in start)
    return (off / sum(float((other[name] - start[name]).square().sum()) for name in start)) ** 0.5


@pytest.mark.parametrize("objective", [sft, dft])
def test_the_gradient_is_the_formula(
    run: Any, toy: dict[str, Any], weighted: Weighted, monkeypatch: pytest.MonkeyPatch, objective: Any
) -> None:
    """sum over targets of (w / mean w) loss, over the number of targets, by plain transformers."""
    data = weighted(uneven)
    seen: list[dict[str, Tensor]] = []
    finish = loop.Masters.finish_step

    def keep(masters: Any, accelerator: Any) -> Tensor:
        norm = finish(masters, accelerator)
        seen.append({name: m.grad.clone().cpu() for name, m in masters.masters.items() if m.grad is not None})
        return norm

    monkeypatch.setattr(loop.Masters, "finish_step", keep)
    settings = {"data": data, "max_steps": 1, "eval_split_size": 0.2, "min_eos_weight": 0}
    run(objective=objective.__name__, **settings)

    model = AutoModelForCausalLM.from_pretrained(toy["model"], dtype=torch.float32)
    config = load_config(None, {**toy, **settings, "output_dir": "unused"})
    found = load_data(config, AutoTokenizer.from_pretrained(toy["model"]))
    every = [row["weight"] for row in read_lines(Path(data))]
    of_row = [every[found.train.encoded.dataset[i]["row"]] for i in found.train.indices]
    counts = found.train.supervised.tolist()
    mean = sum(w * count for w, count in zip(of_row, counts, strict=True)) / sum(counts)
    total = torch.zeros(())
    step = found.plan.rows(0)
    for row in step:
        encoded = found.train.encoded[found.train.indices[row]]
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor(encoded.labels)[1:]
        logp = model(ids).logits[0, :-1].log_softmax(-1)
        loss = objective(logp[labels >= 0].gather(1, labels[labels >= 0, None])[:, 0])
        total = total + of_row[row] / mean * loss.sum()
    (total / sum(counts[row] for row in step)).backward()
    hand = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    scale = torch.nn.utils.get_total_norm([*hand.values()])
    off = torch.nn.utils.get_total_norm([seen[0][name] - grad for name, grad in hand.items()])
    assert off < 1e-5 * scale


def test_however_it_is_cut(run: Any, toy: dict[str, Any], weighted: Weighted, tmp_path: Path) -> None:
    """Packing, micro-batches of a row and two processes (plain and sharded) give the same, and so do weights ten times
    as large."""
    data, start = weighted(uneven), weights(toy["model"], "model.safetensors")
    settings = {"drift_rows": 0, "max_steps": 3, "objective": "dft", "data": data}
    whole = weights(run("whole", **settings, tokens_per_micro_batch=4096).out)
    ways = {
        "packed": {"tokens_per_micro_batch": 64},
        "tenfold": {"data": weighted(lambda n: 10 * uneven(n), "tenfold.jsonl")},
    }
    for name, way in ways.items():
        assert near(weights(run(name, **{**settings, **way}).out), whole, start) < 1e-3, name
    two = [{**toy, **settings, "output_dir": str(tmp_path / name)} for name in ("plain two", "sharded two")]
    together(two, [False, True], tmp_path)
    for run_of_two in two:
        assert near(weights(run_of_two["output_dir"]), whole, start) < 1e-3
    assert near(weights(run("plain", **{**settings, "data": toy["data"]}).out), whole, start) > 0.1


def test_equal_weights_are_none(run: Any, toy: dict[str, Any], weighted: Weighted, tmp_path: Path) -> None:
    """To the bit, in weights and in metrics."""
    run("plain", drift_rows=0)
    run("fours", drift_rows=0, data=weighted(lambda n: 4))
    ours, theirs = (metrics(tmp_path / name, "train") for name in ("plain", "fours"))
    assert [line["objective"] for line in ours] == [line["objective"] for line in theirs]
    assert "weighted_nll" not in ours[0].keys() | metrics(tmp_path / "fours", "holdout")[0].keys()
    one, other = (weights(tmp_path / name) for name in ("plain", "fours"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_turns_weight_times_its_rows(toy: dict[str, Any], tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "weight": 0.5}]
    again = [
        {**said[0]},
        {"role": "assistant", "content": "so", "weight": 0},
        *said[:1],
        {**said[1], "weight": 3},
    ]
    rows = [
        {"messages": [*said, *again], "loss_weight": "4"},
        {"messages": [*said[:1], {**said[1], "weight": 1}]},
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    settings = {
        **toy,
        "data": str(tmp_path / "rows.jsonl"),
        "eval_split_size": 0,
        "max_length": 128,
        "output_dir": tmp_path / "out",
    }
    split = load_data(load_config(None, settings), AutoTokenizer.from_pretrained(toy["model"])).train
    batch = split.batch([0, 1])
    targets = batch.labels != -100
    first, second = (batch.weight[targets & (batch.rows == row)] for row in (0, 1))
    assert batch.weight[targets].mean() == pytest.approx(1)
    assert (first[-3:] / second[0]).tolist() == pytest.approx([12] * 3)
    assert set((first / second[0]).tolist()) == {2.0, 12.0}
    assert len(first) == 2 * len(second)  # the middle turn is no target


def test_evaluation_and_the_plan_say_them(
    run: Any, toy: dict[str, Any], weighted: Weighted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"data": weighted(uneven), "metric_for_best_model": "nll", "eval_steps": 2}
    config = load_config(None, {**toy, **settings, "output_dir": tmp_path / "run"})
    planned = plan(config)["weights"]
    assert (planned["min"], planned["max"]) == (0, 1.5)
    with caplog.at_level("INFO", "rectune"):
        result = train(config)
    assert f"weights of the answers: mean {planned['mean']:.4g}, from 0 to 1.5, " in caplog.text
    holdout = metrics(tmp_path / "run", "holdout")
    assert all(line["weighted_nll"] != line["nll"] for line in holdout)
    assert result.after["weighted_nll"] == min(line["weighted_nll"] for line in holdout)


def test_held_out_rows_without_a_weight(
    toy: dict[str, Any], weighted: Weighted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"eval_data": weighted(lambda n: 0, "zero.jsonl"), "eval_split_size": 0, "max_steps": 1}
    config = load_config(None, {**toy, **settings, "data": weighted(uneven), "output_dir": tmp_path / "run"})
    train(config)
    assert "the weights of all held-out rows are 0: their metrics count each target once" in caplog.text
    assert "weighted_nll" not in metrics(tmp_path / "run", "holdout")[0]


def test_a_death_and_other_weights(
    run: Any, weighted: Weighted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data": weighted(uneven), "save_steps": 2, "drift_rows": 0}
    run("whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(loop.MetricsLog, "add", dies_at(5, loop.MetricsLog.add))
        with pytest.raises(Died):
            run("died", **settings)
    kept = Path(settings["data"]).read_text()
    weighted(lambda n: uneven(n) or 0.25)
    with pytest.raises(UserError, match="the rows have changed since the run began"):
        run("died", resume=True, **settings)
    Path(settings["data"]).write_text(kept)
    run("died", resume=True, **settings)
    same_runs(tmp_path / "died", tmp_path / "whole")


@pytest.mark.parametrize(
    ("weight", "line"),
    [
        (-1, r"weighted.jsonl:1: field 'weight' is -1; a weight is a number from 0 to 1e\+30"),
        (1e31, r"weighted.jsonl:1: field 'weight' is 1e\+31"),
        (float("nan"), r"weighted.jsonl:1: field 'weight' is nan"),
        (float("inf"), r"weighted.jsonl:1: field 'weight' is inf"),
        ("heavy", r"weighted.jsonl:1: field 'weight' is heavy"),
        ([1], r"weighted.jsonl:1: field 'weight' is list"),
    ],
)
def test_bad_weights(run: Any, weighted: Weighted, weight: object, line: str) -> None:
    with pytest.raises(UserError, match=line):
        run(data=weighted(lambda n: weight if n == 0 else 1))


def test_all_zero(run: Any, weighted: Weighted) -> None:
    with pytest.raises(UserError, match=r"weighted.jsonl:\d+: the weights of all rows to train on are 0"):
        run(data=weighted(lambda n: 0))


def test_pairs_have_none(run: Any, tmp_path: Path) -> None:
    pair = {"prompt": "hi", "chosen": "yo", "rejected": "no"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps({**pair, "weight": 0.5}) + "\n")
    with pytest.raises(UserError, match="field 'weight' is not supported; pairs have no weights"):
        run(objective="dpo", data=str(tmp_path / "pairs.jsonl"))
