"""`evaluate` from problems to evaluation.json, with scripted answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from evaluations import run_eval, write
from rectune.cli.app import main
from rectune.data.chat_template import choose_template
from rectune.errors import UserError
from rectune.evaluation.accuracy import read_evaluation, verdict_matrix
from rectune.evaluation.evaluate import table
from rectune.sampling.types import Completion, Request, SamplingParams
from toys import byte_tokenizer


class Script:
    """An engine that answers with `says(problem_id, sample_index)`; "(cut)" in it means the token limit."""

    name, model_name = "script", "scripted"

    def __init__(
        self, says: Callable[[str, int], str], *, fingerprint: str = "f", template: str = "auto"
    ) -> None:
        self.says, self.fingerprint, self.drawn = says, fingerprint, 0
        self.tokenizer = byte_tokenizer()
        self.template = choose_template(template, self.tokenizer)

    def complete(self, requests: Iterable[Request], settings: SamplingParams) -> Iterator[Completion]:
        for request in requests:
            text = self.says(request.problem_id, request.sample_index)
            reason = "length" if "(cut)" in text else "stop"
            ids = self.tokenizer(text).input_ids
            self.drawn += 1
            yield Completion(request, ids, [0.0] * len(ids), text, reason)


@pytest.fixture
def sums(tmp_path):
    """24 sums; the answer to sum i is i."""
    return write(
        tmp_path / "sums.jsonl",
        *({"prompt": f"{i} + 0?", "answer": str(i), "problem_id": str(i)} for i in range(24)),
    )


def often(problem_id: str, index: int) -> str:
    """Right on even problems, and on the first sample of odd ones."""
    i = int(problem_id.split("/")[1])
    return f"So it is \\boxed{{{i if i % 2 == 0 or index == 0 else 99}}}."


def two(problem_id: str, index: int) -> str:
    return "2"


def test_an_evaluation_holds_protocol_and_numbers(tmp_path, sums):
    out = tmp_path / "out"
    result = run_eval("scripted", out, sums, num_samples=4, max_new_tokens=64, engine=Script(often))
    assert read_evaluation(out) == result
    numbers = result.benchmarks["sums"]
    assert numbers.avg.mean == pytest.approx((12 + 3) / 24)
    assert numbers.pass_at["4"].mean == 1
    assert numbers.maj_at["4"].mean == pytest.approx(0.5)
    assert numbers.verdicts["correct"] == 60
    assert numbers.stopped == 1
    assert numbers.first_prompt.startswith("<|im_start|>user\n0 + 0?<|im_end|>")
    assert numbers.problem_ids[:2] == ["sums/0", "sums/1"]
    expected = {"n": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64, "seed": 0, "shots": 0,
                "template": "auto", "system": None, "engine": "script"}  # fmt: skip
    assert expected.items() <= result.protocol.to_dict().items()
    assert {"rectune", "torch", "math-verify", "python"} <= set(result.versions)
    assert (result.fingerprint, result.warnings, result.overlap) == ("f", [], None)
    (row,) = table(result)
    assert (row["benchmark"], row["problems"]) == ("sums", "24")
    assert row["avg@4"].startswith("62.5 [")
    ids, correct = verdict_matrix(out, "sums")
    assert np.array_equal(correct[:2], [[1, 1, 1, 1], [1, 0, 0, 0]])
    assert ids == numbers.problem_ids


def test_defaults_are_the_papers_protocol(tmp_path):
    records = [{"question": "1+1?", "answer": "#### 2"}, {"question": "2?", "answer": "#### 2"}]
    write(tmp_path / "gsm8k.jsonl", *records)
    result = run_eval("scripted", tmp_path / "o", "gsm8k", include_path=tmp_path, engine=Script(two))
    protocol = result.protocol
    assert (protocol.n, protocol.temperature, protocol.max_new_tokens) == (16, 1.0, 4096)
    numbers = result.benchmarks["gsm8k"]
    instruction = "Please reason step by step, and put your final answer within \\boxed{}."
    assert instruction in numbers.first_prompt
    assert numbers.licence == "MIT"
    assert list(numbers.pass_at) == ["1", "2", "4", "8", "16"]


def test_resuming_samples_only_what_is_missing(tmp_path, sums):
    out, first = tmp_path / "out", Script(often)
    twice = run_eval("scripted", out, sums, num_samples=2, engine=first, max_new_tokens=64)
    samples = out / "samples.jsonl"
    whole = samples.read_text()
    samples.write_text(whole[: len(whole) - 40])  # killed in the middle of a line
    (out / "graded.jsonl").unlink()
    again, more = Script(often), Script(often)
    assert run_eval("scripted", out, sums, num_samples=2, engine=again, max_new_tokens=64) == twice
    assert (first.drawn, again.drawn) == (48, 1)
    assert samples.read_text() == whole
    result = run_eval("scripted", out, sums, num_samples=4, engine=more, max_new_tokens=64)
    assert (result.benchmarks["sums"].samples, more.drawn) == (96, 48)
    fewer = run_eval("scripted", out, sums, num_samples=2, engine=more, max_new_tokens=64, limit=5)
    assert fewer.benchmarks["sums"].samples == 10
    with pytest.raises(UserError, match="another model"):
        run_eval("s", out, sums, num_samples=2, engine=Script(often, fingerprint="g"), max_new_tokens=64)


def test_calculations_show_their_shape(tmp_path):
    problems = ({"prompt": f"{i}?", "answer": "6", "grader": "expression"} for i in range(4))
    file = write(tmp_path / "calc.jsonl", *problems)
    words = ["2 + 4", "6", "(1 + 1) * 3", "no idea"]
    script = Script(lambda p, i: words[int(p.split("/")[1]) - 1])
    numbers = run_eval("s", tmp_path / "o", file, num_samples=1, engine=script).benchmarks["calc"]
    assert numbers.operations == {"0": 1, "1": 1, "2": 1, "none": 1}
    assert numbers.verdicts["unparsed"] == 1


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that trained on `Question: ...` with template none."""
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    rows = ({"prompt": f"Question: {i * i} apples?\nCalculation: ", "completion": "1"} for i in range(30))
    data = write(tmp_path / "rows.jsonl", *rows)
    (tmp_path / "run" / "model").mkdir(parents=True)
    config = {"data": str(data), "objective": "dft", "chat_template": "none"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    write(tmp_path / "gsm8k.jsonl", {"question": "How many?", "answer": "#### 2"})
    return tmp_path / "run"


def test_a_run_is_asked_as_it_was_trained(tmp_path, run):
    script = Script(two, template="none")
    result = run_eval(run, tmp_path / "o", "gsm8k", include_path=tmp_path, num_samples=1, engine=script)
    assert result.benchmarks["gsm8k"].first_prompt == "Question: How many?\nCalculation: "
    assert (result.protocol.template, result.training_run, result.warnings) == ("none", str(run), [])


def test_prompts_that_differ_from_training_are_a_loud_warning(tmp_path, run, caplog):
    own = {"prompt": "{question} Box it.", "chat_template": "auto", "system_prompt": "Hi"}
    script = Script(two)
    result = run_eval(
        run, tmp_path / "o", "gsm8k", include_path=tmp_path, num_samples=1, engine=script, **own
    )
    assert len(result.warnings) == 3
    assert "trained with template none, evaluated with auto" in result.warnings[0]
    assert "'Hi'" in result.warnings[1]
    assert "'{question} Box it.'" in result.warnings[2]
    assert sum("PROMPT MISMATCH" in record.message for record in caplog.records) == 3


@pytest.mark.parametrize(
    ("prompt", "warnings"), [("Question: {i} pears?\nCalculation: ", 0), ("Q: {i} pears?\nA: ", 1)]
)
def test_problems_that_bring_their_prompt_are_compared_with_training(tmp_path, run, prompt, warnings):
    problems = ({"prompt": prompt.replace("{i}", str(7 * i)), "answer": "1"} for i in range(25))
    file = write(tmp_path / "own.jsonl", *problems)
    script = Script(two, template="none")
    result = run_eval(run, tmp_path / "o", file, num_samples=1, engine=script)
    assert len(result.warnings) == warnings


def test_overlap_with_the_training_rows_is_listed(tmp_path):
    long = "A farmer has 12 hens and each hen lays 3 eggs a day, how many eggs in a week of seven days?"
    rows = write(
        tmp_path / "train.jsonl", {"prompt": "a?", "completion": "1"}, {"prompt": long, "completion": "1"}
    )
    write(tmp_path / "gsm8k.jsonl", {"question": long, "answer": "#### 252"},
          {"question": "Please reason step by step?", "answer": "#### 1"})  # fmt: skip
    result = run_eval("s", tmp_path / "o", "gsm8k", include_path=tmp_path, num_samples=1,
                      check_overlap=str(rows), engine=Script(two))  # fmt: skip
    assert result.overlap.problems == 2
    (found,) = result.overlap.found
    assert (found.problem_id, found.where) == ("gsm8k/0", f"{rows}:2")


def test_mistakes_are_one_clear_line(tmp_path, sums):
    for tasks, said in (
        ([], "nothing to evaluate on"),
        (["gsm9"], "unknown task or file 'gsm9'"),
        ([sums, sums], "two tasks named 'sums'"),
    ):
        with pytest.raises(UserError, match=said):
            run_eval("m", tmp_path / "o", *tasks)
    with pytest.raises(UserError, match=r"no evaluation\.json"):
        read_evaluation(tmp_path)
    assert not (tmp_path / "o" / "evaluation.json").exists()
    assert main(["eval", "--model", "m", "--tasks", str(sums), "--output-dir", str(tmp_path), "-n", "0"]) == 2


class Answering(BaseHTTPRequestHandler):
    """A completions endpoint without log-probs that says "4" and remembers which model was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer({"data": []})

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"])
        self._answer({"choices": [{"text": "4", "finish_reason": "stop"}]})

    def _answer(self, body: dict) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None: ...


def test_a_server_under_another_name_and_without_logprobs(tmp_path, capsys):
    byte_tokenizer().save_pretrained(tmp_path / "model")
    file = write(tmp_path / "sums.jsonl", {"prompt": "2 + 2?", "answer": "4", "grader": "exact"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        code = main(
            ["eval", "--model", str(tmp_path / "model"), "--tasks", str(file), "--output-dir", str(tmp_path / "o"),
             "-n", "2", "--backend", "openai", "--base-url", f"http://127.0.0.1:{server.server_port}/v1",
             "--served-model-name", "tuned", "--no-logprobs", "--json"]
        )  # fmt: skip
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (code, Answering.asked) == (0, ["tuned", "tuned"])
    (result,) = json.loads(capsys.readouterr().out)
    assert result["benchmarks"]["sums"]["avg"]["mean"] == 1
    assert result["fingerprint"] == "served:tuned"
