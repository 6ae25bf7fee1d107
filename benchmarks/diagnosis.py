"""The diagnosis' pass over rows against the bare forward pass.

    python benchmarks/diagnosis.py --data GSM8K.jsonl      about three minutes

SmolLM2-135M on packed rows of GSM8K (question and full solution), as `rectune diagnose` measures them: log-probs,
entropies and top-1 of every target. The limit is the transformer body on the same packed rows and one product with the
head at the targets, with nothing made of the logits. Beside it what one would write with transformers alone: the
model's own forward, four padded rows of similar length at a time, with a log-softmax over all positions.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from common import DEVICE, DTYPE, entry, padded_batch, ratios, save, show, side_by_side

from rectune.config import load_config
from rectune.diagnosis.measure import measure_batch
from rectune.logprobs import supervised_positions
from rectune.models.load import load_model
from rectune.models.scorer import Scorer
from rectune.training.dataloader import load_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k/train.jsonl"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens-per-micro-batch", type=int, default=4096)
    options = parser.parse_args()
    logging.getLogger("rectune").setLevel(logging.ERROR)
    if not options.data.exists():
        print(f"{options.data} is not there: give GSM8K's train.jsonl with --data")
        return
    settings = {
        "model": options.model,
        "data": str(options.data),
        "output_dir": "unused",
        "max_train_samples": options.rows,
        "eval_split_size": 0,
        "batch_size": options.rows,
        "tokens_per_micro_batch": options.micro_batch_tokens,
    }
    config = load_config(None, settings)
    model, tokenizer = load_model(config.model, dtype=DTYPE, device=DEVICE)
    model.eval()
    scorer, data = Scorer(model), load_data(config, tokenizer)
    batches = [data.train.batch(rows, DEVICE) for rows in data.micro_batches(0)]
    tokens = sum(data.train.lengths(data.plan.rows(0)))
    head = scorer.head()

    def diagnosis() -> None:
        for batch in batches:
            measure_batch(scorer, batch)

    @torch.inference_mode()
    def limit() -> None:
        for batch in batches:
            index, _ = supervised_positions(batch.labels)
            scorer.hidden(batch)[index] @ head.weight.T

    @torch.inference_mode()
    def transformers() -> None:
        lengths = sorted(length for batch in batches for length in batch.row_lengths)
        model.set_attn_implementation("sdpa")
        for four in (lengths[i : i + 4] for i in range(0, len(lengths), 4)):
            ids, mask = padded_batch(four)
            logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
            logits.log_softmax(-1).gather(-1, ids[..., None])
        model.set_attn_implementation("rectune_rows")

    runs = {
        "body and head product": limit,
        "rectune diagnose": diagnosis,
        "transformers, padded": transformers,
    }
    table = ratios(side_by_side(runs, rounds=options.rounds, warmup=1), "body and head product")
    for row in table.values():
        row["tokens_per_second"] = tokens / row["seconds"]
    show(f"{options.rows} rows, {tokens} tokens, {str(DTYPE).removeprefix('torch.')}", table)
    speeds = {name: row["tokens_per_second"] for name, row in table.items()}
    save(
        "diagnosis",
        table,
        [
            entry(
                "diagnosis, tokens/s", speeds["rectune diagnose"], limit=speeds["body and head product"],
                transformers=speeds["transformers, padded"],
                ratio=1 / table["rectune diagnose"]["ratio"], to="limit", target=0.9,
            )
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
