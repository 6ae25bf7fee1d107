"""`sample`: the file's contents, resuming after kills and torn lines, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.data.schema import Problem, Turn
from rectune.data.tokenization import prompt_ids
from rectune.errors import UserError
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.sample import sample
from rectune.sampling.types import Completion, EngineSpec, Request, SamplingParams, repetition
from toys import byte_tokenizer, tiny_model

PROBLEMS = [
    Problem(f"p{i}", (Turn("user", f"What is {i} + 48?"),), str(i + 48), extra={"unit": "cm"} if i else None)
    for i in range(4)
]
PARAMS = SamplingParams(max_new_tokens=30, seed=5)
SETTINGS = {"num_samples": 3, "params": PARAMS}


def engine(seed: int = 0) -> HFEngine:
    return HFEngine(tiny_model(seed=seed), byte_tokenizer(), batch_size=4, model_name=f"tiny{seed}")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def contents(path: Path) -> list[str]:
    return sorted(path.read_text("utf-8").splitlines())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample(
        "tiny", PROBLEMS, out=tmp_path_factory.mktemp("whole") / "s.jsonl", engine=engine(), **SETTINGS
    )


def test_each_sample_is_one_line_with_all_that_grading_and_training_need(whole: Path) -> None:
    tokenizer, records = byte_tokenizer(), lines(whole)
    keys = {(r["problem_id"], r["sample_index"]) for r in records}
    assert keys == {(p.problem_id, k) for p in PROBLEMS for k in range(3)}
    assert len(records) == 12
    for record in records:
        problem = PROBLEMS[int(record["problem_id"][1:])]
        template = engine().template
        assert record["prompt"] == tokenizer.decode(prompt_ids(problem.prompt, tokenizer, template))
        assert record["turns"] == [
            {"role": "user", "content": problem.prompt[0].content, "supervised": False, "fields": ""}
        ]
        assert (record["answer"], record["grader"], record["extra"]) == (
            problem.answer,
            "math",
            problem.extra,
        )
        assert len(record["token_ids"]) == len(record["logprobs"]) <= 30
        assert record["text"] == tokenizer.decode(record["token_ids"], skip_special_tokens=True)
        assert record["finish_reason"] == ("stop" if 2 in record["token_ids"] else "length")
        assert (record["seed"], record["temperature"], record["top_p"]) == (5, 1.0, 1.0)
        assert (record["engine"], record["model"]) == ("hf", "tiny0")


def test_finished_file_is_left_alone_and_a_larger_n_adds_to_it(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    out.write_bytes(whole.read_bytes())
    sample("tiny", PROBLEMS, out=out, engine=engine(), **SETTINGS)
    assert out.read_bytes() == whole.read_bytes()
    sample("tiny", PROBLEMS, out=out, engine=engine(), **SETTINGS | {"num_samples": 4})
    assert out.read_bytes().startswith(whole.read_bytes())
    assert len(lines(out)) == 16


@pytest.mark.parametrize("cut", [1, 40, 3000])
def test_torn_last_line_is_sampled_again(whole: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "s.jsonl"
    out.write_bytes(whole.read_bytes()[:-cut])
    sample("tiny", PROBLEMS, out=out, engine=engine(), **SETTINGS)
    assert contents(out) == contents(whole)


def test_killed_run_resumes_to_the_same_samples(whole: Path, tmp_path: Path) -> None:
    # A process of its own, killed with SIGKILL after three of twelve samples; its hook slows it down.
    out, code = (
        tmp_path / "s.jsonl",
        """
