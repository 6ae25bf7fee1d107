"""Real rows for the page: every token with its probability, and what each objective makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rectune.data.encoded_dataset import EncodedRows
from rectune.data.packing import collate
from rectune.data.tokenization import token_texts
from rectune.diagnosis.classes import CLASSES
from rectune.diagnosis.measure import Measured
from rectune.logprobs import supervised_positions
from rectune.models.scorer import Scorer

ROWS = 12
TOKENS = 600
"""Most tokens of a row that are shown."""


def choose(measured: Measured, also: Sequence[int] = ()) -> list[int]:
    """Rows to show, as indices among the measured: the least likely one, the likeliest, and evenly between."""
    order = np.argsort(measured.per_row(measured.logp_N))
    even = order[np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(int)]
    return list(dict.fromkeys([*also[: ROWS // 3], *even.tolist()]))[:ROWS]


def examples(
    scorer: Scorer,
    encoded: EncodedRows,
    measured: Measured,
    classes_N: np.ndarray,
    weights: Mapping[str, np.ndarray],
    rows: Sequence[int],
    sources: Sequence[tuple[str, str]],
    tokenizer: Any,
) -> list[dict[str, Any]]:
    """The rows, JSON-ready; prompts have neither probability nor weight.

    Args:
        weights: Effective weight of each of the N targets, by label.
        rows: Indices among the measured rows.
        sources: For each measured row where it came from, and its source.
    """
    return [
        _example(scorer, encoded, measured, classes_N, weights, row, sources[row], tokenizer) for row in rows
    ]


def _example(
    scorer: Scorer, encoded: EncodedRows, measured: Measured, classes_N: np.ndarray,
    weights: Mapping[str, np.ndarray], row: int, source: tuple[str, str], tokenizer: Any,
) -> dict[str, Any]:  # fmt: skip
    one = encoded[measured.rows[row]]
    batch = collate([one], next(scorer.model.parameters()).device)
    index, _ = supervised_positions(batch.labels)
    where = (index + 1).tolist()
    targets = np.flatnonzero(measured.row_N == row)
    shown = len(one.input_ids) if len(one.input_ids) <= TOKENS else TOKENS
    texts = token_texts(one.input_ids[:shown], tokenizer)
    likeliest = dict(zip(where, token_texts(_likeliest(scorer, batch, index), tokenizer), strict=True))

    def spread(values: Sequence[Any]) -> list[Any]:
        at = dict(zip(where, values, strict=True))
        return [at.get(place) for place in range(shown)]

    def rounded(values_N: np.ndarray) -> list[float]:
        return [float(f"{value:.4g}") for value in values_N[targets]]

    return {
        "where": source[0],
        "source": source[1],
        "tokens": texts,
        "supervised": [place in likeliest for place in range(shown)],
        "p": spread(rounded(measured.p_N)),
        "class": spread([CLASSES[number] for number in classes_N[targets]]),
        "entropy": spread(rounded(measured.entropy_N)),
        "top": [likeliest.get(place) for place in range(shown)],
        "weights": {label: spread(rounded(weight_N)) for label, weight_N in weights.items()},
    }


@torch.inference_mode()
def _likeliest(scorer: Scorer, batch: Any, index: torch.Tensor) -> list[int]:
    """The most probable token at each target's place; scale and cap of the head do not change which."""
    head, hidden = scorer.head(), scorer.hidden(batch)[index]
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    return [int(i) for i in (logits if head.logit_scale > 0 else -logits).argmax(-1)]
