"""Asking one model of a comparison: loaded at most once for all of its evaluations, and not at all for finished ones.

What an evaluation is, and that it goes on after a stop, is in `evaluation/evaluate.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rectune.config import TrainConfig
from rectune.evaluation.evaluate import evaluate
from rectune.evaluation.results import read_evaluation, verdict_matrix

if TYPE_CHECKING:
    from rectune.sampling.hf.engine import HFEngine


@dataclass(frozen=True)
class Draws:
    """How the answers of an evaluation are drawn."""

    n: int = 16
    temperature: float = 1.0
    max_new_tokens: int = 4096
    seed: int = 0
    stop: tuple[str, ...] = ()


class Respondent:
    """A model that answers problems; its weights are read when an answer is first needed.

    Args:
        model: What `evaluate` is given: a run folder, or the name of the base model.
        weights: The folder or name that is loaded.
        config: Of the comparison: template, system message and precision are those of training.
    """

    def __init__(self, model: str, weights: str, config: TrainConfig) -> None:
        self.model, self.weights, self.config = model, weights, config
        self._engine: HFEngine | None = None

    def answer(self, folder: Path, files: Sequence[Path], draws: Draws) -> dict[str, Any]:
        """The evaluation in `folder`, drawn and graded where it is not there yet."""
        if is_answered(folder, files, draws):
            return read_evaluation(folder)
        return evaluate(
            self.model,
            out=folder,
            benchmark_files=files,
            n=draws.n,
            temperature=draws.temperature,
            max_new_tokens=draws.max_new_tokens,
            seed=draws.seed,
            stop=draws.stop,
            template=self.config.chat_template,
            system=self.config.system_prompt or "",
            engine=self.engine,
            precision=self.config.dtype,
        )

    @property
    def engine(self) -> HFEngine:
        if self._engine is None:
            from rectune.sampling.hf.engine import HFEngine

            template, precision = self.config.chat_template, self.config.dtype
            self._engine = HFEngine.load(self.weights, template=template, precision=precision)
        return self._engine

    def forget(self) -> None:
        """Give the memory back."""
        self._engine = None
        gc.collect()


def is_answered(folder: Path, files: Sequence[Path], draws: Draws) -> bool:
    """Whether `folder` holds just this evaluation, finished. The files' content is checked where they are written."""
    if not (folder / "evaluation.json").is_file():
        return False
    found = read_evaluation(folder)
    wanted = vars(draws) | {"stop": list(draws.stop)}
    same = all(found["protocol"].get(name) == value for name, value in wanted.items())
    return same and list(found["benchmarks"]) == [path.stem for path in files]


def correct(folder: Path, files: Sequence[Path]) -> np.ndarray:
    """Which answers of an evaluation are correct, all benchmarks below each other: (P, N) in 0 and 1."""
    return np.concatenate([verdict_matrix(folder, path.stem)[1] for path in files])
