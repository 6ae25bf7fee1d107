"""The fused head: gradients whatever happens between forward and backward, memory, and compilers that do not work."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from heads import CHUNK, EVERYTHING, Case, assert_as_exact_as_dense
from rectune.logprobs import elementwise, fused, token_columns, token_logprobs
from toys import tiny_model


@pytest.fixture(autouse=True)
def no_spare_buffer() -> None:
    fused._spare.clear()


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
    """Logits and all temporaries within the budget, whatever N and V; outputs and gradients are not part of it."""
    rows, budget = 12_000, 64 << 20
    case = Case(rows, 4096, dtype, d=8)
    outputs = (case.hidden.numel() + 2 * case.weight.numel()) * 8 + rows * 4 * 12
    peak, largest = peak_bytes(case, names, budget)
    assert rows * case.row_bytes * (2 if "kl" in names else 1) > budget
    assert largest <= budget
    assert peak <= budget + outputs
