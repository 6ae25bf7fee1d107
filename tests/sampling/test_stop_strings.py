"""Stop texts: where answers end, with whichever engine, tokens and batches; case 43."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.data.chat_template import choose_template
from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.models.folder import find_folder
from rectune.models.load import fingerprint_of_files
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.sample import sample
from rectune.sampling.types import (
    Completion,
    EngineSpec,
    Request,
    SamplingParams,
    cut,
    finish_reason,
    stopped_by,
    template_stops,
)
from toys import byte_tokenizer, complete, save_toy, tiny_model

REQUEST = Request("p", 0, (1,))
ALPACA = """\
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else %}{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""


def merging_tokenizer() -> Any:
    """A byte-level tokenizer with merges, so that texts end inside tokens."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(find_folder("smollm2-135m"))


def test_the_template_itself_says_what_a_model_that_runs_on_writes(tmp_path: Path) -> None:
    plain = byte_tokenizer(chat_template=None)
    assert template_stops(plain, choose_template("auto", plain)) == ("\nUser:",)
    chat = byte_tokenizer()  # its turns end with special tokens, which stop by themselves
    assert template_stops(chat, choose_template("auto", chat)) == ()
    assert template_stops(chat, choose_template("none", chat)) == ()
    (tmp_path / "alpaca.jinja").write_text(ALPACA)
    assert template_stops(chat, choose_template(str(tmp_path / "alpaca.jinja"), chat)) == (
        "\n### Instruction:",
    )


@pytest.mark.parametrize(("text", "stop", "kept"), [
    ("The answer is 42.\n\nUser: What is 6 plus 7?\n\nAssistant: 13", ["\nUser:"], "The answer is 42.\n"),
    ("So 42.\n\nQuestion: Find x.\nAnswer: 13", ["User:", "\n\nQuestion:"], "So 42."),
    ("one two three", ["thr", "wo"], "one t"),  # the first in the text, inside a token
    ("naïve 😀 café stop here", ["afé"], "naïve 😀 c"),
    ("😀😀😀", ["😀"], ""),
    ("nothing of the kind", ["User:"], None),
    ("User: again", ["User:"], ""),
])  # fmt: skip
def test_text_tokens_and_logprobs_are_cut_at_the_same_place(
    text: str, stop: list[str], kept: str | None
) -> None:
    tokenizer = merging_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    whole = Completion(REQUEST, ids, [-float(i) for i in range(len(ids))], text, "length")
    found = cut(whole, tokenizer, stop)
    if kept is None:
        assert found is whole
        return
    assert (found.text, found.finish_reason) == (kept, "stop")
    count = len(found.token_ids)
    assert found.token_ids == ids[:count]
    assert found.logprobs == whole.logprobs[:count]
    assert tokenizer.decode(ids[:count]).startswith(kept)
    assert count == 0 or len(tokenizer.decode(ids[: count - 1]).rstrip("\ufffd")) < len(kept)
    assert [n for n in range(1, len(ids) + 1) if stopped_by(tokenizer, ids[:n], stop)][:1] == [
        next(n for n in range(1, len(ids) + 1) if any(s in tokenizer.decode(ids[:n]) for s in stop))
    ]  # seen at the first token with which it is complete


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_local_engine_stops_where_a_longer_answer_has_the_text(batch_size: int) -> None:
    tokenizer, model = byte_tokenizer(), tiny_model()
    requests = [
        Request(f"p{i}", k, tuple(tokenizer(f"What is {i}?").input_ids)) for i in range(4) for k in range(2)
    ]
    engine = HFEngine(model, tokenizer, batch_size=batch_size)
    whole = complete(engine, requests, SamplingParams(max_new_tokens=60, seed=7))
    stop = tuple({one.text[10 * i : 10 * i + 2] for i, one in enumerate(list(whole.values())[:3])})
    found = complete(engine, requests, SamplingParams(max_new_tokens=60, seed=7, stop=stop))
    assert found == {key: cut(one, tokenizer, stop) for key, one in whole.items()}
    assert sum(found[key] != whole[key] for key in found) >= 3
    assert not any(text in one.text for one in found.values() for text in stop)


def test_a_stop_text_that_is_a_special_token_stops_by_its_id() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model()
    requests = [Request("p", k, tuple(tokenizer("Hi").input_ids)) for k in range(30)]
    start, engine = tokenizer.convert_tokens_to_ids("<|im_start|>"), HFEngine(model, tokenizer)
    free, stopped = (
        complete(engine, requests, SamplingParams(max_new_tokens=60, stop=stop)).values()
        for stop in ((), ("<|im_start|>",))
    )
    assert any(start in answer.token_ids[:-1] for answer in free)
    assert not any(start in answer.token_ids[:-1] for answer in stopped)
    ended = [answer for answer in stopped if answer.token_ids[-1] == start]
    assert ended and all(answer.finish_reason == "stop" for answer in ended)


def test_stop_texts_are_in_the_file_and_others_are_refused_on_resume(tmp_path: Path) -> None:
    engine = HFEngine(tiny_model(), byte_tokenizer(chat_template=None))
    problems = [Problem("p", (Turn("user", "What is 1?"),), "1")]
    out = tmp_path / "s.jsonl"

    def resumed(num_samples: int, *stop: str) -> None:
        params = SamplingParams(max_new_tokens=5, stop=stop)
        sample("m", problems, out=out, engine=engine, num_samples=num_samples, params=params)

    resumed(1, "Q:")
    assert json.loads(out.read_text())["stop"] == ["Q:", "\nUser:"]
    resumed(2, "Q:", "Q:")
    other = r"s.jsonl:1: was sampled with stop = \['Q:', '\\nUser:'\], now \['\\nUser:'\]"
    with pytest.raises(UserError, match=other):
        resumed(3)
    old = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "stop"}) + "\n" for line in old))
    with pytest.raises(UserError, match=r"was sampled with stop = \[\]"):
        resumed(2, "Q:")


def test_every_verb_that_samples_takes_stop_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import rectune.evaluation.evaluate
    import rectune.experiments.compare
    import rectune.experiments.rft
    import rectune.rl.rl_trainer
    import rectune.sampling.sample
    from rectune.cli.app import main

    class Asked(Exception):
        pass

    def asked(*args: Any, **settings: Any) -> None:
        params = settings.get("params", args[0])
        raise Asked(settings.get("stop") or getattr(params, "stop", None))

    problems = tmp_path / "p.jsonl"
    problems.write_text('{"prompt": "1?", "answer": "1"}\n')
    monkeypatch.setattr(rectune.sampling.sample, "sample", asked)
    monkeypatch.setattr(rectune.evaluation.evaluate, "evaluate", asked)
    for module, name in (
        (rectune.experiments.compare, "compare"), (rectune.experiments.rft, "plan"), (rectune.rl.rl_trainer, "dry_run"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, asked)
    given = ["--stop", r"\nUser:", "--stop", "a, b"]
    out = ["--output-dir", str(tmp_path / "out")]
    for line in (
        ["sample", "--model", "m", "--problems", str(problems), "--output", *out[1:], *given],
        ["eval", "--model", "m", *out, *given],
        ["compare", "--data", "d", *out, *given],
        ["rft", "--problems", "p", *out, "--dry-run", *given],
        ["rl", "--problems", "p", *out, "--dry-run", *given],
    ):
        with pytest.raises(Asked) as found:
            main(line)
        assert found.value.args == (("\nUser:", "a, b"),), line


VLLM = """
CALLS = []
class SamplingParams:
    def __init__(self, **settings): self.settings = settings
class LLM:
    def __init__(self, **settings): CALLS.append(settings)
    def get_tokenizer(self):
        from toys import byte_tokenizer
        return byte_tokenizer(chat_template=None)
    def generate(self, prompts, params):
        from types import SimpleNamespace as N
        CALLS.extend(p.settings for p in params)
        ids = self.get_tokenizer()("42\\n\\nUser: more").input_ids
        steps = [{i: N(logprob=-1.0)} for i in ids]
        return [N(outputs=[N(token_ids=ids, logprobs=steps, finish_reason="stop")]) for _ in prompts]
"""


def test_vllm_in_this_process_is_given_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with vLLM's names takes what the engine passes on; vLLM itself needs a GPU."""
    import sys

    (tmp_path / "vllm.py").write_text(VLLM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    problems = [Problem("p", (Turn("user", "6 * 7?"),), "42")]
    out = sample("m", problems, out=tmp_path / "s.jsonl", num_samples=1, engine=EngineSpec("vllm"))
    loaded, settings = sys.modules.pop("vllm").CALLS  # monkeypatch.delitem would put it back afterwards
    assert loaded["generation_config"] == "vllm"
    neutral = {
        "n": 1, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "ignore_eos": False, "skip_special_tokens": True, "stop": ["\nUser:"],
    }  # fmt: skip
    assert {name: settings.get(name) for name in neutral} == neutral
    line = json.loads(out.read_text())
    assert (line["text"], line["finish_reason"], len(line["token_ids"])) == ("42\n", "stop", 3)


@pytest.mark.parametrize(
    ("reported", "kept"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("repetition", "length"),
        (None, "stop"),
        ("abort", ""),
        ("error", ""),
    ],
)
def test_what_an_engine_gave_up_is_no_answer(reported: str | None, kept: str) -> None:
    request = Request("p", 3, (1, 2))
    if kept:
        assert finish_reason(reported, request, "vllm") == kept
    else:
        with pytest.raises(UserError, match=f"vllm: sample 3 of p ended with '{reported}'"):
            finish_reason(reported, request, "vllm")


def test_weights_on_disk_are_told_from_others_of_the_same_name(tmp_path: Path) -> None:
    first = save_toy(tmp_path / "model")
    (tmp_path / "copy").mkdir()
    for file in (tmp_path / "model").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    before = fingerprint_of_files(first)
    assert before and before == fingerprint_of_files(str(tmp_path / "copy"))
    assert save_toy(tmp_path / "model", seed=1) == first
    assert fingerprint_of_files(first) not in (None, before)
    assert fingerprint_of_files("no-such/model") is None


def test_the_local_engine_reads_no_sampling_setting_of_a_generation_config() -> None:
    tokenizer = byte_tokenizer()
    request = [Request("p", k, tuple(tokenizer("What is 1?").input_ids)) for k in range(3)]
    plain, changed = tiny_model(), tiny_model()
    changed.generation_config.update(
        do_sample=True,
        temperature=0.1,
        top_k=1,
        top_p=0.1,
        repetition_penalty=5.0,
        min_p=0.5,
        max_new_tokens=2,
    )
    texts = [
        [c.token_ids for c in HFEngine(model, tokenizer).complete(request, SamplingParams(max_new_tokens=30))]
        for model in (plain, changed)
    ]
    assert texts[0] == texts[1]
