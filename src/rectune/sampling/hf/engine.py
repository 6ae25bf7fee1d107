"""The embedded engine: any transformers causal language model in this process, batched continuously.

A prompt is computed once for all of its samples. Every step feeds the newest token of all sequences in work
through the model's own forward; finished sequences leave at once and the next ones enter. The sequences in
work are in `scheduler.py`, attention in `decode_attention.py`, the draws in `token_sampler.py`.

What batching can change: the uniforms do not depend on the batch, but matrix products may round a row differently
for another number of rows. In float32 on a CPU every product is therefore padded to shapes at which they do not, so
that tokens and log-probs are the same to the bit for any batch size and order (on one machine, with one number of
threads). In bfloat16, or on a GPU, a token differs where its uniform falls within that rounding of the border between
two words, and what follows it differs then too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import get_layer_types_and_kwargs

from rectune.data.chat_template import Template, choose_template
from rectune.data.tokenization import stop_ids
from rectune.errors import UserError
from rectune.models.limits import embeddings, no_embedding, positions
from rectune.models.load import check_model, fingerprint, load_model
from rectune.models.precision import choose_precision
from rectune.models.rope import choose_per_row, original_lengths
from rectune.runtime.distributed import default_device, take_device
from rectune.sampling.hf.batch_invariance import steady_sizes
from rectune.sampling.hf.decode_attention import IMPLEMENTATION
from rectune.sampling.hf.mkldnn_linear import prepack, prepacked
from rectune.sampling.hf.prefix_cache import KeptPrompts
from rectune.sampling.hf.scheduler import Batch, Prompt, Sequence
from rectune.sampling.hf.token_sampler import draw, uniforms
from rectune.sampling.sample import Completion, DrawSettings, Request
from rectune.sampling.stop_strings import cut, special_stops, stopped_by

BATCH_SIZE = 128  # sequences in work at once; more gains little on a CPU
KEPT = 1 << 30  # bytes of prompts that a loaded model keeps for later calls


class LocalEngine:
    """Draws completions from a model in this process; the model may go on being trained between calls.

    Args:
        model: A causal language model on its device; it is put into evaluation mode during a call.
        tokenizer: Its tokenizer.
        template: As in training.
        batch_size: Most sequences in work at once.
        model_name: For the samples file.
        exact: Pad products as the module says. Without it few rows are faster, and the same only in the same batches.
        keep: Bytes of computed prompts to keep for later calls, beside the weights as they are laid out for this
            processor (`mkldnn_linear.py`); only for weights that stay as they are.

    Raises:
        UserError: The model's layers cannot be run here (recurrent layers, shared caches, encoders).
    """

    name = "local"

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
        self._kept = KeptPrompts(keep)
        self._packed: dict[nn.Linear, Tensor] | None = None
        self._calls, self._training = 0, False  # calls under way, and the model's mode before the first
        self.batch_size = BATCH_SIZE if batch_size is None else batch_size
        if self.batch_size < 1:
            raise UserError(f"{batch_size} is out of range", where="batch_size", hint="must be at least 1")
        refuse(self.model)
        choose_per_row(self.model)
        ends = self.model.generation_config.eos_token_id
        self.stop_ids = {*stop_ids(tokenizer, self.template), *(ends if isinstance(ends, list) else [ends])}

    @classmethod
    def load(
        cls, model: str, *, template: str = "auto", precision: str = "auto", batch_size: int | None = None
    ) -> LocalEngine:
        """The engine of a model by name: hub id, folder, or packaged. Its weights have to stay as they are."""
        check_model(model)
        take_device()
        device = default_device()
        weights, tokenizer = load_model(model, dtype=choose_precision(precision, device)[0], device=device)
        return cls(weights, tokenizer, template, batch_size=batch_size, model_name=model, keep=KEPT)

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights as they were when this was first read."""
        return fingerprint(self.model)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        with prepacked(self._packed or {}):
            return steady_sizes(self.model)

    def complete(self, requests: Iterable[Request], settings: DrawSettings) -> Iterator[Completion]:
        """Completions in the order in which they finish. Take them all before the weights change."""
        waiting = deque(requests)
        self._check(waiting, settings)
        ends = self.stop_ids | special_stops(self.tokenizer, settings.stop)
        with self._at_work():
            exact = self.exact and self.model.device.type == "cpu" and self.model.dtype == torch.float32
            batch = Batch(self.model.device, self._sizes if exact else None, self.batch_size)
            while waiting or len(batch):
                entering, logits = self._admit(waiting, batch, settings)
                yield from self._extend(batch, entering, logits, settings, ends)
                if len(batch):
                    rows, logits = self._forward(batch)
                    yield from self._extend(batch, rows, logits, settings, ends)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Evaluation mode and weights laid out, as long as any call is under way."""
        if self._packed is None:
            self._packed = prepack(self.model)
        if not self._calls:
            self._training = self.model.training
            self.model.eval()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self.model.train(self._training)
                if not self._kept.limit:
                    self._packed = None  # the weights may change, and training needs the room

    @torch.inference_mode()
    def _admit(
        self, waiting: deque[Request], batch: Batch, settings: DrawSettings
    ) -> tuple[list[Sequence], Tensor]:
        """Fill the free rows; who entered, and the logits of their first tokens (their prompts')."""
        entering, logits = list[Sequence](), [torch.empty(0, self.model.config.get_text_config().vocab_size)]
        while waiting and len(batch) < self.batch_size:
            request = waiting.popleft()
            prompt = batch.find_prompt(request.prompt_ids) or self._prefill(batch, request.prompt_ids)
            key = (settings.seed, request.problem_id, request.sample_index)
            entering.append(Sequence(request, prompt, uniforms(*key, settings.max_new_tokens)))
            batch.add(entering[-1])
            logits.append(prompt.logits)
        return entering, torch.cat(logits[1:] or logits)

    def _prefill(self, batch: Batch, ids: tuple[int, ...]) -> Prompt:
        """Compute a prompt by itself, so that it is the same whatever else is in work."""
        computed = self._kept.get(ids)
        if computed is None:
            cache = DynamicCache()
            tokens = torch.tensor([ids], device=self.model.device)
            with prepacked(self._packed or {}):
                out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            content = [(layer.keys[0], layer.values[0]) for layer in cache.layers]  # type: ignore[union-attr,index]
            computed = out.logits[:, -1], content
            self._kept.keep(ids, computed)
        return batch.add_prompt(ids, *computed)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> tuple[list[Sequence], Tensor]:
        """Feed every row's newest token; the rows, and logits of the next one, B x V."""
        rows, plan, positions = batch.plan()
        tokens = torch.tensor([[s.token_ids[-1]] for s in rows], device=self.model.device)
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation(IMPLEMENTATION)
        try:
            with prepacked(self._packed or {}):
                out = self.model(
                    batch.padded(tokens),
                    position_ids=batch.padded(positions)[:, None],
                    use_cache=False,
                    logits_to_keep=1,
                    plan=plan,
                )
        finally:
            self.model.set_attn_implementation(usual)
        for sequence in rows:
            sequence.length += 1
        return rows, out.logits[: len(rows), -1]

    @torch.inference_mode()
    def _extend(
        self, batch: Batch, rows: list[Sequence], logits: Tensor, settings: DrawSettings, ends: set[int]
    ) -> list[Completion]:
        """Draw the next token of each row; those that end leave the batch."""
        if not rows:
            return []
        uniform = torch.tensor([s.uniforms[len(s.token_ids)] for s in rows], dtype=torch.float64)
        ids, logps = draw(
            batch.padded(logits),
            batch.padded(uniform),
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        finished = []
        for sequence, token, logp in zip(rows, ids.tolist(), logps.tolist(), strict=False):  # padding behind
            if not math.isfinite(logp):
                what = f"the model computes numbers that are not finite (problem '{sequence.request.problem_id}')"
                raise UserError(
                    what, where=self.model_name or None, hint="its weights are damaged, or overflow"
                )
            sequence.token_ids.append(token)
            sequence.logprobs.append(logp)
            ended = token in ends
            stopped = ended or stopped_by(self.tokenizer, sequence.token_ids, settings.stop)
            if stopped or len(sequence.token_ids) == settings.max_new_tokens:
                batch.remove(sequence)
                text = str(self.tokenizer.decode(sequence.token_ids, skip_special_tokens=True))
                reason = "stop" if ended else "length"
                whole = Completion(sequence.request, sequence.token_ids, sequence.logprobs, text, reason)
                finished.append(cut(whole, self.tokenizer, settings.stop))
        return finished

    def _check(self, requests: Iterable[Request], settings: DrawSettings) -> None:
        known, new = embeddings(self.model), settings.max_new_tokens
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
        """The longest that a prompt of so many tokens may become with its answer, and why; None for any length."""
        places = positions(self.model)
        found = [] if places is None else [(places, "the model has")]
        for kind, original in self._changing:
            if kind != "longrope" or prompt <= original:  # keys computed so far would be of other frequencies
                found.append((original, f"the frequencies of rope_type {kind} change beyond"))
        return min(found, default=None)

    @cached_property
    def _changing(self) -> set[tuple[str, int]]:
        return {one for module in self.model.modules() for one in original_lengths(module).values()}


def refuse(model: PreTrainedModel) -> None:
    """Raise `UserError` for a model that is more than attention over keys and values of its own layers."""
    config = model.config.get_text_config()
    kinds = set(get_layer_types_and_kwargs(config)[0]) - {"full_attention", "sliding_attention"}
    if config.is_encoder_decoder:
        kinds.add("an encoder")
    if not model._can_set_attn_implementation():
        kinds.add("its own attention code")
    if kinds:
        raise UserError(
            f"the local engine cannot run {type(model).__name__} ({', '.join(sorted(kinds))})",
            hint="serve it, and use --engine server",
        )
