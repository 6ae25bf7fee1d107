"""Settings of an online run: sample, grade, turn rewards into advantages, take clipped steps.

The docstring below each field is its `--help` text. What the settings do is in `rl/loop.py`, `rl/rollout.py`
and `rl/update.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rectune.config import LoraConfig, PathOrName, Seed, Settings, StopTexts, TrainConfig


class OnlineConfig(Settings):
    """Everything that decides an online run. Frozen, and written whole to `config.json`."""

    model: PathOrName = "smollm2-135m"
    """Hub id, local folder, or the packaged smollm2-135m."""
    problems: PathOrName
    """Problems to learn on: a JSONL file with prompt and answer, or the name of a benchmark."""
    out: Path
    """Run folder; made if it is missing."""
    seed: Seed = 0
    """Seed of problem order, draws, minibatches and initial adapters."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    """grpo: advantages within the group of answers to a problem. ppo: a value head and GAE."""
    steps: int = Field(100, gt=0)
    """Rollouts; each is followed by its epochs of updates."""
    problems_per_step: int = Field(8, gt=0)
    """Problems of a rollout."""
    n: int = Field(4, gt=0)
    """Answers to each problem: the size of a group."""
    temperature: float = Field(1.0, gt=0)
    """Of the draws; log-probabilities in the loss are those of the tempered model."""
    max_new_tokens: int = Field(1024, gt=0)
    """Longest answer."""
    stop: StopTexts = ()
    """Text at which an answer ends, besides the template's own mark of the next turn; may be given several times."""
    reward: str = "grader"
    """grader: 1 if the problem's grader says correct, else 0; another grader's name; or FILE.py:FUNCTION."""
    grading_timeout: float = Field(5.0, gt=0)
    """Seconds that grading one answer may take; beyond it the answer is left out of the loss, and counted."""
    template: PathOrName = "auto"
    """auto: the tokenizer's chat template, else a plain one; none: no template; the name of one of its; or a file."""
    system: str | None = None
    """System message put before problems that have none."""
    engine: Literal["local", "server"] = "local"
    """local draws from the weights in training. server: SGLang or vLLM, which reloads them after each step."""
    server_url: str | None = None
    """Address of the server, such as http://127.0.0.1:30000/v1."""
    served_name: str | None = None
    """What the server calls the model, where that is not model."""
    sampling_batch: int = Field(128, gt=0)
    """Answers in work at once (local), or requests in flight (server)."""
    epochs: int = Field(1, gt=0)
    """Passes over a rollout."""
    minibatches: int = Field(1, gt=0)
    """Updates in a pass over a rollout; whole answers are dealt out at random."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """Clip of the ratio p / p_old, from 1 - epsilon to 1 + epsilon."""
    epsilon_high: float | None = Field(None, gt=0)
    """Upper clip, where it is not epsilon (DAPO: 0.28)."""
    beta: float = Field(0.0, ge=0)
    """KL coefficient against the initial model: in the loss (grpo, k3), or per token in the reward (ppo)."""
    kl: Literal["corrected", "plain"] = "corrected"
    """grpo: k3 times p / p_old, whose gradient is the KL's (TRL's default); or k3 alone, as in the GRPO paper."""
    advantage: Literal["std", "none", "leave-one-out"] = "std"
    """grpo: (reward - mean) / std of the group; none leaves out the std; leave-one-out: minus the others' mean."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over tokens (TRL's dapo), over answers' means (grpo), or sum / (answers x max_new_tokens) (dr_grpo)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """ppo: discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """ppo: lambda of generalised advantage estimation."""
    value_learning_rate: float = Field(1e-4, gt=0)
    """ppo: peak learning rate of the value head; the body has learning_rate."""
    value_coefficient: float = Field(0.1, ge=0)
    """ppo: weight of the value loss."""
    value_clip: float = Field(0.2, ge=0)
    """ppo: largest change of a value that counts per rollout; 0 does not clip."""
    entropy_bonus: float = Field(0.0, ge=0)
    """ppo: weight of the mean entropy per token, which is maximised."""
    whiten: bool = True
    """ppo: advantages to mean 0 and standard deviation 1 over the rollout's tokens."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate. The paper uses 1e-6 for PPO and GRPO."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """Course of the learning rate after warm-up: cosine and linear end at zero."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps during which the learning rate rises from zero. The paper has 0.1."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of an update's gradient; 0 does not clip."""
    micro_batch_tokens: int = Field(4096, gt=1)
    """Tokens in one forward pass, or the longest answer with its prompt if that is more."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: working weights in bfloat16, masters in float32. auto: bf16 where the machine is fast at it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    memory_budget: int = Field(256, gt=0)
    """MiB for the logits of the language-model head, whatever the batch and vocabulary."""
    lora: LoraConfig = LoraConfig()
    holdout: PathOrName | None = None
    """Problems kept apart, on which accuracy is measured during the run: a JSONL file, or a benchmark."""
    holdout_n: int = Field(1, gt=0)
    """Answers to each hold-out problem, at the same temperature."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between measurements on the hold-out problems; 0: at the start and the end only."""
    rollouts_every: int = Field(10, ge=0)
    """Steps between rollouts that are kept in OUT/rollouts; 0 keeps none."""
    checkpoint_every: int = Field(10, ge=0)
    """Steps between checkpoints that --resume can go on from; 0 writes none."""
    keep_checkpoints: int = Field(2, gt=0)
    """Checkpoints kept; older ones are removed."""

    @model_validator(mode="after")
    def _consistent(self) -> OnlineConfig:
        if self.algorithm == "grpo" and self.n < 2:
            raise ValueError("grpo compares answers to one problem: n is at least 2")
        if self.engine == "server" and self.server_url is None:
            raise ValueError("engine = 'server' needs server_url")
        if self.engine == "server" and self.lora.rank:
            raise ValueError("engine = 'server' reloads whole models: it does not go with lora.rank")
        if self.minibatches > self.problems_per_step * self.n:
            raise ValueError("more minibatches than answers in a rollout")
        return self

    @property
    def training(self) -> TrainConfig:
        """The same settings as far as training knows them: for the optimizer, its schedule and the precision."""
        shared = {name: getattr(self, name) for name in TrainConfig.model_fields if hasattr(self, name)}
        shared.pop("epochs")
        return TrainConfig(data=self.problems, batch_size=self.problems_per_step * self.n, probe=0, **shared)
