"""Files that a recipe needs at full scale before its first run: problems of the training rows, rows of facts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rectune.config import TrainConfig
from rectune.data.loading import from_hub, read_rows, row_at
from rectune.data.sampler import subsample
from rectune.errors import UserError
from rectune.experiments.reproduce import Reproduction, full_grid
from rectune.grading.final_answer import extract_answer
from rectune.runtime.io import write_jsonl

FACTS = "google-research-datasets/nq_open"


def write_files(work: Reproduction) -> None:
    """Write the files that are not there yet."""
    grid, folder = work.grids[0], work.config.output_dir / "data"
    if work.recipe.settings["data"] == "natural_questions" and not Path(grid.data).is_file():
        facts = ((f["question"], cast(list[str], f["answer"])) for _, f in from_hub(FACTS, split="train"))
        rows = ({"prompt": f"{question}?", "completion": answers[0]} for question, answers in facts)
        write_jsonl(Path(grid.data), rows)
    problems = folder / "problems.jsonl"
    if any(arm.method != "train" for arm in grid.arms) and not problems.is_file():
        every = full_grid(work.recipe, work.recipe.model[0], work.config)
        trained = [arm for arm in every.arms if arm.method == "train"]
        if not trained:
            raise UserError("no arm says which rows its questions are from", where=work.path)
        write_problems(
            every.run(trained[0], 0).training, problems, work.recipe.draws["prompt"] or "{question}"
        )


def write_problems(config: TrainConfig, path: Path, prompt: str) -> int:
    r"""The questions of the rows that a run trains on, with the `\boxed{}` answer of each as gold; returns how many.

    Rows without a boxed answer (proofs) are left out.
    """
    dataset = read_rows(config.data, options=config)
    records = []
    for index in subsample(len(dataset), config.max_train_samples, config.seed):
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
