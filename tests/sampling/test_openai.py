"""The server engine against real servers on loopback, and its retries against a listener that fails on purpose.

`transformers serve` has no log-probs. A server that has takes part where SERVER_URL is the address of one that serves
smollm2-135m, or where LLAMA_SERVER names llama.cpp's server and LLAMA_SERVER_GGUF the packaged model's file.
"""

from __future__ import annotations

import email.utils
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.sampling import openai as endpoint
from rectune.sampling.openai import OpenAIClient, OpenAIEngine, retry_after
from rectune.sampling.sample import sample
from rectune.sampling.types import EngineSpec, SamplingParams, sample_key
from toys import byte_tokenizer, tiny_model

PROBLEMS = [Problem(f"p{i}", (Turn("user", f"What is {i}?"),), str(i)) for i in range(3)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(command: list[str], port: int, log: Path) -> Iterator[str]:
    """Start a server, wait until it answers, and kill it in any case."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.generation_config.do_sample = True  # without it transformers serve is greedy at any temperature
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def transformers_serve(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    missing = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    port = free_port()
    program = "from transformers.cli.transformers import main; main()"
    arguments = ["serve", str(folder), "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    log = tmp_path_factory.mktemp("serve") / "log"
    yield from serve([sys.executable, "-c", program, *arguments], port, log)


def test_samples_from_transformers_serve_and_resumes(
    transformers_serve: str, folder: Path, tmp_path: Path
) -> None:
    engine = EngineSpec("openai", 4, base_url=transformers_serve, logprobs=False)
    settings = {"engine": engine, "params": SamplingParams(max_new_tokens=8)}
    out = sample(str(folder), PROBLEMS, out=tmp_path / "s.jsonl", num_samples=2, **settings)
    first = out.read_bytes()
    records = [json.loads(line) for line in first.splitlines()]
    assert {(r["problem_id"], r["sample_index"]) for r in records} == {
        (f"p{i}", k) for i in range(3) for k in range(2)
    }
    assert len({r["text"] for r in records}) > 1
    assert all(r["logprobs"] == [] and r["engine"] == "openai" for r in records)
    assert {r["finish_reason"] for r in records} <= {"stop", "length"}
    out.write_bytes(first[:-30])
    sample(str(folder), PROBLEMS, out=out, num_samples=3, **settings)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({(r["problem_id"], r["sample_index"]) for r in records}) == 9


def test_missing_logprobs_and_unknown_models_are_one_line(
    transformers_serve: str, folder: Path, tmp_path: Path
) -> None:
    nameless = {"logprobs": False, "served_model_name": "nowhere/nothing"}
    for change, words in (({}, "prompt must be a string"), (nameless, "nowhere/nothing")):
        engine = EngineSpec("openai", base_url=transformers_serve, **change)
        with pytest.raises(UserError, match=words):
            sample(str(folder), PROBLEMS, out=tmp_path / "s.jsonl", num_samples=1, engine=engine)


@pytest.fixture(scope="module")
def logprob_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Any server of smollm2-135m with log-probs: one that runs (SERVER_URL), or llama.cpp's, started here."""
    if url := os.environ.get("SERVER_URL"):
        yield url
        return
    program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    gguf = os.environ.get("LLAMA_SERVER_GGUF")
    if program is None or gguf is None:
        pytest.skip("neither SERVER_URL nor LLAMA_SERVER (llama.cpp's server) and LLAMA_SERVER_GGUF are set")
    port = free_port()
    arguments = ["-m", gguf, "--port", str(port), "--host", "127.0.0.1", "-c", "4096", "-np", "4", "-t", "2"]
    yield from serve([program, *arguments], port, tmp_path_factory.mktemp("llama") / "log")


def test_logprobs_of_a_server_are_those_of_the_model(logprob_server: str, tmp_path: Path) -> None:
    import torch

    from rectune.models.load import load_model

    engine = EngineSpec("openai", 4, base_url=logprob_server)
    settings = {"engine": engine, "params": SamplingParams(max_new_tokens=12)}
    out = sample("smollm2-135m", PROBLEMS, out=tmp_path / "s.jsonl", num_samples=1, **settings)
    first = out.read_bytes()
    sample("smollm2-135m", PROBLEMS, out=out, num_samples=2, **settings)
    assert out.read_bytes().startswith(first)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 6
    model, tokenizer = load_model("smollm2-135m", dtype=torch.float32)
    gaps = []
    for record in records:
        if not record["logprobs"]:  # a token within a character
            continue
        assert len(record["token_ids"]) == len(record["logprobs"])
        prompt = tokenizer(record["prompt"], add_special_tokens=False).input_ids
        new = torch.tensor(record["token_ids"])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + record["token_ids"]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, new[:, None])[:, 0]
        gaps.append(torch.tensor(record["logprobs"]) - expected)
    gap = torch.cat(gaps)
    # llama.cpp multiplies 4-bit weights with activations rounded to 8 bits; ours are dequantized.
    assert gap.abs().mean() < 0.15
    assert gap.mean().abs() < 0.06


