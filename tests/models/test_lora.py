"""LoRA adapters: seeded, trainable alone, and refused where they would not count."""

from __future__ import annotations

import pytest
import torch

from rectune.config import LoraConfig
from rectune.errors import UserError
from rectune.models import lora as lora_module
from rectune.models.lora import add_lora
from toys import tiny_model


def adapters(seed: int) -> dict[str, torch.Tensor]:
    model = add_lora(tiny_model(), LoraConfig(lora_r=2), seed)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def test_only_adapters_train_and_the_head_has_none() -> None:
    names = adapters(seed=0)
    assert all("lora_" in name for name in names)
    assert {name.split(".")[-4] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_the_seed_decides_and_the_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = adapters(0), adapters(0), adapters(1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_refused(tied: bool) -> None:
    with pytest.raises(
        UserError, match=r"lora_target_modules: an adapter on the head \(lm_head\) is not supported"
    ):
        add_lora(
            tiny_model(tie_word_embeddings=tied),
            LoraConfig(lora_r=2, lora_target_modules="q_proj, lm_head"),
            0,
        )


@pytest.mark.parametrize("target", ["q_prj", "input_layernorm", "embed_tokens"])
def test_an_unknown_target_lists_the_known_ones(target: str) -> None:
    with pytest.raises(UserError, match=f"unknown module '{target}'.*known: down_proj, gate_proj, k_proj"):
        add_lora(tiny_model(), LoraConfig(lora_r=2, lora_target_modules=target), 0)


def test_rank_0_and_missing_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lora_r is 0"):
        add_lora(tiny_model(), LoraConfig(), 0)
    monkeypatch.setattr(lora_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rectune\[peft\]'"):
        add_lora(tiny_model(), LoraConfig(lora_r=2), 0)
