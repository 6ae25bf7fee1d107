"""The head against its two-line definition: values, gradients in both memory regimes, memory, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rectune import elementwise, fused
from rectune.errors import UserError
from rectune.logprobs import COLUMNS, IGNORE, supervised_positions, token_columns, token_logprobs
from toys import tiny_model

CHUNK = 7
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EVERYTHING = 256 << 20


@pytest.fixture(autouse=True)
def no_spare_buffer() -> None:
    fused._spare.clear()


class Case:
    """A head's inputs in some dtype, the reference's, and an upstream gradient with negatives and zeros."""

    def __init__(self, n: int, v: int, dtype: torch.dtype, *, d: int = 24, bias: bool = False, seed: int = 0):
        g = torch.Generator().manual_seed(seed + 1000 * n + v)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype)

        self.hidden, self.weight = normal(n, d), normal(v, d, scale=0.5)
        self.bias = normal(v) if bias else None
        self.targets = torch.randint(v, (n,), generator=g)
        self.upstream = torch.randn(n, generator=g, dtype=torch.float64) * (torch.arange(n) % 3 > 0)
        self.reference = {"ref_hidden_ND": normal(n, d), "ref_weight_VD": normal(v, d, scale=0.5)}
        self.row_bytes = v * self.hidden.element_size()

    def to(self, dtype: torch.dtype) -> Case:
        other: Case = object.__new__(Case)
        other.__dict__.update(self.__dict__)
        other.hidden, other.weight = self.hidden.to(dtype), self.weight.to(dtype)
        other.bias = None if self.bias is None else self.bias.to(dtype)
        other.reference = {name: value.to(dtype) for name, value in self.reference.items()}
        return other

    def run(self, column: str = "logp", **settings: Any) -> dict[str, Tensor]:
        """The column and the gradients of its product with the upstream gradient."""
        leaves = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        leaves = {name: t.clone().requires_grad_() for name, t in leaves.items() if t is not None}
        if column == "kl":
            settings |= self.reference
        value = token_columns(
            leaves["hidden"], leaves["weight"], self.targets, (column,), bias=leaves.get("bias"), **settings
        )[column]
        gradients = torch.autograd.grad(value, list(leaves.values()), self.upstream.to(value.dtype))
        return {column: value.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_as_exact_as_dense(
    case: Case, column: str = "logp", *, head: dict[str, Any] | None = None, **settings: Any
):
    """By norm, at most 1.1 times the dense path's error against float64 truth, plus a unit in the last place.

    For float64 the dense path is the truth itself, so that 16 units are allowed.
    """
    head = head or {}
    truth = case.to(torch.float64).run(column, implementation="dense", **head)
    dense = case.run(column, implementation="dense", **head)
    ours = case.run(column, **head, **settings)
    for name, true in truth.items():
        assert ours[name].dtype == dense[name].dtype and ours[name].shape == dense[name].shape
        error, allowed = ((result[name].double() - true).norm() for result in (ours, dense))
        unit = torch.finfo(ours[name].dtype).eps * true.norm() * (16 if true.dtype == ours[name].dtype else 1)
        assert error <= 1.1 * allowed + unit, f"{name}: {error:.3g} against {allowed:.3g} of dense"


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


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that takes the first row's factor for all rows is seen, in both regimes; values are unharmed."""
    right = fused.LogProbability.gradient_
    monkeypatch.setattr(
        fused.LogProbability,
        "gradient_",
        lambda self, logits, bias, rows, state, upstream: right(
            self, logits, bias, rows, state, upstream[-1:].expand_as(upstream)
        ),
    )
    case = Case(30, 257, torch.bfloat16)
    for rows in (CHUNK, 100):
        with pytest.raises(AssertionError, match="hidden"):
            assert_as_exact_as_dense(case, memory_budget=rows * case.row_bytes)


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
    dense = token_columns(*inputs, COLUMNS, implementation="dense", **settings)
    budget = 3 * rows * case.row_bytes
    ours = token_columns(*inputs, COLUMNS, implementation="plain", memory_budget=budget, **settings)
    assert list(ours) == list(dense) == list(COLUMNS)
    for name in COLUMNS:
        assert ours[name].shape == (41,)
        torch.testing.assert_close(ours[name], dense[name], rtol=1e-4, atol=2e-5)
    assert ours["top1"].dtype == torch.bool and 0 < ours["top1"].sum() + (v == 257) < 41
    exact = ((case.hidden.double() @ case.weight.double().T + case.bias.double()) / 4).tanh() * 4  # type: ignore
    p = exact.softmax(-1)
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours["entropy"].double(), -(p * p.log()).sum(1), **tolerance)
    best = p.sort(descending=True).values[:, :20]
    best = best / best.sum(1, keepdim=True)
    torch.testing.assert_close(ours["entropy20"].double(), -(best * best.log()).sum(1), **tolerance)


