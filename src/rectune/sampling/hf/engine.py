"""The embedded engine: any transformers causal language model in this process, with continuous batching.

A prompt is prefilled once for all of its samples. Every step feeds the newest token of all sequences in progress
through the model's own forward; finished sequences leave at once and the next ones enter. `HFEngine` is the loop,
`Scheduler` the sequences in progress, their slots and the plan of the next step, `sample_tokens` inverse-CDF sampling
of one token per row. Keys and values, and attention over them, are in `kv_cache.py`.

The uniforms of a sample depend on (seed, problem, sample index) and the position alone, so neither the batch size nor
the order of sequences can change them.

What batching can change: the uniforms do not depend on the batch, but matrix products may round a row differently
for another number of rows. In float32 on a CPU every product is therefore padded to shapes at which they do not, so
that tokens and log-probs are the same to the bit for any batch size and order (on one machine, with one number of
threads). In bfloat16, or on a GPU, a token differs where its uniform falls within that rounding of the border between
two tokens, and what follows it differs then too.

Shapes: B rows, V vocabulary, K blocks of the vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import get_layer_types_and_kwargs

from rectune.data.chat_template import Template, choose_template
from rectune.data.tokenization import stop_ids
from rectune.errors import UserError
from rectune.models.limits import embeddings, no_embedding, positions
from rectune.models.load import check_model, choose_dtype, fingerprint, load_model
from rectune.models.packed_attention import choose_per_row, original_lengths
from rectune.runtime.distributed import default_device, take_device
from rectune.sampling.hf.cpu import PackedLinears, batch_invariant_sizes
from rectune.sampling.hf.kv_cache import (
    DecodePlan,
    KVPool,
    Layers,
    PlanPart,
    PrefixCache,
    capacity_for,
    decoding,
)
from rectune.sampling.types import (
    Completion,
    Request,
    SamplingParams,
    cut,
    sample_key,
    special_stops,
    stopped_by,
)

BATCH_SIZE = 128  # sequences in progress; more gains little on a CPU
SMALL_MODEL, SMALL_BATCH_SIZE = 10_000_000, 512
"""Parameters up to which a step's time is that of calling its operations, and sequences in progress that share it."""
PREFIX_CACHE = 1 << 30  # bytes of prompts that a model loaded by name keeps for later calls


