"""Secrets of the environment, and passwords in addresses, are in nothing that a walk through the verbs writes."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostile import write
from rectune.cli.app import main
from rectune.errors import UserError
from rectune.sampling.openai import MAX_RETRY_AFTER, OpenAIClient, retry_after
from toys import save_toy

CANARY = "canary-7f3a9b"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY",
         "GITHUB_TOKEN", "DATABASE_URL")  # fmt: skip


def test_nothing_that_is_written_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, f"https://user:{CANARY}@host/" if name == "DATABASE_URL" else CANARY)
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    model, run = tmp_path / "model", tmp_path / "run"
    save_toy(model)
    write(tmp_path / "rows.jsonl", *({"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(20)))
    write(tmp_path / "problems.jsonl", *({"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(3)))
    data = ["--model", str(model), "--data", str(tmp_path / "rows.jsonl"), "--max-length", "64"]
    short = ["-n", "1", "--max-new-tokens", "2"]
    problems = ["--problems", str(tmp_path / "problems.jsonl"), "--output", str(tmp_path / "samples.jsonl")]
    for command in (
        ["diagnose", *data, "--rows", "4", "--no-gradients", "--output-dir", str(tmp_path / "diagnosis")],
        ["train", *data, "--output-dir", str(run), "--max-steps", "1", "--batch-size", "4"],
        ["sample", "--model", str(run / "model"), *problems, *short],
        ["grade", str(tmp_path / "samples.jsonl"), "--output", str(tmp_path / "graded.jsonl")],
        ["eval", "--model", str(run), "--tasks", str(tmp_path / "problems.jsonl"), *short,
         "--output-dir", str(run / "evaluation")],
        ["report", str(run), "--output", str(tmp_path / "report.html")],
    ):  # fmt: skip
        assert main(command) == 0, command
    address = f"https://user:{CANARY}@127.0.0.1:9/v1"
    for refused in (
        ["train", "--data", address, "--model", str(model), "--output-dir", str(tmp_path / "x")],
        ["train", "--model", address, *data[2:4], "--output-dir", str(tmp_path / "x")],
        ["sample", "--model", str(model), *problems, "--backend", "openai", "--base-url", address],
    ):
        assert main(refused) == 2
    said = capfd.readouterr()
    assert CANARY not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"environment.json", "config.json", "summary.json", "diagnosis.html", "report.html"} <= {
        p.name for p in files
    }
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """Sends everyone on to /other, remembers which keys came where, and repeats a key that it refuses."""

    seen: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        if self.path == "/v1/refused":
            message = f"wrong key {self.headers['Authorization']}\x1b[31m"
            body = json.dumps({"error": {"message": message}}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(302)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/other")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    seen: list[tuple[str, str | None]] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Handler", (_Elsewhere,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_key_goes_to_the_server_that_was_named_only(
    elsewhere: tuple[str, list[tuple[str, str | None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = elsewhere
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    api = OpenAIClient(url, timeout=5, retries=0)
    with pytest.raises(UserError, match="refuses the request: 302"):
        api.post("/completions", {}, threading.Event())
    assert api.models() == []
    assert {path for path, _ in seen} == {"/v1/completions", "/v1/models"}
    with pytest.raises(UserError, match="wrong key Bearer \\*\\*\\*") as refused:
        api.post("/refused", {}, threading.Event())
    assert CANARY not in str(refused.value)


def test_a_server_cannot_make_us_wait_for_ever() -> None:
    for said in ("1e300", "inf", "nan", "-5", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "\x00"):
        assert 0 <= retry_after(said) <= MAX_RETRY_AFTER


def test_passwords_in_addresses_are_left_out() -> None:
    error = UserError(
        f"no answer from https://me:{CANARY}@host/x", where=f"ftp://{CANARY}@h", hint="a@b stays"
    )
    assert str(error) == "ftp://***@h: no answer from https://***@host/x; a@b stays"
