"""Evaluates one model of an experiment: loaded at most once for all of its evaluations, and not for finished ones.

What an evaluation is, and how it resumes, is in `evaluation/evaluate.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from rectune.config import EvalConfig
from rectune.evaluation.accuracy import read_evaluation, verdict_matrix
from rectune.evaluation.evaluate import evaluate
from rectune.evaluation.statistics import Interval, mean_interval
from rectune.grading.pool import Grader

if TYPE_CHECKING:
    from rectune.analysis.entropy_matching import Loaded
    from rectune.sampling.hf.engine import HFEngine


@dataclass(frozen=True)
class EvalSettings:
    """How answers to problems are sampled.

    Attributes:
        num_samples: Answers to each problem.
        temperature, max_new_tokens, seed, stop: As in `evaluate`.
        chat_template, system_prompt: Of the prompt; the problems have the rest of it.
        dtype: Of the weights, with the hf backend.
        backend: "hf" or "vllm".
    """

    num_samples: int = 16
    temperature: float = 1.0
    max_new_tokens: int = 4096
    seed: int = 0
    stop: tuple[str, ...] = ()
    chat_template: str = "auto"
    system_prompt: str | None = None
    dtype: str = "auto"
    backend: Literal["hf", "vllm"] = "hf"


class Evaluator:
    """A model under evaluation; its weights are loaded when an answer is first needed, and freed at the end of `with`.

    Args:
        model: Run folder, or name of the base model.
        weights: Folder or name to load.
        grader: Processes that grade, which all models of an experiment share; None starts new ones for each evaluation.
    """

    def __init__(self, model: str, weights: str, grader: Grader | None = None) -> None:
        self.model, self.weights, self.grader = model, weights, grader
        self._engine: HFEngine | None = None

    def evaluate(self, folder: Path, files: Sequence[Path], settings: EvalSettings) -> None:
        """Sample and grade answers to the problems in `files`, unless `folder` has them."""
        if is_evaluated(folder, files, settings):
            return
        given = asdict(settings) | {"system_prompt": settings.system_prompt or ""}
        evaluate(
            EvalConfig(model=self.model, tasks=[str(path) for path in files], output_dir=folder, **given),
            engine=self._hf(settings) if settings.backend == "hf" else None,
            grader=self.grader,
        )

    def _hf(self, settings: EvalSettings) -> HFEngine:
        if self._engine is None:
            from rectune.sampling.hf.engine import HFEngine

            self._engine = HFEngine.load(self.weights, template=settings.chat_template, dtype=settings.dtype)
        return self._engine

    def loaded(self, settings: EvalSettings) -> Loaded | None:
        """The model and its tokenizer; None with another backend than hf."""
        if settings.backend != "hf":
            return None
        engine = self._hf(settings)
        return engine.model, engine.tokenizer

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        """Free the memory of the weights."""
        if self._engine is not None:
            self._engine = None
            gc.collect()


def is_evaluated(folder: Path, files: Sequence[Path], settings: EvalSettings) -> bool:
    """Whether `folder` holds this evaluation, finished. The content of the files is checked by `write_problems`."""
    if not (folder / "evaluation.json").is_file():
        return False
    evaluation = read_evaluation(folder)
    sampled = {name: getattr(settings, name) for name in ("temperature", "max_new_tokens", "seed")}
    sampled |= {"n": settings.num_samples, "stop": list(settings.stop)}
    same = all(getattr(evaluation.protocol, name) == value for name, value in sampled.items())
    return same and list(evaluation.benchmarks) == [path.stem for path in files]


def correct(folder: Path, files: Sequence[Path]) -> np.ndarray:
    """Which answers of an evaluation are correct, benchmarks below each other: (P, N) in 0 and 1."""
    return np.concatenate([verdict_matrix(folder, path.stem)[1] for path in files])


def mean_accuracy(correct_SxPxN: Sequence[np.ndarray], level: float = 0.95) -> Interval:
    """Mean over seeds and problems, with its interval over problems."""
    by_problem_PxS = np.stack([matrix.mean(axis=1) for matrix in correct_SxPxN], axis=1)
    return mean_interval(by_problem_PxS, level)
