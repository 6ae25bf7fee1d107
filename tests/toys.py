"""Small real things to test with: a byte-level tokenizer and two-layer models from a config. No downloads.

The tokenizer knows every byte and merges a few, so that tokens can span the join of prompt and completion.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rectune.sampling.types import Completion, Request, SamplingParams

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The ChatML template, as SmolLM2 and Qwen write it but without a default system message."""

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")
MERGES = (("Ġ", "4"), ("Ġ", "t"), ("Ġt", "h"), ("Ċ", "Ċ"), (":", "Ġ"), ("4", "8"), ("e", "r"))


def byte_tokenizer(*, chat_template: str | None = CHATML, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 256 bytes, 7 merges, and <pad>, <|im_start|>, <|im_end|> (which is eos).

    Args:
        chat_template: Jinja text; None for a tokenizer without one.
        bos: Whether the tokenizer puts <|im_start|> in front of every text, as Llama and Gemma do.
    """
    pieces = list(SPECIAL) + sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in MERGES]
    bpe = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(MERGES)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    if bos:
        from tokenizers.processors import TemplateProcessing

        bpe.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", pieces.index("<|im_start|>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<|im_start|>" if bos else None,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


_CONFIGS = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
}


def tiny_model(
    arch: str = "llama", vocab_size: int = 272, *, seed: int = 0, **settings: Any
) -> transformers.PreTrainedModel:
    """A two-layer causal model of 32 features (4 heads, 2 of keys) in float32 on the CPU, in eval mode.

    The Gemmas get a sliding window of 8 on their first layer; their soft-caps stay as in the real models.

    Args:
        arch: llama, qwen2, qwen3, gemma2 or gemma3 (text).
        vocab_size: At least `len(byte_tokenizer())`, which is 266.
        seed: Of the initial weights; the caller's random state is left as it was.
        settings: Further settings of the config class.
    """
    base: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.1,
    }
    if arch in ("qwen3", "gemma2", "gemma3"):
        base["head_dim"] = 8
    if arch in ("gemma2", "gemma3"):
        base |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    config = getattr(transformers, _CONFIGS[arch])(**(base | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def stop_clock(monkeypatch: pytest.MonkeyPatch, day: date) -> None:
    """Let templates that read the clock find this day."""

    class Day(date):
        @classmethod
        def today(cls) -> date:
            return day

    monkeypatch.setattr("rectune.data.chat_template.date", Day)


def tiny_vision_model() -> transformers.PreTrainedModel:
    """A Gemma3 of text and images: `tiny_model("gemma3")` behind one layer that sees 14 x 14 pixels."""
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=tiny_model("gemma3").config.to_dict(),
        vision_config={**eye, "image_size": 14, "patch_size": 7},
        mm_tokens_per_image=4,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save_toy(folder: Path, model: Any = None, tokenizer: Any = None, **settings: Any) -> str:
    """A folder as `save_pretrained` leaves it, with `tiny_model(**settings)` and `byte_tokenizer()` by default."""
    (model or tiny_model(**settings)).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return str(folder)


def complete(
    engine: Any, requests: Iterable[Request], params: SamplingParams
) -> dict[tuple[str, int], Completion]:
    """Completions by problem id and index of the sample; each request has exactly one."""
    wanted = list(requests)
    completions = list(engine.complete(wanted, params))
    by_key = {(c.request.problem_id, c.request.sample_index): c for c in completions}
    assert len(by_key) == len(completions) == len(wanted)
    return by_key
