"""Useful tokens per second of the embedded engine against transformers' own ways to sample, side by side.

    python benchmarks/sampling.py                      generate at several batch sizes, then rounds against the best
    python benchmarks/sampling.py --generate-batch     transformers' continuous batching takes part too

SmolLM2-135M (bfloat16 where the processor multiplies it, else float32), GSM8K questions in the chat template, n = 8,
temperature 1. Useful tokens are those up to and including the end of each sequence: what `generate` computes for rows
that have ended is not counted. The longer answers may become (--max-new-tokens), the more of them it computes in vain.
All contestants get the same prompts and draw from the same distribution (top-k off). Within a round they take turns.

`generate` allocates a larger cache at every step. Where fresh memory is slow to get (many virtual machines) that
multiplies its time; to measure it at its best, keep freed memory in the process:
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 python benchmarks/sampling.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import DEVICE, entry, save

from rectune.data.schema import Turn
from rectune.data.tokenization import prompt_ids
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.types import Request, SamplingParams

QUESTIONS = Path(__file__).parents[2] / "shared/data/gsm8k/test.jsonl"


def useful(new: list[int], stops: set[int]) -> int:
    return next((i + 1 for i, token in enumerate(new) if token in stops), len(new))


def generate(engine: HFEngine, requests: list[Request], batch_size: int, limit: int) -> int:
    """`model.generate` over batches of left-padded prompts in the order given, as its users write it."""
    tokens, pad = 0, engine.tokenizer.pad_token_id
    for start in range(0, len(requests), batch_size):
        prompts = [r.prompt_ids for r in requests[start : start + batch_size]]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=DEVICE)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
        settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": limit}
        out = engine.model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, eos_token_id=sorted(engine.stop_ids), pad_token_id=pad, **settings
        )
        tokens += sum(useful(row, engine.stop_ids) for row in out[:, width:].tolist())
    return tokens


def generate_batch(engine: HFEngine, requests: list[Request], limit: int) -> int:
    """transformers' continuous batching."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit,
        eos_token_id=sorted(engine.stop_ids), pad_token_id=engine.tokenizer.pad_token_id,
    )  # fmt: skip
    prompts = [list(r.prompt_ids) for r in requests]
    out = engine.model.generate_batch(prompts, generation_config=config)  # type: ignore[operator]
    return sum(useful(o.generated_tokens, engine.stop_ids) for o in out.values())


def local(engine: HFEngine, requests: list[Request], limit: int) -> int:
    settings = SamplingParams(max_new_tokens=limit, seed=time.time_ns() % 2**32)
    return sum(len(c.token_ids) for c in engine.complete(requests, settings))


def speed(run: Callable[[], int], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    tokens = run()
    return tokens / (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128],
                        help="of generate; one is taken without trial")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=None, help="of the embedded engine")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--generate-batch", action="store_true")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, processor time: for a machine that is busy"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    engine = HFEngine.load(options.model, dtype=options.dtype, batch_size=options.batch_size)
    questions = [json.loads(line)["question"] for line in QUESTIONS.open()][: options.problems]
    requests = [
        Request(str(i), k, tuple(prompt_ids((Turn("user", text),), engine.tokenizer, engine.template)))
        for i, text in enumerate(questions)
        for k in range(8)
    ]
    limit = options.max_new_tokens
    # One batch of each, to the end: with few tokens the largest looks best, and then loses by its growing cache.
    tried = {}
    for size in options.batch_sizes if len(options.batch_sizes) > 1 else []:
        tried[size] = speed(partial(generate, engine, requests[:size], size, limit), clock)
        print(f"generate, batch {size:4} {tried[size]:19.0f} tokens/s", flush=True)
    best = max(tried, key=tried.__getitem__, default=options.batch_sizes[0])
    contestants: dict[str, Callable[[], int]] = {
        f"generate, batch {best}": lambda: generate(engine, requests, best, limit),
        f"rectune, batch {engine.batch_size}": lambda: local(engine, requests, limit),
    }
    if options.generate_batch:
        contestants["generate_batch"] = lambda: generate_batch(engine, requests[:64], limit)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            speeds[name].append(speed(run, clock))
            print(f"{name:28}{speeds[name][-1]:8.0f} tokens/s", flush=True)
    unit, table = next(iter(speeds)), {}
    for name, values in speeds.items():
        ratios = [v / u for v, u in zip(values, speeds[unit], strict=True)]
        table[name] = {
            "tokens_per_second": statistics.median(values),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
        print(f"{name:28}{statistics.median(values):8.0f} tokens/s, {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f}) times generate's")  # fmt: skip
    figures = {"generate_by_batch_size": tried, "rounds": table, "sequences": len(requests)}
    ours = table[f"rectune, batch {engine.batch_size}"]
    line = entry(
        f"sampling to {limit} tokens, tokens/s",
        ours["tokens_per_second"],
        transformers=table[unit]["tokens_per_second"],
        ratio=ours["ratio"],
        to="transformers",
        target=3.0,
    )
    save("sampling", figures | {"dtype": str(engine.model.dtype), "max_new_tokens": limit}, [line])


if __name__ == "__main__":
    main()