class HFEngine:
    """Samples from a transformers model in this process; the model may be trained further between calls.

    Args:
        model: A causal language model on its device; it is in evaluation mode during a call.
        tokenizer: Its tokenizer.
        template: As in training.
        batch_size: Maximum number of sequences in progress.
        model_name: For the samples file.
        exact: Pad products as the module says. Without it few rows are faster, and the same only in the same batches.
        keep: Bytes of prefilled prompts to keep for later calls, in addition to packed weights (`cpu.py`); only for
            frozen weights.

    Raises:
        UserError: The model's layers cannot be run here (recurrent layers, shared caches, encoders).
    """

    name = "hf"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str | Template = "auto",
        *,
        batch_size: int | None = None,
        model_name: str = "",
        exact: bool = True,
        keep: int = 0,
    ) -> None:
        self.model: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.tokenizer, self.model_name, self.exact = tokenizer, model_name, exact
        self.template = choose_template(template, tokenizer)
        self._prefixes = PrefixCache(keep)
        self._packed: PackedLinears | None = None
        self._calls, self._training = 0, False  # calls in progress, and the model's mode before the first
        if batch_size is None:
            batch_size = SMALL_BATCH_SIZE if self.model.num_parameters() <= SMALL_MODEL else BATCH_SIZE
        self.batch_size = batch_size
        if self.batch_size < 1:
            raise UserError(f"must be at least 1 (got {batch_size})", where="batch_size")
        check_architecture(self.model)
        choose_per_row(self.model)
        ends = self.model.generation_config.eos_token_id
        self.stop_ids = {*stop_ids(tokenizer, self.template), *(ends if isinstance(ends, list) else [ends])}

    @classmethod
    def load(
        cls, model: str, *, template: str = "auto", dtype: str = "auto", batch_size: int | None = None
    ) -> HFEngine:
        """The engine of a model by name: hub id, folder, or packaged. Its weights must stay frozen."""
        check_model(model)
        take_device()
        device = default_device()
        weights, tokenizer = load_model(model, dtype=choose_dtype(dtype, device)[0], device=device)
        return cls(weights, tokenizer, template, batch_size=batch_size, model_name=model, keep=PREFIX_CACHE)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights as they were when this was first read."""
        return fingerprint(self.model)

    @cached_property
    def _configs(self) -> list[PreTrainedConfig]:
        """Of the model and the models in it; their layers read there which attention to call."""
        models = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
        return list({id(inner.config): inner.config for inner in models}.values())

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        assert self._packed is not None
        with self._packed.installed():
            return batch_invariant_sizes(self.model)

    def complete(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Completion]:
        """Completions in the order in which they finish. Take them all before the weights change."""
        waiting = deque(requests)
        self._check_lengths(waiting, params.max_new_tokens)
        ends = self.stop_ids | special_stops(self.tokenizer, params.stop)
        with self._evaluating() as packed:
            exact = self.exact and self.model.device.type == "cpu" and self.model.dtype == torch.float32
            running = Scheduler(self.model.device, self._sizes if exact else None, self.batch_size)
            while waiting or len(running):
                entering, logits = self._admit(waiting, running, params, packed)
                yield from self._extend(running, entering, logits, params, ends)
                if len(running):
                    sequences, logits = self._decode(running, packed)
                    yield from self._extend(running, sequences, logits, params, ends)

    @contextmanager
    def _evaluating(self) -> Iterator[PackedLinears]:
        """Evaluation mode, and packed weights, until the last call in progress ends."""
        packed = self._packed = self._packed or PackedLinears(self.model)
        if not self._calls:
            self._training = self.model.training
            self.model.eval()
        self._calls += 1
        try:
            yield packed
        finally:
            self._calls -= 1
            if not self._calls:
                self.model.train(self._training)
                if not self._prefixes.limit:
                    self._packed = None  # the weights may change, and training needs the memory

    @torch.inference_mode()
    def _admit(
        self, waiting: deque[Request], running: Scheduler, params: SamplingParams, packed: PackedLinears
    ) -> tuple[list[RunningSequence], Tensor]:
        """Fill the free rows; returns the new sequences and the logits of their first tokens (their prompts')."""
        entering, logits = (
            list[RunningSequence](),
            [torch.empty(0, self.model.config.get_text_config().vocab_size)],
        )
        while waiting and len(running) < self.batch_size:
            request = waiting.popleft()
            prompt = running.find_prompt(request.prompt_ids) or self._prefill(
                running, request.prompt_ids, packed
            )
            stream = uniforms(params.seed, request.problem_id, request.sample_index, params.max_new_tokens)
            entering.append(RunningSequence(request, prompt, stream.tolist()))
            running.add(entering[-1])
            logits.append(prompt.logits)
        return entering, torch.cat(logits[1:] or logits)

    def _prefill(self, running: Scheduler, ids: tuple[int, ...], packed: PackedLinears) -> RunningPrompt:
        """Compute a prompt by itself, so that the result does not depend on other sequences."""
        prefilled = self._prefixes.get(ids)
        if prefilled is None:
            cache = DynamicCache()
            tokens = torch.tensor([ids], device=self.model.device)
            with packed.installed():
                out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]  # type: ignore[union-attr,index]
            prefilled = out.logits[:, -1], layers
            self._prefixes.put(ids, prefilled)
        return running.add_prompt(ids, *prefilled)

    @torch.inference_mode()
    def _decode(self, running: Scheduler, packed: PackedLinears) -> tuple[list[RunningSequence], Tensor]:
        """Feed every sequence's newest token; returns the sequences, and logits of the next token, B x V."""
        sequences, plan, positions = running.plan()
        tokens = torch.tensor([[s.token_ids[-1]] for s in sequences], device=self.model.device)
        with decoding(self._configs), packed.installed():
            out = self.model(
                running.padded(tokens),
                position_ids=running.padded(positions)[:, None],
                use_cache=False,
                logits_to_keep=1,
                plan=plan,
            )
        for sequence in sequences:
            sequence.length += 1
        return sequences, out.logits[: len(sequences), -1]

    @torch.inference_mode()
    def _extend(
        self,
        running: Scheduler,
        sequences: list[RunningSequence],
        logits: Tensor,
        params: SamplingParams,
        ends: set[int],
    ) -> list[Completion]:
        """Sample the next token of each sequence; returns those that end, which leave the batch."""
        if not sequences:
            return []
        uniform = torch.tensor([s.uniforms[len(s.token_ids)] for s in sequences], dtype=torch.float64)
        ids, logps = sample_tokens(
            running.padded(logits),
            running.padded(uniform),
            temperature=params.temperature,
            top_p=params.top_p,
        )
        if not (finite := logps[: len(sequences)].isfinite()).all():
            damaged = sequences[int(finite.int().argmin())].request.problem_id
            raise UserError(
                f"the model's logits are not finite (problem '{damaged}')",
                where=self.model_name or None,
                hint="its weights are damaged, or overflow",
            )
        finished = []
        # without padding
        for sequence, token, logp in zip(sequences, ids.tolist(), logps.tolist(), strict=False):
            sequence.token_ids.append(token)
            sequence.logprobs.append(logp)
            ended = token in ends
            stopped = ended or (params.stop and stopped_by(self.tokenizer, sequence.token_ids, params.stop))
            if stopped or len(sequence.token_ids) == params.max_new_tokens:
                running.remove(sequence)
                text = str(self.tokenizer.decode(sequence.token_ids, skip_special_tokens=True))
                reason = "stop" if ended else "length"
                whole = Completion(sequence.request, sequence.token_ids, sequence.logprobs, text, reason)
                finished.append(cut(whole, self.tokenizer, params.stop))
        return finished

    def _check_lengths(self, requests: deque[Request], new: int) -> None:
        """Raise `UserError` for a prompt with an unknown token, or without room for `new` tokens."""
        known = embeddings(self.model)
        too_long: dict[str, tuple[int, tuple[int, str]]] = {}
        first = {request.prompt_ids: request for request in reversed(requests)}  # of each prompt
        for request in reversed(first.values()):
            if (token := max(request.prompt_ids)) >= known:
                where = request.where or f"problem '{request.problem_id}'"
                raise no_embedding(token, known, self.tokenizer, where)
            length = len(request.prompt_ids)
            if (limit := self.limit(length)) is not None and length + new > limit[0]:
                too_long[request.problem_id] = length, limit
        if not too_long:
            return
        name, (length, (places, why)) = next(iter(too_long.items()))
        others = f", and {len(too_long) - 1} other problems more than fit" if len(too_long) > 1 else ""
        fit = min(limit[0] - length for length, limit in too_long.values())
        raise UserError(
            f"problem '{name}' needs {length + new} positions ({length} prompt tokens and max_new_tokens){others}; "
            f"{why} {places}",
            where="max_new_tokens",
            hint=f"at most {fit} fit" if fit > 0 else "shorten the prompts",
        )

    def limit(self, prompt: int) -> tuple[int, str] | None:
        """The maximum length of a prompt of `prompt` tokens with its completion, and why; None without a maximum."""
        places = positions(self.model)
        limits = [] if places is None else [(places, "the model has")]
        for kind, original in self._frequency_changes:
            if kind != "longrope" or prompt <= original:  # earlier keys would have other frequencies
                limits.append((original, f"the frequencies of rope_type {kind} change beyond"))
        return min(limits, default=None)

    @cached_property
    def _frequency_changes(self) -> set[tuple[str, int]]:
        return {change for module in self.model.modules() for change in original_lengths(module).values()}


