"""TRL's GRPO loss and gradients on the same rollout are ours, for each of its ways to take the mean."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rectune.config import RLConfig
from rectune.data.tokenization import Encoded
from rectune.rl.policy import Policy, TokenLimit
from rectune.rl.rollout import Earned, Rollout
from rectune.rl.update import _Minibatch
from rectune.sampling.types import Completion, Request
from rectune.training.mixed_precision import Masters
from toys import byte_tokenizer, tiny_model

LONGEST = 9
PROMPTS = [[1, 20, 30, 40], [1, 20, 30, 40], [1, 77], [1, 77]]
ANSWERS = [[50, 60, 2], [90, 91, 92, 93, 94, 95, 96, 97, 98], [61, 2], [62, 63, 64, 65, 2]]
ADVANTAGES = [0.7, -0.7, 1.2, -1.2]


def padded(rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for pad, row in zip(pads, rows, strict=True)]
    mask = [
        [0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad)
        for pad, row in zip(pads, rows, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def noisy(model: Any, seed: int) -> list[torch.Tensor]:
    """Log-probs of a policy a little off, so that ratios differ from 1 and some are clipped: one tensor per answer."""
    draws = torch.Generator().manual_seed(seed)
    found = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        found.append(logp + 0.3 * torch.randn(len(answer), generator=draws))
    return found


@pytest.mark.parametrize(
    ("loss_type", "settings"),
    [
        ("dapo", {}),
        ("grpo", {"beta": 0.1, "temperature": 0.7}),
        ("grpo", {"beta": 0.1, "use_bias_correction_kl": False}),
        ("dr_grpo", {"epsilon_high": 0.28, "beta": 0.04}),
    ],
)
def test_loss_and_gradients_are_those_of_trl(
    tmp_path: Path, loss_type: str, settings: dict[str, Any]
) -> None:
    trl = pytest.importorskip("trl")
    import datasets

    tiny_model(seed=3).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")  # TRL reads more of the folder
    old, ref = noisy(model, 1), noisy(model, 2)
    ids, mask = padded(PROMPTS, left=True)
    answer_ids, answer_mask = padded(ANSWERS, left=False)

    def table(columns: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = trl.GRPOConfig(
            output_dir=str(tmp_path), loss_type=loss_type, per_device_train_batch_size=4, num_generations=2,
            max_completion_length=LONGEST, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
            **{"use_bias_correction_kl": True, **settings},
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model, lambda completions, **_: [0.0] * len(completions), args=args, processing_class=byte_tokenizer(),
            train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 4),
        )  # fmt: skip
        trained = trainer.model.eval()
        inputs = {
            "prompt_ids": ids, "prompt_mask": mask, "completion_ids": answer_ids, "completion_mask": answer_mask,
            "advantages": torch.tensor(ADVANTAGES), "old_per_token_logps": table(old),
            "ref_per_token_logps": table(ref), "num_items_in_batch": answer_mask.sum(),
        }  # fmt: skip
        theirs = trainer._compute_loss(trained, inputs)
        theirs.backward()
    expected = {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}
    trained.zero_grad()

    shape = {"num_samples": 2, "max_new_tokens": LONGEST, "loss_type": loss_type}
    config = RLConfig(problems="p.jsonl", output_dir=tmp_path, **shape, **settings)
    ours = tiny_model(seed=3)  # TRL's has its own head by now
    policy = Policy(ours, value=False, temperature=config.temperature, memory_budget=1 << 24)
    minibatch = _Minibatch(policy, Masters(policy, torch.float32), rollout_of(old, ref), [0, 1, 2, 3], config)
    totals = minibatch.backward(TokenLimit(20))  # two micro-batches at least
    assert totals["objective"] == pytest.approx(theirs.item(), rel=1e-4)
    assert totals["clip_share"] > 0
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert len(expected) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def rollout_of(old: list[torch.Tensor], ref: list[torch.Tensor]) -> Rollout:
    pairs = list(zip(PROMPTS, ANSWERS, strict=True))
    answers = [Completion(Request("p", i, tuple(p)), a, [], "", "stop") for i, (p, a) in enumerate(pairs)]
    rows = [Encoded(p + a, [-100] * len(p) + a, [False] * len(p + a)) for p, a in pairs]
    rollout = Rollout(answers, [0, 0, 1, 1], rows, [Earned(0.0, False, "wrong")] * 4, 2, {})
    rollout.columns = [
        {"advantage": torch.full((len(a),), advantage), "old_logp": o, "ref_logp": r}
        for (_, a), advantage, o, r in zip(pairs, ADVANTAGES, old, ref, strict=True)
    ]
    return rollout
