"""Attention inside rows against a dense mask in float64, and generation with a model that was scored."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectune.errors import UserError
from rectune.models import packed_attention as attention
from rectune.models.packed_attention import attend_rows
from rectune.models.scorer import Scorer
from toys import tiny_model

LENGTHS = [5, 1, 19, 0, 8, 30]
HEADS, KEY_HEADS, WIDTH = 6, 2, 8


def inputs(lengths: list[int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(heads: int) -> Tensor:
        return torch.randn(1, heads, sum(lengths), WIDTH, generator=g, dtype=torch.float64).to(dtype)

    return normal(HEADS), normal(KEY_HEADS), normal(KEY_HEADS)


def by_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    window: int | None,
    softcap: float | None,
    scale: float,
) -> Tensor:
    """The definition: one softmax over the whole pack, with what must not be seen masked."""
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    at = torch.arange(len(row))
    seen = (row[:, None] == row) & (at[:, None] >= at)
    if window is not None:
        seen &= at[:, None] - at < window
    key, value = (t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (key, value))
    scores = query @ key.mT * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def run(attend: Any, tensors: tuple[Tensor, ...], upstream: Tensor) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 8, 100])
def test_rows_against_one_dense_mask(
    window: int | None, softcap: float | None, scaling: float | None
) -> None:
    tensors = inputs(LENGTHS, torch.float64)
    upstream = torch.randn(1, sum(LENGTHS), HEADS, WIDTH, dtype=torch.float64)
    module = nn.Module()

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        settings = {"sliding_window": window, "softcap": softcap, "scaling": scaling, "position_ids": None}
        out, weights = attend_rows(module, q, k, v, None, row_lengths=LENGTHS, **settings)
        assert weights is None and out.shape == (1, sum(LENGTHS), HEADS, WIDTH)
        return out

    scale = WIDTH**-0.5 if scaling is None else scaling
    expected = run(lambda q, k, v: by_mask(q, k, v, LENGTHS, window, softcap, scale), tensors, upstream)
    for a, b in zip(run(ours, tensors, upstream), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("length", [1, 2, 31, 256])
def test_short_bfloat16_rows_against_float64(length: int, scaling: float | None) -> None:
    """The products that short rows take err about as transformers' own eager attention does in bfloat16."""
    tensors = inputs([length], torch.bfloat16, seed=length)
    generator = torch.Generator().manual_seed(length)
    upstream = torch.randn(1, length, HEADS, WIDTH, dtype=torch.float64, generator=generator).bfloat16()
    scale = WIDTH**-0.5 if scaling is None else scaling

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention._attend_short(q, k, v, scale).transpose(1, 2)

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, v))
        scores = q @ k.mT * scale + torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
        return (scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v).transpose(1, 2)

    wide = tuple(t.double() for t in tensors)
    truth = run(lambda q, k, v: by_mask(q, k, v, [length], None, None, scale), wide, upstream)
    for name, true, a, b in zip(
        ("out", "query", "key", "value"),
        truth,
        run(ours, tensors, upstream),
        run(eager, tensors, upstream),
        strict=True,
    ):
        error, allowed = (a.double() - true).norm(), (b.double() - true).norm()
        slack = 2**-8 * true.norm() if length <= 2 else 0
        assert error <= 1.2 * allowed + slack, f"{name}: {error:.3g} against {allowed:.3g}"


def test_short_rows_take_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    short = attention._attend_short
    monkeypatch.setattr(attention, "_attend_short", lambda q, *a: (taken.append(q.shape[2]), short(q, *a))[1])
    lengths = [256, 3, 257]
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = inputs(lengths, dtype)
        attend_rows(nn.Module(), q, k, v, None, row_lengths=lengths)
    q, k, v = inputs(lengths, torch.bfloat16)
    attend_rows(nn.Module(), q, k, v, None, row_lengths=lengths, sliding_window=2)
    attend_rows(nn.Module(), q, k, v, None, row_lengths=lengths, dropout=0.1)
    assert taken == [256, 3]


