"""Training end to end on a toy: what is learnt, logged, chosen and saved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from rectune.config import load_config
from rectune.errors import UserError
from rectune.models.load import load_model
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase
from rectune.training import trainer as loop
from rectune.training.dataloader import capacity, load_data
from rectune.training.dry_run import plan
from rectune.training.metrics import evaluate_holdout
from training_runs import OVER_ROWS, metrics, weights, without_timings

NAMED = """
step kind phase objective nll mean_p p10 p50 p90 weight entropy eos_p accuracy low_p high_p supervised
grad_norm learning_rate tokens seconds tokens_per_second peak_memory_mib
""".split()  # noqa: SIM905


@pytest.mark.parametrize("objective", OVER_ROWS)
def test_every_objective_learns(run: Any, objective: str) -> None:
    setting = ":q=0.003" if objective == "threshold" else ""
    result = run(objective=objective + setting, max_steps=12)
    assert result.after["nll"] < result.before["nll"] - 0.1
    assert result.after["mean_p"] > result.before["mean_p"]


def test_every_step_is_logged(run: Any) -> None:
    out = run(eval_steps=4).out
    train, holdout = metrics(out, "train"), metrics(out, "holdout")
    assert all(set(line) == set(NAMED) for line in train)
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in holdout] == [0, 4, 6]
    assert all({"nll", "mean_p", "accuracy"} <= set(line) for line in holdout)
    for line in train:
        assert 0 < line["p10"] <= line["p50"] <= line["p90"] < 1
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"], rel=0.05)
    assert json.loads((Path(out) / "summary.json").read_text())["steps"] == 6
    assert json.loads((Path(out) / "config.json").read_text())["max_steps"] == 6
    assert json.loads((Path(out) / "environment.json").read_text())["packages"]["torch"] == torch.__version__


def test_phases_switch_by_share_of_steps(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rectune"):
        out = run(objective="sft@0.3+dft@0.7", max_steps=10, batch_size=2, min_eos_weight=0).out
    lines = metrics(out, "train")
    assert [line["phase"] for line in lines] == ["sft"] * 3 + ["dft"] * 7
    assert all(line["weight"] == 1 for line in lines[:3])
    assert all(line["weight"] == pytest.approx(line["mean_p"]) for line in lines[3:])
    assert "sft until step 3, then dft until step 10" in caplog.text


def scripted(monkeypatch: pytest.MonkeyPatch, figures: list[dict[str, float]]) -> None:
    """Evaluations that give these figures; training goes on as it does."""
    left = iter(figures)
    monkeypatch.setattr(loop, "evaluate_holdout", lambda *args, **kwargs: {"accuracy": 0.0, **next(left)})


@pytest.mark.parametrize(("choose", "best"), [("nll", 2), ("mean_p", 3), ("last", 4)])
@pytest.mark.parametrize("rank", [0, 2])
def test_what_is_saved(run: Any, monkeypatch: pytest.MonkeyPatch, choose: str, best: int, rank: int) -> None:
    """The figures of the evaluations alone decide; -p log p, which falls all the way, has no say."""
    figures = [
        {"nll": nll, "mean_p": p} for nll, p in ((1.0, 0.9), (3.0, 0.1), (2.0, 0.2), (2.5, 0.5), (9.0, 0.0))
    ]
    settings = {"lr_scheduler_type": "constant", "warmup_ratio": 0, "lora_r": rank, "merge_adapter": True}
    name = "adapter/adapter_model.safetensors" if rank else "model/model.safetensors"
    until = run("until", max_steps=best, **settings)
    scripted(monkeypatch, figures)
    chosen = run("chosen", max_steps=4, eval_steps=1, metric_for_best_model=choose, **settings)
    for file in (name, "model/model.safetensors"):
        one, other = weights(chosen.out, file), weights(until.out, file)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert chosen.after["nll"] == figures[best]["nll"]
    assert chosen.before["nll"] == 1.0


def test_evaluations_without_finite_figures_choose_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = {"nll": float("nan"), "mean_p": float("nan")}
    scripted(monkeypatch, [nan] * 9)
    out = Path(run(eval_steps=1, metric_for_best_model="nll", save_steps=2).out)
    assert (out / "model" / "model.safetensors").exists()
    assert metrics(out, "holdout")[0]["nll"] is None
    assert "NaN" not in (out / "summary.json").read_text()


def test_choosing_needs_holdout_rows(run: Any) -> None:
    with pytest.raises(UserError, match="metric_for_best_model: 'nll' needs held-out rows"):
        run(metric_for_best_model="nll", eval_steps=1, eval_split_size=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_saved_model_gives_the_evaluated_figures(run: Any, toy: Any, precision: str) -> None:
    result = run(dtype=precision)
    folder = Path(result.out) / "model"
    assert "rectune" not in (folder / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == (torch.float32 if precision == "float32" else torch.bfloat16)
    data = load_data(load_config(None, {**toy, "output_dir": "unused"}), tokenizer)
    nll = count = 0.0
    with torch.no_grad():
        for index in data.holdout.indices:
            row = data.holdout.encoded[index]
            ids, labels = torch.tensor([list(row.input_ids)]), torch.tensor(list(row.labels))[1:]
            logp = model(ids).logits[0, :-1].float().log_softmax(-1)
            nll -= float(logp[labels >= 0].gather(1, labels[labels >= 0, None]).sum())
            count += int((labels >= 0).sum())
    assert nll / count == pytest.approx(result.after["nll"], rel=1e-5 if precision == "float32" else 2e-3)


def test_the_saved_model_needs_no_rectune(run: Any) -> None:
    code = "import sys, transformers as t; m = t.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
    code += (
        "t.AutoTokenizer.from_pretrained(sys.argv[1]); assert 'rectune' not in sys.modules; print(m.dtype)"
    )
    folder = str(Path(run(max_steps=1).out) / "model")
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "torch.float32\n"


def test_adapter_and_merged_model_agree(run: Any, toy: Any) -> None:
    result = run(lora_r=2, merge_adapter=True, learning_rate=0.05, lora_target_modules="q_proj,down_proj")
    out = Path(result.out)
    base, adapted = AutoModelForCausalLM.from_pretrained(toy["model"]), load_model(out / "adapter")[0]
    merged = AutoModelForCausalLM.from_pretrained(out / "model")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours, theirs = merged(ids).logits, adapted(ids).logits
        assert (ours - base(ids).logits).norm() > 0.01 * ours.norm()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    config = load_config(None, {**toy, "output_dir": "unused"})
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    again = evaluate_holdout(Scorer(merged), load_data(config, tokenizer).holdout, config)
    assert again["nll"] == pytest.approx(result.after["nll"], rel=1e-4)


def test_an_adapter_alone(run: Any) -> None:
    out = Path(run(lora_r=2).out)
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert not (out / "model").exists()


def test_the_base_under_an_adapter_is_the_reference(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing its weights with the adapted model gives what a frozen copy gives."""
    settings = {"objective": "asft", "lora_r": 2, "learning_rate": 0.05}
    shared = run("shared", **settings)
    monkeypatch.setattr(loop, "frozen_reference", lambda config, scorer, tokenizer: scorer.frozen())
    copied = run("copied", **settings)
    file = "adapter/adapter_model.safetensors"
    torch.testing.assert_close(weights(shared.out, file), weights(copied.out, file), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"lora_r": 2, "lora_dropout": 0.3}, {"dtype": "bfloat16"}])
