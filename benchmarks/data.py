"""Rows at scale: read, encode, pack, and start from a cache hit, each in a process of its own.

    python benchmarks/data.py --rows 1000000

Rows are generated sums in words, one JSON object a line. Encoding takes turns with its limit: the bare tokenizer's own
`encode_batch` over the same texts on all cores, without templates, labels or files. Figures are rows per second, and
the most memory that was resident at once in the stage's process and in the largest process that it started.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SAMPLE = 20_000  # rows of the limit


def generate(path: Path, rows: int, stories: int) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            prompts, completions = zip(*(story(draw) for _ in range(stories)), strict=True)
            file.write(json.dumps({"prompt": " ".join(prompts), "completion": "\n".join(completions)}) + "\n")


def story(draw: random.Random) -> tuple[str, str]:
    a, b, c = (draw.randrange(2, 999) for _ in range(3))
    who, other = draw.sample(("Ada", "Bo", "Chen", "Dina", "Emil", "Farah"), 2)
    prompt = (
        f"{who} has {a} marbles and buys {b} bags of {c} marbles each. {who} gives half of them to {other},"
        " and keeps the odd one if there is one. How many marbles does each have at the end?"
    )
    total = a + b * c
    completion = (
        f"In the bags there are {b} * {c} = {b * c} marbles. Together {a} + {b * c} = {total}. Half of that is"
        f" {total // 2}, so {other} has {total // 2} and {who} has {total - total // 2}.\n#### {total // 2}"
    )
    return prompt, completion


def read(config: Any) -> Any:
    from rectune.data.loading import read_rows

    return read_rows(config.data, options=config)


def encode(config: Any) -> Any:
    from transformers import AutoTokenizer

    from rectune.data.chat_template import choose_template
    from rectune.data.encoded_dataset import encode_rows

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    rows = read(config)
    began = time.perf_counter()
    encoded = encode_rows(rows, tokenizer, choose_template("auto", tokenizer), max_length=config.max_length)
    return encoded.counts.rows, began


def hit(config: Any) -> Any:
    """What training does about its rows before the first step, all of it cached."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    began = time.perf_counter()
    from rectune.training.dataloader import load_data

    data = load_data(config, tokenizer)
    assert data.fingerprint
    assert data.train.batch(data.micro_batches(0)[0]).row_lengths
    return len(data.train) + len(data.holdout), began


def pack(config: Any) -> Any:
    """Every step's rows into micro-batches, and all rows into bins at once."""
    from transformers import AutoTokenizer

    from rectune.data.packing import pack
    from rectune.training.dataloader import load_data

    data = load_data(config, AutoTokenizer.from_pretrained(config.model))
    began = time.perf_counter()
    for step in range(len(data.plan)):
        data.micro_batches(step)
    pack(data.train.lengths(), config.tokens_per_micro_batch)
    return len(data.train), began


def limit(config: Any) -> Any:
    """The tokenizer's own speed on all cores, over the text of the first rows."""
    from transformers import AutoTokenizer

    from rectune.data.readers import read_jsonl

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    texts = []
    for number, record in read_jsonl(config.data):
        if number > SAMPLE:
            break
        messages = [
            {"role": "user", "content": str(record["prompt"])},
            {"role": "assistant", "content": str(record["completion"])},
        ]
        texts.append(str(tokenizer.apply_chat_template(messages, tokenize=False)))
    began = time.perf_counter()
    for start in range(0, len(texts), 1000):
        tokenizer.backend_tokenizer.encode_batch(texts[start : start + 1000], add_special_tokens=False)
    return len(texts), began


STAGES = {"read": read, "encode": encode, "pack": pack, "hit": hit, "limit": limit}


def stage(name: str, config: Any) -> dict[str, float]:
    """One stage, in this process."""
    from rectune.training.metrics import peak_memory_mib

    began = time.perf_counter()
    result = STAGES[name](config)
    end = time.perf_counter()
    rows, began = (len(result), began) if name == "read" else result
    return {
        "rows": rows,
        "seconds": round(end - began, 2),
        "rows_per_second": round(rows / (end - began)),
        "peak_mib": peak_memory_mib(),
        "largest_child_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
    }


def _speed(figures: dict[str, Any]) -> float:
    return float(figures["rows_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stories", type=int, default=1, help="told and solved in each row, 140 tokens each")
    parser.add_argument("--rounds", type=int, default=3, help="of encoding and its limit")
    parser.add_argument("--max-length", type=int, default=1024, help="of a row; another one encodes anew")
    parser.add_argument("--folder", type=Path, help="for the rows and the cache; else a temporary one")
    parser.add_argument("--model", help="folder of the tokenizer; else the packaged model")
    parser.add_argument("--stage", choices=[*STAGES])
    arguments = parser.parse_args()
    if arguments.stage:
        from rectune.config import load_config

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        folder = arguments.folder
        settings = {"model": arguments.model, "data": folder / "rows.jsonl", "output_dir": folder / "out"}
        settings["max_length"] = arguments.max_length
        print(json.dumps(stage(arguments.stage, load_config(None, settings))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        generate(folder / "rows.jsonl", arguments.rows, arguments.stories)
        if arguments.model is None:
            from rectune.models.folder import find_folder

            arguments.model = str(find_folder("smollm2-135m"))
        environment = {**os.environ, "RECTUNE_CACHE": str(folder / "cache")}
        command = [sys.executable, __file__, "--folder", str(folder), "--model", arguments.model]

        def run(name: str, *more: str) -> dict[str, Any]:
            done = subprocess.run(
                [*command, "--stage", name, *more],
                env=environment, check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:8}", *(f"{key.replace('_', ' ')} {value:,}" for key, value in found.items()))
            return found

        figures = {"read": run("read")}
        turns = [
            {name: run(name, "--max-length", str(arguments.max_length - i)) for name in ("limit", "encode")}
            for i in reversed(range(arguments.rounds))
        ]
        figures |= {name: run(name) for name in ("pack", "hit")}
    for name in ("limit", "encode"):
        figures[name] = sorted((turn[name] for turn in turns), key=_speed)[len(turns) // 2]
    shares = [_speed(turn["encode"]) / _speed(turn["limit"]) for turn in turns]
    share = statistics.median(shares)
    figures["encode"]["shares_of_limit"] = [round(one, 2) for one in shares]
    print(
        f"encoding runs at {share:.2f} ({min(shares):.2f} to {max(shares):.2f}) of the bare tokenizer's speed"
        f" on {os.cpu_count()} cores"
    )
    from common import entry, save

    what = "encoding" if arguments.stories == 1 else f"encoding {arguments.stories} stories a row"
    line = entry(
        f"{what}, rows/s",
        _speed(figures["encode"]),
        limit=_speed(figures["limit"]),
        ratio=share,
        to="limit",
        target=1,
    )
    save("data", figures, [line])


if __name__ == "__main__":
    main()
