"""The config of each verb: shared groups and its own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rectune.config.groups import (
    BackendConfig,
    CheckpointConfig,
    DataConfig,
    GradingConfig,
    LoggingConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    Names,
    NucleusConfig,
    Numbers,
    ObjectiveConfig,
    ObjectiveNames,
    OptimConfig,
    PathOrName,
    PromptConfig,
    Rates,
    RowConfig,
    SamplingConfig,
    Seed,
    SelectionConfig,
    Settings,
    Several,
    SplitConfig,
    StepConfig,
    TaskConfig,
)

LOGS = "logs"
"""In place of training rows, for a comparison of logs."""


class TrainerConfig(
    CheckpointConfig, ModelConfig, MemoryConfig, RowConfig, SplitConfig, ObjectiveConfig, OptimConfig, StepConfig,
    LoraConfig, LoggingConfig,
):  # fmt: skip
    """Settings of every training on rows."""

    @model_validator(mode="after")
    def _best_needs_evaluations(self) -> TrainerConfig:
        if self.metric_for_best_model != "last" and self.eval_steps == 0:
            raise ValueError(f"metric_for_best_model = '{self.metric_for_best_model}' needs eval_steps > 0")
        return self


class TrainConfig(TrainerConfig, DataConfig):
    """Data"""

    data: PathOrName
    """Rows to train on: JSONL, JSON, CSV or Parquet, a folder of them, a hub id, or gsm8k-calculations (packaged)."""


class RFTConfig(TrainerConfig, NucleusConfig, BackendConfig, GradingConfig, SelectionConfig):
    """Problems"""

    problems: PathOrName
    """Problems with gold answers: a JSONL file, or the name of a benchmark."""
    include_path: Path | None = None
    """Folder with the benchmark's file, if problems is the name of a benchmark."""
    samples: PathOrName | None = None
    """samples.jsonl of an earlier run to start from; missing answers are sampled."""
    num_samples: int = Field(4, gt=0)
    """Answers to each problem. The paper samples 4."""
    max_new_tokens: int = Field(1024, gt=0)
    """Maximum length of an answer in tokens; problem and answer should fit into max_length."""
    sampling_seed: Seed = 0
    """Random seed for sampling and selection; seed is for training only, so that runs can share answers."""

    def training(self, data: Path, data_format: str) -> TrainConfig:
        """The settings of the last stage, which trains on `data` in `output_dir/train`."""
        shared = {name: getattr(self, name) for name in TrainerConfig.model_fields}
        own = {"data": data, "data_format": data_format, "output_dir": self.output_dir / "train"}
        return TrainConfig.model_validate(
            {**shared, **own, "run_name": self.run_name or self.output_dir.name}
        )


