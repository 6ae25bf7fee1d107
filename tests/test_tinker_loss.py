"""Objectives as the loss of a training service, in a fake of one that computes what Tinker's client does."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rectune.errors import UserError
from rectune.integrations import tinker
from test_integrations import assert_same_step, by_hand, rows
from toys import byte_tokenizer, tiny_model


class Values(NamedTuple):
    """What of tinker's `TensorData` is used."""

    values: list[float]

    def to_torch(self) -> Tensor:
        return torch.tensor(self.values)


class Datum(NamedTuple):
    model_input: list[int]
    loss_fn_inputs: dict[str, Values]


def data(scale: float = 1.0) -> list[Datum]:
    made = []
    for row in rows():
        ids, labels = row["input_ids"], row["labels"]
        weights = [scale * (label != -100) for label in labels[1:]]
        made.append(Datum(ids[:-1], {"target_tokens": Values(ids[1:]), "weights": Values(weights)}))
    return made


class Service:
    """tinker 0.30's `TrainingClient.forward_backward_custom` with a tiny model in place of the server."""

    def __init__(self) -> None:
        self.model = tiny_model("llama")

    def forward(self, datum: Datum) -> Tensor:
        logits = self.model(torch.tensor([datum.model_input])).logits[0]
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def forward_backward_custom(self, data: list[Datum], loss: tinker.Loss) -> dict[str, float]:
        with torch.no_grad():
            logprobs = [self.forward(datum) for datum in data]
        for logp in logprobs:
            logp.requires_grad_()
        value, metrics = loss(data, logprobs)
        value.backward()
        for datum, logp in zip(data, logprobs, strict=True):
            assert logp.grad is not None  # the client raises without
            (self.forward(datum) * logp.grad).sum().backward()
        return {"loss": value.item(), **metrics}

    def optim_step(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {name: (p - 0.5 * p.grad).detach() for name, p in named if p.grad is not None}


TARGETS = sum(weight for datum in data() for weight in datum.loss_fn_inputs["weights"].values)


@pytest.mark.parametrize(
    ("objective", "least"),
    [("sft", None), ("dft", None), ("dft", 0.0), ("focal", 0.0), ("geometric_dft", 0.0)],
)
def test_a_step_of_a_service_is_ours(objective: str, least: float | None) -> None:
    """Also in two calls, one of which ends with a sequence without targets."""
    service, loss = Service(), tinker.loss(objective, tokenizer=byte_tokenizer(), min_eos_weight=least)
    *first, last = data(1 / TARGETS)
    service.forward_backward_custom(
        [*first, first[0]._replace(loss_fn_inputs=data(0)[0].loss_fn_inputs)], loss
    )
    service.forward_backward_custom([last], loss)
    assert_same_step(
        service.optim_step(), by_hand(objective, 1.0 if (objective, least) == ("dft", None) else 0.0)
    )


def test_metrics_are_of_the_targets() -> None:
    found = Service().forward_backward_custom(data(), tinker.loss("sft"))
    assert found["targets"] == TARGETS
    assert found["loss"] == pytest.approx(found["nll"] * TARGETS)  # a sum, as that of cross_entropy
    assert 0 < found["mean_p"] < 1


def test_the_base_models_log_probabilities_come_with_the_data() -> None:
    """Before the first step they are the model's own, so that the step is that of the rule without them."""
    service, batch = Service(), data(1 / TARGETS)
    loss = tinker.loss("dft:signal=base", min_eos_weight=0.0)
    with pytest.raises(UserError, match="datum 0 has no ref_logp"):
        service.forward_backward_custom(batch, loss)
    for datum in batch:
        datum.loss_fn_inputs["ref_logp"] = Values(service.forward(datum).tolist())
    service.forward_backward_custom(batch, loss)
    assert_same_step(service.optim_step(), by_hand("dft"))


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("deft", {}, "deft reads log_sum_p2, which forward_backward_custom does not have"),
        ("eaft:signal=base", {}, "eaft signal=base reads ref_entropy20"),
        ("sft@0.5+dft@0.5", {}, "'sft@0.5.dft@0.5' has phases"),
        ("dft", {}, "tokenizer: dft needs to know the turn ends.*min_eos_weight=0"),
    ],
)
def test_what_a_service_cannot_honour_is_refused(
    objective: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tinker.loss(objective, **settings)


def test_a_datum_that_does_not_fit() -> None:
    loss, (datum, *_) = tinker.loss("sft"), data()
    with pytest.raises(UserError, match="datum 1 has no weights"):
        loss([datum, Datum([1], {"target_tokens": Values([1])})], [torch.zeros(11), torch.zeros(1)])
    with pytest.raises(
        UserError, match=r"datum 0 has weights of shape \(11,\) and log-probabilities of \(3,\)"
    ):
        loss([datum], [torch.zeros(3)])
