"""The embedded engine against `model.generate` and full forwards, on tiny models of five architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rectune.errors import UserError
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.types import Request, SamplingParams
from toys import byte_tokenizer, complete, tiny_model, tiny_vision_model

PROMPTS = ("What is 48?", "Hi", "Hello there, how are you doing on this day? 4848", "A longer prompt " * 6)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")


def requests(n: int = 2) -> list[Request]:
    tokenizer = byte_tokenizer()
    return [
        Request(f"p{i}", k, tuple(tokenizer(prompt).input_ids))
        for i, prompt in enumerate(PROMPTS)
        for k in range(n)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_generate_token_for_token(architecture: str) -> None:
    # 150 tokens cross three length classes and the window of 8; 3 rows make sequences enter at different times.
    model = tiny_model(architecture)
    engine = HFEngine(model, byte_tokenizer(), batch_size=3)
    found = complete(engine, requests(), SamplingParams(temperature=0.0, max_new_tokens=150))
    for request in requests():
        prompt = torch.tensor([request.prompt_ids])
        reference = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=150,
            eos_token_id=sorted(engine.stop_ids),
        )[0, prompt.shape[1] :].tolist()
        completion = found[request.problem_id, request.sample_index]
        assert completion.token_ids == reference
        assert completion.finish_reason == ("stop" if len(reference) < 150 else "length")


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "text and images"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_one_forward_over_the_whole(architecture: str, temperature: float) -> None:
    model = tiny_vision_model() if architecture == "text and images" else tiny_model(architecture)
    engine = HFEngine(model, byte_tokenizer(), batch_size=5)
    settings = SamplingParams(temperature=temperature, top_p=0.95, max_new_tokens=100)
    for completion in complete(engine, requests(), settings).values():
        new = torch.tensor(completion.token_ids)
        whole = torch.tensor([[*completion.request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logps = model(input_ids=whole).logits[0, -len(new) - 1 : -1].log_softmax(-1)
        expected = logps.gather(-1, new[:, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-5)


def test_batch_size_and_order_do_not_change_the_tokens() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    settings = SamplingParams(max_new_tokens=100, seed=7)
    wanted = requests(6)
    expected = complete(HFEngine(model, tokenizer, batch_size=1), wanted, settings)
    assert len({tuple(c.token_ids) for c in expected.values()}) == len(wanted)
    assert {c.finish_reason for c in expected.values()} == {"stop", "length"}
    for batch_size, order in ((2, wanted), (7, wanted[::-1]), (24, wanted), (24, wanted[::5] + wanted[1::5])):
        found = complete(HFEngine(model, tokenizer, batch_size=batch_size), order, settings)
        for key, completion in found.items():
            assert completion.token_ids == expected[key].token_ids
            assert completion.logprobs == expected[key].logprobs  # to the bit


@pytest.mark.parametrize(("most", "batch_size"), [(10**9, 512), (0, 128)])
def test_small_models_have_more_answers_in_progress(
    most: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rectune.sampling.hf.engine.SMALL_MODEL", most)
    assert HFEngine(tiny_model(), byte_tokenizer()).batch_size == batch_size
    assert HFEngine(tiny_model(), byte_tokenizer(), batch_size=3).batch_size == 3


@pytest.mark.parametrize(("keep", "read"), [(0, 12), (1 << 20, 4)])
def test_kept_prompts_are_read_once(keep: int, read: int) -> None:
    """Over two calls and more samples than share a prompt: 8 of 10 at once; the answers are the same."""
    model = tiny_model()
    engine = HFEngine(model, byte_tokenizer(), keep=keep)
    prefills = 0
    settings = SamplingParams(max_new_tokens=20, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        original = model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal prefills
            prefills += "plan" not in kwargs
            return original(*args, **kwargs)

        patch.setattr(model, "forward", forward)
        first = complete(engine, requests(10), settings)
        second = complete(engine, requests(1), settings)
    assert prefills == read
    plain = complete(HFEngine(model, byte_tokenizer()), requests(10), settings)
    for found in (first, second):
        assert all(found[key].logprobs == plain[key].logprobs for key in found)


def test_bfloat16_and_float64_run() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        engine = HFEngine(tiny_model().to(dtype), byte_tokenizer())
        assert len(complete(engine, requests(), SamplingParams(max_new_tokens=20))) == 8


def test_weights_are_shared_and_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    engine = HFEngine(model, byte_tokenizer())
    settings = SamplingParams(temperature=0.0, max_new_tokens=20)
    before = complete(engine, requests(1), settings)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    after = complete(engine, requests(1), settings)
    assert any(after[key].token_ids != before[key].token_ids for key in after)
    loss = model(torch.tensor([[1, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).loss
    loss.backward()
    assert model.lm_head.weight.grad.isfinite().all()


def test_stopped_early_the_iterator_restores_the_model() -> None:
    model = tiny_model().train()
    iterator = HFEngine(model, byte_tokenizer()).complete(requests(), SamplingParams(max_new_tokens=100))
    next(iterator)
    iterator.close()
    assert model.training


def test_two_calls_at_once_sample_what_each_samples_alone() -> None:
    model = tiny_model("llama").train()
    engine = HFEngine(model, byte_tokenizer(), batch_size=3)
    settings = SamplingParams(max_new_tokens=40, seed=1)
    short, long = requests(1)[:1], requests(2)
    alone = complete(engine, short, settings), complete(engine, long, settings)
    first, second = engine.complete(short, settings), engine.complete(long, settings)
    done, rest = [next(first)], [next(second)]
    done += first
    assert not model.training, "the other call is still in progress"
    rest += second
    assert model.training
    for completions, expected in zip((done, rest), alone, strict=True):
        assert {(c.request.problem_id, c.request.sample_index): c for c in completions} == expected


def test_too_long_is_refused_before_anything_is_sampled() -> None:
    longest = max(len(request.prompt_ids) for request in requests())
    words = f"positions .* and 3 other problems more than fit; .* has 512; at most {512 - longest} fit"
    with pytest.raises(UserError, match=words):
        next(
            HFEngine(tiny_model(), byte_tokenizer()).complete(requests(), SamplingParams(max_new_tokens=600))
        )


def test_weights_that_are_not_finite_give_no_answers() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = float("nan")
    engine = HFEngine(model, byte_tokenizer(), model_name="tuned")
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match=r"tuned: the model's logits are not finite \(problem 'p"):
            next(engine.complete(requests(), SamplingParams(temperature=temperature, max_new_tokens=4)))


def test_what_the_engine_cannot_run_is_refused_by_name() -> None:
    shape = {"vocab_size": 272, "hidden_size": 16}
    for config in (
        transformers.MambaConfig(**shape, num_hidden_layers=1, state_size=4),
        transformers.BloomConfig(**shape, n_layer=1, n_head=2),
    ):
        model = transformers.AutoModelForCausalLM.from_config(config)
        with pytest.raises(UserError, match=f"cannot run {type(model).__name__}"):
            HFEngine(model, byte_tokenizer())
    with pytest.raises(UserError, match="batch_size"):
        HFEngine(tiny_model(), byte_tokenizer(), batch_size=0)
    with pytest.raises(UserError, match="dtype"):
        HFEngine.load("nowhere", dtype="int3")
