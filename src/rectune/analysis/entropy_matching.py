"""Entropy of a model's own answers, and the temperature at which another model has the same entropy.

Average@n at T = 1 rewards low entropy by itself, and an objective may lower entropy without knowing more. So the
other model is sampled at the temperature T at which its entropy is the same: what is left of a difference then
is not sharpness. Entropy is the mean over the tokens of a model's own answers of

    H_T = -sum_v p_v log p_v,   p = softmax(logits / T)

by teacher forcing over the sampled tokens. At states that are held fixed H_T grows with T (dH_T / dT = Var_p(logits)
/ T^3), so one T fits; sampling at it visits other states, and the entropy there may differ a little:
`entropy_of_answers` of those samples says by how much. `significance.py` compares the accuracies.

Shapes: N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rectune.data.chat_template import choose_template
from rectune.data.packing import collate, pack
from rectune.data.schema import Turn
from rectune.data.tokenization import Encoded, prompt_ids
from rectune.errors import UserError
from rectune.evaluation.accuracy import read_evaluation, read_graded
from rectune.logprobs import supervised_positions, token_columns
from rectune.models.load import choose_dtype, fingerprint, load_model
from rectune.models.scorer import Scorer
from rectune.records import Graded, TemperatureMatch
from rectune.runtime.distributed import default_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

TOKENS = 2048
"""Tokens that an entropy is the mean of: its standard error is then one or two hundredths of a nat."""
FEWEST_ANSWERS = 64
RANGE = (0.05, 2.0)
"""Temperatures that are looked at."""
_PASS = 4096  # tokens of a forward pass


def match(
    model: str | Path,
    own: str | Path,
    target: float,
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    loaded: Loaded | None = None,
) -> TemperatureMatch:
    """The temperature at which `model` is as sharp as `target`.

    Args:
        model: Folder of the model or of its training run, hub id, or packaged name.
        own: Evaluation folder of this model's answers at T = 1.
        target: Mean entropy in nats a token, such as another model's `entropy_of_answers` at T = 1.
        tokens, seed: How many of the answers' tokens are looked at, and which.
        loaded: The model and its tokenizer, if they are loaded in the evaluation's precision; None loads them.

    Raises:
        UserError: No evaluation at T = 1 there, or one of another model.
    """
    entropy_at, count = _entropies(model, own, 1.0, tokens, seed, loaded)
    temperature, entropy, reached = matched_temperature(entropy_at, target)
    own_entropy = entropy_at(1.0)
    if reached:
        text = f", {entropy:.3f} at T = {temperature:.3f}, for a target of {target:.3f}"
    else:
        text = (
            f"; the target of {target:.3f} is out of reach between T = {RANGE[0]} and {RANGE[1]} "
            f"(at T = {temperature:g} it is {entropy:.3f})"
        )
    return TemperatureMatch(
        temperature=temperature,
        entropy=entropy,
        reached=reached,
        target=target,
        own=own_entropy,
        tokens=count,
        sentence=f"{own_entropy:.3f} nats a token at T = 1{text}",
    )


def entropy_of_answers(
    model: str | Path,
    own: str | Path,
    *,
    temperature: float = 1.0,
    tokens: int = TOKENS,
    seed: int = 0,
    loaded: Loaded | None = None,
) -> float:
    """Mean entropy in nats a token of a model's answers at a temperature; other arguments as in `match`."""
    return _entropies(model, own, temperature, tokens, seed, loaded)[0](temperature)


class Reached(NamedTuple):
    """A temperature, the entropy there, and whether that is the target."""

    temperature: float
    entropy: float
    reached: bool


def matched_temperature(
    entropy_at: Callable[[float], float], target: float, *, tolerance: float = 2e-3
) -> Reached:
    """Where a growing function of the temperature reaches `target`, to `tolerance` nats, within `RANGE`.

    From T = 1 outwards until the target is passed, then the Illinois method (regula falsi that halves the weight of
    an end which stays) in log T: about five calls, since each is a pass of the head.
    """
    near, gap = 0.0, entropy_at(1.0) - target
    far, far_gap = near, gap
    for step in (0.5, 0.2, RANGE[0]) if gap > 0 else (1.4, RANGE[1]):
        if abs(far_gap) <= tolerance or far_gap * gap < 0:
            break
        near, gap, far = far, far_gap, math.log(step)
        far_gap = entropy_at(step) - target
    at, miss = far, far_gap
    if far_gap * gap < 0:
        for _ in range(60):
            if abs(miss) <= tolerance or abs(far - near) < 1e-6:
                break
            at = near - gap * (far - near) / (far_gap - gap)
            miss = entropy_at(math.exp(at)) - target
            if miss * far_gap < 0:
                near, gap = far, far_gap
            else:
                gap /= 2  # the near end stays a second time
            far, far_gap = at, miss
    return Reached(math.exp(at), target + miss, abs(miss) <= tolerance)