class Failing(BaseHTTPRequestHandler):
    """Answers with the codes of `plan` in turn, then with `reply`; refuses fields of `unknown`, one at a time."""

    plan: ClassVar[list[tuple[int, dict[str, str]]]] = []
    reply: ClassVar[dict] = {}
    seen: ClassVar[list[float]] = []
    models: ClassVar[list[dict]] = []
    bodies: ClassVar[list[dict]] = []
    unknown: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self._answer(200, {}, {"data": self.models})

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.seen.append(time.monotonic())
        if refused := sorted(self.unknown & self.bodies[-1].keys()):
            said = f"Unrecognized request argument supplied: {refused[0]}"
            return self._answer(400, {}, {"error": {"message": said, "type": "invalid_request_error"}})
        code, headers = self.plan.pop(0) if self.plan else (200, {})
        if code == 0:  # cut the connection
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(code, headers, self.reply if code == 200 else {"error": {"message": "busy\nnow"}})

    def _answer(self, code: int, headers: dict[str, str], body: dict) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(text))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None: ...


END = {"tokens": ["<|im_end|>"], "token_logprobs": [-0.5]}


def reply(text: str = "", logprobs: Any = END, finish_reason: str = "stop", **more: Any) -> None:
    """What the server answers from now on."""
    Failing.reply = {
        "choices": [{"text": text, "finish_reason": finish_reason, "logprobs": logprobs}],
        **more,
    }


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    Failing.plan, Failing.seen = [], []
    Failing.models, Failing.bodies, Failing.unknown = [], [], set()
    reply()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ask(failing: str, folder: Path, tmp_path: Path) -> Callable[..., list[dict]]:
    """Sample one answer: the requests that this took, and the line of the samples file as the last item."""
    numbers = iter(range(99))

    def asked(*, logprobs: bool = True, **params: Any) -> list[dict]:
        first, out = len(Failing.bodies), tmp_path / f"{next(numbers)}.jsonl"
        engine = EngineSpec("openai", base_url=failing, logprobs=logprobs)
        how = {"num_samples": 1, "engine": engine, "params": SamplingParams(**params)}
        sample(str(folder), PROBLEMS[:1], out=out, **how)
        return [*Failing.bodies[first:], json.loads(out.read_text())]

    return asked


