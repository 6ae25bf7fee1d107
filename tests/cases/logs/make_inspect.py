"""Write the logs of inspect-0.3.285: a local task and the mock model.

`python make_inspect.py FOLDER`, with inspect-ai.
"""

import sys
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import match

SAMPLES = [
    Sample(id=f"add-{i}", input=f"What is {i} + {i}?", target=str(2 * i), metadata={"family": i // 2})
    for i in range(8)
]
ARMS = {"base": (0, 1, 2), "sft-0": (0, 1, 2, 3, 4, 5), "sft-1": (0, 1, 2, 3, 4, 6)}


def output(text: str) -> ModelOutput:
    made = ModelOutput.from_content("mockllm/model", text)
    made.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # else it downloads a tokenizer
    return made


for arm, right in ARMS.items():
    answers = [output(str(2 * i) if i in right else "no idea") for i in range(len(SAMPLES))]
    task = Task(dataset=MemoryDataset(SAMPLES, name="sums"), scorer=match(numeric=True), name="sums")
    eval(
        task,
        model=get_model("mockllm/model", custom_outputs=answers),
        log_dir=str(Path(sys.argv[1]) / arm),
        log_format="json" if arm == "sft-1" else "eval",
        max_connections=1,
        max_samples=1,
        display="none",
    )
