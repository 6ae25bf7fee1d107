"""The gradient of a step: the same for any split of it, and what reaches the optimizer is what it should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from rectune.config import load_config
from rectune.models.scorer import Scorer
from rectune.objectives import dft, sft
from rectune.runtime.distributed import default_device
from rectune.training import trainer as loop
from rectune.training.dataloader import TrainingData, load_data
from rectune.training.mixed_precision import Masters, freeze_unused, learning_rate, make_optimizer
from toys import byte_tokenizer, save_toy, tiny_model, tiny_vision_model
from training_runs import OVER_ROWS, metrics, together, weights

Gradients = dict[str, Tensor]


@pytest.fixture
def gradients(run: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Gradients]]:
    """Train as `run` does; the gradients of each step, summed up and not yet clipped."""
    runs = 0

    def train(**settings: Any) -> list[Gradients]:
        nonlocal runs
        runs += 1
        seen: list[Gradients] = []

        def finish(masters: Masters, accelerator: Accelerator, finish: Any = Masters.finish_step) -> Tensor:
            norm: Tensor = finish(masters, accelerator)
            seen.append({name: m.grad.clone() for name, m in masters.masters.items() if m.grad is not None})
            return norm

        with monkeypatch.context() as patch:
            patch.setattr(loop.Masters, "finish_step", finish)
            run(f"run{runs}", **settings)
        return seen

    return train


def close(one: Gradients, other: Gradients, tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    scale = torch.nn.utils.get_total_norm(list(other.values()))
    assert scale > 0
    difference = torch.nn.utils.get_total_norm([one[name] - other[name] for name in other])
    assert difference <= tolerance * scale, f"{difference:.3g} of {scale:.3g}"


@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize("objective", OVER_ROWS)
def test_any_split_into_micro_batches(gradients: Any, objective: str, protect: int) -> None:
    settings = {"objective": objective, "min_eos_weight": protect, "max_steps": 2, "eval_split_size": 0}
    settings |= {"max_length": 40, "learning_rate": 1e-3}
    if objective == "threshold":
        settings["objective"] = "threshold:q=0.003"  # about where the toy's probabilities are
    whole = gradients(**settings, tokens_per_micro_batch=4096)
    parts = gradients(**settings, tokens_per_micro_batch=40)
    for one, other in zip(parts, whole, strict=True):
        close(one, other)


@pytest.mark.parametrize("objective", ["cadft", "dft:shuffled"])
def test_a_row_that_a_step_has_twice(gradients: Any, objective: str) -> None:
    """Steps of 25 rows from 15: both places count in what depends on the step, whichever micro-batch has them."""
    settings = {"objective": objective, "max_train_samples": 15, "batch_size": 25, "max_steps": 2}
    settings |= {"max_length": 40, "eval_split_size": 0, "min_eos_weight": 0}
    whole = gradients(**settings, tokens_per_micro_batch=4096)
    parts = gradients(**settings, tokens_per_micro_batch=40)
    for one, other in zip(parts, whole, strict=True):
        close(one, other)


@pytest.mark.parametrize("objective", ["cadft:signal=base", "dft:signal=base:shuffled"])
def test_the_model_runs_once_where_the_base_says_enough(
    run: Any, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    settings = {"max_steps": 1, "drift_rows": 0, "eval_split_size": 0, "tokens_per_micro_batch": 64}
    run("first", objective=objective, **settings)  # which keeps the base's columns
    passes: list[bool] = []
    columns = Scorer.columns

    def counted(self: Scorer, *given: Any, **named: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return columns(self, *given, **named)

    monkeypatch.setattr(Scorer, "columns", counted)
    run("base", objective=objective, **settings)
    assert len(passes) > 1 and all(passes)
    run("model", objective=objective.replace(":signal=base", ""), **settings)
    assert passes.count(False) == passes.count(True) / 2


def by_hand(
    toy: dict[str, Any], objective: Callable[[Tensor], Tensor], groups: Callable[[TrainingData], list[list[int]]],
    divisor: Callable[[list[Tensor]], float],
) -> Gradients:  # fmt: skip
    """The gradient of the first step by plain transformers, row by row, from the definition.

    Args:
        groups: Which rows belong together.
        divisor: What the sum of the losses of a group, given one tensor a row, is divided by.
    """
    model = AutoModelForCausalLM.from_pretrained(toy["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(toy["model"])
    data = load_data(load_config(None, {**toy, "output_dir": "unused"}), tokenizer)
    for group in groups(data):
        losses = []
        for row in group:
            encoded = data.train.encoded[data.train.indices[row]]
            ids, labels = torch.tensor([list(encoded.input_ids)]), torch.tensor(list(encoded.labels))[1:]
            logp = model(ids).logits[0, :-1].log_softmax(-1)
            losses.append(objective(logp[labels >= 0].gather(1, labels[labels >= 0, None])[:, 0]))
        (torch.stack([loss.sum() for loss in losses]).sum() / divisor(losses)).backward()
    return {name: p.grad.to(default_device()) for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", [sft, dft])
def test_the_sum_is_divided_once_by_the_steps_targets(toy: Any, gradients: Any, objective: Any) -> None:
    (ours,) = gradients(objective=objective.__name__, min_eos_weight=0, max_steps=1)
    hand = by_hand(
        {**toy, "max_steps": 1},
        objective,
        lambda data: [data.plan.rows(0)],
        lambda losses: len(torch.cat(losses)),
    )
    close(ours, hand)


def test_micro_batch_means_are_summed_before_the_clip(
    toy: Any, gradients: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's published code: its clip of 1 acts on the sum over micro-batches, not on their mean."""
    stepped: list[Gradients] = []
    step = torch.optim.AdamW.step

    def stepping(optimizer: torch.optim.AdamW, *args: Any) -> Any:
        groups = optimizer.param_groups
        stepped.append({str(i): p.grad.clone() for i, p in enumerate(p for g in groups for p in g["params"])})
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    settings = {
        "normalization": "micro-batch",
        "per_device_train_batch_size": 3,
        "max_steps": 1,
        "max_grad_norm": 0.5,
    }
    (ours,) = gradients(objective="sft", **settings)

    def groups(data: TrainingData) -> list[list[int]]:
        rows = data.plan.rows(0)
        assert len(rows) == 7
        return [rows[:3], rows[3:6], rows[6:]]

    hand = by_hand({**toy, "max_steps": 1}, sft, groups, lambda losses: len(torch.cat(losses)))
    close(ours, hand)
    norm = float(torch.nn.utils.get_total_norm(list(hand.values())))
    assert norm > 0.5
    assert metrics(tmp_path / "run1", "train")[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    clipped = torch.nn.utils.get_total_norm(list(stepped[0].values()))
    assert float(clipped) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("clip", "factor"), [(0, 1.0), (1e6, 1.0), (0.25, None)])
