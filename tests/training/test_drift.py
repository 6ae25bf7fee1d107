"""Drift: its figures are those of plain transformers, watching changes nothing, and warnings come once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rectune.config import LoraConfig, TrainConfig, load_config
from rectune.data.tokenization import Encoded
from rectune.models.lora import add_lora
from rectune.models.scorer import Scorer
from rectune.records import MetricsLine
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.types import SamplingParams
from rectune.training import drift
from rectune.training.dataloader import TrainingData, load_data
from rectune.training.drift import (
    ANSWERS,
    TARGETS,
    THRESHOLDS,
    Probe,
    choose_rows,
    cut,
    make_probe,
    sentence,
    warnings,
)
from rectune.training.metrics_log import MetricsLog
from toys import tiny_model
from training_runs import Died, metrics, weights

ROOT = Path(__file__).parents[2]
NAMED = {"step", "kind", "kl", "entropy", "eos_p", "repetition", "length", "stopped", "warnings", "seconds"}


def settings(toy: dict[str, Any], **more: Any) -> TrainConfig:
    return load_config(None, {**toy, "output_dir": "unused", **more})


def read_data(config: TrainConfig) -> TrainingData:
    return load_data(config, AutoTokenizer.from_pretrained(config.model))


def distributions(model: Any, data: TrainingData) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs over the vocabulary at all hold-out targets by plain transformers; the targets; which end turns."""
    logps, targets, ends = [], [], []
    for index in data.holdout.indices:
        row = data.holdout.encoded[index]
        labels = torch.tensor(list(row.labels))[1:]
        with torch.no_grad():
            logp = model(torch.tensor([list(row.input_ids)])).logits[0, :-1].log_softmax(-1)
        logps.append(logp[labels >= 0])
        targets.append(labels[labels >= 0])
        ends.append(torch.tensor(list(row.structural))[1:][labels >= 0])
    return torch.cat(logps), torch.cat(targets), torch.cat(ends)


