"""Files that a recipe needs at full scale before its first run: problems of the training rows, rows of facts.

The mini scale's files are in `task.py`.
"""

from __future__ import annotations

from pathlib import Path

from rectune.config import TrainConfig
from rectune.data.load import from_hub, read_rows, row_at
from rectune.data.sampler import draw
from rectune.errors import UserError
from rectune.grading.final_answer import extract_answer
from rectune.reproduction.job import Job
from rectune.runtime.io import write_jsonl

FACTS = "google-research-datasets/nq_open"


def prepare(job: Job) -> None:
    """Write the files that are not there yet."""
    rows, problems = job.data["demonstrations"], Path(job.data["problems"])
    if isinstance(rows, Path) and not rows.is_file():
        rows.parent.mkdir(parents=True, exist_ok=True)
        records = (record for _, record in from_hub(FACTS, split="train"))
        lines = ({"prompt": one["question"] + "?", "completion": one["answer"][0]} for one in records)
        write_jsonl(rows, lines)
    if any(arm.method != "train" for arm in job.arms) and not problems.is_file():
        first = next((arm for arm in job.recipe.arms if arm.method == "train"), None)
        if first is None:
            raise UserError("has no arm that says which rows its questions are from", where=job.recipe.name)
        config = job.config(first, job.seeds[0], job.out)
        assert isinstance(config, TrainConfig)
        problems.parent.mkdir(parents=True, exist_ok=True)
        write_problems(config, problems, job.asking.prompt or "{question}")


def write_problems(config: TrainConfig, path: Path, prompt: str) -> int:
    r"""The questions of the rows that a run trains on, with the `\boxed{}` answer of each as gold; how many there are.

    Rows without a boxed answer (proofs) are left out.
    """
    dataset = read_rows(config.data, options=config)
    records = []
    for index in draw(len(dataset), config.max_train_samples, config.seed):
        row = row_at(dataset, index)
        question = next((turn.content for turn in row.turns if turn.role == "user"), "")
        gold = extract_answer(row.turns[-1].content, ["boxed"])
        if question and gold:
            asked = prompt.replace("{question}", question)
            records.append({"problem_id": str(index), "prompt": asked, "answer": gold})
    if not records:
        raise UserError("no row has a boxed answer to grade by", where=config.data)
    write_jsonl(path, records)
    return len(records)
