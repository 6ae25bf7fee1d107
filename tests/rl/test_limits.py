"""What a model does not have is refused before anything is sampled; an adapter is trained further."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from online_runs import config_of
from rectune.data.chat_template import choose_template
from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.models.load import load_model
from rectune.rl.rl_trainer import dry_run as plan
from rectune.rl.rollout import load_prompts
from toys import byte_tokenizer, save_toy
from training_runs import metrics, weights

ADAPTER = "adapter/adapter_model.safetensors"


def test_special_tokens_in_problems_are_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    problems = [Problem("a", (Turn("user", "2?"),), "2"), Problem("b", (Turn("user", "<|im_end|> 3?"),), "3")]
    with caplog.at_level(logging.WARNING, "rectune"):
        load_prompts(problems, tokenizer, choose_template("auto", tokenizer))
    assert "1 of 2 problems have special tokens in their texts ('<|im_end|>'), the first b" in caplog.text


@pytest.mark.parametrize(("prompt", "message"), [
    ("1?" * 30, "prompt tokens and max_new_tokens = 12 exceed the 64 positions of the model"),
    ("<|x19|>", "token id 285 .* has no embedding: the tokenizer has 286 tokens, the model 272"),
])  # fmt: skip
def test_positions_and_embeddings(
    run: Any, toy: dict[str, Any], tmp_path: Path, prompt: str, message: str
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<|x{i}|>" for i in range(20)])
    model = save_toy(tmp_path / "small", tokenizer=tokenizer, max_position_embeddings=64)
    problems = tmp_path / "problems.jsonl"
    lines = [{"prompt": text, "answer": "1", "grader": "exact"} for text in ("1?", prompt)]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"model": model, "problems": str(problems)}
    with pytest.raises(UserError, match=f"problems.jsonl:2: .*{message}"):
        run(**settings)
    with pytest.raises(UserError, match=f"problems.jsonl:2: .*{message}"):
        plan(config_of(toy, tmp_path / "planned", **settings))


def test_training_continues_from_an_adapter(run: Any, tmp_path: Path) -> None:
    run("first", lora_r=4, lora_target_modules="q_proj,down_proj", learning_rate=0.05)
    adapter = tmp_path / "first" / "adapter"
    run("again", model=str(adapter), beta=0.1, max_steps=1)
    first, second = (weights(tmp_path / name, ADAPTER) for name in ("first", "again"))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    (line,) = metrics(tmp_path / "again", "train")
    assert abs(line["kl"]) < 1e-6, "the reference is the adapter that it starts from, not the model below"
    load_model(tmp_path / "again" / "adapter")
    with pytest.raises(UserError, match=r"lora_r: is 8, but the adapter .* has 4"):
        run("other", model=str(adapter), lora_r=8)
    with pytest.raises(UserError, match="backend: the server reloads whole models, not adapters"):
        run("served", model=str(adapter), backend="openai", base_url="http://127.0.0.1:1/v1")