def test_gradient_checkpointing_changes_nothing(
    run: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    recomputed = 0
    call = GradientCheckpointingLayer.__call__

    def counting(layer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal recomputed
        recomputed += layer.gradient_checkpointing and layer.training
        return call(layer, *args, **kwargs)

    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", counting)
    plain = run("plain", **settings)
    assert not recomputed
    again = run("again", gradient_checkpointing=True, **settings)
    assert recomputed
    assert without_timings(metrics(plain.out)) == without_timings(metrics(again.out))


def test_holdout_as_a_file_and_none(run: Any, toy: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    shutil.copy(toy["data"], kept)
    every = run("file", eval_data=str(kept))
    assert every.before["supervised"] > 44
    none = run("none", eval_split_size=0)
    assert (none.before, none.after) == ({}, {})
    assert metrics(none.out, "holdout") == []
    with pytest.raises(UserError, match=r"eval_data: no such file: nothing.jsonl"):
        run("missing", eval_data="nothing.jsonl")
    for name in ("one", "two"):
        (tmp_path / "repo" / name).mkdir(parents=True)
        shutil.copy(toy["data"], tmp_path / "repo" / name / "train.jsonl")
    named = run("named", eval_data=f"{tmp_path / 'repo'}:two")
    assert named.before["supervised"] == every.before["supervised"]


def test_rows_that_all_ask_the_same(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "one.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": "Say a number.", "completion": str(n)}) + "\n" for n in range(40))
    )
    done = run("one", data=str(data), eval_split_size=0.05, max_steps=2)
    assert (done.before, done.after) == ({}, {})
    assert "all rows have the same question" in caplog.text
    with pytest.raises(UserError, match="leaves none to train on"):
        run("share", data=str(data), eval_split_size=0.5, max_steps=2)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 3}, 3),
        ({"max_steps": None, "num_train_epochs": 1}, 5),
        ({"max_steps": None, "num_train_epochs": 0.5}, 3),
        ({"num_train_epochs": 9}, 6),
    ],
)
def test_steps_and_epochs(run: Any, settings: dict[str, Any], steps: int) -> None:
    assert run(**settings).steps == steps  # 32 rows, 7 a step