def check_architecture(model: PreTrainedModel) -> None:
    """Raise `UserError` for a model that is more than attention over keys and values of its own layers."""
    config = model.config.get_text_config()
    unsupported = set(get_layer_types_and_kwargs(config)[0]) - {"full_attention", "sliding_attention"}
    if config.is_encoder_decoder:
        unsupported.add("an encoder")
    if not model._can_set_attn_implementation():
        unsupported.add("its own attention code")
    if unsupported:
        raise UserError(
            f"the hf backend cannot run {type(model).__name__} ({', '.join(sorted(unsupported))})",
            hint="serve it, and use --backend openai",
        )


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
    uniforms: list[float]
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
        pool = self.completions.get(capacity_for(1))
        sequence.pool = pool or self._pool(self.completions, 1, prompt.pool.content(prompt))
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
            # many rows attend to a prompt, for which products are faster
            blocks = known and pools is self.completions
            pools[capacity] = KVPool(capacity, like, self.most, blocks=blocks)
        return pools[capacity]

    def _ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


VOCABULARY_BLOCK = 256  # tokens per block of the two-level search
CHUNK_ROWS = (
    32  # rows at a time, so that their weights stay in the processor's cache; a multiple of it for few words
)
CHUNK_WEIGHTS = 1 << 15  # of several times as many rows: as many as torch computes in one thread
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
    rows = max(1, CHUNK_WEIGHTS // (CHUNK_ROWS * logits_BV.shape[-1])) * CHUNK_ROWS
    pieces = [
        _sample_rows(logits, uniform, temperature, top_p)
        for logits, uniform in zip(logits_BV.split(rows), uniform_B.split(rows), strict=True)
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
