"""What is fuzzed: each target draws its input from hypothesis and does with it what a verb would.

`test_fuzz.py` runs every target for a moment, the same way each time; `long.py` (make fuzz) for as long as it is told.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.bounds import bounded
from fuzz.strategies import damaged, lines, spoilt, texts, values
from hostile import check_inert, comparison
from rectune.errors import UserError

Draw = Callable[[st.SearchStrategy[Any]], Any]

RECORDS: dict[str, list[Any]] = {
    "prompt_completion": [{"prompt": "1+1=", "completion": "2", "source": "web"}],
    "messages": [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                               {"role": "assistant", "content": "a", "train": True, "weight": 1}]}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}],
    "alpaca": [{"instruction": "i", "input": "n", "output": "o"}],
    "gsm8k": [{"question": "q", "answer": "<<1+1=2>>2\n#### 2"}],
    "numina": [{"problem": "p", "solution": "s"}],
    "openr1": [{"problem": "p", "generations": ["a", "b"], "correctness_math_verify": [True, False],
                "is_reasoning_complete": [True, True]}],
    "chosen": [{"prompt": "p", "chosen": "a", "rejected": "b"}],
}  # fmt: skip


def rows(draw: Draw) -> None:
    """Row files of every format and name: read, and encoded with a chat template."""
    from rectune.config import DataConfig
    from rectune.data.chat_template import choose_template
    from rectune.data.encoded_dataset import encode_rows
    from rectune.data.loading import read_rows, row_at

    format = draw(st.sampled_from(sorted(RECORDS)))
    whole = draw(spoilt(RECORDS[format] * draw(st.integers(1, 3))))
    suffix = draw(st.sampled_from((".jsonl", ".json", ".csv", ".jsonl.gz")))
    content = draw(damaged(_written(whole, suffix, draw)))
    if suffix.endswith(".gz"):
        content = draw(damaged(gzip.compress(content)))
    asked = draw(st.sampled_from(("auto", format)))
    with bounded() as folder:
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        dataset = read_rows(str(path), options=DataConfig(data_format=asked), cache_dir=folder / "cache")
        for i in range(len(dataset)):
            row_at(dataset, i)
        template = choose_template("auto", tokenizer())
        encode_rows(dataset, tokenizer(), template, max_length=64, cache_dir=folder / "cache", num_proc=1)


def _written(whole: Any, suffix: str, draw: Draw) -> bytes:
    records = _listed(whole)
    if suffix == ".json":
        return json.dumps({"data": records} if draw(st.booleans()) else records).encode()
    if suffix == ".csv":
        import csv

        file = io.StringIO()
        rows = [record for record in records if isinstance(record, dict)]
        writer = csv.writer(file)
        writer.writerow([str(key) for key in (rows[0] if rows else {})])
        writer.writerows([[str(value) for value in row.values()] for row in rows])
        return file.getvalue().encode("utf-8", "surrogatepass")
    return lines(*records)


def _listed(whole: Any) -> list[Any]:
    return whole if isinstance(whole, list) else [whole]


def pairs_and_problems(draw: Draw) -> None:
    """Files of pairs and of problems."""
    from rectune.config import DataConfig
    from rectune.data.loading import read_problems, read_rows

    pair = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    problem = {
        "prompt": "q",
        "answer": ["1", 2.5],
        "problem_id": "a",
        "grader": "math",
        "extra": {"tolerance": 0.1},
    }
    other = {"messages": [{"role": "user", "content": "q"}], "answer": "#### 4", "grader": "code",
             "extra": {"test_list": ["assert True"], "extract": ["boxed"]}}  # fmt: skip
    whole = draw(spoilt(draw(st.sampled_from(([pair, pair], [problem, other])))))
    content = draw(damaged(lines(*_listed(whole))))
    with bounded() as folder:
        (folder / "x.jsonl").write_bytes(content)
        read_rows(
            str(folder / "x.jsonl"), options=DataConfig(data_format="chosen"), cache_dir=folder / "cache"
        )
    with bounded() as folder:
        (folder / "x.jsonl").write_bytes(content)
        read_problems(folder / "x.jsonl")


RECIPE = """\
model = "m"
data = "d.jsonl"
output_dir = "runs/x"
max_steps = 3
num_train_epochs = 1.5
learning_rate = 1e-4
report_to = ["wandb"]
objective = "power:alpha=0.5"
columns = {prompt = "a", completion = "b"}
eval_split_size = 0.1
lora_r = 8
"""


def recipe(draw: Draw) -> None:
    """Recipes, and settings as flags give them."""
    from rectune.config import TrainConfig, dump_config, load_config
    from rectune.data.sampler import plan_steps, split_holdout

    content = draw(damaged(RECIPE.encode(), times=3))
    names = [*TrainConfig.model_fields, "objective.x"]
    given = draw(st.dictionaries(st.one_of(st.sampled_from(names), texts), values, max_size=3))
    with bounded() as folder:
        (folder / "r.toml").write_bytes(content)
        config = load_config(folder / "r.toml", given)
        dump_config(config).encode()
        share = config.eval_split_size if isinstance(config.eval_split_size, float) else 0.1
        kept, _ = split_holdout(range(20), share, config.seed)
        steps = {"epochs": config.num_train_epochs, "steps": config.max_steps, "seed": config.seed}
        plan = plan_steps(len(kept), config.batch_size, **steps)
        if config.batch_size < 1e6:
            plan.rows(0)


SMALL = ("config.json", "environment.json", "summary.json", "metrics.jsonl", "token_logprobs.json",
         "evaluation/evaluation.json", "evaluation/graded.jsonl")  # fmt: skip
FILES = ("comparison.json", "diagnosis.json", "trainerx/trainer_state.json",
         *(f"runs/dft/seed-0/{name}" for name in SMALL))  # fmt: skip


def run_folder(draw: Draw) -> None:
    """A comparison folder, damaged in every way: its report as data, Markdown and page, and what eval reads of it."""
    from rectune.data.trained_prompt import run_prompt
    from rectune.evaluation.accuracy import read_evaluation, verdict_matrix
    from rectune.reporting.report import markdown, page, report
    from rectune.runtime.io import to_json
    from rectune.training.checkpoint import last_good_checkpoint

    changes = {
        name: draw(st.integers(0, 9))
        for name in draw(st.lists(st.sampled_from(FILES), max_size=3, unique=True))
    }
    contents = {name: _changed(_folder() / name, how, draw) for name, how in changes.items()}
    drawn = draw(st.integers(0, 30)) == 30
    state = draw(damaged(b'{"format": 1, "step": 2, "updates": 2, "checksums": {"weights.safetensors": 1}}'))
    _folder()
    with bounded() as inside:
        folder = Path(shutil.copytree(_folder(), inside / "c"))
        secret = inside / "secret.jsonl"
        secret.write_bytes(lines({"format": 1, "python": "SECRET", "kind": "train", "step": 1}))
        for name, how in changes.items():
            path = folder / name
            if how > 3:
                path.write_bytes(contents[name])
                continue
            path.unlink()
            if how == 1:
                path.mkdir()
            elif how == 2:
                path.symlink_to(secret)
            elif how == 3:
                os.mkfifo(path)
        found = report([folder])
        json.dumps(found.to_dict(), allow_nan=False)
        to_json(found.to_dict(), ensure_ascii=False)
        text = markdown(found)
        assert "SECRET" not in text
        if drawn:
            check_inert(page(found), scripts=0)
    with bounded() as inside:
        folder = Path(shutil.copytree(_folder() / "runs", inside / "runs"))
        for name, how in changes.items():
            if how > 3 and name.startswith("runs/"):
                (inside / name).write_bytes(contents[name])
        (folder / "dft/seed-0/model").mkdir()
        if not re.search(
            r'"data": *"[\w.:/-]*"', (folder / "dft/seed-0/config.json").read_text("utf-8", "replace")
        ):
            run_prompt(str(folder / "dft/seed-0"))  # else the rows would be looked for on the hub
    with bounded() as inside:
        folder = Path(shutil.copytree(_folder() / "runs", inside / "runs"))
        for name, how in changes.items():
            if how > 3 and name.startswith("runs/"):
                (inside / name).write_bytes(contents[name])
        for arm in ("dft", "sft"):
            for benchmark in read_evaluation(folder / arm / "seed-0/evaluation").benchmarks:
                verdict_matrix(folder / arm / "seed-0/evaluation", benchmark)
    with bounded() as inside:
        (inside / "step-000002").mkdir()
        (inside / "step-000002/state.json").write_bytes(state)
        last_good_checkpoint(inside)


@lru_cache(maxsize=1)
def _folder() -> Path:
    import matplotlib.font_manager  # noqa: F401  makes its folders

    return comparison(Path(tempfile.mkdtemp(prefix="fuzzed-")) / "c", "*")


def _changed(path: Path, how: int, draw: Draw) -> bytes:
    if how < 4:
        return b""
    whole = path.read_bytes()
    if how > 6:
        records = [json.loads(line) for line in whole.splitlines()]
        place = draw(st.integers(0, len(records) - 1))
        records[place] = draw(spoilt(records[place]))
        whole = lines(*records)
    return draw(damaged(whole)) if how in (4, 5, 9) else whole


SAMPLE = {
    "problem_id": "p", "sample_index": 0, "prompt": "q", "text": "2", "answer": "2", "grader": "exact",
    "token_ids": [1], "logprobs": [-1.0], "finish_reason": "stop", "seed": 0, "temperature": 1.0, "top_p": 1.0,
    "engine": "local", "model": "m", "fingerprint": "f", "extra": {"tolerance": 0.1, "extract": ["boxed"]},
    "turns": [{"role": "user", "content": "q", "supervised": False}], "max_new_tokens": 8,
}  # fmt: skip


def samples(draw: Draw) -> None:
    """Files of samples: resumed, read for grading, and their graded form selected from."""
    from rectune.evaluation.accuracy import read_graded, score
    from rectune.grading.files import Summary, _lines, _skip_graded, select
    from rectune.records import Sample
    from rectune.sampling.sample import SamplesFile

    code = {"grader": "code", "extra": {"test_list": ["assert f(1)"]}}
    both = [SAMPLE, {**SAMPLE, "sample_index": 1, "text": "3", **code}]
    ungraded = draw(spoilt(both))
    given = zip(both, ("correct", "wrong"), strict=True)
    graded = draw(spoilt([{**line, "verdict": verdict, "extracted": "2"} for line, verdict in given]))
    before, after = (draw(damaged(lines(*_listed(x)))) for x in (ungraded, graded))
    purpose = draw(st.sampled_from(("sft", "dpo")))
    expected = Sample(**SAMPLE)
    with bounded() as folder:
        (folder / "s.jsonl").write_bytes(before)
        with SamplesFile(folder / "s.jsonl", {"p": expected}) as file:
            file.append(expected)
    with bounded():
        list(_lines(Path("s.jsonl"), io.BytesIO(before), 0))
    with bounded():
        _skip_graded(Path("s"), io.BytesIO(before), Path("g"), io.BytesIO(after), Summary())
    with bounded() as folder:
        (folder / "g.jsonl").write_bytes(after)
        select(folder / "g.jsonl", folder / "out.jsonl", purpose=purpose)
    with bounded() as folder:
        (folder / "g.jsonl").write_bytes(after)
        score(read_graded(folder / "g.jsonl", ["p"], 2))


PIECES = (
    r"\boxed{", "}", "#### ", "The answer is ", r"\frac{1}{", r"\sqrt[", "^", "^^", "**", "9" * 50, "!", "&", r"\\",
    r"\begin{matrix}", r"\text{", "$", "$$", r"\(", r"\[", "[", "(", ")", "1/0", "x=", "and", "%", "e9999",
    "```python\n", "def f(x): return x\n", "\n" * 50, "1" * 400, "10^10^10", r"\int_0^", r"\sum_{i=1}^{10^9}", "∞",
    "0.1", ",000", "\x00", "\ud800", "'", "lambda",
)  # fmt: skip


def answers(draw: Draw) -> None:
    """A model's words, through every grader of answers, in the worker process that a run has."""
    written = st.lists(st.one_of(st.sampled_from(PIECES), texts), max_size=8).map("".join)
    gold, extra = st.one_of(written, st.just("42")), st.none() | st.just({"tolerance": 0.01})
    items = [(draw(gold), draw(written), name, draw(extra)) for name in ("math", "expression", "exact")]
    from rectune.records import VERDICTS

    graded = grader().grade(items)
    assert [one.verdict in VERDICTS for one in graded] == [True] * 3


