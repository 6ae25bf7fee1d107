"""The head against its two-line definition: values, gradients in both memory regimes, columns, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from heads import CHUNK, EVERYTHING, Case, assert_as_exact_as_dense
from rectune.columns import HEAD_COLUMNS
from rectune.errors import UserError
from rectune.logprobs import IGNORE, supervised_positions, token_columns, token_logprobs

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


# --- Exactness ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["everything", "chunks"])
@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 1000])
@pytest.mark.parametrize("v", [257, 1031])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_exact_as_dense(dtype: torch.dtype, v: int, n: int, regime: str) -> None:
    case = Case(n, v, dtype)
    budget = EVERYTHING if regime == "everything" else CHUNK * case.row_bytes
    assert_as_exact_as_dense(case, implementation="plain", memory_budget=budget)


@pytest.mark.parametrize("rows", [1, CHUNK, 100])
@pytest.mark.parametrize(
    "head", [{"softcap": 3.0}, {"logit_scale": 0.3}, {"softcap": 2.0, "logit_scale": 1.7}]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_cap_and_scale(dtype: torch.dtype, head: dict[str, Any], rows: int) -> None:
    case = Case(30, 257, dtype, bias=True)
    assert_as_exact_as_dense(case, head=head, implementation="plain", memory_budget=rows * case.row_bytes)


@pytest.mark.parametrize("rows", [1, CHUNK, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_is_as_exact_as_dense(dtype: torch.dtype, rows: int) -> None:
    case = Case(30, 257, dtype, bias=True)
    budget = 2 * rows * case.row_bytes
    assert_as_exact_as_dense(case, "kl", head={"softcap": 3.0}, implementation="plain", memory_budget=budget)


@pytest.mark.parametrize("head", [{}, {"softcap": 2.5, "logit_scale": 1.3}])
@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("column", ["logp", "kl"])
def test_gradcheck(column: str, rows: int, head: dict[str, Any]) -> None:
    case = Case(5, 11, torch.float64, d=4, bias=True)
    matrices = 2 if column == "kl" else 1

    def value(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return token_columns(
            hidden, weight, case.targets, (column,), bias=bias, **head, **case.reference,
            memory_budget=rows * matrices * case.row_bytes,
        )[column]  # fmt: skip

    leaves = [t.clone().requires_grad_() for t in (case.hidden, case.weight, case.bias)]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(value, leaves)


def test_the_definition_is_what_the_docstring_says() -> None:
    case = Case(50, 257, torch.float32)
    defined = (case.hidden @ case.weight.T).float().log_softmax(-1)[torch.arange(50), case.targets]
    for implementation in ("dense", "plain", "fused"):
        logp = token_logprobs(case.hidden, case.weight, case.targets, implementation=implementation)  # type: ignore
        torch.testing.assert_close(logp, defined)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            token_logprobs(case.hidden, case.weight, case.targets, logit_scale=1.01), defined
        )


def test_extreme_logits() -> None:
    """Probabilities of 0 and 1 in float32: log p is exact, gradients are 0 or finite."""
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    logp = token_logprobs(hidden, weight, torch.tensor([0, 0]))
    torch.testing.assert_close(logp, torch.tensor([0.0, -600.0]))
    logp.sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [2.0]]))
    assert weight.grad.isfinite().all()


# --- Columns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("v", [5, 257])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_columns_against_dense(dtype: torch.dtype, v: int, rows: int) -> None:
    case = Case(41, v, dtype, bias=True)
    settings: dict[str, Any] = {"bias": case.bias, "softcap": 4.0, **case.reference}
    inputs = (case.hidden, case.weight, case.targets)
    dense = token_columns(*inputs, HEAD_COLUMNS, implementation="dense", **settings)
    budget = 3 * rows * case.row_bytes
    ours = token_columns(*inputs, HEAD_COLUMNS, implementation="plain", memory_budget=budget, **settings)
    assert list(ours) == list(dense) == list(HEAD_COLUMNS)
    for name in HEAD_COLUMNS:
        assert ours[name].shape == (41,)
        torch.testing.assert_close(ours[name], dense[name], rtol=1e-4, atol=2e-5)
    assert ours["top1"].dtype == torch.bool and 0 < ours["top1"].sum() + (v == 257) < 41
    exact = ((case.hidden.double() @ case.weight.double().T + case.bias.double()) / 4).tanh() * 4  # type: ignore
    p = exact.softmax(-1)
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours["entropy"].double(), -(p * p.log()).sum(1), **tolerance)
    torch.testing.assert_close(ours["log_sum_p2"].double(), p.square().sum(1).log(), **tolerance)
    if dtype != torch.bfloat16:  # which rounds logits, and so decides ties
        below = torch.where(p <= p.gather(1, case.targets[:, None]), p, 0).sum(1)
        torch.testing.assert_close(ours["lower_mass"].double(), below, **tolerance)
    best = p.sort(descending=True).values[:, :20]
    best = best / best.sum(1, keepdim=True)
    torch.testing.assert_close(ours["entropy20"].double(), -(best * best.log()).sum(1), **tolerance)


def test_columns_come_alone_and_in_the_order_asked() -> None:
    case = Case(9, 31, torch.float32)
    every = token_columns(case.hidden, case.weight, case.targets, HEAD_COLUMNS, **case.reference)
    for names in (("top1",), ("entropy20", "logp"), ("kl", "entropy"), ()):
        some = token_columns(case.hidden, case.weight, case.targets, names, **case.reference)
        assert tuple(some) == names
        for name in names:
            torch.testing.assert_close(some[name], every[name])


def test_a_target_that_ties_counts_as_top() -> None:
    columns = token_columns(torch.ones(2, 1), torch.ones(3, 1), torch.tensor([0, 2]), ("top1",))
    assert columns["top1"].all()
    both = [
        token_columns(torch.ones(1, 1), weight, torch.tensor([1]), ("lower_mass",), implementation=how)["lower_mass"]  # type: ignore
        for weight in (torch.tensor([[2.0], [1.0], [1.0]]), torch.tensor([[0.0], [1.0], [1.0]]))
        for how in ("plain", "dense")
    ]  # fmt: skip
    half = 2 / (2 + torch.e)
    torch.testing.assert_close(torch.cat(both), torch.tensor([half, half, 1.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kl_against_torch(dtype: torch.dtype) -> None:
    case = Case(20, 257, dtype)
    ours = case.run("kl", memory_budget=2 * CHUNK * case.row_bytes)
    hidden, weight = (t.clone().requires_grad_() for t in (case.hidden, case.weight))
    model = (hidden @ weight.T).log_softmax(-1)
    reference = (case.reference["ref_hidden_ND"] @ case.reference["ref_weight_VD"].T).log_softmax(-1)
    kl = torch.nn.functional.kl_div(model, reference, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(ours["kl"], kl.detach())
    gradients = torch.autograd.grad(kl, (hidden, weight), case.upstream.to(dtype))
    for name, gradient in zip(("hidden", "weight"), gradients, strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)
    itself = token_columns(
        case.hidden, case.weight, case.targets, ("kl",), ref_hidden_ND=case.hidden, ref_weight_VD=case.weight
    )
    torch.testing.assert_close(itself["kl"], torch.zeros(20, dtype=dtype), atol=1e-6, rtol=0)


def test_kl_sends_no_gradient_to_the_reference() -> None:
    case = Case(6, 31, torch.float32)
    reference = {name: t.clone().requires_grad_() for name, t in case.reference.items()}
    for implementation in ("plain", "dense"):
        hidden = case.hidden.clone().requires_grad_()
        kl = token_columns(
            hidden, case.weight, case.targets, ("kl",), implementation=implementation, **reference  # type: ignore
        )["kl"]  # fmt: skip
        kl.sum().backward()
        assert hidden.grad is not None and all(t.grad is None for t in reference.values())


# --- The shift, and what is refused ---------------------------------------------------------------------


def test_supervised_positions() -> None:
    labels = torch.tensor([[IGNORE, 5, IGNORE, 7], [IGNORE, IGNORE, 3, 4]])
    index, targets = supervised_positions(labels)
    assert index.tolist() == [0, 2, 5, 6] and targets.tolist() == [5, 7, 3, 4]
    flat = labels.flatten()
    assert torch.equal(flat[index + 1], targets)
    # the first token of a row is nobody's target, so the row before does not predict it
    index, targets = supervised_positions(torch.tensor([[1, 2], [3, 4]]))
    assert index.tolist() == [0, 2] and targets.tolist() == [2, 4]
    for nothing in (
        torch.full((2, 5), IGNORE),
        torch.tensor([[7]]),
        torch.tensor([[7], [8]]),
        torch.zeros(1, 0).long(),
    ):
        index, targets = supervised_positions(nothing)
        assert index.shape == targets.shape == (0,) and index.dtype == targets.dtype == torch.int64


H, W, Y = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((H, torch.zeros(5, 6), Y), {}, r"hidden states \(3, 4\) and head weight \(5, 6\)"),
        ((H[None], W, Y), {}, "do not fit"),
        ((H, W, Y[:2]), {}, "targets must be 3 int64 ids, not"),
        ((H, W, Y.int()), {}, "int32"),
        ((H.half(), W.half(), Y), {}, "not torch.float16"),
        ((H, W, Y), {"bias": torch.zeros(4)}, "bias of .* does not fit a vocabulary of 5"),
        ((H, W, Y), {"names": ("entropy2",)}, "unknown column of the head 'entropy2'.*entropy20"),
        ((H, W, Y), {"implementation": "fats"}, "unknown implementation 'fats'.*dense, fused, plain"),
        ((H, W, Y), {"memory_budget": 19}, "19 bytes are too few for a row of 5 logits.*at least 20"),
        (
            (H, W, Y),
            {"names": ("logp", "kl"), "memory_budget": 59, "ref_hidden_ND": H, "ref_weight_VD": W},
            "60",
        ),
        ((H, W, Y + 5), {}, "target 5 is not an id of a vocabulary of 5"),
        ((H, W, Y - 5), {}, "target -5 is not an id of a vocabulary of 5"),
        (
            (H, W, Y - 100),
            {},
            "target -100 is not an id .*positions without a target have the label -100, and are left out",
        ),
        ((H, W.to("meta"), Y), {}, "hidden states, head weight and targets are on cpu and meta"),
        ((H, W, Y.to("meta")), {}, "are on cpu and meta"),
        ((H, W, Y), {"bias": torch.zeros(5, device="meta")}, "are on cpu and meta"),
        ((H, W.to(torch.uint8), Y), {}, "the head's weight is quantised .torch.uint8"),
        ((H, W.to(torch.float8_e4m3fn), Y), {}, "the head's weight is quantised .torch.float8_e4m3fn"),
        (
            (H, W, Y),
            {"names": ("kl",), "ref_hidden_ND": H.to("meta"), "ref_weight_VD": W},
            "the model and the reference are on cpu and meta",
        ),
        ((H, W, Y), {"names": ("kl",)}, "needs the reference"),
        ((H, W, Y), {"names": ("kl",), "ref_hidden_ND": H, "ref_weight_VD": W[:4]}, "a vocabulary of 4"),
        ((H, W, Y), {"names": ("kl",), "ref_hidden_ND": H[:2], "ref_weight_VD": W}, "has 2 tokens"),
    ],
)
def test_refused(arguments: tuple[Tensor, ...], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        token_columns(*arguments, **settings)


def test_a_budget_of_one_row_is_enough() -> None:
    assert token_logprobs(H, W, Y, memory_budget=20).shape == (3,)
    columns = token_columns(
        H, W, Y, ("logp", "kl"), memory_budget=60, ref_hidden_ND=H.bfloat16(), ref_weight_VD=W
    )
    assert columns["kl"].dtype == torch.float32