def test_passing_failures_are_tried_again_and_others_are_not(failing: str) -> None:
    def post(retries: int) -> Any:
        return OpenAIClient(failing, timeout=5, retries=retries).post("/x", {}, threading.Event())

    Failing.plan = [(503, {}), (0, {}), (429, {"Retry-After": "1"}), (500, {})]
    assert post(4) == Failing.reply
    assert len(Failing.seen) == 5
    assert Failing.seen[3] - Failing.seen[2] >= 0.5
    Failing.plan = [(400, {})]
    with pytest.raises(UserError, match=r"refuses the request: 400 busy now$"):
        post(4)
    assert len(Failing.seen) == 6
    Failing.plan = [(503, {})] * 9
    with pytest.raises(UserError, match="no answer after 3 tries: 503 busy now"):
        post(2)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after(None) == retry_after("soon") == 0.0
    assert retry_after("2.5") == 2.5
    assert retry_after(email.utils.formatdate(time.time() + 10, usegmt=True)) == pytest.approx(10, abs=1.5)


@pytest.mark.parametrize(("logprobs", "expected"), [
    ({"tokens": ["token_id:72", "token_id:2"], "token_logprobs": [-0.5, -1.0]}, [72, 2]),
    (END, [2]),
    ({"content": [{"id": 72, "token": "E", "logprob": -0.5}]}, [72]),
])  # fmt: skip
def test_token_ids_in_the_forms_of_vllm_sglang_and_llama_cpp(
    ask: Any, logprobs: dict, expected: list[int]
) -> None:
    reply(logprobs=logprobs)
    _, line = ask()
    assert (line["token_ids"], line["logprobs"][0]) == (expected, -0.5)


def test_an_answer_of_which_llama_cpp_shows_not_all_tokens_has_no_logprobs(ask: Any) -> None:
    reply("E é", {"content": [{"id": 72, "token": "E", "logprob": -0.5}]}, usage={"completion_tokens": 3})
    _, line = ask()
    assert (line["text"], line["logprobs"]) == ("E é", [])
    assert byte_tokenizer().decode(line["token_ids"]) == "E é"


def test_the_fingerprint_follows_what_the_server_lists(failing: str, folder: Path) -> None:
    def seen(*models: dict) -> str:
        Failing.models = list(models)
        return OpenAIEngine(str(folder), failing, served_model_name="m").fingerprint

    vllm = {"id": "m", "owned_by": "vllm", "created": 1, "root": "/a", "permission": [{"id": "x"}]}
    assert seen() == "served:m"
    assert seen(vllm) == seen(vllm | {"created": 2, "permission": []}, {"id": "other"})
    assert seen(vllm) != seen(vllm | {"root": "/b"})
    llama = {"id": "a.gguf", "owned_by": "llamacpp", "meta": {"n_params": 10, "n_ctx": 512}}
    assert seen(llama) == seen(llama | {"meta": {"n_params": 10, "n_ctx": 1024}})
    assert seen(llama) != seen(llama | {"meta": {"n_params": 11, "n_ctx": 512}})
    assert seen(llama, vllm | {"id": "n"}) == "served:m"  # which of the two answers is not known


NEUTRAL = {
    "n": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1, "repeat_penalty": 1, "presence_penalty": 0,
    "frequency_penalty": 0, "ignore_eos": False, "skip_special_tokens": True,
}  # fmt: skip
"""What no generation_config may change; case 25."""


@pytest.mark.parametrize("logprobs", [True, False])
def test_every_request_says_every_sampling_setting(ask: Any, logprobs: bool) -> None:
    body, _ = ask(logprobs=logprobs, temperature=0.7, top_p=0.9, seed=3, max_new_tokens=5)
    assert {name: body.get(name) for name in NEUTRAL} == NEUTRAL
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 5)
    assert body["seed"] == sample_key(3, "p0", 0) % 2**31
    assert body["stop_token_ids"] == [2]


