"""rectune: fine-tune language models on demonstrations so that they generalise (Dynamic Fine-Tuning and kin).

The public names below are imported when they are first used, so that `import rectune` loads neither torch nor
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rectune.config.verbs import CompareConfig as CompareConfig
    from rectune.config.verbs import DiagnoseConfig as DiagnoseConfig
    from rectune.config.verbs import EvalConfig as EvalConfig
    from rectune.config.verbs import MergeConfig as MergeConfig
    from rectune.config.verbs import RFTConfig as RFTConfig
    from rectune.config.verbs import RLConfig as RLConfig
    from rectune.config.verbs import TrainConfig as TrainConfig
    from rectune.config.verbs import WeighConfig as WeighConfig
    from rectune.data.schema import Problem as Problem
    from rectune.data.schema import Row as Row
    from rectune.diagnosis.check import check as check
    from rectune.diagnosis.diagnose import diagnose as diagnose
    from rectune.errors import UserError as UserError
    from rectune.evaluation.evaluate import evaluate as evaluate
    from rectune.experiments.compare import compare as compare
    from rectune.experiments.rft import train_rft as train_rft
    from rectune.grading.files import grade as grade
    from rectune.grading.files import select as select
    from rectune.grading.row_weights import weigh as weigh
    from rectune.integrations import dft_loss as dft_loss
    from rectune.integrations import grader_reward as grader_reward
    from rectune.integrations import objective_loss as objective_loss
    from rectune.logprobs import token_logprobs as token_logprobs
    from rectune.models.load import load_model as load_model
    from rectune.models.merge import merge as merge
    from rectune.models.scorer import Scorer as Scorer
    from rectune.objective_spec import apply_objective as apply_objective
    from rectune.objectives import OBJECTIVES as OBJECTIVES
    from rectune.objectives import dft as dft
    from rectune.objectives import sft as sft
    from rectune.records import Sample as Sample
    from rectune.reporting.report import report as report
    from rectune.rl.rl_trainer import train_rl as train_rl
    from rectune.sampling.sample import sample as sample
    from rectune.sampling.types import EngineSpec as EngineSpec
    from rectune.sampling.types import SamplingParams as SamplingParams
    from rectune.training.trainer import train as train

__version__ = "0.2.0"

_HOME = {
    "sft": "rectune.objectives",
    "dft": "rectune.objectives",
    "OBJECTIVES": "rectune.objectives",
    "apply_objective": "rectune.objective_spec",
    "token_logprobs": "rectune.logprobs",
    "Scorer": "rectune.models.scorer",
    "load_model": "rectune.models.load",
    "merge": "rectune.models.merge",
    "Row": "rectune.data.schema",
    "Problem": "rectune.data.schema",
    "Sample": "rectune.records",
    "TrainConfig": "rectune.config.verbs",
    "train": "rectune.training.trainer",
    "train_rft": "rectune.experiments.rft",
    "check": "rectune.diagnosis.check",
    "diagnose": "rectune.diagnosis.diagnose",
    "sample": "rectune.sampling.sample",
    "SamplingParams": "rectune.sampling.types",
    "EngineSpec": "rectune.sampling.types",
    "grade": "rectune.grading.files",
    "select": "rectune.grading.files",
    "weigh": "rectune.grading.row_weights",
    "WeighConfig": "rectune.config.verbs",
    "evaluate": "rectune.evaluation.evaluate",
    "compare": "rectune.experiments.compare",
    "report": "rectune.reporting.report",
    "DiagnoseConfig": "rectune.config.verbs",
    "MergeConfig": "rectune.config.verbs",
    "EvalConfig": "rectune.config.verbs",
    "CompareConfig": "rectune.config.verbs",
    "RFTConfig": "rectune.config.verbs",
    "RLConfig": "rectune.config.verbs",
    "train_rl": "rectune.rl.rl_trainer",
    "dft_loss": "rectune.integrations",
    "objective_loss": "rectune.integrations",
    "grader_reward": "rectune.integrations",
    "UserError": "rectune.errors",
}
"""Where each public name is defined. A new one also gets its line under TYPE_CHECKING, for editors."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rectune' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
