"""The embedded engine: any transformers causal language model in this process, with continuous batching.

A prompt is prefilled once for all of its samples. Every step feeds the newest token of all sequences in progress
through the model's own forward; finished sequences leave at once and the next ones enter. The sequences in progress
are in `scheduler.py`, attention in `decode_attention.py`, sampling of tokens in `token_sampler.py`.

What batching can change: the uniforms do not depend on the batch, but matrix products may round a row differently
for another number of rows. In float32 on a CPU every product is therefore padded to shapes at which they do not, so
that tokens and log-probs are the same to the bit for any batch size and order (on one machine, with one number of
threads). In bfloat16, or on a GPU, a token differs where its uniform falls within that rounding of the border between
two tokens, and what follows it differs then too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import get_layer_types_and_kwargs

from rectune.data.chat_template import Template, choose_template
from rectune.data.tokenization import stop_ids
from rectune.errors import UserError
from rectune.models.limits import embeddings, no_embedding, positions
from rectune.models.load import check_model, choose_dtype, fingerprint, load_model
from rectune.models.packed_attention import choose_per_row, original_lengths
from rectune.runtime.distributed import default_device, take_device
from rectune.sampling.hf.cpu import PackedLinears, batch_invariant_sizes
from rectune.sampling.hf.decode_attention import decoding
from rectune.sampling.hf.kv_cache import PrefixCache
from rectune.sampling.hf.scheduler import RunningPrompt, RunningSequence, Scheduler
from rectune.sampling.hf.token_sampler import sample_tokens, uniforms
from rectune.sampling.stop_strings import cut, special_stops, stopped_by
from rectune.sampling.types import Completion, Request, SamplingParams

BATCH_SIZE = 128  # sequences in progress; more gains little on a CPU
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
        self.batch_size = BATCH_SIZE if batch_size is None else batch_size
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
            entering.append(RunningSequence(request, prompt, stream))
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
        with decoding(self.model), packed.installed():
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
        finished = []
        for sequence, token, logp in zip(
            sequences, ids.tolist(), logps.tolist(), strict=False
        ):  # without padding
            if not math.isfinite(logp):
                raise UserError(
                    f"the model's logits are not finite (problem '{sequence.request.problem_id}')",
                    where=self.model_name or None,
                    hint="its weights are damaged, or overflow",
                )
            sequence.token_ids.append(token)
            sequence.logprobs.append(logp)
            ended = token in ends
            stopped = ended or stopped_by(self.tokenizer, sequence.token_ids, params.stop)
            if stopped or len(sequence.token_ids) == params.max_new_tokens:
                running.remove(sequence)
                text = str(self.tokenizer.decode(sequence.token_ids, skip_special_tokens=True))
                reason = "stop" if ended else "length"
                whole = Completion(sequence.request, sequence.token_ids, sequence.logprobs, text, reason)
                finished.append(cut(whole, self.tokenizer, params.stop))
        return finished

    def _check_lengths(self, requests: Iterable[Request], new: int) -> None:
        """Raise `UserError` for a prompt with an unknown token, or without room for `new` tokens."""
        known = embeddings(self.model)
        too_long: dict[str, tuple[int, tuple[int, str]]] = {}
        for request in requests:
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
