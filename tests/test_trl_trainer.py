"""Objectives in TRL's own `SFTTrainer`: the step is ours however TRL packs and accumulates it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from rectune.errors import UserError
from rectune.logprobs import columns_of_logits, supervised_positions
from rectune.objective_spec import parse_objective
from test_integrations import LENGTHS, assert_same_step, by_hand, rows
from toys import byte_tokenizer, tiny_model

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")


def trainer(folder: Path, arguments: dict[str, Any], kind: Any = None, **settings: Any) -> Any:
    import datasets

    from rectune.integrations.trl import SFTTrainer

    examples = [
        {name: row[name][:length] for name in ("input_ids", "labels")}
        for row, length in zip(rows(), LENGTHS, strict=True)
    ]
    args = trl.SFTConfig(
        output_dir=str(folder), optim="sgd", learning_rate=0.5, lr_scheduler_type="constant",
        max_grad_norm=0.0, weight_decay=0.0, save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
        report_to="none", gradient_checkpointing=False, logging_steps=1, dataloader_pin_memory=False,
        **{"max_steps": 1, **arguments},
    )  # fmt: skip
    return (kind or SFTTrainer)(
        model=settings.pop("model", None) or tiny_model("llama"), args=args,
        train_dataset=datasets.Dataset.from_list(examples), processing_class=byte_tokenizer(), **settings,
    )  # fmt: skip


def after_a_step(made: Any) -> dict[str, Tensor]:
    made.train()
    return {name: p.detach() for name, p in made.model.named_parameters()}


WHOLE = {"per_device_train_batch_size": 4}
UNEVEN = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
PACKED = {"per_device_train_batch_size": 2, "packing": True, "max_length": 16}


@pytest.mark.parametrize("arguments", [WHOLE, UNEVEN, PACKED], ids=["whole", "uneven", "packed"])
@pytest.mark.parametrize("objective", ["dft", "geometric_dft"])
def test_any_split_of_the_rows(tmp_path: Path, arguments: dict[str, Any], objective: str) -> None:
    made = trainer(tmp_path, arguments, objective=objective, min_eos_weight=0.0)
    assert_same_step(after_a_step(made), by_hand(objective))


@pytest.mark.parametrize("objective", ["sft", "power", "infosft", "focal", "deft", "idft"])
def test_every_column_of_trls_head(tmp_path: Path, objective: str) -> None:
    made = trainer(tmp_path, UNEVEN, objective=objective, min_eos_weight=0.0)
    assert_same_step(after_a_step(made), by_hand(objective))


def test_turn_ends_have_the_weight_of_rectune_train(tmp_path: Path) -> None:
    """Unset, the least weight of special tokens is 1 for an objective that would never teach them."""
    assert_same_step(after_a_step(trainer(tmp_path, PACKED, objective="dft")), by_hand("dft", 1.0))


def test_without_it_dft_is_that_of_trl(tmp_path: Path) -> None:
    theirs = trainer(tmp_path, UNEVEN | {"loss_type": "dft"}, trl.SFTTrainer)
    ours = trainer(tmp_path, UNEVEN, objective="dft", min_eos_weight=0.0)
    assert_same_step(after_a_step(ours), after_a_step(theirs))
    logged, expected = (made.state.log_history[0] for made in (ours, theirs))
    for name in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
        assert logged[name] == pytest.approx(expected[name], rel=1e-4), name
    assert logged["nll"] > logged["loss"]


def test_phases_follow_the_steps(tmp_path: Path) -> None:
    """One step of sft, then one of dft, from the weights that the first made."""
    made = trainer(tmp_path, WHOLE | {"max_steps": 2}, objective="sft@0.5+dft@0.5", min_eos_weight=0.0)
    both, model = after_a_step(made), tiny_model("llama")
    model.load_state_dict(by_hand("sft"), strict=False)
    assert_same_step(
        both, after_a_step(trainer(tmp_path, WHOLE, model=model, objective="dft", min_eos_weight=0.0))
    )


@pytest.mark.parametrize("objective", ["dft", "deft"])
def test_an_adapter_is_trained_and_evaluated(tmp_path: Path, objective: str) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    made = trainer(tmp_path, UNEVEN, objective=objective, peft_config=lora)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    after = after_a_step(made)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}
    figures = made.evaluate(made.train_dataset)
    assert 0 < figures["eval_loss"] < figures["eval_nll"]


@pytest.mark.parametrize("objective", ["dft:signal=base", "deft:signal=base", "iw_sft"])
def test_a_rule_may_read_the_model_without_its_adapter(tmp_path: Path, objective: str) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    made = trainer(tmp_path, WHOLE, objective=objective, peft_config=lora, min_eos_weight=0.0)
    (phase,), batch = (
        parse_objective(objective),
        {n: torch.tensor([row[n] for row in rows()]) for n in rows()[0]},
    )
    index, targets = supervised_positions(batch.pop("labels"))
    columns = columns_of_logits(made.model(**batch).logits.flatten(0, 1)[index], targets, ("logp",))
    with torch.no_grad(), made.model.disable_adapter():
        logits = made.model(**batch).logits.flatten(0, 1)[index]
    base = columns_of_logits(logits, targets, ("logp", "log_sum_p2"))
    phase.loss(columns | {f"ref_{name}": column for name, column in base.items()}).mean().backward()
    trained = {name: p for name, p in made.model.named_parameters() if p.grad is not None}
    expected = {name: (p.detach().clone(), 0.5 * p.grad) for name, p in trained.items()}
    made.model.zero_grad()
    after = after_a_step(made)
    for name, (before, step) in expected.items():
        torch.testing.assert_close(before - after[name], step, rtol=1e-3, atol=1e-6)
        assert step.abs().max() > 1e-5


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({}, {"objective": "eaft"}, "eaft reads entropy20, which TRL's SFTTrainer does not have"),
        ({}, {"objective": "dft:signal=base"}, "dft signal=base reads ref_logp, which .* only with LoRA"),
        ({}, {"objective": "dft:shuffled"}, "dft shuffled reads shuffled_weight"),
        ({}, {"objective": "cadft"}, "cadft reads row_nll_z"),
        ({}, {"objective": "asft"}, "asft reads kl"),
        ({}, {"objective": "dtf"}, "unknown objective 'dtf'"),
        ({}, {"objective": "dft", "min_eos_weight": -1}, r"min_eos_weight: must be at least 0 \(got -1\)"),
        ({"loss_type": "dft"}, {"objective": "dft"}, "loss_type=dft does not go with an objective"),
        ({"label_smoothing_factor": 0.1}, {"objective": "sft"}, "label_smoothing_factor does not go"),
        (
            {"packing": True, "packing_strategy": "wrapped", "max_length": 16},
            {"objective": "geometric_dft"},
            "packing_strategy=wrapped",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path, arguments: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, arguments, **settings)