class RLConfig(
    CheckpointConfig,
    ModelConfig,
    MemoryConfig,
    PromptConfig,
    SamplingConfig,
    BackendConfig,
    OptimConfig,
    LoraConfig,
):
    """Reinforcement learning"""

    problems: PathOrName
    """Problems to train on: a JSONL file with prompt and answer, or the name of a benchmark."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    """grpo: advantages within the group of answers to a problem. ppo: a value head and GAE."""
    reward: str = "grader"
    """grader: 1 if the problem's grader says correct, else 0. Or the name of another grader, or FILE.py:FUNCTION."""
    grading_timeout: float = Field(5.0, gt=0)
    """Seconds that grading one answer may take; a slower answer is left out of the loss, and counted."""
    problems_per_step: int = Field(8, gt=0)
    """Problems in a rollout."""
    num_iterations: int = Field(1, gt=0)
    """Passes over a rollout."""
    num_mini_batches: int = Field(1, gt=0)
    """Updates per pass over a rollout, each on a random part of the answers."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """Clip of the ratio p / p_old, from 1 - epsilon to 1 + epsilon."""
    epsilon_high: float | None = Field(None, gt=0)
    """Upper clip; unset: epsilon. DAPO uses 0.28."""
    beta: float = Field(0.0, ge=0)
    """KL coefficient against the initial model: in the loss (grpo, k3), or per token in the reward (ppo)."""
    use_bias_correction_kl: bool = True
    """grpo: multiply k3 by p / p_old, so that its gradient is that of the KL. The GRPO paper has k3 alone."""
    scale_rewards: Literal["group", "none", "leave-one-out"] = "group"
    """grpo: (reward - mean) / std of the group; none: reward - mean; leave-one-out: reward - mean of the others."""
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """dapo: mean over tokens. grpo: mean of the answers' means. dr_grpo: sum / (answers x max_new_tokens)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """ppo: discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """ppo: lambda of generalised advantage estimation."""
    value_learning_rate: float = Field(1e-4, gt=0)
    """ppo: peak learning rate of the value head; the body has learning_rate."""
    vf_coef: float = Field(0.1, ge=0)
    """ppo: weight of the value loss."""
    cliprange_value: float = Field(0.2, ge=0)
    """ppo: clip of the change of a value within a rollout; 0 disables clipping."""
    entropy_coef: float = Field(0.0, ge=0)
    """ppo: weight of the entropy bonus (mean entropy per token)."""
    whiten_advantages: bool = True
    """ppo: normalise advantages to mean 0 and standard deviation 1 over the tokens of a rollout."""

    eval_problems: PathOrName | None = None
    """Held-out problems for evaluation during the run: a JSONL file, or the name of a benchmark."""
    eval_num_samples: int = Field(1, gt=0)
    """Answers to each held-out problem, at the same temperature."""
    eval_steps: int = Field(0, ge=0)
    """Steps between evaluations on the held-out problems; 0: at the start and the end only."""
    save_rollout_steps: int = Field(10, ge=0)
    """Steps between rollouts saved to the run folder's rollouts; 0 saves none."""

    save_steps: int = Field(10, ge=0)
    """Steps between checkpoints for --resume; 0 writes none."""
    num_samples: int = Field(4, gt=0)
    """Answers to each problem: the group size (TRL's num_generations)."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probabilities in the loss use it too."""
    max_new_tokens: int = Field(1024, gt=0)
    """Maximum length of an answer in tokens."""
    backend: Literal["hf", "openai"] = "hf"
    """hf: sample from the weights in training. openai: an SGLang or vLLM server, which reloads them after each step."""
    base_url: str | None = None
    """Address of the openai backend's server, such as http://127.0.0.1:30000/v1."""
    sampling_batch_size: int = Field(128, gt=0)
    """Maximum number of sequences generated concurrently (hf), or of requests in flight (openai)."""
    max_steps: int = Field(100, gt=0)
    """Rollouts; each is followed by num_iterations passes of updates."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate. The paper uses 1e-6 for PPO and GRPO."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "constant"
    """Learning-rate schedule after warm-up; cosine and linear end at zero."""

    @model_validator(mode="after")
    def _consistent(self) -> RLConfig:
        if self.algorithm == "grpo" and self.num_samples < 2:
            raise ValueError("grpo compares answers to one problem: num_samples must be at least 2")
        if self.backend == "openai" and self.base_url is None:
            raise ValueError("backend = 'openai' needs base_url")
        if self.backend == "openai" and self.lora_r:
            raise ValueError("backend = 'openai' reloads whole models and cannot be used with lora_r")
        if self.num_mini_batches > self.problems_per_step * self.num_samples:
            raise ValueError(
                "num_mini_batches must be at most the number of answers in a rollout, problems_per_step x num_samples"
            )
        return self


class AnswerConfig(ModelConfig, PromptConfig, NucleusConfig, BackendConfig):
    """Model"""

    model: PathOrName
    """Hub id, folder, packaged model, or the folder of a training run, whose prompt is then used. With the openai
    backend only its tokenizer is read."""
    seed: Seed = 0
    """Random seed for sampling; answers do not depend on batch size or order."""
    logprobs: bool = True
    """Save log-probabilities; with --no-logprobs, servers that return none are accepted."""


class SampleConfig(AnswerConfig):
    """Problems"""

    problems: PathOrName
    """JSONL file of problems, or the name of a benchmark."""
    include_path: Path | None = None
    """Folder with the benchmark's file."""
    output: Path
    """JSONL file of samples; missing answers are appended."""


