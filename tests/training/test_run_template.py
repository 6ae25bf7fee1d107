"""The template that a run began with is kept: for its resumption, and in the tokenizer and model that it saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rectune.config import load_config
from rectune.data.chat_template import choose_template
from rectune.data.schema import Turn
from rectune.data.tokenization import prompt_ids
from rectune.training.trainer import train
from toys import CHATML, byte_tokenizer, stop_clock, tiny_model
from training_runs import weights

CASES = Path(__file__).resolve().parents[1] / "cases"
OWN = CASES / "40-own-template-not-kept/my.jinja"
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}" + CHATML
QUESTION = [{"role": "user", "content": "say 3"}]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., str]:
    def save(**settings: Any) -> str:
        tiny_model().save_pretrained(tmp_path / "base")
        byte_tokenizer(**settings).save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return save


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("name", "chat_template", "bos"),
    [
        (str(OWN), CHATML, False), ("auto", None, False), ("auto", None, True), ("none", CHATML, True),
        ("auto", CHATML, False),
    ],
)  # fmt: skip
def test_the_saved_tokenizer_asks_as_training_did(
    run: Any, model: Any, name: str, chat_template: str | None, bos: bool, rank: int
) -> None:
    """hiyouga/LlamaFactory#7785: the saved model asked with another template than it was trained with."""
    base = model(chat_template=chat_template, bos=bos)
    data = str(CASES / "40-own-template-not-kept/rows.jsonl")
    lora = {"lora_r": rank, "merge_adapter": True} if rank else {}
    out = Path(run(model=base, data=data, chat_template=name, max_steps=1, **lora).out)
    tokenizer = AutoTokenizer.from_pretrained(base)
    trained = prompt_ids((Turn("user", "say 3"),), tokenizer, choose_template(name, tokenizer))
    for saved in [out / "model", *[out / "adapter"] * bool(rank)]:
        loaded = AutoTokenizer.from_pretrained(saved)
        asked = loaded.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
        assert asked == trained
        assert prompt_ids((Turn("user", "say 3"),), loaded, choose_template("auto", loaded)) == trained
    assert (out / "template.jinja").is_file() is (name != "none")


def test_the_saved_model_stops_at_the_turn_end(run: Any, tmp_path: Path) -> None:
    base = tiny_model()
    base.generation_config.eos_token_id = 0
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    out = run(model=str(tmp_path / "base"), max_steps=1).out
    saved = AutoModelForCausalLM.from_pretrained(f"{out}/model")
    assert saved.generation_config.eos_token_id == [0, 2]


def test_named_templates_keep_their_names(run: Any, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "own": OWN.read_text()}
    tiny_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    out = run(model=str(tmp_path / "base"), chat_template="own", max_steps=1).out
    saved = AutoTokenizer.from_pretrained(f"{out}/model").chat_template
    assert saved == {"rag": CHATML, "own": OWN.read_text(), "default": OWN.read_text()}


def test_a_run_keeps_the_day_that_it_began(
    toy: Any, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sgl-project/sglang#3296: resumed on the next day with another cache, the rows were called others."""
    base, data = model(chat_template=DATED), str(CASES / "23-date-template/rows.jsonl")
    settings = {**toy, "model": base, "data": data, "max_length": 128, "drift_rows": 2}
    whole = load_config(None, {**settings, "output_dir": tmp_path / "whole"})
    parts = load_config(None, {**settings, "output_dir": tmp_path / "parts"})
    stop_clock(monkeypatch, date(2027, 1, 1))
    train(whole)
    train(parts, until=3)
    stop_clock(monkeypatch, date(2027, 1, 2))
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    train(parts, resume=True)
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = (tmp_path / "parts/template.jinja").read_text()
    assert kept.startswith("{#- the clock stands at 2027-01-01 -#}")
    assert AutoTokenizer.from_pretrained(tmp_path / "parts/model").chat_template == DATED


def test_another_day_is_another_entry_of_the_cache(
    toy: Any, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = model(chat_template=DATED), str(CASES / "23-date-template/rows.jsonl")
    prompts = []
    for day in (1, 2):
        stop_clock(monkeypatch, date(2027, 1, day))
        out = tmp_path / str(day)
        train(
            load_config(
                None,
                {**toy, "model": base, "data": data, "max_length": 128, "output_dir": out, "max_steps": 1},
            )
        )
        prompts.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0]))
    assert prompts[0]["nll"] != prompts[1]["nll"]


def test_a_file_that_changes_later_does_not_change_the_run(run: Any, toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(OWN.read_text())
    train(load_config(None, {**toy, "output_dir": tmp_path / "run", "chat_template": str(path)}), until=2)
    path.write_text(CHATML)
    assert run(resume=True, chat_template=str(path)).steps == 6


def test_training_on_from_a_run_keeps_its_prompt(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Path(run("first", system_prompt="Be brief.", chat_template=str(OWN)).out)
    with caplog.at_level("INFO", "rectune"):
        second = Path(run("second", model=str(first)).out)
    rows = json.loads((second / "config.json").read_text())
    assert (rows["system_prompt"], rows["chat_template"]) == ("Be brief.", str(first / "template.jinja"))
    assert f"system_prompt: Be brief., as {first} was trained" in caplog.text
    assert (second / "template.jinja").read_text() == (first / "template.jinja").read_text()
    third = Path(run("third", model=str(first / "model"), system_prompt="", chat_template="auto").out)
    assert json.loads((third / "config.json").read_text())["system_prompt"] == ""
