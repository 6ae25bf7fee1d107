"""Selection: graded samples become rows that train on the sampled prompt, or pairs."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from rectune.config import DataConfig
from rectune.data.chat_template import choose_template
from rectune.data.loading import read_rows, row_at
from rectune.data.schema import Turn
from rectune.data.tokenization import encode_row, prompt_ids
from rectune.errors import UserError
from rectune.grading.files import select
from toys import byte_tokenizer

TURNS = [{"role": "system", "content": "Be brief.", "supervised": False},
         {"role": "user", "content": "How many?", "supervised": False}]  # fmt: skip


def line(problem, index, verdict, text=None, **more):
    base = {"problem_id": problem, "sample_index": index, "prompt": "<read>", "turns": TURNS,
            "verdict": verdict, "text": f"{problem}-{index}" if text is None else text, "fingerprint": "f",
            "finish_reason": "stop", "temperature": 1.0, "extracted": "4"}  # fmt: skip
    return base | more


def write(path, lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def read(path):
    return [json.loads(one) for one in path.read_text().splitlines()]


@pytest.fixture
def graded(tmp_path):
    """a: 3 distinct correct (one twice), 1 wrong; b: no correct; c: all correct; d: correct and unjudged."""
    return write(
        tmp_path / "graded.jsonl",
        [
            line("a", 0, "correct", "x = 4"), line("a", 1, "correct", "x  =\n4 "), line("a", 2, "correct"),
            line("a", 3, "correct"), line("a", 4, "wrong"),
            line("b", 0, "wrong"), line("b", 1, "unparsed"),
            line("c", 0, "correct"), line("c", 1, "correct"),
            line("d", 0, "timeout"), line("d", 1, "correct"), line("d", 2, "error"),
        ],
    )  # fmt: skip


def test_sft_keeps_distinct_correct_answers_and_counts(graded, tmp_path):
    counts = select(graded, tmp_path / "rows.jsonl", purpose="sft")
    rows = read(tmp_path / "rows.jsonl")
    assert Counter(row["problem_id"] for row in rows) == {"a": 3, "c": 2, "d": 1}
    assert [row["completion"] for row in rows][:2] == ["x = 4", "a-2"]
    expected = {
        "problems": 4, "samples": 12, "correct": 7, "wrong": 2, "unparsed": 1, "timeout": 1, "error": 1, "kept": 6,
        "written": 6, "duplicates": 1, "without_correct": 1, "without_wrong": 2, "cut_off": 0,
    }  # fmt: skip
    assert expected.items() <= counts.to_dict().items()
    assert json.loads((tmp_path / "rows.jsonl.counts.json").read_text()) == counts.to_dict()
    assert counts.settings.temperature == 1.0
    assert counts.settings.per_problem == 4


def test_rows_train_on_the_tokens_that_were_sampled_from(graded, tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    select(graded, tmp_path / "rows.jsonl", purpose="sft")
    tokenizer = byte_tokenizer()
    template = choose_template("auto", tokenizer)
    row = row_at(read_rows(str(tmp_path / "rows.jsonl"), options=DataConfig()), 0)
    encoded = encode_row(row, tokenizer, template)
    prompt = prompt_ids([Turn(t["role"], t["content"]) for t in TURNS], tokenizer, template)
    assert encoded.input_ids[: len(prompt)] == prompt
    targets = [token for token in encoded.labels if token != -100]
    assert tokenizer.decode(targets) == "x = 4<|im_end|>"


def test_samples_without_turns_give_rows_for_template_none(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    bare = line("a", 0, "correct", "4", prompt="Q: 2+2?\nA: ")
    del bare["turns"]
    select(write(tmp_path / "g.jsonl", [bare]), tmp_path / "rows.jsonl", purpose="sft")
    tokenizer = byte_tokenizer(chat_template=None)
    row = row_at(read_rows(str(tmp_path / "rows.jsonl"), options=DataConfig(chat_template="none")), 0)
    encoded = encode_row(row, tokenizer, choose_template("none", tokenizer))
    assert tokenizer.decode(encoded.input_ids) == "Q: 2+2?\nA: 4<|im_end|>"


def test_dpo_pairs_use_each_answer_once(graded, tmp_path):
    counts = select(graded, tmp_path / "pairs.jsonl", purpose="dpo")
    (pair,) = read(tmp_path / "pairs.jsonl")
    assert pair["problem_id"] == "a"
    assert pair["rejected"] == "a-4"
    assert pair["chosen"] in {"x = 4", "a-2", "a-3"}
    assert pair["prompt"] == [{"role": t["role"], "content": t["content"]} for t in TURNS]
    assert (counts.pairs, counts.without_wrong, counts.without_correct) == (1, 2, 1)


def test_unjudged_answers_lose_only_if_asked(graded, tmp_path):
    select(graded, tmp_path / "pairs.jsonl", purpose="dpo", include_unjudged=True)
    pairs = {pair["problem_id"]: pair for pair in read(tmp_path / "pairs.jsonl")}
    assert pairs["d"]["rejected"] in {"d-0", "d-2"}


def test_the_maximum_per_problem_is_chosen_by_seed_and_problem(tmp_path):
    lines = [line(p, i, "correct") for p in "ab" for i in range(12)]
    graded = write(tmp_path / "g.jsonl", lines)

    def chosen(**k):
        select(graded, tmp_path / "o.jsonl", purpose="sft", **k)
        return [row["completion"] for row in read(tmp_path / "o.jsonl")]

    assert len(chosen()) == 8  # at most the paper's 4 of a problem
    assert len(chosen(per_problem=None)) == 24
    assert chosen(per_problem=3) == chosen(per_problem=3) != chosen(per_problem=3, seed=1)
    before = chosen(per_problem=3)
    write(tmp_path / "g.jsonl", lines[12:])
    assert chosen(per_problem=3) == before[3:]  # another problem's rows do not change b's


def test_balance_gives_every_problem_as_many_rows(graded, tmp_path):
    counts = select(graded, tmp_path / "rows.jsonl", purpose="sft", balance=True)
    assert Counter(row["problem_id"] for row in read(tmp_path / "rows.jsonl")) == {"a": 3, "c": 3, "d": 3}
    assert (counts.kept, counts.written) == (6, 9)


def test_answers_cut_at_the_limit_are_no_demonstrations(tmp_path):
    lines = [line("a", 0, "correct", finish_reason="length"), line("a", 1, "correct")]
    graded = write(tmp_path / "g.jsonl", lines)
    assert select(graded, tmp_path / "o.jsonl", purpose="sft").cut_off == 1
    assert [row["completion"] for row in read(tmp_path / "o.jsonl")] == ["a-1"]
    assert select(graded, tmp_path / "o.jsonl", purpose="sft", include_unfinished=True).kept == 2
    with pytest.raises(UserError, match="1 correct ones are cut at the token limit"):
        select(write(tmp_path / "g.jsonl", lines[:1]), tmp_path / "o.jsonl", purpose="sft")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line("a", 0, "wrong")], "g.jsonl: the file has no correct answer"),
        ([line("a", 0, "correct"), line("a", 1, "correct", fingerprint="g")], "g.jsonl:2: the file has samples of two"),
        ([{"problem_id": "a", "text": "4"}], "g.jsonl:1: is not a graded sample (no field 'verdict'); run"),
        ([line("a", 0, "right")], "g.jsonl:1: unknown verdict 'right'"),
        ([line("a", 0, "correct", turns=[], prompt=None)], "g.jsonl:1: the sample has no prompt"),
        ([], "g.jsonl: the file has no samples"),
    ],
)  # fmt: skip
def test_bad_samples_are_one_clear_line_and_nothing_is_written(tmp_path, lines, said):
    with pytest.raises(UserError) as error:
        select(write(tmp_path / "g.jsonl", lines), tmp_path / "o.jsonl", purpose="sft")
    assert said in str(error.value)
    assert not (tmp_path / "o.jsonl").exists()


def test_other_mistakes(graded, tmp_path):
    with pytest.raises(UserError, match="unknown purpose 'rft'"):
        select(graded, tmp_path / "o.jsonl", purpose="rft")
    with pytest.raises(UserError, match=r"--per-problem: must be at least 1 \(got 0\)"):
        select(graded, tmp_path / "o.jsonl", purpose="sft", per_problem=0)
    with pytest.raises(UserError, match="overwritten"):
        select(graded, graded, purpose="sft")
    with graded.open("a") as file:
        file.write('{"problem_id": "a", "te')
    with pytest.raises(UserError, match=r"graded.jsonl:13: malformed JSON"):
        select(graded, tmp_path / "o.jsonl", purpose="sft")
    with pytest.raises(UserError, match="no problem with both"):
        select(write(tmp_path / "w.jsonl", [line("a", 0, "correct")]), tmp_path / "o.jsonl", purpose="dpo")