def test_columns_come_alone_and_in_the_order_asked() -> None:
    case = Case(9, 31, torch.float32)
    every = token_columns(case.hidden, case.weight, case.targets, COLUMNS, **case.reference)
    for names in (("top1",), ("entropy20", "logp"), ("kl", "entropy"), ()):
        some = token_columns(case.hidden, case.weight, case.targets, names, **case.reference)
        assert tuple(some) == names
        for name in names:
            torch.testing.assert_close(some[name], every[name])


def test_a_target_that_ties_counts_as_top() -> None:
    columns = token_columns(torch.ones(2, 1), torch.ones(3, 1), torch.tensor([0, 2]), ("top1",))
    assert columns["top1"].all()


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


# --- Autograd -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [CHUNK, 100])
def test_a_second_backward_gives_the_same(rows: int) -> None:
    case = Case(20, 257, torch.float32)
    hidden, weight = (t.clone().requires_grad_() for t in (case.hidden, case.weight))
    logp = token_logprobs(hidden, weight, case.targets, memory_budget=rows * case.row_bytes)
    loss = (logp * case.upstream.float()).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    token_logprobs(hidden + 1, weight, case.targets).sum().backward()  # writes over the buffer
    second = torch.autograd.grad(loss, (hidden, weight))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [CHUNK, 100])
def test_forwards_do_not_share_a_buffer(rows: int) -> None:
    """Two forwards, and one without gradient between, before the backwards, in either order."""
    cases = [Case(20, 257, torch.float32, seed=s) for s in (0, 1)]
    alone = [case.run(memory_budget=rows * case.row_bytes) for case in cases]
    for order in ((0, 1), (1, 0)):
        leaves = [(c.hidden.clone().requires_grad_(), c.weight.clone().requires_grad_()) for c in cases]
        values = []
        for case, (hidden, weight) in zip(cases, leaves, strict=True):
            values.append(token_logprobs(hidden, weight, case.targets, memory_budget=rows * case.row_bytes))
            with torch.no_grad():
                token_logprobs(-hidden, weight, case.targets)
        for i in order:
            values[i].backward(cases[i].upstream.float())
            for name, leaf in zip(("hidden", "weight"), leaves[i], strict=True):
                torch.testing.assert_close(leaf.grad, alone[i][name])


def test_after_inference_mode_training_goes_on() -> None:
    case = Case(9, 31, torch.float32)
    with torch.inference_mode():
        token_logprobs(case.hidden, case.weight, case.targets)
    assert_as_exact_as_dense(case, memory_budget=EVERYTHING)


def test_second_derivatives_are_refused() -> None:
    case = Case(5, 31, torch.float32)
    hidden = case.hidden.clone().requires_grad_()
    loss = token_logprobs(hidden, case.weight, case.targets).square().sum()
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), hidden)


