"""A run, its model and its adapter are asked as they were trained: template, system message, date, and what is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from evaluations import run_eval
from rectune.cli.app import app
from rectune.config import MergeConfig, load_config
from rectune.data.trained_prompt import run_prompt
from rectune.evaluation.prompts import warn_of_mismatches
from rectune.models.merge import merge
from rectune.reporting.report import report
from rectune.training.trainer import train
from toys import CHATML, byte_tokenizer, stop_clock, tiny_model

CASES = Path(__file__).resolve().parents[1] / "cases"
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}" + CHATML
SHORT = {"num_samples": 1, "max_new_tokens": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    def start(case: str, *, tokenizer_template: str = CHATML, **settings: Any) -> Path:
        tiny_model().save_pretrained(tmp_path / "base")
        byte_tokenizer(chat_template=tokenizer_template).save_pretrained(tmp_path / "base")
        named = {key.replace("__", "."): value for key, value in settings.items()}
        given = {
            "model": str(tmp_path / "base"), "data": str(CASES / case / "rows.jsonl"), "output_dir": tmp_path / "run",
            "max_steps": 1, "batch_size": 2, "dtype": "float32", "drift_rows": 0, "max_length": 128, **named,
        }  # fmt: skip
        train(load_config(None, given))
        return tmp_path / "run"

    return start


def prompt(file: Path) -> str:
    return str(json.loads(file.read_text("utf-8").splitlines()[0])["prompt"])


def run_sample(model: Path, problems: Path, out: Path, *more: str) -> str:
    short = ("-n", "1", "--max-new-tokens", "2", "--dtype", "float32")
    app(
        ["sample", "--model", str(model), "--problems", str(problems), "--output", str(out), *short, *more],
        result_action="return_value",
    )
    return prompt(out)


@pytest.mark.parametrize("inside", ["", "adapter", "at-0.5"])
def test_an_adapter_is_evaluated_as_it_was_trained(
    trained: Any, tmp_path: Path, inside: str, caplog: pytest.LogCaptureFixture
) -> None:
    """unslothai/unsloth#1670: a finished LoRA run without a merged model."""
    case = "39-lora-run-eval"
    run = trained(case, lora_r=2, system_prompt="Be brief.")
    problems = CASES / case / "p.jsonl"
    model = run / inside
    if inside == "at-0.5":  # merged
        (model,) = merge(MergeConfig(tuned=(str(run),), at=(0.5,), output_dir=tmp_path / "merged"))
    result = run_eval(str(model), tmp_path / "eval", problems, dtype="float32", **SHORT)
    assert result.training_run == str(run)
    assert (result.merge.at if result.merge else None) == (0.5 if inside == "at-0.5" else None)
    page = report([run, tmp_path / "eval"], out=None)
    evaluated = [arm.label for arm in page.arms if arm.evaluations]
    assert evaluated == (["dft at 0.5"] if inside == "at-0.5" else ["dft"])
    assert result.protocol.system == "Be brief."
    [warning] = result.warnings
    assert (
        warning
        == "the prompt of p is '{question}', that of the training rows 'Question: {question}\\nCalculation:'"
    )
    asked = prompt(tmp_path / "eval/samples.jsonl")
    assert asked.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    caplog.set_level(logging.WARNING, "rectune")
    assert run_sample(model, problems, tmp_path / "samples.jsonl") == asked
    assert "PROMPT MISMATCH: " + warning.replace("p asks", f"{problems} asks") in caplog.messages


def test_the_template_that_a_run_kept_is_no_other_template(trained: Any) -> None:
    run = run_prompt(str(trained("39-lora-run-eval", lora_r=2)))
    assert run is not None and run.template != run.rows.chat_template
    for template, said in ((run.template, False), (run.rows.chat_template, False), ("none", True)):
        warnings = warn_of_mismatches(run, {}, run.rows.system_prompt, template)
        assert any(warning.startswith("trained with template") for warning in warnings) == said


def test_a_run_without_a_model_says_so(trained: Any, tmp_path: Path) -> None:
    run = trained("39-lora-run-eval", lora_r=2)
    (run / "adapter").rename(tmp_path / "gone")
    from rectune.errors import UserError

    with pytest.raises(UserError, match="the run has no model yet; finish training first"):
        run_eval(str(run), tmp_path / "eval", CASES / "39-lora-run-eval/p.jsonl", **SHORT)


@pytest.mark.parametrize("inside", ["", "model"])
def test_sampling_asks_with_the_template_of_the_run(trained: Any, tmp_path: Path, inside: str) -> None:
    """hiyouga/LlamaFactory#5904: trained with a template of one's own, sampled with another."""
    case = CASES / "40-own-template-not-kept"
    own = tmp_path / "my.jinja"
    own.write_text((case / "my.jinja").read_text())
    run = trained(case.name, chat_template=str(own))
    own.unlink()  # the run has it
    asked = run_sample(run / inside, case / "p.jsonl", tmp_path / "samples.jsonl")
    assert asked == "<|im_start|>[user] say 3<|im_end|><|im_start|>[assistant] "
    run_eval(
        str(run / inside),
        tmp_path / "eval",
        case / "p.jsonl",
        dtype="float32",
        **SHORT,
    )
    assert prompt(tmp_path / "eval/samples.jsonl") == asked
    other = run_sample(run / inside, case / "p.jsonl", tmp_path / "other.jsonl", "--chat-template", "none")
    assert other == "say 3"


def test_a_run_is_evaluated_on_the_day_that_it_began(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES / "23-date-template"
    stop_clock(monkeypatch, date(2027, 1, 1))
    run = trained(case.name, tokenizer_template=DATED)
    stop_clock(monkeypatch, date(2027, 1, 3))
    asked = run_sample(run / "model", case / "p.jsonl", tmp_path / "samples.jsonl")
    assert asked.startswith("Today: 01 Jan 2027\n")
    result = run_eval(str(run), tmp_path / "eval", case / "p.jsonl", dtype="float32", **SHORT)
    assert prompt(tmp_path / "eval/samples.jsonl") == asked
    assert (result.protocol.template, result.protocol.date) == ("auto", "2027-01-01")
    assert result.warnings == []


def test_an_evaluation_that_goes_on_keeps_its_day(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES / "23-date-template"
    stop_clock(monkeypatch, date(2027, 1, 1))
    trained(case.name, tokenizer_template=DATED)
    base = str(tmp_path / "base")
    run_eval(base, tmp_path / "eval", case / "p.jsonl", dtype="float32", **SHORT)
    stop_clock(monkeypatch, date(2027, 1, 2))
    more = {**SHORT, "num_samples": 2}
    result = run_eval(base, tmp_path / "eval", case / "p.jsonl", dtype="float32", **more)
    assert result.protocol.date == "2027-01-01"
    caplog.set_level(logging.WARNING, "rectune")
    assert run_sample(Path(base), case / "p.jsonl", tmp_path / "s.jsonl").startswith("Today: 02 Jan 2027\n")
    assert any(
        message.startswith("3 of 3 problems are written with today's date") for message in caplog.messages
    )