def test_clip(run: Any, monkeypatch: pytest.MonkeyPatch, clip: float, factor: float | None) -> None:
    factors = []
    scale = Masters.scale_gradients
    monkeypatch.setattr(
        Masters, "scale_gradients", lambda self, factor: (factors.append(factor), scale(self, factor))[1]
    )
    out = Path(run(max_grad_norm=clip, max_steps=1).out)
    norm = metrics(out, "train")[0]["grad_norm"]
    assert factors == ([] if factor else [pytest.approx(0.25 / norm)])


@pytest.mark.parametrize("parts", [1, 40])
def test_bf16_masters_are_adamw_in_float32(toy: Any, parts: int) -> None:
    """Masters equal a float32 AdamW that is fed the same gradients, added up in float32."""
    config = load_config(None, {**toy, "output_dir": "unused", "weight_decay": 0.1})
    model = tiny_model()
    reference = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in reference.items()}
    for (
        name,
        parameter,
    ) in model.named_parameters():  # runs before the hook of Masters, which takes the gradient

        def add(parameter: Tensor, total: Tensor = sums[name]) -> None:
            assert parameter.grad is not None
            total.add_(parameter.grad.float())

        parameter.register_post_accumulate_grad_hook(add)
    masters = Masters(model, torch.bfloat16)
    ours = make_optimizer(masters.masters.values(), config)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in reference.values() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in reference.values() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), foreach=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        masters.start_step()
        for total in sums.values():
            total.zero_()
        for _ in range(parts):
            ids = torch.randint(3, 250, (2, 9), generator=generator)
            (model(input_ids=ids, labels=ids).loss / parts).backward()
        masters.finish_step(Accelerator())
        for name, parameter in reference.items():
            assert torch.equal(masters.masters[name].grad, sums[name])
            parameter.grad = sums[name].clone()
        ours.step()
        masters.sync_working_weights()
        plain.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(masters.masters[name], reference[name].detach(), rtol=1e-5, atol=1e-7)
        assert parameter.dtype == torch.bfloat16
        assert parameter.grad is None
        assert torch.equal(parameter, masters.masters[name].bfloat16())


