"""How much an answer repeats itself: shared by evaluation and by the drift monitor of training."""

from __future__ import annotations

from collections.abc import Sequence


def repetition(token_ids: Sequence[int]) -> float:
    """Share of the 4-grams of tokens that occurred before in the same sample; 0 below 20 tokens."""
    if len(token_ids) < 20:
        return 0.0
    grams = [tuple(token_ids[i : i + 4]) for i in range(len(token_ids) - 3)]
    return 1 - len(set(grams)) / len(grams)