class EvalConfig(AnswerConfig, TaskConfig):
    """Evaluation"""

    output_dir: Path
    """Folder of the evaluation; run again, it resumes."""
    prompt: str | None = None
    """User turn with {question} in it, instead of that of the run or the benchmark."""
    check_overlap: str | None = None
    """Training rows to search for the texts of the problems."""


class LogsConfig(Settings):
    """Logs of other harnesses"""

    logs: Several = ()
    """NAME=FOLDER,FOLDER: an arm and the logs of its seeds, of lm-evaluation-harness, Inspect, lighteval, EvalScope,
    lmms-eval, rectune eval, or a CSV file. Given for each arm; nothing is then trained."""
    metric: Names = ()
    """Scores to take of the logs, separated by commas; a task takes the first that it has. Unset: the only one."""
    cluster: str | None = None
    """Field of the logged problems; those that share its value count as one problem, with their mean score."""


class CompareConfig(LogsConfig, SamplingConfig, TaskConfig, TrainConfig):
    """Comparison"""

    objectives: ObjectiveNames = ("sft", "dft")
    """Objectives separated by commas, each in the form of `rectune train --objective`; a difference is later minus
    earlier."""
    seeds: int = Field(1, gt=0)
    """Runs of each objective; seed is the first one."""
    tasks_in: Names = ()
    """Benchmarks, or JSONL files of problems, of the training rows' domain, separated by commas."""
    tasks_out: Names = ()
    """Benchmarks, or JSONL files of problems, of other domains, separated by commas."""
    sweep: Rates = "auto"
    """Learning rates to try for each objective, separated by commas; the best on validation is used. auto: a third of
    learning_rate, itself and three times it, where the trials take at most a third of the training; none: no trial."""
    sweep_steps: int | None = Field(None, gt=0)
    """Steps of each trial; unset: a quarter of the steps of a run."""
    eval_steps: int = Field(0, ge=0)
    """Steps between evaluations on the held-out rows and, with tasks in and out of domain, on validation problems too;
    0: on the rows only, at the start and the end."""
    race: str | None = None
    """Stop objectives early if they are clearly worse on validation, within this total budget: 30m, 2h or 800steps."""
    validation: PathOrName | None = None
    """Benchmark or JSONL file in domain for choices and eval-steps; unset: a quarter of the in-domain problems."""
    validation_out: PathOrName | None = None
    """The same out of domain, for margin and eval-steps; unset: a quarter of the out-of-domain problems."""
    margin: float | None = Field(None, ge=0, lt=100)
    """Say which model to ship: one that loses at most this many points in domain, and gains out of domain."""
    against: str | None = None
    """Objective that margin compares with, or base; unset: sft, or base where sft is not among the objectives."""
    require: Literal["non-inferior", "superior"] | None = None
    """Exit with code 3 unless the chosen model is shown to lose no more than the margin (non-inferior), or is to be
    shipped (superior)."""
    exclude_overlap: bool = False
    """Leave out the problems whose text occurs in the training rows. Otherwise a warning gives the verdict without
    them, too."""
    interpolate: Numbers = ()
    """Also evaluate models on the way from the base model (0) to every run (1), such as 0.25,0.5,0.75."""
    interpolate_only: ObjectiveNames = ()
    """Objectives whose runs interpolate is about, separated by commas; unset: all."""
    soup: Names = ()
    """Also evaluate means of objectives' models of the same seed, such as sft+dft, separated by commas."""
    match_entropy: bool = True
    """Also sample every model at the entropy of dft (without dft, at that of the objective of lowest entropy)."""

    @model_validator(mode="before")
    @classmethod
    def _logs_need_no_data(cls, given: object) -> object:
        return {"data": LOGS, **given} if isinstance(given, dict) and given.get("logs") else given

    @property
    def training(self) -> TrainConfig:
        """The settings that all runs share."""
        return TrainConfig.model_validate(
            {name: getattr(self, name) for name in self.model_fields_set & {*TrainConfig.model_fields}}
        )


