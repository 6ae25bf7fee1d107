"""A whole optimizer step of `rectune train` against the bare transformer body and against TRL.

    python benchmarks/step.py --data GSM8K.jsonl      a quarter of an hour where all is in float32

SmolLM2-135M, 16 rows of GSM8K (question and full solution) a step, DFT, bf16 compute with float32 masters (all in
float32 where the processor has no bfloat16 products). Figures are
real tokens per second, padding not counted. The body is forward and backward of the transformer without head,
loss and optimizer, on the same rows: packed with attention inside rows as rectune has it, and in the
two layouts that transformers offers. TRL trains with `loss_type="dft"` in bfloat16 autocast at its best batch size.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from common import DEVICE, DTYPE, entry, padded_batch, ratios, save, show, side_by_side, wait
from rectune.training.determinism import repeatably
from transformers import PreTrainedModel

from rectune.config import TrainConfig, load_config
from rectune.data.packing import Batch
from rectune.models.load import load_model
from rectune.models.scorer import Scorer
from rectune.objective_spec import Phase
from rectune.objectives import dft
from rectune.training.dataloader import load_data
from rectune.training.metrics import MONITORED, Monitor
from rectune.training.mixed_precision import Masters, make_optimizer

PADDED = 4 if DEVICE.type == "cpu" else 16
"""Rows of a padded batch."""
Runs = dict[str, Callable[[], object]]
PHASE = Phase(dft, "dft", {}, min_eos_weight=1.0)


def rectune_step(config: TrainConfig) -> tuple[Callable[[], None], Runs, int]:
    """One step as the training loop does it, the bare bodies on the same rows, and the rows' tokens."""
    from accelerate import Accelerator

    model, tokenizer = load_model(config.model, dtype=torch.float32, device=DEVICE)
    data = load_data(config, tokenizer)
    masters = Masters(model, DTYPE)
    optimizer, scorer, accelerator = (
        make_optimizer(masters.masters.values(), config),
        Scorer(model),
        Accelerator(),
    )
    model.train()
    targets = data.units(data.plan.rows(0))

    def accumulate(monitor: Monitor) -> None:
        for rows in data.micro_batches(0):
            columns = scorer.columns(data.train.batch(rows, DEVICE), MONITORED)
            losses = PHASE.loss(columns)
            (losses.sum() / targets).backward()
            monitor.add(columns, losses)

    def step() -> None:
        monitor = Monitor(PHASE)
        masters.start_step()
        repeatably(DEVICE, lambda: accumulate(monitor))
        norm = masters.finish_step(accelerator).item()
        masters.scale_gradients(min(1.0, config.max_grad_norm / norm))
        optimizer.step()
        masters.sync_working_weights()
        monitor.figures()

    batches = [data.train.batch(rows, DEVICE) for rows in data.micro_batches(0)]
    return step, bodies(model, batches, scorer), sum(data.train.lengths(data.plan.rows(0)))


def bodies(model: PreTrainedModel, batches: list[Batch], scorer: Scorer) -> Runs:
    def packed() -> None:
        for batch in batches:
            scorer.hidden(batch).sum().backward()

    def with_attention(implementation: str, run: Callable[[], None]) -> Callable[[], None]:
        def switched() -> None:
            model.set_attn_implementation(implementation)
            run()
            model.set_attn_implementation("rectune_rows")

        return switched

    def dense_mask() -> None:
        for batch in batches:
            arguments = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
            model.base_model(**arguments).last_hidden_state.sum().backward()

    def padded() -> None:
        for batch in batches:
            for four in (batch.row_lengths[i : i + PADDED] for i in range(0, len(batch.row_lengths), PADDED)):
                ids, mask = padded_batch(four)
                body = model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
                body.last_hidden_state.sum().backward()

    return {
        "body, rows attended one by one": packed,
        "body, one sequence, dense mask": with_attention("sdpa", dense_mask),
        "body, rows by length, padded": with_attention("sdpa", padded),
    }


