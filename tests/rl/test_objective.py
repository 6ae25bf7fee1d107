"""The clipped surrogate and the k3 estimate: values, gradients, and what they estimate."""

from __future__ import annotations

import torch

from rectune.objective_spec import apply_objective, effective_weight
from rectune.objectives import grpo, k3


def test_grpo_by_hand() -> None:
    """Ratios 1.5, 1.5, 0.5, 0.5 and 1 with clip 0.2: the surrogate keeps the lower of both, and so its gradient."""
    logp = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0], dtype=torch.float64).log()
    columns = {
        "logp": logp,
        "old_logp": torch.zeros_like(logp),
        "advantage": torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0], dtype=torch.float64),
    }
    loss = apply_objective(grpo, columns)
    assert torch.allclose(loss, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.0], dtype=torch.float64))
    weight = effective_weight(grpo, columns)
    assert torch.allclose(weight, torch.tensor([0.0, -1.5, 0.5, 0.0, 2.0], dtype=torch.float64))
    wider = effective_weight(grpo, columns, high=0.6)
    assert torch.allclose(wider, torch.tensor([1.5, -1.5, 0.5, 0.0, 2.0], dtype=torch.float64))


def test_on_policy_it_is_the_policy_gradient() -> None:
    """With old_logp = logp the gradient is -advantage: it must not flow through the old policy."""
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    grpo(logp, logp, torch.tensor([1.0, -3.0])).sum().backward()
    assert torch.allclose(logp.grad, torch.tensor([-1.0, 3.0]))


def test_k3_estimates_the_divergence_and_its_reference_is_fixed() -> None:
    """Its mean over the model's own tokens is KL(model || reference), exactly; it is never negative."""
    model = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log().requires_grad_()
    each = k3(model, reference)
    kl = (model.exp() * (model - reference)).sum()
    assert torch.allclose((model.exp() * each).sum(), kl)
    assert bool((each >= 0).all())
    each.sum().backward()
    assert reference.grad is None
    assert torch.allclose(model.grad, 1 - (reference - model).exp())


def test_the_correction_makes_the_gradient_that_of_the_divergence() -> None:
    """Over the model's own tokens: exactly the gradient of KL(model || reference) with, of the reverse one without."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits)[0]

    logp = logits.log_softmax(-1)
    p = logp.exp().detach()  # tokens are drawn from it: their probability has no gradient
    corrected = gradient((p * k3(logp, reference, logp)).sum())
    logp = logits.log_softmax(-1)
    assert torch.allclose(corrected, gradient((logp.exp() * (logp - reference)).sum()))
    logp = logits.log_softmax(-1)
    plain = gradient((p * k3(logp, reference)).sum())
    logp = logits.log_softmax(-1)
    assert torch.allclose(plain, gradient((reference.exp() * (reference - logp)).sum()))
    assert not torch.allclose(plain, corrected)