def test_cut_rows_are_counted(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rectune"):
        out = run(max_length=29).out
    assert "truncated" in caplog.text
    assert " 0 truncated" not in caplog.text
    assert max(line["tokens"] for line in metrics(out, "train")) <= 7 * 29


def test_broken_gradients_skip_the_step_and_then_give_up(
    run: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loss = Phase.loss
    monkeypatch.setattr(Phase, "loss", lambda *args: loss(*args) * float("nan"))
    with pytest.raises(UserError, match="no finite gradient in 9 consecutive steps, up to step 9"):
        run("few", max_steps=9)  # all of a short run: nothing was trained
    assert "step 9: the loss or gradient is not finite, in " in caplog.text
    assert "NaN" not in (tmp_path / "few" / "metrics.jsonl").read_text()
    assert not (tmp_path / "few" / "model").exists()
    with pytest.raises(
        UserError, match="no finite gradient in 10 consecutive steps, up to step 10"
    ) as caught:
        run("many", max_steps=12)
    assert "\n" not in str(caught.value)


def test_plan_writes_nothing(toy: Any, tmp_path: Path) -> None:
    config = load_config(None, {**toy, "output_dir": tmp_path / "run", "objective": "asft"})
    planned = plan(config)
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(planned))["config"]["batch_size"] == 7
    assert (planned["rows"], planned["holdout_rows"], planned["steps"]) == (32, 8, 6)
    assert planned["supervised_tokens"] < planned["tokens"] < 32 * capacity(config)
    memory = planned["memory_mib"]
    assert memory.pop("total") == sum(memory.values())
    assert set(memory) == {"weights", "masters", "gradients", "moments", "activations", "head", "probe"}


def test_what_is_decided_stands_in_config_json_and_a_resumed_run_may_say_it_or_not(run: Any) -> None:
    out = Path(run(objective="dft", max_steps=2).out)
    config = json.loads((out / "config.json").read_text())
    assert config["min_eos_weight"] == 1.0
    assert config["dtype"] in ("bfloat16", "float32")
    assert config["reference_model"] is None  # dft has none
    assert config["decided"]["turn_end"] and config["decided"]["template"]
    assert config["decided"]["steps"] == 2
    again = {"output_dir": out, "max_steps": 2, "resume": True}
    run(objective="dft", min_eos_weight=1.0, dtype=config["dtype"], **again)
    with pytest.raises(UserError, match=r"min_eos_weight was 1.0, is 0.0"):
        run(objective="dft", min_eos_weight=0, **again)
    older = config | {"min_eos_weight": None, "dtype": "auto"}
    older.pop("decided")
    (out / "config.json").write_text(json.dumps(older))
    run(objective="dft", **again)


@pytest.mark.parametrize(("objective", "protect", "reference"), [
    ({"objective": "sft"}, 0.0, False),
    ({"objective": "iw_sft"}, 0.0, True),
    ({"objective": "sft@0.5+dft@0.5"}, 1.0, False),
    ({"objective": "dft", "min_eos_weight": 0.5}, 0.5, False),
])  # fmt: skip
def test_config_json_has_the_weight_of_turn_ends_and_the_reference(
    run: Any, objective: dict[str, Any], protect: float, reference: bool
) -> None:
    config = json.loads((Path(run(**objective, max_steps=2).out) / "config.json").read_text())
    assert config["min_eos_weight"] == protect
    assert config["reference_model"] == (config["model"] if reference else None)


def test_rows_that_are_too_long_are_left_out_where_that_is_wanted(
    toy: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy["model"])
    whole = load_data(load_config(None, {**toy, "output_dir": "unused", "eval_split_size": 0}), tokenizer)
    lengths = sorted(whole.train.lengths())
    middle = lengths[len(lengths) // 2]
    fit = sum(length <= middle for length in lengths)
    assert 0 < fit < len(lengths)
    settings = {**toy, "output_dir": "unused", "eval_split_size": 0, "max_length": middle}
    with caplog.at_level("INFO", "rectune"):
        data = load_data(load_config(None, {**settings, "too_long": "drop"}), tokenizer)
    assert sorted(data.train.lengths()) == lengths[:fit]
    assert f"{len(lengths) - fit} of {len(lengths)} rows are too long; left out" in caplog.text
    cut = load_data(load_config(None, settings), tokenizer)
    assert max(cut.train.lengths()) == middle and len(cut.train) > fit
    few = load_data(load_config(None, {**settings, "too_long": "drop", "max_train_samples": fit}), tokenizer)
    assert len(few.train) == fit  # the limit draws among those that fit