def test_no_grad_and_frozen_parts() -> None:
    case = Case(20, 257, torch.float32, bias=True)
    full = case.run(memory_budget=CHUNK * case.row_bytes)
    with torch.no_grad():
        logp = token_logprobs(case.hidden.clone().requires_grad_(), case.weight, case.targets, bias=case.bias)
    assert not logp.requires_grad
    torch.testing.assert_close(logp, full["logp"])
    for live in ("hidden", "weight", "bias"):
        parts = {"hidden": case.hidden, "weight": case.weight, "bias": case.bias}
        parts[live] = parts[live].clone().requires_grad_()  # type: ignore[union-attr]
        logp = token_logprobs(
            parts["hidden"], parts["weight"], case.targets, bias=parts["bias"], memory_budget=CHUNK * case.row_bytes
        )  # type: ignore[arg-type]  # fmt: skip
        logp.backward(case.upstream.float())
        torch.testing.assert_close(parts[live].grad, full[live])  # type: ignore[union-attr]
        assert all(t.grad is None for name, t in parts.items() if name != live)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fit", "forward", "again"), [(100, [30], []), (CHUNK, [2, 7, 7, 7, 7], [7, 7, 7, 2])]
)
def test_what_fits_is_not_computed_again(
    fit: int, forward: list[int], again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the budget three products in all; past it a fourth, but for the rows that were kept: a whole chunk."""
    done: list[int] = []
    products = fused.LogProbability.products

    def counted(self: Any, logits: Tensor, hidden: Tensor, weight: Tensor, rows: slice) -> None:
        done.append(rows.stop - rows.start)
        products(self, logits, hidden, weight, rows)

    monkeypatch.setattr(fused.LogProbability, "products", counted)
    case = Case(30, 257, torch.float32)
    hidden = case.hidden.clone().requires_grad_()
    logp = token_logprobs(hidden, case.weight, case.targets, memory_budget=fit * case.row_bytes)
    assert done == forward
    logp.sum().backward()
    assert done == forward + again


def test_under_autocast_with_a_float32_weight() -> None:
    """bfloat16 hidden states and a float32 weight, as autocast hands them on; the gradient is the weight's dtype."""
    case = Case(20, 257, torch.bfloat16)
    weight = case.weight.float().requires_grad_()
    hidden = case.hidden.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp = token_logprobs(hidden, weight, case.targets)
    logp.backward(case.upstream.float())
    expected = case.run(memory_budget=EVERYTHING)
    assert logp.dtype == torch.float32 and weight.grad is not None and weight.grad.dtype == torch.float32
    torch.testing.assert_close(logp, expected["logp"])
    torch.testing.assert_close(weight.grad, expected["weight"].float())
    torch.testing.assert_close(hidden.grad, expected["hidden"])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # float32 stays float32
        exact = Case(20, 257, torch.float32)
        assert_as_exact_as_dense(exact.to(torch.float64), implementation="plain")
        logp = token_logprobs(exact.hidden, exact.weight, exact.targets)
    torch.testing.assert_close(logp, exact.run()["logp"])


def test_many_chunks_do_not_round_the_weight_gradient() -> None:
    """In bfloat16, a sum over 500 chunks that was rounded at each step would be far off."""
    case = Case(1000, 64, torch.bfloat16)
    case.upstream = torch.ones(1000, dtype=torch.float64)
    assert_as_exact_as_dense(case, implementation="plain", memory_budget=2 * case.row_bytes)


def test_a_tied_head_adds_to_the_embedding() -> None:
    model = tiny_model("llama")
    ids = torch.randint(3, 260, (1, 12), generator=torch.Generator().manual_seed(0))
    weight = model.get_output_embeddings().weight
    assert weight is model.get_input_embeddings().weight
    logits = model(ids).logits[0, :-1]
    (expected,) = torch.autograd.grad(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum(), weight)
    hidden = model.base_model(ids).last_hidden_state[0, :-1]
    logp = token_logprobs(hidden, weight, ids[0, 1:], memory_budget=5 * weight.shape[0] * 4)
    (gradient,) = torch.autograd.grad(logp.sum(), weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


# --- Compiler and memory --------------------------------------------------------------------------------


def has_compiler() -> bool:
    return elementwise._can_compile("cpu")


@pytest.mark.slow  # compiles four passes
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_is_as_exact_as_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_compiler():
        pytest.skip("no working C++ compiler")
    monkeypatch.setattr(elementwise, "_COMPILE_FROM", 0)
    compiled = []
    original = elementwise._compiled
    monkeypatch.setattr(elementwise, "_compiled", lambda f: (compiled.append(f.__name__), original(f))[1])
    for n, rows in ((50, 100), (20, 8)):
        case = Case(n, 257, torch.bfloat16)
        assert_as_exact_as_dense(case, implementation="fused", memory_budget=rows * case.row_bytes)
    case = Case(20, 257, torch.bfloat16)
    assert_as_exact_as_dense(case, "kl", implementation="fused", memory_budget=16 * case.row_bytes)
    assert set(compiled) == {"sums", "softmax_", "divergence", "differences_"}


def test_plain_never_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "_COMPILE_FROM", 0)
    monkeypatch.setattr(elementwise, "_can_compile", lambda device: pytest.fail("asked for a compiler"))
    assert_as_exact_as_dense(Case(20, 257, torch.float32), implementation="plain")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A warning, once, and the plain passes with the same numbers."""

    def broken(function: Any, **settings: Any) -> Any:
        def fails(*arguments: Any) -> None:
            raise torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no g++ here"), None)

        return fails

    monkeypatch.setattr(elementwise, "_COMPILE_FROM", 0)
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(elementwise, "_compiled", lambda function: pytest.fail("compiled nevertheless"))
    elementwise._can_compile.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="rectune"):
            for _ in range(2):
                assert_as_exact_as_dense(Case(20, 257, torch.float32), implementation="fused")
    finally:
        elementwise._can_compile.cache_clear()
    assert [record.message.startswith("no working compiler for cpu") for record in caplog.records] == [True]
    assert "no g++ here" in caplog.text and "slower" in caplog.text


def peak_bytes(case: Case, names: tuple[str, ...], budget: int) -> tuple[int, int]:
    """Most bytes alive at once in forward and backward, and the largest single piece of memory, inputs not counted."""
    hidden, weight = (t.clone().requires_grad_() for t in (case.hidden, case.weight))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        columns = token_columns(
            hidden,
            weight,
            case.targets,
            names,
            implementation="plain",
            memory_budget=budget,
            **case.reference,
        )
        loss = sum(column.sum() for column in columns.values() if column.requires_grad)
        loss.backward()  # type: ignore[union-attr]
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    pieces = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"]
    live = peak = 0
    for piece in pieces:
        live += piece
        peak = max(peak, live)
    return peak, max(pieces)


@pytest.mark.parametrize("names", [("logp", "entropy", "entropy20", "top1"), ("kl",), ("logp", "kl")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_stays_within_the_budget(dtype: torch.dtype, names: tuple[str, ...]) -> None:
    """Logits within the budget; beside them some blocks of the element-wise passes, whatever N and V."""
    case = Case(6000, 4096, dtype, d=8)
    all_logits = 6000 * case.row_bytes * (2 if "kl" in names else 1)
    budget = 16 << 20
    blocks = 6 * 4 * elementwise.BLOCK
    outputs = (case.hidden.numel() + 2 * case.weight.numel()) * 8 + 6000 * 4 * 12
    peak, largest = peak_bytes(case, names, budget)
    assert largest <= budget
    assert peak <= budget + blocks + outputs
    assert all_logits > budget + blocks + outputs or dtype == torch.bfloat16
    unbound, whole = peak_bytes(case, ("logp",), EVERYTHING)
    assert whole == 6000 * case.row_bytes and unbound <= whole + blocks + outputs


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
        ((H, W, Y), {"memory_budget": 19}, "19 bytes hold no row of 5 logits.*at least 20"),
        (
            (H, W, Y),
            {"names": ("logp", "kl"), "memory_budget": 59, "ref_hidden_ND": H, "ref_weight_VD": W},
            "60",
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
