"""Continuous batching: the sequences in progress, their slots, and the plan of the next decoding step.

Storage is in `kv_cache.py`, attention in `decode_attention.py`, the loop in `engine.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rectune.sampling.hf.decode_attention import DecodePlan, PlanPart
from rectune.sampling.hf.kv_cache import KVPool, Layers, capacity_for
from rectune.sampling.types import Request

SHARING = 8  # rows that share a prompt's attention where results must not depend on the batch


@dataclass(eq=False)
class RunningPrompt:
    """A prompt with samples in progress. `length` positions are stored; `logits` are of the first new token, 1 x V."""

    ids: tuple[int, ...]
    logits: Tensor
    pool: KVPool
    length: int
    slot: int = -1
    members: list[RunningSequence] = field(default_factory=list)


@dataclass(eq=False)
class RunningSequence:
    """A completion in progress. `length` of its tokens are stored: all but the newest."""

    request: Request
    prompt: RunningPrompt
    uniforms: np.ndarray
    pool: KVPool | None = None
    length: int = 0
    slot: int = -1
    row: int = -1
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Scheduler:
    """Prompts and completions by length class.

    Args:
        sizes: Numbers of rows to pad the batch to (`cpu.batch_invariant_sizes`); beyond the largest, multiples of it.
            Given any, a row is computed in shapes that do not depend on the other rows: every prompt has places for
            `SHARING` rows. None pads nothing.
        most: Maximum number of sequences in progress.
    """

    def __init__(self, device: torch.device, sizes: tuple[int, ...] | None, most: int) -> None:
        self.device, self.sizes, self.most = device, sizes, most
        self.prompts: dict[int, KVPool] = {}
        self.completions: dict[int, KVPool] = {}
        self._prompts: dict[tuple[int, ...], RunningPrompt] = {}

    def __len__(self) -> int:
        return sum(len(pool.owners) for pool in self.completions.values())

    def sequences(self) -> list[RunningSequence]:
        """In the order of the batch: by length class, then by slot."""
        return [s for _, pool in sorted(self.completions.items()) for s in pool.owners]

    def find_prompt(self, ids: tuple[int, ...]) -> RunningPrompt | None:
        """A prompt that is stored already, because samples of it are in progress."""
        prompt = self._prompts.get(ids)
        return None if prompt is None or (self.sizes and len(prompt.members) == SHARING) else prompt

    def padded(self, tensor: Tensor) -> Tensor:
        """The tensor with rows of zeros appended, up to the number that is computed."""
        missing = self._missing(len(tensor))
        return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor

    def _missing(self, rows: int) -> int:
        if not self.sizes:
            return 0
        return next((size - rows for size in self.sizes if size >= rows), -rows % self.sizes[-1])

    def add_prompt(self, ids: tuple[int, ...], logits: Tensor, content: Layers) -> RunningPrompt:
        """Store a prompt's keys and values until its last sequence leaves."""
        pool = self._pool(self.prompts, len(ids), content)
        prompt = self._prompts[ids] = RunningPrompt(ids, logits, pool, len(ids))
        pool.add(prompt, content)
        return prompt

    def add(self, sequence: RunningSequence) -> None:
        """Include a sequence of a stored prompt from the next step on."""
        prompt = sequence.prompt
        sequence.pool = self._pool(self.completions, 1, prompt.pool.content(prompt))
        sequence.pool.add(sequence)
        prompt.members.append(sequence)

    def remove(self, sequence: RunningSequence) -> None:
        """Free a finished sequence's slot, and its prompt's where it was the last one."""
        assert sequence.pool is not None
        prompt = sequence.prompt
        sequence.pool.remove(sequence.slot)
        prompt.members.remove(sequence)
        if not prompt.members:
            prompt.pool.remove(prompt.slot)
            if self._prompts.get(prompt.ids) is prompt:
                del self._prompts[prompt.ids]

    def plan(self) -> tuple[list[RunningSequence], DecodePlan, Tensor]:
        """Rows of the next step, what they attend to, and the position of each row's new token."""
        for sequence in self.sequences():
            self._make_room(sequence)
        rows = self.sequences()
        for row, sequence in enumerate(rows):
            sequence.row = row
        starts, lengths = self._ints([s.prompt.length for s in rows]), self._ints([s.length for s in rows])
        positions, own, row = starts + lengths, [], 0
        for _, pool in sorted(self.completions.items()):
            if pool.owners:
                part = slice(row, row + len(pool.owners))
                own.append(
                    PlanPart(pool, part, starts[part], lengths[part] + 1, positions[part].unsqueeze(1))
                )
                row = part.stop
        shared, back = self._prompt_parts(positions, len(rows))
        return rows, DecodePlan(own, shared, self.padded(back), self._missing(len(rows))), positions

    def _prompt_parts(self, positions: Tensor, rows: int) -> tuple[list[PlanPart], Tensor]:
        parts, back, base = [], [0] * rows, 0
        for _, pool in sorted(self.prompts.items()):
            if not pool.owners:
                continue
            widest = SHARING if self.sizes else max(len(p.members) for p in pool.owners)
            queries = [[m.row for m in p.members] + [0] * (widest - len(p.members)) for p in pool.owners]
            for slot, prompt in enumerate(pool.owners):
                for place, member in enumerate(prompt.members):
                    back[member.row] = base + slot * widest + place
            index = self._ints([row for group in queries for row in group])
            filled = self._ints([p.length for p in pool.owners])
            query = positions[index].view(len(queries), widest)
            parts.append(PlanPart(pool, index, torch.zeros_like(filled), filled, query))
            base += len(queries) * widest
        return parts, self._ints(back)

    def _make_room(self, sequence: RunningSequence) -> None:
        """Move a sequence whose slot is full to the next length class."""
        pool = sequence.pool
        assert pool is not None
        if sequence.length < pool.capacity:
            return
        content, slot = pool.content(sequence), sequence.slot
        sequence.pool = self._pool(self.completions, sequence.length + 1, content)
        sequence.pool.add(sequence, content)
        pool.remove(slot)

    def _pool(self, pools: dict[int, KVPool], length: int, like: Layers) -> KVPool:
        capacity = capacity_for(length)
        if capacity not in pools:
            known = self.device.type == "cpu" and like[0][0].dtype in (torch.float32, torch.bfloat16)
            blocks = (
                known and pools is self.completions
            )  # many rows attend to a prompt, for which products are faster
            pools[capacity] = KVPool(capacity, like, self.most, blocks=blocks)
        return pools[capacity]

    def _ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
