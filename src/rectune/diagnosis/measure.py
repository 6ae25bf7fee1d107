"""One forward pass over a sample of rows: what the model thinks of every target, within a time budget.

Rows are sampled with a seed and measured until the budget, the wanted number, or the rows end. Everything that a
diagnosis says comes from the columns that this pass gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rectune.columns import HEAD_COLUMNS
from rectune.data.encoded_dataset import EncodedRows
from rectune.data.packing import Batch, collate
from rectune.data.tokenization import token_texts
from rectune.diagnosis.token_classes import CLASSES, token_classes
from rectune.errors import UserError
from rectune.logprobs import supervised_positions
from rectune.models.scorer import Scorer
from rectune.records import ExampleRow, GroupFigures, OverallFigures, TargetFigures
from rectune.training.metrics import histogram

MEASURED = tuple(
    name for name in HEAD_COLUMNS if name != "kl"
)  # without training, the model is its own reference
PARTS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.9), (0.9, 1.0))
"""Parts of an answer, from its first token to its last."""
EXAMPLES = 12
EXAMPLE_TOKENS = 600
"""Most tokens of an example that are shown."""
_MOST_SOURCES = 20


@dataclass(frozen=True)
class Measured:
    """Columns of the N measured targets, in the order of their rows.

    Attributes:
        logp_N, entropy_N, entropy20_N, log_sum_p2_N: float64, nats.
        lower_mass_N: float64, a probability.
        top1_N, structural_N: bool.
        targets_N: Ids, int64.
        row_N: Index among the measured rows, int64, ascending.
        place_N: Position in the row's answers, in [0, 1).
        classes_N: Index in `CLASSES`, int8.
        rows: For each measured row its index in the encoded rows.
        seconds, tokens: Of the pass; tokens include the prompts'.
    """

    logp_N: np.ndarray
    entropy_N: np.ndarray
    entropy20_N: np.ndarray
    log_sum_p2_N: np.ndarray
    lower_mass_N: np.ndarray
    top1_N: np.ndarray
    structural_N: np.ndarray
    targets_N: np.ndarray
    row_N: np.ndarray
    place_N: np.ndarray
    classes_N: np.ndarray
    rows: list[int]
    seconds: float
    tokens: int

    @property
    def p_N(self) -> np.ndarray:
        result: np.ndarray = np.exp(self.logp_N)
        return result

    def per_row(self, values_N: np.ndarray) -> np.ndarray:
        """Mean over the targets of each measured row: (rows,)."""
        counts = np.bincount(self.row_N, minlength=len(self.rows))
        return np.bincount(self.row_N, weights=values_N, minlength=len(self.rows)) / np.maximum(counts, 1)

    def columns(self) -> dict[str, torch.Tensor]:
        """The columns that objectives read, the model being its own reference: (N,), float64, int64 or bool."""
        names = (*MEASURED, "row", "structural")
        return with_reference({name: torch.from_numpy(getattr(self, f"{name}_N")) for name in names})


@torch.no_grad()
def with_reference(columns: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The columns of `MEASURED`, and those of a reference and an old policy that are the model itself."""
    of_reference = {f"ref_{name}": columns[name].clone() for name in MEASURED}
    logp = of_reference["ref_logp"]
    return {**columns, **of_reference, "old_logp": logp, "kl": torch.zeros_like(logp)}


def measure(
    scorer: Scorer,
    encoded: EncodedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int | None,
    seconds: float,
    capacity: int,
    seed: int,
    report: Callable[[int, int], None] = lambda done, expected: None,
) -> Measured:
    """Measure up to `rows` rows (all where None), for about `seconds` unless `rows` is given.

    Args:
        rows: How many; given, they are all measured however long it takes.
        seconds: Of the pass, where `rows` is None.
        capacity: Tokens of a packed batch.
        seed: Of the sample.
        report: Gets rows done and rows expected after every batch.

    Raises:
        UserError: A log-probability that is not finite (a broken model).
    """
    order = np.random.default_rng(seed).permutation(len(encoded))
    wanted = len(encoded) if rows is None else min(rows, len(encoded))
    parts: list[dict[str, np.ndarray]] = []
    measured: list[int] = []
    began, tokens, spent = time.perf_counter(), 0, 0.0
    device = next(scorer.model.parameters()).device
    for indices in _batches(encoded, order[:wanted], capacity):
        batch = collate([encoded[i] for i in indices], device)
        columns = measure_batch(scorer, batch)
        columns["row_N"] += len(measured)
        parts.append(columns)
        measured += indices
        tokens += sum(batch.row_lengths)
        spent = time.perf_counter() - began
        if rows is None and spent >= seconds:
            break
        affordable = wanted if rows is not None else round(len(measured) * seconds / spent)
        report(len(measured), min(wanted, affordable))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not np.isfinite(joined["logp_N"]).all():
        raise UserError(
            "the model gives log-probabilities that are not finite", hint="its weights are broken"
        )
    classes_N = token_classes(joined["targets_N"], joined["structural_N"], joined["row_N"], tokenizer)
    return Measured(**joined, classes_N=classes_N, rows=measured, seconds=spent, tokens=tokens)


def _batches(encoded: EncodedRows, order: np.ndarray, capacity: int) -> Iterator[list[int]]:
    """Rows in the order given, as many as fit; the first batch is small, so that the speed is known early."""
    lengths, batch, room = encoded.lengths, list[int](), capacity // 4
    for index in order.tolist():
        if batch and lengths[index] > room:
            yield batch
            batch, room = [], capacity
        batch.append(index)
        room -= int(lengths[index])
    if batch:
        yield batch