def entropy_function(
    scorer: Scorer, rows: Sequence[Encoded], *, tokens: int = TOKENS, seed: int = 0
) -> tuple[Callable[[float], float], int]:
    """Temperature to mean entropy over at most `tokens` of the rows' targets, and how many those are.

    The body runs once; each temperature costs one pass of the head.
    """
    hidden_ND, targets_N = _states(scorer, rows, tokens, seed)
    head = scorer.head()

    @cache
    @torch.no_grad()
    def entropy_at(temperature: float) -> float:
        # softcap / T of scale / T is the capped logit over T: c/T tanh((x/T) / (c/T)) = c tanh(x/c) / T
        cap = None if head.softcap is None else head.softcap / temperature
        columns = token_columns(
            hidden_ND, head.weight, targets_N, ("entropy",), bias=head.bias, softcap=cap,
            logit_scale=head.logit_scale / temperature, memory_budget=scorer.memory_budget, implementation="plain",
        )  # fmt: skip
        return float(columns["entropy"].double().mean())

    return entropy_at, len(targets_N)


@torch.no_grad()
def _states(scorer: Scorer, rows: Sequence[Encoded], tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hidden states and targets at `tokens` of the positions where an answer's token was drawn."""
    if not any(label != -100 for row in rows for label in row.labels):
        raise UserError("the answers have no tokens to measure entropy on")
    device = scorer.causal.get_input_embeddings().weight.device
    lengths = [len(row) for row in rows]
    states, targets = [], []
    for indices in pack(lengths, max(_PASS, *lengths)):
        batch = collate([rows[i] for i in indices], device)
        index_N, targets_N = supervised_positions(batch.labels)
        states.append(scorer.hidden(batch)[index_N])
        targets.append(targets_N)
    hidden_ND, targets_N = torch.cat(states), torch.cat(targets)
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(np.sort(rng.permutation(len(targets_N))[:tokens])).to(device)
    return hidden_ND[chosen], targets_N[chosen]


def encoded_answers(
    lines: Sequence[Graded], tokenizer: PreTrainedTokenizerBase, template: str = "auto"
) -> list[Encoded]:
    """Samples as rows whose targets are the tokens that were sampled, behind the prompt that sampling read.

    Raises:
        UserError: A sample without tokens or turns, or whose prompt is not what this tokenizer and template give.
    """
    chosen, rows = choose_template(template, tokenizer), []
    prompts: dict[str, list[int]] = {}
    for line in lines:
        name = f"sample {line.sample_index} of problem {line.problem_id}"
        if not line.turns or line.token_ids is None:
            raise UserError("the sample has no turns or token_ids, so it cannot be scored", where=name)
        if line.problem_id not in prompts:
            ids = prompt_ids([Turn(**turn.to_dict()) for turn in line.turns], tokenizer, chosen)
            if str(tokenizer.decode(ids)) != line.prompt:
                raise UserError("the prompt was made with another tokenizer or template", where=name)
            prompts[line.problem_id] = ids
        before = prompts[line.problem_id]
        labels = [-100] * len(before) + line.token_ids
        rows.append(Encoded(before + line.token_ids, labels, [False] * len(labels)))
    return rows


def _entropies(
    model: str | Path,
    own: str | Path,
    temperature: float,
    tokens: int,
    seed: int,
    loaded: Loaded | None,
) -> tuple[Callable[[float], float], int]:
    evaluation = read_evaluation(Path(own))
    protocol = evaluation.protocol
    if (protocol.temperature, protocol.top_p) != (temperature, 1):
        raise UserError(f"the answers were not sampled at temperature {temperature:g} and top-p 1", where=own)
    ids = [problem_id for task in evaluation.benchmarks.values() for problem_id in task.problem_ids]
    samples = read_graded(Path(own) / "graded.jsonl", ids, protocol.n).values()
    lines = _subsample([line for lines in samples for line in lines], tokens, seed)
    if loaded is None:
        name = model if not (Path(model) / "model").is_dir() else Path(model) / "model"
        device = default_device()
        dtype, _ = choose_dtype(protocol.precision, device)
        loaded = load_model(name, dtype=dtype, device=device)
    weights, tokenizer = loaded
    if protocol.engine in ("hf", "local") and fingerprint(weights) != evaluation.fingerprint:
        raise UserError("this is not the model of the evaluation", where=model, hint=f"see {own}")
    rows = encoded_answers(lines, tokenizer, protocol.template_file or protocol.template)
    return entropy_function(Scorer(weights), rows, tokens=tokens, seed=seed)


def _subsample(lines: Sequence[Graded], tokens: int, seed: int) -> list[Graded]:
    """Random samples until they have `tokens` tokens, and 64 at least: tokens of one answer are alike."""
    chosen: list[Graded] = []
    count = 0
    for i in np.random.default_rng(seed).permutation(len(lines)):
        if count >= tokens and len(chosen) >= FEWEST_ANSWERS:
            break
        chosen.append(lines[i])
        count += len(lines[i].token_ids or ())
    return chosen