class MergeConfig(Settings):
    """Merge"""

    base: PathOrName | None = None
    """Base model: hub id, folder or packaged model; unset: the one that the tuned model was trained from, if that is a
    run or an adapter."""
    tuned: Several = ()
    """Tuned model: a folder, or that of a training run; may be repeated, and the mean is then used."""
    at: Numbers = (0.25, 0.5, 0.75)
    """Shares of the way from the base model (0) to the tuned one (1), separated by commas."""
    weights: Numbers = ()
    """Weights of several tuned models in their mean, separated by commas; unset: equal."""
    output_dir: Path
    """Folder of the merged models, OUTPUT_DIR/at-0.5."""


class CheckConfig(DataConfig):
    """Data"""

    data: PathOrName
    """Rows or pairs as for `rectune train`, or a file of problems."""
    model: PathOrName | None = None
    """Also print a row with the template of this model and its targets marked; the weights are not loaded."""
    kind: Literal["rows", "pairs", "problems"] | None = None
    """Kind of the data; unset: inferred from the fields."""


class WeighConfig(DataConfig):
    """Weights"""

    data: PathOrName
    """Rows to weigh, as for `rectune train`."""
    graded: Path | None = None
    """Graded answers of a model to the rows' problems: output of `rectune grade`, or the folder of an evaluation."""
    output: Path
    """The rows with their weights, JSONL; the counts go to OUTPUT.counts.json."""
    shuffle_weights: Seed | None = None
    """Permute the weights among the rows with this seed, as a control; without graded, those that the rows have."""


class DiagnoseConfig(ModelConfig, DataConfig):
    """Diagnosis"""

    data: PathOrName
    """Rows to diagnose, as for `rectune train`."""
    output_dir: Path
    """Folder of the diagnosis."""
    goal: Literal["generalise", "fit"] | None = None
    """Goal of training: generalise from the data, or fit its distribution."""
    rows: int | None = Field(None, gt=0)
    """Number of rows to measure; unset: as many as fit into seconds."""
    seconds: float = Field(90.0, gt=0)
    """Time limit of the pass over the rows."""
    objectives: ObjectiveNames = ()
    """Objectives to show, separated by commas, such as sft,dft,power:alpha=0.3; unset: the common ones."""
    check_overlap: Names = ()
    """Benchmarks whose problems are searched for in the rows, separated by commas."""
    include_path: Path | None = None
    """Folder with the benchmarks' files."""
    gradients: bool = True
    """Measure gradient norms; this takes a backward pass for each objective."""
    seed: Seed = 0
    """Random seed of the sample of rows."""
    logits_memory_mb: int = Field(256, gt=0)
    """MiB for the logits of the language-model head, whatever the batch and vocabulary."""


class ReproduceConfig(Settings):
    """Reproduction"""

    recipe: PathOrName
    """Name (see `rectune list recipes`), such as table2, or path of a recipe."""
    output_dir: Path
    """Folder of the runs and the page; run again, it resumes."""
    scale: Literal["full", "mini"] = "mini"
    """mini: a small model on two cores. full: the paper's models and data."""
    seeds: int | None = Field(None, gt=0)
    """Runs of each method; unset: 3 at mini scale, 1 at full scale."""
    arms: Names = ()
    """Only these methods, separated by commas, such as SFT,DFT; later calls in the same folder add others."""
    budget: float = Field(1.0, gt=0, le=1)
    """Share of rows, problems and steps at mini scale, for a trial run."""
    include_path: Path | None = None
    """Folder with the benchmarks' files, at full scale."""
    backend: Literal["hf", "vllm"] = "hf"
    """Backend that samples answers at full scale."""
    gpus: int = Field(8, gt=0)
    """Number of GPUs for the estimate and the launch commands, at full scale."""