def test_bf16_leaves_buffers_exact() -> None:
    """Rotary frequencies in bfloat16 would put tokens at the wrong positions."""
    model, exact = tiny_model(), dict(tiny_model().named_buffers())
    Masters(model, torch.bfloat16)
    assert exact
    assert all(torch.equal(buffer, exact[name]) for name, buffer in model.named_buffers())


def test_decay_is_on_matrices_only(toy: Any) -> None:
    masters = Masters(tiny_model(), torch.float32)
    optimizer = make_optimizer(
        masters.masters.values(), load_config(None, {**toy, "output_dir": "unused", "weight_decay": 0.3})
    )
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(masters.masters)
    for name, master in masters.masters.items():
        assert decay[id(master)] == (0.0 if "norm" in name else 0.3), name


@pytest.mark.parametrize("lora", [{}, {"lora_r": 2, "merge_adapter": True}])
def test_weights_that_text_does_not_reach_stay(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, lora: dict[str, Any]
) -> None:
    """The optimizer would decay them, and hold 16 bytes for each."""
    model = save_toy(tmp_path / "model", tiny_vision_model())
    settings = {"model": model, "weight_decay": 0.5, "max_steps": 2, "save_steps": 1, "drift_rows": 0}
    with caplog.at_level("INFO"):
        run("run", **settings, **lora)
    said = [line for line in caplog.messages if line.startswith("frozen: ")]
    assert len(said) == 1 and "vision_tower" in said[0]
    before, after = weights(model, "model.safetensors"), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("language_model" in name for name in moved)
    if not lora:
        assert moved == {name for name in before if "language_model" in name}
    kept = weights(tmp_path / "run", "checkpoints/step-000001/weights.safetensors")
    assert kept and all("language_model" in name for name in kept)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_base_of_an_adapter_is_never_in_float32(
    run: Any, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """It is read in the precision that it is computed with; what is trained has float32 masters."""
    dtype = getattr(torch, precision)

    class Watched(Masters):
        def __init__(self, model: Any, working: torch.dtype) -> None:
            frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
            assert frozen == {dtype} and working == dtype
            super().__init__(model, working)
            assert {master.dtype for master in self.masters.values()} == {torch.float32}
            assert {p.dtype for p in model.parameters()} == {dtype}

    monkeypatch.setattr(loop, "Masters", Watched)
    run("run", lora_r=2, dtype=precision, max_steps=1, drift_rows=0)


@pytest.mark.parametrize("tokens", [4096, 96])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("MixtralConfig", {"num_local_experts": 4, "router_aux_loss_coef": 0.5}),
        ("Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 32, "router_aux_loss_coef": 0.7}),
    ],
)
def test_router_loss_is_transformers(
    toy: dict[str, Any], tmp_path: Path, gradients: Any, config: str, settings: dict[str, Any], tokens: int,
    checkpointing: bool,
) -> None:  # fmt: skip
    """Its forward with labels, over padded rows; of several micro-batches the mean, by tokens."""
    made = getattr(transformers, config)(
        **tiny_model().config.to_diff_dict() | {"model_type": None, "architectures": None}
        | {"head_dim": 8, "num_experts_per_tok": 2, "output_router_logits": True} | settings
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    run = {**toy, "model": save_toy(tmp_path / "model", model), "objective": "sft", "max_steps": 1}
    run |= {"tokens_per_micro_batch": tokens, "drift_rows": 0, "output_dir": tmp_path / "run1"}
    (ours,) = gradients(**run, gradient_checkpointing=checkpointing)
    data = load_data(load_config(None, run), byte_tokenizer())
    (rows, parts), (line,) = (data.plan.rows(0), data.micro_batches(0)), metrics(tmp_path / "run1", "train")
    assert (len(parts) > 1) == (tokens == 96)
    mean = 0.0
    for part in parts:
        split = data.train.batch(part)
        ids, labels = (
            pad_sequence(t[0].split(split.row_lengths), True, -100) for t in (split.input_ids, split.labels)
        )
        out = model(input_ids=ids.clamp(min=0), labels=labels, attention_mask=(ids >= 0).long())
        router = settings["router_aux_loss_coef"] * out.aux_loss
        share = sum(split.row_lengths) / sum(data.train.lengths(rows))
        ((out.loss - router) * data.units(part) / data.units(rows) + share * router).backward()
        mean += router.item() * data.units(part) / data.units(rows)
    close(ours, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert line["router_loss"] == pytest.approx(mean, rel=1e-5) and mean > 0.5


def test_a_router_loss_that_is_off_is_said(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.MixtralConfig(**tiny_model().config.to_diff_dict() | {"model_type": None})
    model = save_toy(tmp_path / "model", transformers.AutoModelForCausalLM.from_config(config))
    with caplog.at_level("INFO"):
        run("run", model=model, max_steps=1, drift_rows=0)
    assert (
        "router loss: off, because output_router_logits is false in the model's config.json"
        in caplog.messages
    )
    assert "router_loss" not in metrics(tmp_path / "run", "train")[0]


def test_every_weight_of_a_text_model_is_trained() -> None:
    model = tiny_model()
    freeze_unused(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, 1, 0.8535533905932737, 0.5, 0.14644660940672627]),
    ],
)
def test_learning_rate(run: Any, schedule: str, rates: list[float]) -> None:
    out = run(lr_scheduler_type=schedule, warmup_ratio=1 / 3, learning_rate=0.01, max_steps=6).out
    logged = [line["learning_rate"] for line in metrics(out, "train")]
    assert logged == pytest.approx([0.01 * rate for rate in rates])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 390), (0.05, 60), (0.0, 7), (0.5, 2)])
