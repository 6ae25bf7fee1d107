"""Sampling from a server that reloads the weights, over loopback: ours, which answers with a real model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.errors import UserError
from rectune.models.load import load_model
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.types import Request, SamplingParams
from training_runs import metrics, weights


class Server(ThreadingHTTPServer):
    """Serves `/v1/completions` with log-probs from the weights that it was last told to read.

    Attributes:
        speaks: "sglang", "vllm" or neither: how it reloads weights.
        told: Paths and bodies of all requests but completions.
    """

    def __init__(self, model: str, speaks: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.speaks, self.told = speaks, list[tuple[str, dict[str, Any]]]()
        self.broken = False
        self.lock = threading.Lock()
        self.read(model)

    def read(self, model: str) -> None:
        loaded, tokenizer = load_model(model, dtype=torch.float32)
        self.engine = HFEngine(loaded, tokenizer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "toy"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        server = self.server
        if self.path == "/v1/completions":
            with server.lock:
                settings = SamplingParams(
                    body["temperature"], body["top_p"], body["max_tokens"], body["seed"]
                )
                (made,) = server.engine.complete([Request("p", 0, tuple(body["prompt"]))], settings)
            logprobs = {"tokens": [""] * len(made.token_ids), "token_logprobs": made.logprobs}
            choice = {"text": made.text, "finish_reason": made.finish_reason, "logprobs": logprobs}
            self.answer({"choices": [{**choice, "token_ids": made.token_ids}]})
            return
        server.told.append((self.path, body))
        if self.path == "/update_weights_from_disk" and server.speaks == "sglang":
            if server.broken:
                self.answer({"success": False, "message": "no such file"}, 400)
                return
            server.read(body["model_path"])
            self.answer({"success": True, "message": "Succeeded to update model weights."})
        elif self.path == "/collective_rpc" and server.speaks == "vllm":
            assert body["method"] == "reload_weights"
            server.read(body["kwargs"]["weights_path"])
            self.answer({"results": [None]})
        elif self.path == "/reset_prefix_cache" and server.speaks == "vllm":
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer({"detail": "Not Found"}, 404)

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(toy: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(toy["model"], request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("server", ["sglang", "vllm"], indirect=True)
def test_the_server_samples_from_the_weights_in_training(run: Any, tmp_path: Path, server: Server) -> None:
    result = run(backend="openai", base_url=server.url, served_model_name="toy", max_steps=3)
    assert result.steps == 3
    wanted = "/update_weights_from_disk" if server.speaks == "sglang" else "/collective_rpc"
    assert [path for path, _ in server.told].count(wanted) == 3
    served = weights(tmp_path / "run", "served/model.safetensors")
    last = weights(tmp_path / "run")
    assert any(not torch.equal(served[name], last[name]) for name in last)  # one update behind
    shown = dict(server.engine.model.named_parameters())
    assert all(torch.equal(served[name], shown[name]) for name in served)
    # What it sampled is on-policy: the trainer's log-probs of it are those of the policy, so nothing is clipped.
    assert all(line["clip_share"] == 0 for line in metrics(tmp_path / "run", "train"))


@pytest.mark.parametrize("server", ["neither"], indirect=True)
def test_a_server_that_cannot_is_refused_by_name(run: Any, server: Server) -> None:
    with pytest.raises(UserError, match=r"127.0.0.1:\d+: this server cannot reload weights; SGLang can"):
        run(backend="openai", base_url=server.url)


@pytest.mark.parametrize("server", ["sglang"], indirect=True)
def test_a_server_that_fails_says_why(run: Any, server: Server) -> None:
    server.broken = True
    with pytest.raises(UserError, match="the server cannot reload weights: 400 no such file"):
        run(backend="openai", base_url=server.url)


def test_no_server(run: Any) -> None:
    with pytest.raises(UserError, match="needs base_url"):
        run(backend="openai")
    with pytest.raises(UserError, match="is the server running there"):
        run(backend="openai", base_url="http://127.0.0.1:9/v1")