def trl_seconds(name: str, rows: list[dict[str, str]], batch_size: int, steps: int) -> list[float]:
    """Seconds of TRL's optimizer steps over the same rows; the first one warms up and is left out."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            wait()
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            wait()
            seconds.append(time.perf_counter() - self.start)

    model, tokenizer = load_model(name, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder, loss_type="dft", bf16=DTYPE is torch.bfloat16, use_cpu=DEVICE.type == "cpu",
            max_length=2048, max_steps=steps + 1,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=len(rows) // batch_size,
            gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=1000, disable_tqdm=True,
            optim="adamw_torch_fused", shuffle_dataset=False, dataloader_pin_memory=False,
        )  # fmt: skip
        dataset = Dataset.from_list(rows * (steps + 1))
        SFTTrainer(
            model, settings, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()]
        ).train()
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k/train.jsonl"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16, help="of a step")
    parser.add_argument("--tokens-per-micro-batch", type=int, default=4096)
    parser.add_argument("--trl-batch-sizes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("rectune").setLevel(logging.ERROR)
    if not options.data.exists():
        print(f"{options.data} is not there: give GSM8K's train.jsonl with --data")
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.jsonl")
        source.write_text("".join(options.data.read_text().splitlines(keepends=True)[: options.rows]))
        settings = {
            "model": options.model, "data": str(source), "output_dir": folder, "eval_split_size": 0,
            "chat_template": "none", "batch_size": options.rows, "tokens_per_micro_batch": options.micro_batch_tokens,
        }  # fmt: skip
        step, bare, tokens = rectune_step(load_config(overrides=settings))
        rows = [json.loads(line) for line in source.read_text().splitlines()]
    pairs = [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in rows]
    figures: dict[str, object] = {}
    unit = "body, rows attended one by one"
    table = ratios(side_by_side({**bare, "rectune step": step}, rounds=options.rounds, warmup=1), unit)
    for row in table.values():
        row["tokens_per_second"] = tokens / row["seconds"]
    show(f"{tokens} tokens in {options.rows} rows; unit: {unit}", table)
    for name, row in table.items():
        print(f"{name:34}{row['tokens_per_second']:9.0f} tokens/s")
    figures["step"] = table
    found = {
        size: statistics.median(trl_seconds(options.model, pairs, size, 1))
        for size in options.trl_batch_sizes
    }
    best = min(found, key=found.__getitem__)
    print("\nTRL, tokens/s by batch size:", {size: round(tokens / s) for size, s in found.items()})
    turns = (
        side_by_side({"rectune step": step}, rounds=1, warmup=1)["rectune step"],
        trl_seconds(options.model, pairs, best, 2),
    )
    ours = [*turns[0], *side_by_side({"rectune step": step}, rounds=2, warmup=0)["rectune step"]]
    ratio = statistics.median(turns[1]) / statistics.median(ours)
    mine, trl = (tokens / statistics.median(seconds) for seconds in (ours, turns[1]))
    print(f"rectune {mine:.0f} tokens/s, TRL {trl:.0f}")
    print(f"ratio {ratio:.2f} at TRL's best batch size, {best}")
    figures["trl"] = {"by_batch_size": {str(k): tokens / v for k, v in found.items()}, "ratio": ratio}
    best_body = min(
        row["seconds"] for name, row in table.items() if name.startswith("body, ") and name != unit
    )
    lines = [
        entry(
            "training, tokens/s", tokens / table["rectune step"]["seconds"], limit=tokens / table[unit]["seconds"],
            transformers=tokens / best_body, ratio=1 / table["rectune step"]["ratio"], to="limit", target=0.85,
        ),
        entry("training, whole step, tokens/s", mine, trl=trl, ratio=ratio, to="trl"),
    ]  # fmt: skip
    save("step", figures, lines)


if __name__ == "__main__":
    main()