def test_a_server_is_sent_stop_texts_and_answers_are_cut_like_the_hf_engines(ask: Any) -> None:
    ids = byte_tokenizer()("42\n\nQuestion: 1?").input_ids
    every = {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": [-1.0] * len(ids)}
    reply("42", every)  # vLLM's: all tokens
    body, line = ask(stop=("\n\nQuestion:", "<|im_start|>"))
    assert body["stop"] == line["stop"] == ["\n\nQuestion:", "<|im_start|>"]
    assert set(body["stop_token_ids"]) == {2, byte_tokenizer().convert_tokens_to_ids("<|im_start|>")}
    assert (line["text"], line["token_ids"], line["finish_reason"]) == ("42", ids[:2], "stop")
    assert len(line["logprobs"]) == 2
    reply("42\n\nQuestion: 1?", every, "length")  # stop is ignored
    _, line = ask(stop=("\n\nQuestion:",), logprobs=False, max_new_tokens=9)
    assert (line["text"], line["finish_reason"]) == ("42", "stop")


def test_llama_cpp_python_is_sent_text_and_its_own_word_for_no_top_k(ask: Any) -> None:
    ids, _ = ask()
    Failing.models = [{"id": "a.gguf", "owned_by": "me"}]
    text, _ = ask()
    assert {name: text.get(name) for name in NEUTRAL} == NEUTRAL | {"top_k": 0}
    assert byte_tokenizer().decode(ids["prompt"]) == text["prompt"]
    reply(usage={"prompt_tokens": 3})
    for logprobs in (True, False):
        with pytest.raises(UserError, match="reads the prompt as 3 tokens, training as"):
            ask(logprobs=logprobs)


def test_without_logprobs_token_ids_are_sent_where_the_server_takes_them(ask: Any) -> None:
    """As text, a server might read a literal <|im_end|> in a question as the control token."""
    reply("4", None)
    body, line = ask(logprobs=False)
    assert byte_tokenizer().decode(body["prompt"]) == line["prompt"] and "logprobs" not in body
    Failing.plan = [(400, {})]  # as `transformers serve`: "prompt must be a string"
    ids, text, line = ask(logprobs=False)
    assert (ids["prompt"], text["prompt"]) == (body["prompt"], line["prompt"])
    assert text["add_special_tokens"] is False


def test_a_field_that_a_server_does_not_know_is_left_out_and_said(
    ask: Any, failing: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Failing.unknown = {"top_k", "min_p", "stop_token_ids"}
    out = tmp_path / "s.jsonl"
    sample(str(folder), PROBLEMS, out=out, num_samples=1, engine=EngineSpec("openai", 1, base_url=failing))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["not_taken"] for line in lines] == [["min_p", "stop_token_ids", "top_k"]] * 3
    assert all({*NEUTRAL} - body.keys() == {"top_k", "min_p"} for body in Failing.bodies[-3:])
    said = [record.message for record in caplog.records if "does not take" in record.message]
    assert len(Failing.bodies) == 6
    fields = [message.partition("take ")[2].partition(":")[0] for message in said]
    assert fields == ["min_p", "stop_token_ids", "top_k"]
    Failing.unknown = {"temperature"}  # without this setting the answers are not those that were wanted
    with pytest.raises(UserError, match=r"refuses the request: 400 Unrecognized .*: temperature"):
        ask()


@pytest.mark.parametrize(("logprobs", "words"), [
    (None, "returns no log-probs"), ({"tokens": ["??"], "token_logprobs": [-1.0]}, "no token ids"),
])  # fmt: skip
def test_without_logprobs_or_ids_the_run_stops_in_one_line(ask: Any, logprobs: Any, words: str) -> None:
    reply(logprobs=logprobs)
    with pytest.raises(UserError, match=words):
        ask()


def test_unreachable_server_and_missing_address_are_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no answer: .*is the server running there"):
        OpenAIEngine(str(folder), f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(UserError, match="is not an address"):
        OpenAIEngine(str(folder), "localhost:8000")
    with pytest.raises(UserError, match="base_url"):
        sample(str(folder), PROBLEMS, out=folder / "s.jsonl", engine=EngineSpec("openai"))


def test_vllm_is_refused_by_name_where_it_is_missing(folder: Path, tmp_path: Path) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(UserError, match="vLLM is not installed"):
        sample(str(folder), PROBLEMS, out=tmp_path / "s.jsonl", engine=EngineSpec("vllm"))