def test_the_schedules_are_those_of_transformers(toy: Any, schedule: str, warmup: float, steps: int) -> None:
    from transformers import get_scheduler

    config = load_config(
        None,
        {
            **toy,
            "output_dir": "unused",
            "lr_scheduler_type": schedule,
            "warmup_ratio": warmup,
            "learning_rate": 3.0,
        },
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=round(warmup * steps), num_training_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert [learning_rate(config, step, steps) for step in range(steps)] == pytest.approx(expected)
    assert schedule == "constant" or expected.count(3.0) == 1


def test_no_warmup_and_one_step(toy: Any) -> None:
    config = load_config(None, {**toy, "output_dir": "unused", "warmup_ratio": 0, "learning_rate": 1.0})
    assert [learning_rate(config, 0, 1), learning_rate(config, 0, 2)] == [1.0, 1.0]


def test_dropout_is_reproducible(run: Any) -> None:
    settings = {"lora_r": 2, "lora_dropout": 0.5, "tokens_per_micro_batch": 4096}
    first, again = (weights(run(name, **settings).out, "adapter/adapter_model.safetensors") for name in "ab")
    torch.rand(3)  # whatever the caller did with the random state
    none = weights(run("c", **{**settings, "lora_dropout": 0}).out, "adapter/adapter_model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], none[name]) for name in first)


SPLITS: dict[str, dict[str, Any]] = {
    "odd": {"tokens_per_micro_batch": 4096, "max_length": 40, "batch_size": 3},
    "one row": {"batch_size": 1},
    "psft": {"objective": "psft"},
    "cadft": {"objective": "cadft"},
    "shuffled": {"objective": "deft:signal=base:shuffled"},
    "bf16": {"dtype": "bfloat16"},
    "means": {"normalization": "micro-batch", "per_device_train_batch_size": 3},
    "lora": {"lora_r": 2, "objective": "asft"},
    "sharded": {"objective": "sequence_dft", "batch_size": 3, "save_steps": 2},
    "sharded shuffled": {"objective": "cadft:shuffled", "batch_size": 5},
    "sharded bf16": {"dtype": "bfloat16", "batch_size": 1},
    "sharded lora in bf16": {"lora_r": 2, "dtype": "bfloat16"},
    "sharded lora": {"lora_r": 2, "objective": "asft", "gradient_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs, or none")
def test_two_processes_train_as_one(toy: dict[str, Any], tmp_path: Path) -> None:
    runs = [{**toy, "max_steps": 3, **settings} for settings in SPLITS.values()]
    many = [{**settings, "output_dir": str(tmp_path / f"two {i}")} for i, settings in enumerate(runs)]
    together(many, [name.startswith("sharded") for name in SPLITS], tmp_path)
    for i, (name, settings) in enumerate(zip(SPLITS, runs, strict=True)):
        one, two = tmp_path / f"one {i}", tmp_path / f"two {i}"
        loop.train(load_config(None, {**settings, "output_dir": one}))
        lines = metrics(one), metrics(two)
        assert len(lines[0]) == len(lines[1])
        for ours, theirs in zip(*lines, strict=True):
            for key in {"objective", "nll", "mean_p", "grad_norm", "supervised", "eos_p", "kl"} & ours.keys():
                rel = 1e-2 if "bf16" in name else 1e-3  # rounds in the order of a pack, and packs differ
                assert ours[key] == pytest.approx(theirs[key], rel=rel, abs=1e-6), (name, key)
        file = "adapter/adapter_model.safetensors" if "lora" in name else "model/model.safetensors"
        # The update as a whole: AdamW turns the rounding of a gradient near zero into a step of visible size.
        start = {} if "lora" in name else weights(Path(toy["model"]), "model.safetensors")
        updates = [{k: w - start.get(k, 0) for k, w in weights(out, file).items()} for out in (one, two)]
        close(*updates, tolerance=0.05 if "bf16" in name else 1e-3)


@pytest.mark.parametrize(("batch_size", "least"), [(16, 0.85), (64, 0.9), (256, 0.9)])
def test_eight_processes_have_work(batch_size: int, least: float) -> None:
    """The default recipe on the packaged GSM8K rows; batch_size 64 in 64 processes cannot be dealt evenly."""
    settings = {"data": "gsm8k-calculations", "output_dir": "unused", "batch_size": batch_size}
    data = load_data(load_config(None, settings), byte_tokenizer())
    assert data.busy_share(1) == 1 and data.busy_share(8) >= least
    assert data.idle_processes(1) is None
    assert (data.idle_processes(8) is None) == (data.busy_share(8) >= 0.9)
    said = str(data.idle_processes(64))
    if batch_size == 256:
        assert data.busy_share(64) > 0.9
    else:
        assert said.startswith("64 processes have work for") and f"of a step of {batch_size} rows" in said
        assert re.search(r"use fewer processes, or batch_size (128|256|512) \(9\d%\)$", said)
    rows = sorted(row for part in data.micro_batches(0, 8) for row in part)
    assert rows == sorted(data.plan.rows(0))


_POISONED = """
from rectune.training.accumulation import Gradients
losses = Gradients._losses
def poisoned(self, rows, phase, step, of_step):
    columns, found = losses(self, rows, phase, step, of_step)
    return columns, (found * 0).sqrt() + found if 3 in rows else found
Gradients._losses = poisoned
"""


@pytest.mark.slow
def test_a_row_whose_gradient_is_not_finite_is_named_by_its_process(
    toy: dict[str, Any], tmp_path: Path
) -> None:
    """Its loss is finite, so that only the backward pass can tell; plain and sharded, once each."""
    settings = {
        **toy,
        "max_steps": None,
        "num_train_epochs": 1,
        "drift_rows": 0,
        "save_steps": 0,
        "eval_split_size": 0,
    }
    runs = [{**settings, "output_dir": str(tmp_path / name)} for name in ("plain", "sharded")]
    said = together(runs, [False, True], tmp_path, first=_POISONED)
    named = [line for line in said.splitlines() if "not finite" in line]
    assert len(named) == 2, named
    assert all(f"not finite, in {toy['data']}:4; the weights" in line for line in named)
