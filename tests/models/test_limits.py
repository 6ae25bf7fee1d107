"""Token ids and positions that a model does not have: one line, or a cut that is counted; never an IndexError."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AddedToken

from rectune.config import DiagnoseConfig, TrainConfig, load_config
from rectune.data.loading import read_problems
from rectune.data.packing import collate
from rectune.data.tokenization import Encoded
from rectune.diagnosis.diagnose import diagnose
from rectune.errors import UserError
from rectune.models.limits import positions
from rectune.models.load import load_model
from rectune.models.scorer import Scorer
from rectune.sampling.hf.engine import HFEngine, SamplingParams
from rectune.sampling.sample import sample
from rectune.sampling.types import Request
from rectune.training.dry_run import plan
from rectune.training.trainer import train
from toys import byte_tokenizer, save_toy, tiny_model

CASE = Path(__file__).parents[1] / "cases" / "17-tokenizer-larger" / "rows.jsonl"


@pytest.fixture
def larger(tmp_path: Path) -> str:
    """A model of 272 embeddings whose tokenizer has 286 tokens, as after add_tokens without a resize."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(f"<|x{i}|>") for i in range(20)])
    return save_toy(tmp_path / "larger", tokenizer=tokenizer)


def config(tmp_path: Path, model: str, data: Path, **settings: Any) -> TrainConfig:
    short = {"max_steps": 1, "eval_split_size": 0, "dtype": "float32", "output_dir": str(tmp_path / "run")}
    return load_config(None, {"model": model, "data": str(data), **short, **settings})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_token_without_an_embedding_is_named_with_its_row(tmp_path: Path, larger: str) -> None:
    """huggingface/tokenizers#1609"""
    lines = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    lines.write_text(lines.read_text() + CASE.read_text())
    message = r"rows.jsonl:4: token id 285 \('<\|x19\|>'\) has no embedding: "
    message += "the tokenizer has 286 tokens, the model 272"
    with pytest.raises(UserError, match=message):
        train(config(tmp_path, larger, lines))
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(UserError, match=message):
        plan(config(tmp_path, larger, lines))
    with pytest.raises(UserError, match=message):
        diagnose(DiagnoseConfig(model=larger, data=str(lines), output_dir=tmp_path / "diagnosis"))


def test_tokens_that_no_row_has_are_a_warning(
    tmp_path: Path, larger: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    with caplog.at_level(logging.WARNING, "rectune"):
        train(config(tmp_path, larger, data))
    words = "'<|x6|>', '<|x7|>', '<|x8|>' and 11 more"
    said = (
        f"the tokenizer has 286 tokens, the model 272 embeddings: rows and prompts with {words} are refused"
    )
    assert said in caplog.text
    caplog.clear()
    tiny_model(vocab_size=320).save_pretrained(larger)  # the usual case: rows to spare
    with caplog.at_level(logging.WARNING, "rectune"):
        load_model(larger)
    assert not caplog.text


def test_a_prompt_with_such_a_token_is_refused(tmp_path: Path, larger: str) -> None:
    lines = [{"question": "1+1?", "answer": "2"}, {"question": "say <|x19|>", "answer": "2"}]
    problems = read_problems(write(tmp_path / "p.jsonl", lines))
    with pytest.raises(UserError, match=r"p.jsonl:2: token id 285 \('<\|x19\|>'\) has no embedding"):
        sample(larger, problems, out=tmp_path / "samples.jsonl", num_samples=1)
    engine = HFEngine(tiny_model(), byte_tokenizer())
    with pytest.raises(UserError, match="problem 'p': token id 300"):
        next(engine.complete([Request("p", 0, (5, 300))], SamplingParams()))


@pytest.mark.parametrize("token", [272, 10_000, -1])
def test_a_batch_with_other_ids_than_the_models(token: int) -> None:
    row = Encoded([5, token, 6], [-100, -100, 6], [False] * 3)
    with pytest.raises(UserError, match=f"token id {token} has no embedding: the model has 272"):
        Scorer(tiny_model()).columns(collate([row]))


def test_a_batch_on_another_device_than_the_model() -> None:
    row = Encoded([5, 6], [-100, 6], [False] * 2)
    with pytest.raises(UserError, match="the rows are on meta, the model on cpu"):
        Scorer(tiny_model()).hidden(collate([row], "meta"))


# --- Positions ------------------------------------------------------------------------------------------


def of_kind(folder: Path, kind: str) -> str:
    """A model of 64 positions, learned or (llama) rotary."""
    shape: dict[str, Any] = {"vocab_size": 272, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        return save_toy(folder, max_position_embeddings=64)
    if kind == "gpt2":
        made = transformers.GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=4, **shape)
    else:
        made = transformers.OPTConfig(
            hidden_size=32, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64,
            num_hidden_layers=2, num_attention_heads=4, **shape,
        )  # fmt: skip
    return save_toy(folder, transformers.AutoModelForCausalLM.from_config(made))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_rows_beyond_the_models_positions_are_cut_and_counted(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = of_kind(tmp_path / "model", kind)
    rows = [{"prompt": "a", "completion": "b" * n} for n in (5, 300, 8, 70)]
    data = write(tmp_path / "rows.jsonl", [*rows, {"prompt": "c" * 200, "completion": "d"}])
    with caplog.at_level(logging.WARNING, "rectune"):
        result = train(config(tmp_path, model, data))
    assert (
        "3 rows are cut at the model's 64 positions (max_position_embeddings), below max_length = 2048"
        in (caplog.text.replace("2,048", "2048"))
    )
    assert result.after is not None
    decided = json.loads((tmp_path / "run" / "config.json").read_text())["decided"]
    assert decided["max_length"] == 64
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rectune"):
        diagnose(
            DiagnoseConfig(model=model, data=str(data), output_dir=tmp_path / "diagnosis", gradients=False)
        )
    assert "3 rows are cut at the model's 64 positions" in caplog.text
    caplog.clear()
    short = write(tmp_path / "short.jsonl", rows[:1])
    with caplog.at_level(logging.WARNING, "rectune"):
        train(config(tmp_path, model, short, output_dir=str(tmp_path / "other")))
    assert "positions" not in caplog.text


def test_positions_that_leave_no_target_are_said_to(tmp_path: Path) -> None:
    save_toy(tmp_path / "model", max_position_embeddings=4)
    data = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match="model: no row has a target within the 4 positions of the model"):
        train(config(tmp_path, str(tmp_path / "model"), data))
    with pytest.raises(UserError, match="max_length: no row has a target within its first 3 tokens"):
        train(config(tmp_path, str(tmp_path / "model"), data, max_length=3))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_row_beyond_learned_positions_is_refused_by_the_scorer(tmp_path: Path, kind: str) -> None:
    model, _ = load_model(of_kind(tmp_path / "model", kind))
    row = Encoded([5] * 65, [-100, *[5] * 64], [False] * 65)
    with pytest.raises(UserError, match="a row of 65 tokens does not fit the model's 64 positions"):
        Scorer(model).columns(collate([row]))
    fits = Encoded(row.input_ids[1:], [-100, *row.labels[2:]], row.structural[1:])
    assert len(Scorer(model).columns(collate([fits, fits]))["logp"]) == 126


def test_dynamic_scaling_counts_the_length_that_it_scales_to() -> None:
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert positions(tiny_model(max_position_embeddings=16, rope_parameters=scaled)) == 64
    assert positions(tiny_model(max_position_embeddings=16)) == 16