@pytest.mark.parametrize("kind", [{}, {"lora_r": 4, "merge_adapter": True, "learning_rate": 0.05}])
def test_the_figures_are_those_of_plain_transformers(run: Any, toy: Any, kind: dict[str, Any]) -> None:
    out = run(eval_steps=3, **kind).out
    lines = metrics(out, "drift")
    assert [line["step"] for line in lines] == [0, 3, 6]
    assert all(set(line) == NAMED for line in lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    data = read_data(settings(toy))
    base, targets, ends = distributions(AutoModelForCausalLM.from_pretrained(toy["model"]), data)
    tuned, _, _ = distributions(AutoModelForCausalLM.from_pretrained(Path(out) / "model"), data)
    for line, logp in ((lines[0], base), (lines[-1], tuned)):
        of_target = logp.gather(1, targets[:, None])[:, 0]
        assert line["kl"] == pytest.approx(
            float((base.exp() * (base - logp)).sum(1).mean()), rel=1e-3, abs=1e-6
        )
        assert line["entropy"] == pytest.approx(float(-(logp.exp() * logp).sum(1).mean()), rel=1e-3)
        assert line["eos_p"] == pytest.approx(float(of_target[ends].exp().mean()), rel=1e-3)
    assert lines[-1]["kl"] > 0.01


def test_answers_are_drawn_from_the_weights_as_they_are(run: Any, toy: Any) -> None:
    out = Path(run(learning_rate=0.03).out)
    first, last = metrics(out, "drift")
    for folder, line in ((toy["model"], first), (out / "model", last)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        config = settings(toy)
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        probe = Probe(Scorer(model), tokenizer, config, read_data(config).holdout)
        assert len(probe.requests) == ANSWERS
        drawn = list(
            HFEngine(model, tokenizer).complete(probe.requests, SamplingParams(1.0, 1.0, probe.limit, 0))
        )
        assert line["length"] == sum(len(answer.token_ids) for answer in drawn) / ANSWERS
        assert line["stopped"] == sum(answer.finish_reason == "stop" for answer in drawn) / ANSWERS
    assert first["length"] != last["length"]


def test_an_adapter_takes_part_in_answers(toy: Any) -> None:
    config = settings(toy)
    model: Any = add_lora(tiny_model(), LoraConfig(lora_r=4), 0)
    probe = Probe(
        Scorer(model), AutoTokenizer.from_pretrained(config.model), config, read_data(config).holdout
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 5)
    answer = probe._answers()[0]
    prompt = list(answer.request.prompt_ids)
    ids, behind = torch.tensor([prompt + answer.token_ids]), len(prompt) - 1
    drawn = torch.tensor(answer.token_ids)[:, None]
    with torch.no_grad():
        adapted = model(ids).logits[0, behind:-1].log_softmax(-1).gather(1, drawn)[:, 0]
        with model.disable_adapter():
            base = model(ids).logits[0, behind:-1].log_softmax(-1).gather(1, drawn)[:, 0]
    torch.testing.assert_close(torch.tensor(answer.logprobs), adapted, rtol=1e-3, atol=1e-3)
    assert (base - adapted).abs().max() > 0.05


KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16"},
    "dropout": {"lora_r": 2, "lora_dropout": 0.3, "gradient_checkpointing": True},
    "psft": {"objective": "psft", "old_policy_interval": 2},
    "asft": {"objective": "asft"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_watching_changes_nothing(run: Any, kind: str) -> None:
    results = [
        run(name, drift_rows=rows, eval_steps=2, **KINDS[kind]) for name, rows in (("a", 0), ("b", 16))
    ]
    without, watched = (Path(result.out) for result in results)
    file = "adapter/adapter_model.safetensors" if "lora_r" in KINDS[kind] else "model/model.safetensors"
    one, other = weights(without, file), weights(watched, file)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [line["nll"] for line in metrics(without, "train")] == [
        line["nll"] for line in metrics(watched, "train")
    ]
    assert (len(metrics(without, "drift")), len(metrics(watched, "drift"))) == (0, 4)
    assert [(p / "token_logprobs.json").exists() for p in (without, watched)] == [False, True]


@pytest.mark.parametrize("arch", ["gemma2", "gemma3", "qwen3"])
def test_other_architectures_are_left_as_they_were(run: Any, toy: Any, tmp_path: Path, arch: str) -> None:
    """Sampling runs in inference mode; nothing that it leaves behind may reach the backward pass."""
    tiny_model(arch).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(toy["model"]).save_pretrained(tmp_path / "model")
    kind = {"model": str(tmp_path / "model"), "max_steps": 2, "eval_steps": 1}
    one, other = (weights(run(str(rows), drift_rows=rows, **kind).out) for rows in (0, 16))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(tmp_path / "16", "drift")[-1]["length"] > 0


def test_random_state_and_modes_stay(toy: Any) -> None:
    config = settings(toy)
    model = tiny_model().to(Accelerator().device).train()
    scorer = Scorer(model)
    usual = model.config._attn_implementation
    torch.manual_seed(3)
    before = torch.get_rng_state()
    probe = make_probe(
        scorer, AutoTokenizer.from_pretrained(config.model), config, read_data(config).holdout, Accelerator()
    )
    assert probe is not None
    probe.measure(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == usual
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("choose", ["last", "nll"])
def test_what_became_of_each_target(run: Any, toy: Any, choose: str) -> None:
    """`after` belongs to the weights that are saved."""
    rate = {"last": 3e-3, "nll": 0.05}[choose]  # at 0.05 the last weights are not the best
    out = Path(
        run(
            metric_for_best_model=choose,
            eval_steps=1,
            max_steps=8,
            learning_rate=rate,
            lr_scheduler_type="constant",
        ).out
    )
    content = json.loads((out / "token_logprobs.json").read_text())
    assert content["format"] == 1
    data = read_data(settings(toy))
    assert [row["where"] for row in content["rows"]] == [
        data.holdout.where(n) for n in range(len(data.holdout))
    ]
    records = [json.loads(line) for line in Path(toy["data"]).read_text().splitlines()]
    for row in content["rows"]:
        file, _, number = row["where"].rpartition(":")
        assert file == toy["data"]
        assert "".join(row["tokens"]) == records[int(number) - 1]["completion"] + "<|im_end|>"
        assert len(row["tokens"]) == len(row["before"]) == len(row["after"])
    for side, folder in (("before", toy["model"]), ("after", out / "model")):
        logp, targets, _ = distributions(AutoModelForCausalLM.from_pretrained(folder), data)
        ours = torch.tensor([value for row in content["rows"] for value in row[side]])
        torch.testing.assert_close(ours, logp.gather(1, targets[:, None])[:, 0], rtol=1e-3, atol=1e-3)


def test_a_run_that_goes_on_warns_no_second_time(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It measures against the base model, not against the weights that it goes on from."""
    wild = {"learning_rate": 0.3, "max_steps": 6, "eval_steps": 1, "save_steps": 2}
    with caplog.at_level("WARNING", "rectune"):
        run("whole", **wild)
    said = [r.message for r in caplog.records if "drift at step" in r.message]
    assert any(" kl is " in line for line in said)
    assert len({line.split(": ")[1].split()[0] for line in said}) == len(said)
    log = MetricsLog.add

    def dying(self: MetricsLog, line: MetricsLine) -> None:
        if line.step == 5:
            raise Died
        log(self, line)

    caplog.clear()
    with caplog.at_level("WARNING", "rectune"):
        with monkeypatch.context() as patch:
            patch.setattr(MetricsLog, "add", dying)
            with pytest.raises(Died):
                run("died", **wild)
        run("died", resume=True, **wild)
    assert [r.message for r in caplog.records if "drift at step" in r.message] == said
    one, other = (
        [{**line, "seconds": 0} for line in metrics(tmp_path / n, "drift")] for n in ("whole", "died")
    )
    assert one == other
    assert (tmp_path / "whole" / "token_logprobs.json").read_text() == (
        tmp_path / "died" / "token_logprobs.json"
    ).read_text()


def test_nothing_to_watch_is_said_once(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rectune"):
        out = run(eval_split_size=0).out
    assert metrics(out, "drift") == []
    assert caplog.text.count("drift: not measured, because there are no held-out rows") == 1
    caplog.clear()
    with caplog.at_level("INFO", "rectune"):
        run("off", drift_rows=0)
    assert "drift" not in caplog.text


def test_a_model_that_cannot_be_sampled_from_is_watched_all_the_same(
    run: Any, toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model(max_position_embeddings=36).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(toy["model"]).save_pretrained(tmp_path / "model")
    with caplog.at_level("INFO", "rectune"):
        last = metrics(run(model=str(tmp_path / "model"), max_length=36).out, "drift")[-1]
    assert (
        caplog.text.count("drift: no sampled answers, because no prompt leaves the model room for one") == 1
    )
    assert last["kl"] > 0
    assert [last[name] for name in ("repetition", "length", "stopped")] == [None] * 3
    caplog.clear()
    model = tiny_model()
    scorer, config = Scorer(model), settings(toy)
    model.config.layer_types = ["linear_attention", "full_attention"]
    with caplog.at_level("INFO", "rectune"):
        probe = Probe(scorer, AutoTokenizer.from_pretrained(config.model), config, read_data(config).holdout)
        assert probe.measure(0).to_dict()["length"] is None
    assert "the hf backend cannot run LlamaForCausalLM (linear_attention)" in caplog.text


def test_rows_are_few_and_whole(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    completions = ["x" * 300, *(["y" * 9] * 20), "z" * 256]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "completion": c}) + "\n" for c in completions))
    wide = {"eval_data": str(path), "max_length": 400, "tokens_per_micro_batch": 4096}
    data = read_data(settings(toy, **wide))
    chosen = choose_rows(data.holdout, settings(toy, **wide, drift_rows=5))
    assert len(chosen) == 5
    assert chosen == choose_rows(data.holdout, settings(toy, **wide, drift_rows=5))
    assert chosen != choose_rows(data.holdout, settings(toy, **wide, drift_rows=5, seed=1))
    every = choose_rows(data.holdout, settings(toy, **wide, drift_rows=99))
    assert every == list(range(1, 21))  # 300 and 257 targets are more than are watched
    with monkeypatch.context() as patch:
        patch.setattr(drift, "TOKENS", 100)
        fewer = choose_rows(data.holdout, settings(toy, **wide, drift_rows=99))
    assert fewer == every[: len(fewer)]
    assert sum(data.holdout.lengths(fewer)) <= 100 < sum(data.holdout.lengths(every))
    path.write_text(json.dumps({"prompt": "a", "completion": "x" * 300}) + "\n")
    data = read_data(settings(toy, **wide))
    assert choose_rows(data.holdout, settings(toy, **wide)) == [0]
    row = cut(data.holdout.encoded[0])
    assert len(row) == len(row.labels) == len(row.structural)
    assert sum(label >= 0 for label in row.labels) == TARGETS
    assert cut(Encoded([5, 6, 7, 8], [-100, 6, 7, -100], [False] * 4)).input_ids == [5, 6, 7]


BASE = {"kl": 0.0, "entropy": 2.0, "eos_p": 0.8, "repetition": 0.1, "length": 20.0, "stopped": 0.75}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"kl": THRESHOLDS["kl"].value + 0.01}, ["kl"]),
        ({"kl": THRESHOLDS["kl"].value - 0.01}, []),
        ({"entropy": 2 * THRESHOLDS["entropy"].value - 0.01}, ["entropy"]),
        ({"entropy": 2 * THRESHOLDS["entropy"].value + 0.01}, []),
        ({"eos_p": 0.39}, ["eos_p"]),
        ({"eos_p": 0.41}, []),
        ({"repetition": 0.31}, ["repetition"]),
        ({"repetition": 0.29}, []),
        ({"length": 61.0}, ["length"]),
        ({"length": 59.0}, []),  # twice the reference answers
        ({"stopped": 0.37}, ["stopped"]),
        ({"stopped": 0.38}, []),
        ({"kl": 99.0, "entropy": 0.0, "eos_p": 0.0}, ["kl", "entropy", "eos_p"]),
        (dict.fromkeys(BASE, float("nan")), []),
        (dict.fromkeys(BASE), []),
    ],
)
def test_lines(change: dict[str, Any], expected: list[str]) -> None:
    now = {**BASE, **change}
    assert warnings(now, BASE, reference_length=30.0) == expected
    config = load_config(None, {"data": "rows.jsonl", "output_dir": "run"})
    for name in expected:
        assert "; " in sentence(name, now, BASE, config)


def test_what_was_low_from_the_start_is_no_drift() -> None:
    low = {**BASE, "repetition": 0.4, "stopped": 0.125, "eos_p": 0.001, "entropy": 0.05}
    now = {**low, "repetition": 0.7, "stopped": 0.0, "eos_p": 0.0, "entropy": 0.001}
    assert warnings(now, low, reference_length=9.0) == []
    assert warnings({**low, "stopped": 0.4}, {**low, "stopped": 0.0}, reference_length=9.0) == []
    assert warnings({**BASE, "kl": 99.0, "entropy": 0.0}, {}, reference_length=9.0) == ["kl"]


@pytest.mark.parametrize(
    ("name", "given", "advised", "not_advised"),
    [
        ("kl", {}, "objective = asft", "anchor"),
        ("kl", {"objective": "asft"}, "raise the anchor of asft", "try objective"),
        ("kl", {"objective": "sft@0.5+asft@0.5"}, "raise the anchor of asft", "try objective"),
        ("entropy", {}, "(uncertain, eaft, psft)", "asft"),
        ("entropy", {"objective": "psft"}, "(uncertain, eaft)", "psft"),
        ("eos_p", {}, "check that the rows end", "min_eos_weight"),  # dft protects by itself
        ("eos_p", {"min_eos_weight": 0}, "set min_eos_weight = 1", "asft"),
        ("stopped", {"min_eos_weight": 1}, "check that the rows end", "min_eos_weight"),
        ("stopped", {"objective": "sft"}, "check that the rows end", "min_eos_weight"),
    ],
)
def test_nothing_is_advised_that_is_set(
    name: str, given: dict[str, Any], advised: str, not_advised: str
) -> None:
    config = load_config(None, {"data": "rows.jsonl", "output_dir": "run", **given})
    said = sentence(name, {**BASE, name: 0.0}, BASE, config)
    assert advised in said and not_advised not in said


def test_every_line_is_documented() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    for name, line in THRESHOLDS.items():
        assert re.search(rf"^\| `{name}` \|[^|]*\b{line.value:g}\b", text, re.MULTILINE), name
