"""Carrying out one run of a reproduction, whichever its method, and asking models; what is finished is left alone.

    train    rectune.training.trainer.train      on demonstrations
    rft      rectune.train_rft                on the base model's own graded answers, which all rft arms share
    rl       rectune.train_rl                 on answers of the model in training

Everything goes on after a kill. What is run, and in which order, is in `runner.py`.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectune.config import RFTConfig, Settings, TrainConfig
from rectune.evaluation.evaluate import evaluate
from rectune.experiments.evaluator import EvalSettings, is_evaluated
from rectune.reproduction.job import Asking, Job, trained_folder
from rectune.reproduction.recipe import Arm
from rectune.runtime.io import load_record, write_json
from rectune.training.trainer import train

if TYPE_CHECKING:
    from rectune.config import RLConfig
    from rectune.sampling.hf.engine import HFEngine


def is_done(arm: Arm, folder: Path) -> bool:
    """Whether the run in this folder is finished."""
    return (trained_folder(arm, folder) / "summary.json").is_file()


def carry_out(arm: Arm, config: Settings, *, until: int | None = None) -> None:
    """Run to the end (or, on demonstrations, up to a step); the checkpoints of a finished run are removed."""
    folder = Path(config.output_dir)  # type: ignore[attr-defined]
    if not is_done(arm, folder):
        if isinstance(config, RFTConfig):
            from rectune.experiments.rft import train_rft

            train_rft(config, resume=True)
        elif isinstance(config, TrainConfig):
            train(config, resume=True, until=until)
        else:
            from rectune.rl.loop import train_rl

            online: RLConfig = config  # type: ignore[assignment]
            train_rl(online, resume=True)
        gc.collect()  # this run's model, before the next one's
    if is_done(arm, folder):
        shutil.rmtree(trained_folder(arm, folder) / "checkpoints", ignore_errors=True)


def draw_samples(job: Job, seed: int) -> None:
    """The base model's answers that the offline arms of a seed share; how long it took stays beside them."""
    from rectune.data.load import read_problems
    from rectune.sampling.sample import sample
    from rectune.sampling.types import EngineSpec, SamplingParams

    path = job.samples(seed)
    done = path.with_suffix(".json")
    if done.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    config = job.config(job.sharing[0], seed, path.parent)
    assert isinstance(config, RFTConfig)
    began = time.perf_counter()
    sample(
        config.model,
        read_problems(config.problems),
        out=path,
        num_samples=config.num_samples,
        params=SamplingParams(
            config.temperature, config.top_p, config.max_new_tokens, config.sampling_seed, tuple(config.stop)
        ),
        engine=EngineSpec(job.asking.engine, dtype=config.dtype),
        template=config.chat_template,
    )
    with path.open("rb") as lines:
        drawn = [len(json.loads(line)["token_ids"]) for line in lines]
    cost = {"answers": len(drawn), "tokens": sum(drawn), "seconds": time.perf_counter() - began}
    write_json(done, {"format": 1, **cost})


class Respondent:
    """A model that is asked; its weights are read when an answer is first needed.

    Args:
        weights: Folder or hub id.
        asking: How.
    """

    def __init__(self, weights: str, asking: Asking) -> None:
        self.weights, self.asking = weights, asking
        self._engine: HFEngine | str | None = None if asking.engine == "hf" else asking.engine

    def answer(self, folder: Path, draws: EvalSettings, files: Sequence[Path] | None = None) -> None:
        """Draw and grade the evaluation in `folder`, unless it is there.

        Args:
            files: Problems instead of the verdict's.
        """
        asking = self.asking
        places = asking.places if files is None else files
        if is_evaluated(folder, places, draws):
            return
        evaluate(
            self.weights,
            () if asking.files or files is not None else list(asking.benchmarks),
            out=folder,
            benchmark_files=asking.files if files is None else files,
            benchmark_dir=asking.folder,
            n=draws.num_samples,
            temperature=draws.temperature,
            max_new_tokens=draws.max_new_tokens,
            seed=draws.seed,
            stop=draws.stop,
            template=asking.template,
            prompt=asking.prompt,
            system=asking.system,
            engine=self._loaded(),
            precision=asking.precision,
        )

    def _loaded(self) -> HFEngine | str:
        if self._engine is None:
            from rectune.sampling.hf.engine import HFEngine

            template, precision = self.asking.template, self.asking.precision
            self._engine = HFEngine.load(self.weights, template=template, dtype=precision)
        return self._engine


def kinds_of(asking: Asking, seed: int) -> dict[str, EvalSettings]:
    """The evaluations of the verdict: at its temperature, and greedy beside where that is another."""
    draws = replace(asking.draws, seed=seed)
    if draws.temperature == 0:
        return {"evaluation": draws}
    return {"evaluation": draws, "greedy": replace(draws, num_samples=1, temperature=0.0)}


def run_cost(job: Job, arm: Arm, seed: int) -> dict[str, Any]:
    """What a finished run took: answers and tokens trained on, answers and tokens drawn, seconds of both."""
    folder = trained_folder(arm, job.folder(arm, seed))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    taken = [line for line in lines if line.get("kind") == "train"]
    config = json.loads((folder / "config.json").read_text())
    steps, drawn = len(taken), {"answers": 0, "tokens": 0, "seconds": 0.0}
    if arm.method == "rl":
        rows = steps * config["problems_per_step"] * config["num_samples"]
        drawn = {"answers": rows, "tokens": 0, "seconds": 0.0}
    else:
        pairs = config["objective"].startswith("dpo")
        rows = steps * config["batch_size"] * (1 + pairs)
    if arm.method == "rft":
        drawn = load_record(job.samples(seed).with_suffix(".json"), "answers", "tokens", "seconds")
    return {
        "steps": steps,
        "answers_trained": rows,
        "tokens_trained": sum(line.get("tokens", 0) for line in taken),
        "answers_drawn": drawn["answers"],
        "seconds": sum(line["seconds"] for line in taken) + drawn["seconds"],
        "peak_memory_mib": max((line.get("peak_memory_mib", 0) for line in taken), default=0),
    }