@torch.inference_mode()
def measure_batch(scorer: Scorer, batch: Batch) -> dict[str, np.ndarray]:
    """The columns of `Measured` that a batch gives, by name; rows are counted from 0."""
    columns = {name: column.cpu() for name, column in scorer.columns(batch, MEASURED).items()}
    row_N = columns["row"].numpy()
    counts = np.bincount(row_N, minlength=len(batch.row_lengths))
    starts = np.cumsum(counts) - counts
    return {
        **{f"{name}_N": columns[name].double().numpy() for name in MEASURED if name != "top1"},
        **{f"{name}_N": columns[name].bool().numpy() for name in ("top1", "structural")},
        "targets_N": supervised_positions(batch.labels)[1].cpu().numpy(),
        "row_N": row_N.copy(),
        "place_N": (np.arange(len(row_N)) - starts[row_N]) / counts[row_N],
    }


def overall_figures(measured: Measured) -> OverallFigures:
    """Means over all targets."""
    every = np.ones(len(measured.logp_N), bool)
    return OverallFigures(**_figures(measured, every).to_dict(), mean_p_error=standard_error(measured))


def standard_error(measured: Measured) -> float | None:
    """Of the mean p over all targets, whole rows being what was sampled; None for a single row."""
    rows = len(measured.rows)
    if rows < 2:
        return None
    residual = np.bincount(measured.row_N, weights=measured.p_N - measured.p_N.mean(), minlength=rows)
    return math.sqrt(rows / (rows - 1) * float((residual**2).sum())) / len(measured.p_N)


def by_class(measured: Measured) -> list[GroupFigures]:
    """Means over each class of tokens that occurs."""
    return _groups(measured, measured.classes_N, CLASSES)


def by_position(measured: Measured) -> list[GroupFigures]:
    """Means by position in the answer."""
    part_N = np.digitize(measured.place_N, [high for _, high in PARTS[:-1]])
    return _groups(measured, part_N, [f"{low:.0%} to {high:.0%}" for low, high in PARTS])


def by_source(measured: Measured, sources: Sequence[str]) -> list[GroupFigures]:
    """Means by the `source` field of each measured row, the largest first; empty where the rows have none."""
    names, of_row = np.unique(np.asarray(sources, object), return_inverse=True)
    if list(names) == [""]:
        return []
    groups = _groups(measured, of_row[measured.row_N], [name or "(none)" for name in names])
    return sorted(groups, key=lambda group: -group.targets)[:_MOST_SOURCES]


def _groups(measured: Measured, group_N: np.ndarray, names: Sequence[str]) -> list[GroupFigures]:
    return [
        GroupFigures(name=name, **_figures(measured, group_N == number).to_dict())
        for number, name in enumerate(names)
        if (group_N == number).any()
    ]


def _figures(measured: Measured, chosen_N: np.ndarray) -> TargetFigures:
    """Means over the chosen targets."""
    p = measured.p_N[chosen_N]
    return TargetFigures(
        targets=len(p),
        mean_p=float(p.mean()),
        nll=float(-measured.logp_N[chosen_N].mean()),
        entropy=float(measured.entropy_N[chosen_N].mean()),
        top1=float(measured.top1_N[chosen_N].mean()),
        histogram=histogram(p),
    )


def choose_examples(measured: Measured, also: Sequence[int]) -> list[int]:
    """Rows to show, as indices among the measured: some of `also`, then the least likely to the likeliest, evenly."""
    order = np.argsort(measured.per_row(measured.logp_N))
    even = order[np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)]
    return list(dict.fromkeys([*also[: EXAMPLES // 3], *even.tolist()]))[:EXAMPLES]


def example_row(
    scorer: Scorer,
    encoded: EncodedRows,
    measured: Measured,
    row: int,
    origin: tuple[str, str],
    weights: Mapping[str, np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
) -> ExampleRow:
    """A real row with a value for each token; tokens of the prompt have neither probability nor weight.

    Args:
        row: Index among the measured rows.
        origin: Where it came from, and its source.
        weights: Effective weight of each of the N targets, by label of the objective.
    """
    example = encoded[measured.rows[row]]
    batch = collate([example], next(scorer.model.parameters()).device)
    index, _ = supervised_positions(batch.labels)
    shown, chosen_N = min(len(example.input_ids), EXAMPLE_TOKENS), measured.row_N == row

    def spread(values: Sequence[Any]) -> list[Any]:
        at = dict(zip((index + 1).tolist(), values, strict=True))
        return [at.get(place) for place in range(shown)]

    def rounded(values_N: np.ndarray) -> list[float | None]:
        return spread([float(f"{value:.4g}") for value in values_N[chosen_N]])

    top = spread(token_texts(_most_probable(scorer, batch, index), tokenizer))
    return ExampleRow(
        where=origin[0],
        source=origin[1],
        tokens=token_texts(example.input_ids[:shown], tokenizer),
        supervised=[text is not None for text in top],
        p=rounded(measured.p_N),
        class_=spread([CLASSES[number] for number in measured.classes_N[chosen_N]]),
        entropy=rounded(measured.entropy_N),
        top=top,
        weights={label: rounded(weight_N) for label, weight_N in weights.items()},
    )


@torch.inference_mode()
def _most_probable(scorer: Scorer, batch: Batch, index: torch.Tensor) -> list[int]:
    """The most probable token at each target's place; scale and cap of the head do not change which."""
    head, hidden = scorer.head(), scorer.hidden(batch)[index]
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    return [int(i) for i in (logits if head.logit_scale > 0 else -logits).argmax(-1)]
