"""GRPO on many GPUs: TRL's trainer and vLLM draw and train, rectune's grader judges.

Every GPU trains and draws (vLLM's "colocate" mode, TRL's default):
accelerate launch --num_processes 4 examples/trl_grpo.py Qwen/Qwen2.5-Math-1.5B problems.jsonl runs/grpo
"""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rectune import grader_reward
from rectune.data.loading import read_problems

model, problems, out, *flags = sys.argv[1:]
rows = [
    {
        "prompt": [{"role": t.role, "content": t.content} for t in p.prompt],
        "answer": p.answer,
        "extra": p.extra,
    }
    for p in read_problems(problems)
]
config = GRPOConfig(
    output_dir=out,
    learning_rate=1e-6,  # the paper's, with warm-up 0.1 and 4 answers to each problem
    warmup_steps=0.1,
    num_generations=4,
    per_device_train_batch_size=4 if "--tiny" in flags else 64,
    max_completion_length=16 if "--tiny" in flags else 2048,
    max_steps=2 if "--tiny" in flags else 400,
    use_vllm="--tiny" not in flags,  # --tiny: two steps of a small model, without vLLM, on a CPU
    use_cpu="--tiny" in flags,
    bf16="--tiny" not in flags,
    report_to="none",
)
GRPOTrainer(model, grader_reward("math"), args=config, train_dataset=Dataset.from_list(rows)).train()