def test_dropout_drops_and_scales() -> None:
    q, k, v = inputs([40], torch.float32)
    v = torch.ones_like(v)
    for softcap in (None, 50.0):
        out, _ = attend_rows(nn.Module(), q, k, v, None, row_lengths=[40], dropout=0.5, softcap=softcap)
        assert out.std() > 0.1 and out.mean() == pytest.approx(1, abs=0.15)


def test_rows_do_not_see_each_other_nor_the_future() -> None:
    lengths = [7, 9, 4]
    tensors = inputs(lengths, torch.float32)
    starts = [0, 7, 16, 20]
    out, _ = attend_rows(nn.Module(), *tensors, None, row_lengths=lengths)
    for start, end in pairwise(starts):
        changed = [t.clone() for t in tensors]
        for t in changed:
            t[:, :, : start + 2] += 1
            t[:, :, end:] -= 1
        other, _ = attend_rows(nn.Module(), *changed, None, row_lengths=lengths)
        assert not torch.equal(other[:, start : start + 2], out[:, start : start + 2])
        outside = [t.clone() for t in tensors]
        for t in outside:
            t[:, :, :start] += 1
            t[:, :, start + 3 :] -= 1
        other, _ = attend_rows(nn.Module(), *outside, None, row_lengths=lengths)
        torch.testing.assert_close(other[:, start : start + 3], out[:, start : start + 3])


def test_what_is_not_known_is_refused() -> None:
    q, k, v = inputs([4], torch.float32)
    with pytest.raises(UserError, match="Module uses arguments s_aux"):
        attend_rows(nn.Module(), q, k, v, None, row_lengths=[4], s_aux=torch.ones(HEADS))
    with pytest.raises(UserError, match="not causal"):
        attend_rows(nn.Module(), q, k, v, None, row_lengths=[4], is_causal=False)
    attend_rows(nn.Module(), q, k, v, None, row_lengths=[4], use_cache=True, cache_position=None, other=False)


def test_masks_are_kept_for_few_sizes() -> None:
    """Thousands of different row lengths must not keep thousands of masks."""
    attention._square_band.cache_clear()
    for length in range(9, 200):
        attention._band(length, 8, torch.device("cpu"))
        expected = torch.ones(length, length, dtype=torch.bool).tril().triu(-7)
        assert torch.equal(attention._band(length, 8, torch.device("cpu")), expected)
    assert attention._square_band.cache_info().currsize <= 8


# --- Generation with the same live model ----------------------------------------------------------------


def generate(model: Any, ids: Tensor, mask: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    """Tokens and logits of a greedy continuation by twelve, past the Gemmas' window of 8."""
    result = model.generate(
        ids, attention_mask=mask, max_new_tokens=12, min_new_tokens=12, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **settings,
    )  # fmt: skip
    return result.sequences, torch.stack(result.logits)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_generation_goes_on_as_before(arch: str) -> None:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 260, (3, 14), generator=g)
    mask = torch.ones_like(ids)
    mask[0, :9] = mask[1, :1] = 0  # on the left, as generation pads
    ids = torch.where(mask.bool(), ids, 0)
    for batch, seen in ((ids[2:], mask[2:]), (ids, mask)):
        model = tiny_model(arch)
        before = generate(model, batch, seen)
        assert before[1].isfinite().all()
        plain = model(batch, attention_mask=seen).logits
        Scorer(model)
        after = generate(model, batch, seen)
        assert torch.equal(after[0], before[0])
        torch.testing.assert_close(after[1], before[1], rtol=1e-4, atol=1e-5)
        real = seen.bool()
        torch.testing.assert_close(
            model(batch, attention_mask=seen).logits[real], plain[real], rtol=1e-4, atol=1e-5
        )
        static = generate(model, batch, seen, cache_implementation="static", disable_compile=True)
        assert torch.equal(static[0], before[0])