@lru_cache(maxsize=1)
def grader() -> Any:
    import atexit

    from rectune.grading.pool import Grader

    kept = Grader(workers=1, timeout=3.0)
    atexit.register(kept.close)
    return kept


def programs(draw: Draw) -> None:
    """A model's words as a program: found in the text; and, one time in ten, run in the sandbox."""
    from rectune.grading.code import grade_code
    from rectune.grading.code_extraction import extract_code
    from rectune.grading.pool import check_item
    from rectune.records import VERDICTS

    pieces = st.sampled_from((*PIECES, "    ", "class ", "import os", "\n"))
    written = st.lists(st.one_of(pieces, texts), max_size=10)
    text, prompt = "".join(draw(written)), draw(st.sampled_from(("", "def f(x):\n")))
    extra = draw(spoilt({"test": "def check(c): assert c(1) == 1", "entry_point": "f", "prompt": prompt,
                         "test_list": ["assert f(1)"], "test_setup_code": ""}))  # fmt: skip
    with bounded():
        extract_code(text + "\n" * draw(st.sampled_from((0, 20_000))), prompt=prompt, entry_point="f")
    if isinstance(extra, dict) and draw(st.integers(0, 9)) == 0:
        verdict = "error"
        with suppress(UserError):
            check_item("code", extra)  # as whoever grades does first
            verdict = grade_code(text, extra, timeout=2.0).verdict
        assert verdict in VERDICTS


