"""Objectives inside a real transformers `Trainer`, and the arithmetic of the example loop."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

import rectune
from rectune.errors import UserError
from rectune.integrations import dft_loss, grader_reward, objective_loss
from rectune.logprobs import columns_of_logits, supervised_positions, token_columns
from rectune.objective_spec import apply_objective, column_names
from toys import byte_tokenizer, tiny_model

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "own_loop.py"
LENGTHS = (12, 5, 9, 3)
SPECIAL = (0, 1, 2)  # <pad>, <|im_start|>, <|im_end|>


def rows() -> list[dict[str, list[int]]]:
    """Four rows of different lengths, padded on the right to 12; the first third of each is a prompt."""
    made = []
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(3, 260, (length - 1,), generator=torch.Generator().manual_seed(i)).tolist()
        ids.append(2)
        pad = 12 - length
        prompt = max(1, length // 3)
        made.append(
            {
                "input_ids": ids + [0] * pad,
                "attention_mask": [1] * length + [0] * pad,
                "labels": [-100] * prompt + ids[prompt:] + [-100] * pad,
            }
        )
    return made


def after_a_step(folder: Path, loss: Any, batch: int, accumulation: int) -> dict[str, Tensor]:
    """Weights after one step of plain gradient descent over all four rows in a real Trainer."""
    model = tiny_model("llama")
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=batch, optim="sgd", learning_rate=0.5,
        gradient_accumulation_steps=accumulation, lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, weight_decay=0.0, logging_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows(), compute_loss_func=loss).train()  # type: ignore
    return {name: p.detach() for name, p in model.named_parameters()}


def by_hand(objective: str, least: float = 0.0, **settings: Any) -> dict[str, Tensor]:
    """The same step from the definition: the sum over all tokens, divided once."""
    model = tiny_model("llama")
    names = ("logp", *column_names(objective))
    columns: dict[str, list[Tensor]] = {}
    for i, row in enumerate(rows()):
        ids, labels, mask = (torch.tensor([row[k]]) for k in ("input_ids", "labels", "attention_mask"))
        index, targets = supervised_positions(labels)
        logits = model(ids, attention_mask=mask).logits[0, index]
        of_row = columns_of_logits(logits, targets, names)
        of_row |= {
            "row": torch.full_like(targets, i),
            "structural": torch.isin(targets, torch.tensor(SPECIAL)),
        }
        for name, column in of_row.items():
            columns.setdefault(name, []).append(column)
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    apply_objective(objective, joined, min_eos_weight=least, **settings).mean().backward()
    return {name: (p - 0.5 * p.grad).detach() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    start = dict(tiny_model("llama").named_parameters())
    assert a.keys() == b.keys() == start.keys()
    for name in a:
        step = b[name] - start[name]
        assert step.norm() > 0
        assert (a[name] - b[name]).norm() <= 1e-4 * step.norm() + 1e-6, name


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (1, 4), (2, 2)])
def test_dft_in_a_trainer(tmp_path: Path, batch: int, accumulation: int) -> None:
    """Any split of the step's rows gives rectune's own dft step."""
    assert_same_step(after_a_step(tmp_path, dft_loss, batch, accumulation), by_hand("dft"))


@pytest.mark.parametrize(
    ("objective", "settings"),
    [("power", {"alpha": "0.25"}), ("geometric_dft", {}), ("focal", {"gamma": 1.0})],
)
def test_other_objectives_in_a_trainer(tmp_path: Path, objective: str, settings: dict[str, Any]) -> None:
    loss = objective_loss(objective, **settings)
    assert_same_step(after_a_step(tmp_path, loss, 2, 2), by_hand(objective, **settings))


@pytest.mark.parametrize("objective", ["eaft", "deft", "idft", "lower_mass"])
def test_columns_of_the_head_come_from_the_logits(objective: str) -> None:
    logits, labels = torch.randn(1, 4, 30, dtype=torch.float64), torch.tensor([[-100, 2, 3, 4]])
    inputs = (logits[0, :3], torch.eye(30, dtype=torch.float64), labels[0, 1:])
    columns = token_columns(*inputs, column_names(objective))
    loss = objective_loss(objective)({"logits": logits.float()}, labels)
    torch.testing.assert_close(loss, apply_objective(objective, columns).mean().float())


def test_the_comparison_sees_another_objective(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert_same_step(after_a_step(tmp_path, objective_loss("sft"), 2, 2), by_hand("dft"))


def test_forms_of_outputs_and_counts() -> None:
    model = tiny_model("llama")
    batch = {name: torch.tensor([row[name] for row in rows()]) for name in rows()[0]}
    labels = batch.pop("labels")
    outputs = model(**batch)
    count = int((labels[:, 1:] != -100).sum())
    mean = dft_loss(outputs, labels)
    torch.testing.assert_close(dft_loss(outputs, labels, count), mean)
    torch.testing.assert_close(dft_loss((outputs.logits,), labels, torch.tensor(2 * count)), mean / 2)
    torch.testing.assert_close(dft_loss({"logits": outputs.logits}, labels, num_items_in_batch=count), mean)
    nothing = dft_loss(outputs, torch.full_like(labels, -100))
    nothing.backward()
    assert nothing == 0 and all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("label", [7, -1])
def test_a_label_outside_the_vocabulary(label: int) -> None:
    outputs = {"logits": torch.randn(1, 3, 7)}
    with pytest.raises(
        UserError, match=f"target {label} is not an id of a vocabulary of 7; .* the label -100"
    ):
        dft_loss(outputs, torch.tensor([[-100, 2, label]]))


def test_what_a_trainer_cannot_give_is_refused() -> None:
    for name, column in (("iw_sft", "ref_logp"), ("psft", "old_logp"), ("asft", "kl")):
        with pytest.raises(
            UserError, match=f"{name} reads {column}, which a transformers Trainer does not have"
        ):
            objective_loss(name)
    with pytest.raises(UserError, match="unknown objective 'dtf'"):
        objective_loss("dtf")
    with pytest.raises(UserError, match="alpha"):
        objective_loss("power", alhpa=1.0)


def test_an_objective_of_ones_own() -> None:
    def cube(logp: Tensor, *, factor: float = 1.0) -> Tensor:
        return -factor * (3 * logp).exp().detach() * logp

    logits = torch.randn(1, 4, 7)
    labels = torch.tensor([[-100, 2, 3, 4]])
    logp = logits[0, :3].log_softmax(-1)[torch.arange(3), labels[0, 1:]]
    loss = objective_loss(cube, factor=2)({"logits": logits}, labels)
    torch.testing.assert_close(loss, (-2 * (3 * logp).exp() * logp).mean())


def test_the_example_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example runs as it is, here on a tiny model; its first figures are the model's own, and p rises."""
    monkeypatch.setattr(
        rectune, "load_model", lambda *a, **k: (tiny_model("llama"), byte_tokenizer()), raising=False
    )
    final = runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    ids, targets = final["ids"], final["targets"]
    logits = tiny_model("llama")(torch.tensor([ids + targets])).logits[0].log_softmax(-1)
    logp = torch.stack([logits[len(ids) - 1 + i, target] for i, target in enumerate(targets)])
    assert lines[0] == f"0 nll {-logp.mean():.3f}  mean p {logp.exp().mean():.3f}"
    trained = final["model"](torch.tensor([ids + targets])).logits[0].log_softmax(-1)
    p = torch.stack([trained[len(ids) - 1 + i, target] for i, target in enumerate(targets)]).exp()
    assert p.mean() > logp.exp().mean()


def test_the_example_is_short() -> None:
    text = EXAMPLE.read_text("utf-8")
    assert text.count("\n") <= 20 and "from rectune import dft, load_model, token_logprobs" in text


def test_a_grader_rewards_texts_and_conversations() -> None:
    """As TRL calls it: lists by name, and columns that it does not know. What cannot be judged is None."""
    reward = grader_reward("exact", timeout=5.0, workers=1)
    told = reward(prompts=["a"] * 3, completions=["4", "5", ""], answer=["4"] * 3, completion_ids=[[1]] * 3)
    assert told == [1.0, 0.0, 0.0]
    assert reward(completions=[[{"role": "assistant", "content": "4"}]], answer=["4"], extra=[None]) == [1.0]
    assert reward.__name__ == "exact_reward"
    with pytest.raises(UserError, match="unknown grader 'maths'"):
        grader_reward("maths")
