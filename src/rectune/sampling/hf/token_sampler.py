"""Sampling of tokens: a stream of uniforms for each sample, and inverse-CDF sampling of one token per row.

The stream depends on (seed, problem, sample index) and the position alone, so neither the batch size nor the order of
sequences can change it. The logits are computed in `engine.py`.

Shapes: B rows, V vocabulary, K blocks of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rectune.sampling.types import sample_key

VOCABULARY_BLOCK = 256  # tokens per block of the two-level search
CHUNK_ROWS = 32  # rows at a time, so that their weights stay in the processor's cache
CANDIDATES = (512, 8192)  # most probable tokens considered for top_p, before a row is sorted in full


def uniforms(seed: int, problem_id: str, sample_index: int, count: int) -> np.ndarray:
    """The first `count` uniforms in [0, 1) of a sample's stream, float64; a longer call has the same prefix.

    Philox, a counter-based generator, under the sample's key.
    """
    key = sample_key(seed, problem_id, sample_index)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def sample_tokens(
    logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """One token per row, and its log-probability under the untempered model.

    Args:
        logits_BV: Any floating dtype; worked on in float32.
        uniform_B: float64 in [0, 1); unused where the temperature is 0.
        temperature: 0 takes the most probable token.
        top_p: Sample among the most probable tokens that together reach this mass; tokens as probable as the
            last of them are included, so that ties do not depend on an order.

    Returns:
        Token ids (int64) and log-probabilities (float32), each of length B.
    """
    pieces = [
        _sample_rows(logits, uniform, temperature, top_p)
        for logits, uniform in zip(logits_BV.split(CHUNK_ROWS), uniform_B.split(CHUNK_ROWS), strict=True)
    ]
    ids, logps = zip(*pieces, strict=True)
    return torch.cat(ids), torch.cat(logps)


def _sample_rows(
    logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    logits_BV = logits_BV.float()
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    weights_BV = (logits_BV - largest_B1).exp_()
    log_total_B = weights_BV.sum(-1).log() + largest_B1[:, 0]
    if temperature == 0:
        ids_B = logits_BV.argmax(-1)
    else:
        if temperature != 1:
            weights_BV = (logits_BV - largest_B1).div_(temperature).exp_()
        if top_p < 1:
            weights_BV = torch.where(weights_BV >= _nucleus_floor(weights_BV, top_p), weights_BV, 0.0)
        ids_B = _invert(weights_BV, uniform_B)
    return ids_B, logits_BV.gather(-1, ids_B[:, None])[:, 0] - log_total_B


def _nucleus_floor(weights_BV: Tensor, top_p: float) -> Tensor:
    """Weight of the last token that the nucleus needs, B x 1."""
    goal_B1 = top_p * weights_BV.sum(-1, keepdim=True, dtype=torch.float64)
    floor_B1 = torch.empty_like(weights_BV[:, :1])
    words = weights_BV.shape[-1]
    rows = torch.arange(len(weights_BV), device=weights_BV.device)  # whose floor is not known yet
    for candidates in (*CANDIDATES, words):
        best = weights_BV[rows].topk(min(candidates, words)).values
        reached = best.cumsum(-1, dtype=torch.float64)
        goal = goal_B1[rows]
        floor_B1[rows] = torch.where(reached - best < goal, best, torch.inf).amin(-1, keepdim=True)
        rows = rows[reached[:, -1] < goal[:, 0]]
        if not len(rows):
            break
    return floor_B1


def _invert(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """First index at which the running sum of a row exceeds `uniform` of its total.

    In two levels, blocks and then words within one block, so that the running sums are short and in float64.
    """
    rows, words = weights_BV.shape
    if words % VOCABULARY_BLOCK:
        weights_BV = torch.nn.functional.pad(weights_BV, (0, -words % VOCABULARY_BLOCK))
    padded = weights_BV.view(rows, -1, VOCABULARY_BLOCK)
    sums_BK = padded.sum(-1).double().cumsum(-1)
    goal_B1 = uniform_B.to(weights_BV.device)[:, None] * sums_BK[:, -1:]
    block_B1 = torch.searchsorted(sums_BK, goal_B1, right=True).clamp_(max=sums_BK.shape[-1] - 1)
    end_B1 = sums_BK.gather(-1, block_B1)
    start_B1 = torch.where(block_B1 > 0, sums_BK.gather(-1, (block_B1 - 1).clamp_(min=0)), 0.0)
    share_B1 = ((goal_B1 - start_B1) / (end_B1 - start_B1)).clamp_(0.0, 1 - 2**-52)
    inside = padded[torch.arange(rows, device=padded.device), block_B1[:, 0]].double().cumsum(-1)
    word_B1 = torch.searchsorted(inside, share_B1 * inside[:, -1:], right=True).clamp_(
        max=VOCABULARY_BLOCK - 1
    )
    return (block_B1 * VOCABULARY_BLOCK + word_B1).clamp_(max=words - 1)[:, 0]
