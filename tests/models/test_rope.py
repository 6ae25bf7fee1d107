"""Rows get the rotary frequencies that they would get alone, whatever stands beside them (vllm-project/vllm#27414)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rectune.data.packing import collate
from rectune.data.tokenization import Encoded
from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.types import Completion, Request, SamplingParams
from toys import byte_tokenizer, complete, tiny_model

ORIGINAL = 16
LENGTHS = (10, 40, 16, 17, 64, 30, 12)  # below, at and beyond the original length, in no order
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [4.0, 2.0, 3.0, 1.5], "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "llama3": {
        "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}  # fmt: skip


def rotary(kind: str) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 100.0, **SHAPES[kind]}


def model_of(arch: str, kind: str) -> Any:
    """A model whose frequencies matter within 64 positions."""
    settings: dict[str, Any] = {"max_position_embeddings": ORIGINAL if kind == "dynamic" else 64}
    if arch == "gemma3":
        by_layer = {"sliding_attention": rotary("default"), "full_attention": rotary(kind)}
        return tiny_model(arch, rope_parameters=by_layer, **settings)
    if arch in ("phi3", "phimoe"):
        settings |= {"original_max_position_embeddings": ORIGINAL} if arch == "phi3" else {}
        of_moe = {"short_mscale": 1.1, "long_mscale": 1.4} if arch == "phimoe" else {}
        config = getattr(transformers, {"phi3": "Phi3Config", "phimoe": "PhimoeConfig"}[arch])(
            vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
            rope_parameters=rotary(kind) | of_moe, **settings,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return transformers.AutoModelForCausalLM.from_config(config).eval()
    return tiny_model(arch, rope_parameters=rotary(kind), **settings)


def row(length: int) -> Encoded:
    ids = torch.randint(3, 272, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return Encoded(ids, [-100, *ids[1:]], [False] * length)


def alone(model: Any, ids: list[int]) -> Tensor:
    """Log-probs of a row's tokens but the first, by a copy of the model that has seen nothing else."""
    with torch.no_grad():
        logits = copy.deepcopy(model)(torch.tensor([ids])).logits[0]
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


CASES = [(arch, kind) for kind in SHAPES for arch in ("llama", "qwen2", "gemma3")]
CASES += [("phi3", "longrope"), ("phimoe", "longrope")]


@pytest.mark.parametrize(("arch", "kind"), CASES)
def test_packed_is_alone(arch: str, kind: str) -> None:
    model = model_of(arch, kind)
    rows = [row(length) for length in LENGTHS]
    expected = [alone(model, r.input_ids) for r in rows]
    scorer = Scorer(model)
    with torch.no_grad():
        packed = scorer.columns(collate(rows))["logp"]
        one_by_one = torch.cat([scorer.columns(collate([r]))["logp"] for r in rows])
        copied = scorer.frozen().columns(collate(rows))["logp"]
    for found in (packed, one_by_one, copied):
        torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=2e-5)


def test_every_kind_of_frequencies_is_tried() -> None:
    assert set(SHAPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize(
    ("arch", "kind"), [("llama", "longrope"), ("llama", "dynamic"), ("phi3", "longrope")]
)
def test_frequencies_change_what_is_computed(arch: str, kind: str) -> None:
    """The comparison above can fail: a row computed with a longer row's frequencies is another one."""
    model, short = model_of(arch, kind), row(10).input_ids
    usual = alone(model, short)
    rotary = model.model.rotary_emb
    rotary(torch.zeros(1), torch.arange(64)[None])
    stretched = rotary.inv_freq.clone()
    rotary.forward = lambda x, position_ids: type(rotary).forward.__wrapped__.__wrapped__(
        rotary, x, position_ids
    )
    rotary.inv_freq = stretched
    with torch.no_grad():
        logits = model(torch.tensor([short])).logits[0]
    other = logits[:-1].log_softmax(-1).gather(1, torch.tensor(short[1:])[:, None]).squeeze(1)
    assert (other - usual).abs().max() > 1e-3


def test_gradients_of_packed_rows_are_those_alone() -> None:
    model = model_of("phi3", "longrope")
    rows = [row(length) for length in (10, 40)]
    sums = []
    for batches in ([rows], [[r] for r in rows]):
        scorer = Scorer(copy.deepcopy(model))
        for batch in batches:
            scorer.columns(collate(batch))["logp"].sum().backward()
        sums.append({n: p.grad for n, p in scorer.model.named_parameters()})
    for name, gradient in sums[0].items():
        torch.testing.assert_close(gradient, sums[1][name], rtol=1e-4, atol=1e-4)


def test_an_unknown_kind_that_looks_at_the_longest_row_is_refused_by_name() -> None:
    model = tiny_model()
    rotary = model.model.rotary_emb
    forward = rotary.forward

    def by_the_longest(x: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        scale = 0.5 if position_ids.max() >= 256 else 1.0
        return tuple(scale * part for part in forward(x, position_ids))

    rotary.forward = by_the_longest
    with pytest.raises(
        UserError, match="LlamaForCausalLM computes a row differently in a pack with a longer one"
    ):
        Scorer(model)


def sampled(model: Any, prompts: list[int], **settings: Any) -> dict[tuple[str, int], Completion]:
    """Answers to prompts of these lengths; a key has the length as text."""
    engine = HFEngine(model, byte_tokenizer())
    engine.stop_ids = set()
    requests = [Request(str(length), 0, tuple(row(length).input_ids)) for length in prompts]
    return complete(engine, requests, SamplingParams(**settings))


@pytest.mark.parametrize("arch", ["llama", "phi3", "gemma3"])
def test_samples_next_to_a_longer_prompt_are_those_alone(arch: str) -> None:
    settings = {"max_new_tokens": 6, "seed": 1}
    lengths = [10, 40, 8, 17]
    together = sampled(model_of(arch, "longrope"), lengths, **settings)
    for length in lengths:
        found = together[str(length), 0]
        single = sampled(model_of(arch, "longrope"), [length], **settings)[str(length), 0]
        assert (found.token_ids, found.logprobs) == (single.token_ids, single.logprobs)
        whole = row(length).input_ids + found.token_ids
        scored = alone(model_of(arch, "longrope"), whole)[-6:]
        torch.testing.assert_close(torch.tensor(found.logprobs), scored, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "prompt", "message"),
    [
        ("longrope", 12, "rope_type longrope change beyond 16; at most 4 fit"),
        ("dynamic", 12, "rope_type dynamic change beyond 16; at most 4 fit"),
        ("dynamic", 20, "rope_type dynamic change beyond 16; shorten the prompts"),
        ("longrope", 60, "the model has 64; at most 4 fit"),
    ],
)
def test_answers_across_the_original_length_are_refused(kind: str, prompt: int, message: str) -> None:
    """Keys that are computed would have to be computed anew, with other frequencies."""
    with pytest.raises(UserError, match=f"problem '{prompt}' needs .*{message}"):
        sampled(model_of("llama", kind), [5, prompt], max_new_tokens=5)
    assert len(sampled(model_of("llama", kind), [5], max_new_tokens=5)) == 1


def test_training_continues_after_sampling() -> None:
    """Frequencies made while sampling must not be tensors that training cannot use."""
    for kind in ("longrope", "dynamic"):
        model = model_of("llama", kind)
        scorer = Scorer(model)
        with torch.inference_mode():
            model(torch.tensor([row(30).input_ids]))
        sampled(model, [5], max_new_tokens=5)
        scorer.columns(collate([row(30), row(10)]))["logp"].sum().backward()
        assert model.lm_head.weight.grad.isfinite().all()
