"""Parts that several processes wrote are merged into the file that one process would have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rectune.data.schema import Problem, Turn
from rectune.errors import UserError
from rectune.sampling.hf.engine import LocalEngine
from rectune.sampling.sample import sample
from toys import byte_tokenizer, tiny_model

PROBLEMS = [Problem(f"p{n}", (Turn("user", f"{n}?"),), str(n)) for n in (2, 0, 1)]


def draw(out: Path, seed: int = 5) -> list[bytes]:
    engine = LocalEngine(tiny_model(), byte_tokenizer(), batch_size=4, model_name="tiny")
    sample("tiny", PROBLEMS, out=out, engine=engine, n=3, max_new_tokens=5, seed=seed)
    return out.read_bytes().splitlines(keepends=True)


def key(line: bytes) -> tuple[str, int]:
    record = json.loads(line)
    return record["problem_id"], record["sample_index"]


def test_what_killed_processes_left_is_merged_and_gone_on_with(tmp_path: Path) -> None:
    whole = draw(tmp_path / "whole.jsonl")
    out = tmp_path / "s.jsonl"
    out.write_bytes(whole[0])
    (tmp_path / ".s.jsonl.0-of-2.part").write_bytes(b"".join([whole[5], whole[0], whole[3]]))
    (tmp_path / ".s.jsonl.1-of-2.part").write_bytes(whole[7] + whole[8][:20])
    merged = draw(out)
    assert sorted(merged) == sorted(whole)
    order = [f"p{n}" for n in (2, 0, 1)]
    expected = sorted([whole[5], whole[3], whole[7]], key=lambda line: (order.index(key(line)[0]), key(line)))
    assert merged[:4] == [whole[0], *expected]
    assert not list(tmp_path.glob(".*.part"))


def test_parts_that_were_drawn_otherwise_are_refused(tmp_path: Path) -> None:
    other = draw(tmp_path / "other.jsonl", seed=6)
    part = tmp_path / ".s.jsonl.1-of-2.part"
    part.write_bytes(other[0])
    with pytest.raises(UserError, match="was drawn with seed = 6, now 5"):
        draw(tmp_path / "s.jsonl")
    assert part.read_bytes() == other[0]
