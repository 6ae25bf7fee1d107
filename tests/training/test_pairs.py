"""DPO: TRL's loss and gradients on the same pairs, pairs that stay together, margins that grow."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.config import load_config
from rectune.data.packing import collate
from rectune.data.tokenization import Encoded
from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.objective_spec import apply_objective
from rectune.training.dataloader import load_data, pair_columns
from toys import byte_tokenizer, tiny_model
from training_runs import metrics

PAIRS = [
    {"prompt": f"{n} and {n % 7}?", "chosen": f"{n + n % 7}{'!' * (n % 5)}", "rejected": f"no, {n}"}
    for n in range(40)
]


@pytest.fixture
def pairs(toy: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return str(path)


def ours(model: Any, reference: Any, batch: Any, **settings: float) -> torch.Tensor:
    """The mean over pairs, from rows laid out better, worse, better, worse."""
    columns = Scorer(model).columns(batch, ("logp", "ref_logp"), reference=Scorer(reference))
    columns |= pair_columns(columns["row"])
    return apply_objective("dpo", columns, **settings).sum() / (len(batch.row_lengths) // 2)


def perturbed(model: Any) -> Any:
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_and_gradients_are_those_of_trl(tmp_path: Path, beta: float) -> None:
    """Without label smoothing, which TRL's sigmoid loss does not read."""
    trl = pytest.importorskip("trl")
    import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, reference = perturbed(tiny_model()), tiny_model()
        settings = trl.DPOConfig(
            output_dir=str(tmp_path), beta=beta, per_device_train_batch_size=4,
            report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = trl.DPOTrainer(
            model, reference, args=settings, processing_class=byte_tokenizer(),
            train_dataset=datasets.Dataset.from_list(PAIRS[:4]),
        )  # fmt: skip
        trained = trainer.model.eval()
        batch = next(iter(trainer.get_train_dataloader()))
        theirs = trainer.compute_loss(trained, dict(batch))
        theirs.backward()
    expected = gradients(trained)

    rows = []  # theirs are all better ones, then all worse ones, padded
    for ids, attended, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        kept = attended.bool()
        ids, answer = ids[kept].tolist(), answer[kept].tolist()
        labels = [i if of_answer else -100 for i, of_answer in zip(ids, answer, strict=True)]
        rows.append(Encoded(ids, labels, [False] * len(ids)))
    half = len(rows) // 2
    together = collate([row for pair in zip(rows[:half], rows[half:], strict=True) for row in pair])
    loss = ours(trained, reference, together, beta=beta)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    loss.backward()
    found = gradients(trained)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_any_split_into_micro_batches_gives_the_same(run: Any, pairs: str) -> None:
    from training_runs import weights

    settings = {"data": pairs, "objective": "dpo", "eval_split_size": 0, "max_steps": 3, "max_length": 48}
    whole = run("whole", **settings, tokens_per_micro_batch=4096)
    parts = run("parts", **settings, tokens_per_micro_batch=96)
    for name, weight in weights(whole.out).items():
        torch.testing.assert_close(weights(parts.out)[name], weight, rtol=1e-3, atol=1e-5)


def test_pairs_stay_together(toy: dict[str, Any], pairs: str) -> None:
    config = load_config(None, {**toy, "data": pairs, "output_dir": "unused", "tokens_per_micro_batch": 70})
    data = load_data(config, byte_tokenizer(), paired=True)
    assert len(data.train) == 32 and len(data.holdout) == 8
    for step in range(len(data.plan)):
        parts = data.micro_batches(step)
        assert len(parts) > 1 and sum(map(len, parts)) == data.units(data.plan.rows(step)) == 7
        for part in parts:
            batch = data.train.batch(part)
            assert len(batch.row_lengths) == 2 * len(part)
            text = byte_tokenizer().decode(batch.input_ids[0])
            assert text.count("no, ") == len(part)


def test_margins_grow_and_are_logged(run: Any, pairs: str) -> None:
    result = run(data=pairs, objective="dpo", max_steps=12, eval_steps=6)
    assert result.before["margin"] == pytest.approx(0, abs=1e-4)
    assert result.after["margin"] > 1 and result.after["preferred"] > 0.9
    lines = metrics(result.out, "train")
    assert lines[0]["objective"] == pytest.approx(0.6931, abs=1e-3)
    assert lines[-1]["objective"] < 0.6 and lines[-1]["margin"] > 0.5
    assert metrics(result.out, "drift")[-1]["kl"] > 0


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "a", "completion": "b"}, "field 'chosen' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty"),
    ],
)
def test_what_is_no_pair(run: Any, tmp_path: Path, record: dict[str, str], says: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIRS[0]) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=says) as error:
        run(data=str(path), objective="dpo")
    assert error.value.where == f"{path}:2"


def test_pairs_and_rows_do_not_mix(run: Any, pairs: str) -> None:
    with pytest.raises(UserError, match="different data"):
        run(data=pairs, objective="sft@0.5+dpo@0.5")