def diagnosis_page(draw: Draw) -> None:
    """A diagnosis with other texts in it: its page."""
    import matplotlib.font_manager  # noqa: F401  # makes its own folders when it is first used, which no input does

    from rectune.records import Diagnosis

    page, written = page_drawing_once()
    whole = json.loads(written)
    for _ in range(draw(st.integers(0, 4))):
        part: Any = whole
        while isinstance(part, (dict, list)) and part:
            key = draw(st.sampled_from(list(part) if isinstance(part, dict) else list(range(len(part)))))
            if isinstance(part[key], str) and key not in ("severity", "position", "confidence"):
                part[key] = draw(texts)
            part = part[key]
    with bounded():
        check_inert(page.render_page(Diagnosis.model_validate(whole)), scripts=2)


@lru_cache(maxsize=1)
def page_drawing_once() -> tuple[Any, str]:
    """The page's module, which draws a figure once (most of the work of a page), and a whole diagnosis as JSON."""
    from diagnosed import diagnosis
    from rectune.diagnosis import page

    draw = lru_cache(maxsize=64)(page._histogram)
    page._histogram = lambda counts: draw(tuple(counts))  # type: ignore[assignment]
    return page, json.dumps(diagnosis(rows=2))


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    from toys import byte_tokenizer

    return byte_tokenizer()


TARGETS: dict[str, Callable[[Draw], None]] = {
    target.__name__: target
    for target in (rows, pairs_and_problems, recipe, run_folder, samples, answers, programs, diagnosis_page)
}