import sys, time
from pathlib import Path
from typing import Any
sys.path[:0] = sys.argv[2:]
from sampling.test_sample import PROBLEMS, SETTINGS, engine, sample
sample("tiny", PROBLEMS, out=Path(sys.argv[1]), engine=engine(), progress=lambda *_: time.sleep(0.3), **SETTINGS)
""",
    )
    tests = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out), tests], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 60
        while not (out.exists() and out.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 3 <= out.read_bytes().count(b"\n") < 12
    sample("tiny", PROBLEMS, out=out, engine=engine(), **SETTINGS)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(("change", "words"), [
    ({"params": replace(PARAMS, temperature=0.5)}, r"temperature = 1\.0, now 0\.5"),
    ({"params": replace(PARAMS, top_p=0.9)}, r"top_p = 1\.0, now 0\.9"),
    ({"params": replace(PARAMS, seed=6)}, "seed = 5, now 6"),
    ({"params": replace(PARAMS, max_new_tokens=31)}, "max_new_tokens = 30, now 31"),
    ({"engine": engine(1)}, r"another model \(tiny0, .*; now tiny1, "),
    ({"problems": [replace(p, prompt=(Turn("user", "Another?"),)) for p in PROBLEMS]}, "had another prompt"),
    ({"problems": [replace(p, answer="7") for p in PROBLEMS]}, "had another answer"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["s.jsonl", ".s.jsonl.1-of-2.part"])
def test_samples_with_other_settings_are_refused_and_nothing_is_lost(
    whole: Path, tmp_path: Path, change: dict[str, Any], words: str, name: str
) -> None:
    """In the file, and in a part of it that one of several processes left."""
    (tmp_path / name).write_bytes(whole.read_bytes())
    with pytest.raises(UserError, match=words) as error:
        sample(
            "tiny",
            **{"problems": PROBLEMS, "out": tmp_path / "s.jsonl", "engine": engine()} | SETTINGS | change,
        )
    assert str(error.value).startswith(f"{tmp_path / name}:") and "\n" not in str(error.value)
    assert (tmp_path / name).read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("text", "words"), [
    ("{}\n", "is not a line of samples"),
    ("not json\n", "malformed JSON"),
    (None, "occurs twice"),
])  # fmt: skip
def test_a_file_of_something_else_is_refused(
    whole: Path, tmp_path: Path, text: str | None, words: str
) -> None:
    text = text or 2 * whole.read_text("utf-8").splitlines(keepends=True)[0]
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        sample("tiny", PROBLEMS, out=tmp_path / "s.jsonl", engine=engine(), **SETTINGS)
    assert (tmp_path / "s.jsonl").read_text() == text


def test_two_processes_do_not_write_to_one_file(tmp_path: Path) -> None:
    class Nested:
        name, model_name, fingerprint = "local", "tiny", "0"
        tokenizer, template = byte_tokenizer(), engine().template

        def complete(self, requests: Iterable[Request], settings: SamplingParams) -> Iterator[Completion]:
            sample("tiny", PROBLEMS, out=tmp_path / "s.jsonl", engine=engine(), **SETTINGS)
            yield from ()

    with pytest.raises(UserError, match="another process"):
        sample("tiny", PROBLEMS, out=tmp_path / "s.jsonl", engine=Nested(), **SETTINGS)


@pytest.mark.parametrize(("change", "words"), [
    ({"num_samples": 0}, "^num_samples: must be at least 1 \\(got 0\\)"),
    ({"params": SamplingParams(temperature=-1.0)}, "^temperature: "),
    ({"params": SamplingParams(temperature=float("nan"))}, "^temperature: "),
    ({"params": SamplingParams(top_p=0.0)}, "^top_p: "),
    ({"params": SamplingParams(max_new_tokens=0)}, "^max_new_tokens: "),
    ({"params": SamplingParams(seed=-1)}, "^seed: "),
    ({"params": SamplingParams(stop=("a", ""))}, "^stop: a stop text is empty"),
    ({"engine": EngineSpec("opnai")}, "unknown backend 'opnai'; did you mean 'openai'"),
    ({"problems": []}, "no problem"),
    ({"problems": [PROBLEMS[0], PROBLEMS[0]]}, "'p0' occurs 2 times"),
])  # fmt: skip
def test_bad_input_is_one_clear_line(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sample(
            "tiny",
            **{"problems": PROBLEMS, "out": tmp_path / "s.jsonl", "engine": engine()} | SETTINGS | change,
        )
    assert not (tmp_path / "s.jsonl").exists()


def test_progress_counts_what_was_there_already(whole: Path, tmp_path: Path) -> None:
    out, calls = tmp_path / "s.jsonl", []
    out.write_text("".join(whole.read_text("utf-8").splitlines(keepends=True)[:7]))
    sample("tiny", PROBLEMS, out=out, engine=engine(), progress=lambda *c: calls.append(c), **SETTINGS)
    assert [c[:2] for c in calls] == [(i, 12) for i in range(8, 13)]
    assert [c[2] for c in calls] == sorted(c[2] for c in calls)


def key(line: bytes) -> tuple[str, int]:
    return tuple(json.loads(line)[name] for name in ("problem_id", "sample_index"))


def test_parts_of_killed_processes_are_merged_in_order_and_resumed(whole: Path, tmp_path: Path) -> None:
    """As several processes leave them: with a sample twice, and a torn last line."""
    samples, out = sorted(whole.read_bytes().splitlines(keepends=True), key=key), tmp_path / "s.jsonl"
    out.write_bytes(samples[0])
    (tmp_path / ".s.jsonl.0-of-2.part").write_bytes(b"".join([samples[9], samples[0], samples[3]]))
    (tmp_path / ".s.jsonl.1-of-2.part").write_bytes(samples[7] + samples[8][:20])
    sample("tiny", PROBLEMS, out=out, engine=engine(), **SETTINGS)
    merged = out.read_bytes().splitlines(keepends=True)
    assert merged[:4] == [samples[0], samples[3], samples[7], samples[9]]
    assert sorted(merged) == sorted(samples)
    assert not list(tmp_path.glob(".*.part"))


def test_repetition_sees_loops_and_not_prose() -> None:
    prose = torch.randint(0, 5000, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    assert repetition(prose) < 0.05
    assert repetition([1, 2, 3, 4, 5] * 40) > 0.9
    assert repetition([1] * 10) == 0
