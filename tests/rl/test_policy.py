"""The policy's columns: entropy with a gradient, values, and any packing."""

from __future__ import annotations

import pytest
import torch

from rectune.data.packing import collate
from rectune.data.tokenization import Encoded
from rectune.errors import UserError
from rectune.models.scorer import Head
from rectune.rl.policy import Policy, entropies
from toys import tiny_model

ROWS = [Encoded(ids, [-100, -100, *ids[2:]], [False] * len(ids)) for ids in ([5, 6, 7, 8], [9, 10, 11])]


def test_entropy_and_its_gradient_in_pieces() -> None:
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 16, generator=draws, requires_grad=True)
    weight = torch.randn(50, 16, generator=draws, requires_grad=True)
    found = entropies(hidden, Head(weight, None, None, 0.8), 2 * 16 * 50)  # two rows at a time
    logp = (hidden @ weight.T * 0.8).log_softmax(-1)
    expected = -(logp.exp() * logp).sum(-1)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found.sum(), (hidden, weight))
    theirs = torch.autograd.grad(expected.sum(), (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_tempered_policy_with_values() -> None:
    """Log-probs and entropies are those of the tempered logits; values start at zero and read the same states."""
    model = tiny_model()
    policy = Policy(model, value=True, temperature=0.5, memory_budget=1 << 24)
    assert policy.value is not None
    torch.nn.init.ones_(policy.value.weight)
    scored = policy.score(ROWS, 16)
    for row, columns in zip(ROWS, scored, strict=True):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            hidden = model.model(ids, position_ids=torch.arange(ids.shape[1])[None]).last_hidden_state[
                0, 1:-1
            ]
            logp = (hidden @ model.lm_head.weight.T / 0.5).log_softmax(-1)
        torch.testing.assert_close(columns["logp"], logp.gather(1, ids[0, 2:, None])[:, 0])
        torch.testing.assert_close(columns["entropy"], -(logp.exp() * logp).sum(-1))
        torch.testing.assert_close(columns["value"], hidden.sum(1))
    together = policy.columns(collate(ROWS), entropy_gradient=True)
    torch.testing.assert_close(together["entropy"], torch.cat([one["entropy"] for one in scored]))
    assert together["entropy"].requires_grad


def test_a_capped_head_cannot_be_tempered() -> None:
    with pytest.raises(UserError, match="caps its logits, so they cannot be tempered"):
        Policy(tiny_model("gemma2"), value=False, temperature=0.7, memory_budget=1 << 24)
