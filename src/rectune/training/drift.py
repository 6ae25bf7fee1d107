"""Drift: how far the model has moved from the one it began as, on a few hold-out rows that stay the same.

At the start, at every evaluation and at the end: KL(base || model) over the whole vocabulary at the rows' targets, the
model's entropy there, the probability of turn ends, and what answers look like that the model writes to the rows'
prompts. It only looks: weights, random state and modes do not change. What chooses a checkpoint is in `metrics.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rectune.config import TrainConfig
from rectune.data.packing import Batch, collate, pack
from rectune.data.sampler import subsample
from rectune.data.tokenization import IGNORED, Encoded, token_texts
from rectune.errors import UserError
from rectune.logprobs import supervised_positions
from rectune.models.scorer import Head, Scorer
from rectune.objective_spec import make_phases
from rectune.records import MetricsLine
from rectune.runtime.io import write_json
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.types import Completion, Request, SamplingParams, repetition
from rectune.training.dataloader import Split, capacity
from rectune.training.fsdp import is_sharded
from rectune.training.run_dir import run_template

Figures = Mapping[str, float | None]


class Threshold(NamedTuple):
    """A figure is past it where `crossed(now, start, value)` and it moved by `least` or more."""

    value: float
    crossed: Callable[[float, float, float], bool]
    means: str
    remedies: Callable[[TrainConfig], Iterable[str]]
    least: float = 0.0


def _stay(config: TrainConfig) -> Iterator[str]:
    yield "lower learning_rate"
    if "asft" in {phase.name for phase in make_phases(config)}:
        yield "raise the anchor of asft, the pull back to the base"
    else:
        yield "try objective = asft, which pulls back to the base"


def _keep_entropy(config: TrainConfig) -> Iterator[str]:
    used = {phase.name for phase in make_phases(config)}
    others = [name for name in ("uncertain", "eaft", "psft") if name not in used]
    yield "try fewer steps or a lower learning_rate"
    yield f"or an objective that keeps entropy ({', '.join(others)})"


def _protect(config: TrainConfig) -> Iterator[str]:
    """Where an objective gives end tokens up and the config lets it."""
    if any(phase.min_eos_weight < 1 and phase.vanishes() for phase in make_phases(config)):
        yield "set min_eos_weight = 1"
    yield "check that the rows end their turns"


THRESHOLDS = {
    "kl": Threshold(
        5.0, lambda now, start, value: now > value,
        "the model has left the base model's distribution, which goes with forgetting", _stay,
    ),
    "entropy": Threshold(
        0.1, lambda now, start, value: now < value * start,
        "the model has become nearly certain of every token, so its samples lose variety", _keep_entropy,
        least=0.1,
    ),
    "eos_p": Threshold(
        0.5, lambda now, start, value: now < value * start, "the model unlearns to end its turn", _protect, least=0.05,
    ),
    "stopped": Threshold(
        0.5, lambda now, start, value: now < value * start,
        "fewer sampled answers end by themselves than the base model's", _protect, least=0.25,
    ),
    "repetition": Threshold(
        0.3, lambda now, start, value: now > value and now > 2 * start,
        "sampled answers run in circles", lambda config: ["try fewer steps or a lower learning_rate"],
    ),
    "length": Threshold(
        2.0, lambda now, start, value: now > value * start,
        "sampled answers are longer than the base model's and the reference answers",
        lambda config: ["read some of them (rectune sample): often the turn's end is missing"],
    ),
}  # fmt: skip
"""By the name of the drift figure."""


def warnings(now: Figures, start: Figures, *, reference_length: float) -> list[str]:
    """Names of the figures that are past their threshold: what became worse, not what was low from the start.

    Args:
        now, start: Figures of drift, of the model now and of the model as it was; None where there is none.
        reference_length: Mean tokens of the reference answers, which answers may grow to.
    """
    base = {"kl": 0.0, **start}
    if base.get("length") is not None:
        base["length"] = max(base["length"] or 0.0, reference_length)
    crossed = []
    for name, threshold in THRESHOLDS.items():
        value, first = now.get(name), base.get(name)
        if value is None or first is None or abs(value - first) < threshold.least:
            continue
        if threshold.crossed(value, first, threshold.value):
            crossed.append(name)
    return crossed


def sentence(name: str, now: Figures, start: Figures, config: TrainConfig) -> str:
    """The warning in words: the figure, what it was, what it means, and what to do that is not done yet."""
    was = start.get(name)
    before = "" if was is None or name == "kl" else f" (at the start {was:.3g})"
    threshold = THRESHOLDS[name]
    return f"{name} is {now[name]:.3g}{before}: {threshold.means}; {', '.join(threshold.remedies(config))}"


log = logging.getLogger("rectune")

TARGETS = 256  # of a row; what comes after them is cut off
TOKENS = 8192  # of all rows, prompts included
ANSWERS = 8  # prompts that are answered
NEW_TOKENS = (32, 256)  # least and most tokens of an answer; between them, twice the longest reference answer


@dataclass(frozen=True)
class _Base:
    """The model as it was: the reference of the `kl` column.

    Its last hidden states (T x D) and head (V x D, shared where it is not trained) give its log-probs by the same
    kernel as the model's own, and stay small, while N x V log-probs would take 0.8 GiB at 4,096 targets of 49,152
    words. They are recomputed from `config.model` when a run resumes, so the run folder needs no copy.
    """

    hidden_TD: Tensor
    of_head: Head

    def states(self, batch: Batch) -> tuple[Tensor, Head]:
        return self.hidden_TD, self.of_head


class Probe:
    """Watches a model on fixed rows. Make it while the model still is the base model.

    Args:
        scorer: Of the model that will be trained.
        tokenizer, config: Of the run; `config.drift_rows` rows are watched.
        holdout: Where the rows are taken from, at least one.
        device: Of the model.
        answers: Whether the model also answers some of the rows' prompts.
        speaks: Whether warnings are said.
    """

    @torch.no_grad()
    def __init__(
        self,
        scorer: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        holdout: Split,
        device: torch.device | None = None,
        *,
        answers: bool = True,
        speaks: bool = True,
    ) -> None:
        rows = choose_rows(holdout, config)
        encoded = [cut(holdout.encoded[holdout.members[row][0]]) for row in rows]
        self.scorer = scorer.plain()  # compiling for few targets would take longer than what it saves
        self.tokenizer, self.config, self.speaks = tokenizer, config, speaks
        # Batch by batch, which of the rows it holds.
        self.packed = pack([len(row) for row in encoded], capacity(config))
        self.batches = [collate([encoded[i] for i in batch], device) for batch in self.packed]
        self.where = [holdout.where(row) for row in rows]
        self.start: Figures = {}  # figures of the base model
        self.said: set[str] = set()  # warnings given
        training = scorer.model.training
        scorer.model.eval()
        head = scorer.kept_head()
        self.bases = [_Base(scorer.states(batch)[0], head) for batch in self.batches]
        self.before = self.now = self._columns(("logp",))["logp"].cpu()
        scorer.model.train(training)
        references = [_first_answer(row) for row in encoded]
        self.reference_length = sum(map(len, references)) / len(references)
        least, most = NEW_TOKENS
        self.limit = max(least, min(most, 2 * max(map(len, references))))
        self.requests = [
            Request(str(i), 0, tuple(row.input_ids[: _first_target(row)])) for i, row in enumerate(encoded)
        ][:ANSWERS]
        self.engine = self._engine(config) if answers else None
        log.info(
            "drift: measured on %d held-out rows with %d targets%s",
            len(rows), len(self.before),
            f", and on {len(self.requests)} answers of at most {self.limit} tokens" if self.engine else "",
        )  # fmt: skip

    def recall(self, lines: Sequence[MetricsLine]) -> None:
        """Take up the drift lines of a run that is resumed: its start, and which warnings were given."""
        for line in lines:
            self.start = self.start or line.to_dict()
            self.said |= set(line.warnings)

    @torch.no_grad()
    def measure(self, step: int) -> MetricsLine:
        """The drift line of `metrics.jsonl`; says warnings in the log that were not said before.

        Figures: `kl` in nats per target, `entropy` in nats, `eos_p` mean probability of turn-ending and special
        targets; of sampled answers `repetition` mean share of repeated 4-grams, `length` mean tokens and `stopped`
        share that ended by themselves; `warnings` names those past their threshold. None where nothing is measured.
        """
        began = time.perf_counter()
        training = self.scorer.model.training
        self.scorer.model.eval()
        columns = self._columns(("logp", "entropy", "kl"))
        answers = self._answers()
        self.scorer.model.train(training)
        self.now = columns["logp"].cpu()
        ends = columns["logp"].exp()[columns["structural"]]
        figures: Figures = {
            "kl": _mean(columns["kl"]),
            "entropy": _mean(columns["entropy"]),
            "eos_p": _mean(ends),
            "repetition": _mean([repetition(answer.token_ids) for answer in answers]),
            "length": _mean([len(answer.token_ids) for answer in answers]),
            "stopped": _mean([answer.finish_reason == "stop" for answer in answers]),
        }
        if step == 0:
            self.start = figures
        crossed = warnings(figures, self.start, reference_length=self.reference_length)
        for name in crossed:
            if self.speaks and name not in self.said:
                log.warning("drift at step %d: %s", step, sentence(name, figures, self.start, self.config))
        self.said |= set(crossed)
        seconds = round(time.perf_counter() - began, 3)
        return MetricsLine.of(step, "drift", {**figures, "warnings": crossed, "seconds": seconds})

    def write(self, path: Path) -> None:
        """Write `token_logprobs.json`: log-probs of the rows' targets before training and when last measured."""
        content: list[Any] = [None] * len(self.where)
        done = 0
        for packed, batch in zip(self.packed, self.batches, strict=True):
            index, targets = supervised_positions(batch.labels)
            for place, row in enumerate(packed):
                mine = targets[batch.rows[index + 1] == place].tolist()
                start, done = done, done + len(mine)
                content[row] = {
                    "where": self.where[row],
                    "tokens": token_texts(mine, self.tokenizer),
                    "before": self.before[start:done].tolist(),
                    "after": self.now[start:done].tolist(),
                }
        write_json(path, {"format": 1, "rows": content})

    def _columns(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Columns of all targets, batch by batch, and which are structural."""
        parts = [
            self.scorer.columns(batch, names, reference=base)
            for batch, base in zip(self.batches, self.bases, strict=True)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in (*names, "structural")}

    def _engine(self, config: TrainConfig) -> HFEngine | None:
        """Draws from the weights that are trained; None for a model that it cannot run."""
        try:
            template = run_template(config.output_dir, config.chat_template, self.tokenizer)
            engine = HFEngine(self.scorer.model, self.tokenizer, template, exact=False)
        except UserError as error:
            log.info("drift: no sampled answers, because %s", error.what)
            return None
        ends = [engine.limit(len(request.prompt_ids)) for request in self.requests]
        self.requests = [
            request
            for request, end in zip(self.requests, ends, strict=True)
            if end is None or len(request.prompt_ids) + self.limit <= end[0]
        ]
        if not self.requests:
            log.info("drift: no sampled answers, because no prompt leaves the model room for one")
            return None
        return engine

    def _answers(self) -> list[Completion]:
        if self.engine is None:
            return []
        try:
            return list(
                self.engine.complete(self.requests, SamplingParams(1.0, 1.0, self.limit, self.config.seed))
            )
        except UserError as error:  # a feature of its attention that shows in the forward pass only
            log.info("drift: no sampled answers, because %s", error.what)
            self.engine = None
            return []


def make_probe(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    holdout: Split,
    accelerator: Accelerator,
) -> Probe | None:
    """The run's probe; None where nothing is watched, or another process does.

    Sharded weights are watched by all processes, the same rows at once, and the first one speaks. They write no
    answers: the processes would have to write the same ones to the bit, or wait for each other for ever.
    """
    sharded = is_sharded(accelerator)
    if not config.drift_rows or not (sharded or accelerator.is_main_process):
        return None
    if not len(holdout):
        log.info("drift: not measured, because there are no held-out rows")
        return None
    if sharded:
        log.info("drift: no sampled answers, because the weights are sharded over processes")
    speaks = accelerator.is_main_process
    return Probe(scorer, tokenizer, config, holdout, accelerator.device, answers=not sharded, speaks=speaks)


def choose_rows(holdout: Split, config: TrainConfig) -> list[int]:
    """Rows of the hold-out that are watched: drawn with the seed, whole ones if there are any, bounded in all."""
    every = range(len(holdout))
    short = [row for row in every if holdout.supervised[row] <= TARGETS] or list(every)
    drawn = [short[i] for i in subsample(len(short), config.drift_rows, config.seed)]
    lengths = holdout.lengths(drawn)
    return [row for n, row in enumerate(drawn) if n == 0 or sum(lengths[: n + 1]) <= TOKENS]


def cut(row: Encoded) -> Encoded:
    """The row up to its 256th target."""
    targets = [i for i, label in enumerate(row.labels) if label != IGNORED][:TARGETS]
    end = targets[-1] + 1
    return Encoded(row.input_ids[:end], row.labels[:end], row.structural[:end])


def _first_target(row: Encoded) -> int:
    return next(i for i, label in enumerate(row.labels) if label != IGNORED)


def _first_answer(row: Encoded) -> list[int]:
    """Targets of the first supervised turn."""
    return list(takewhile(lambda label: label != IGNORED, row.labels[_first_target(row) :]))


def _mean(values: Tensor | list[float] | list[int] | list[bool]) -> float | None:
    values = torch.as_tensor(values)
    return float(values.double().mean()) if len(values) else None
