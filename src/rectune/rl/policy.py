"""The policy: the model in training with, for PPO, a value head on the same body; and a server that samples from it.

The value of a token is that of the state before it: a linear function, zero at first, of the same last hidden state
that predicts the token. The losses are in `objectives.py`, advantages in `advantages.py`.

A server samples from the weights in training: they are saved, and the server reads them. SGLang answers
`POST /update_weights_from_disk`; vLLM, where it runs with VLLM_SERVER_DEV_MODE=1, `POST /collective_rpc` with its
workers' `reload_weights`, after which its cached prefixes are discarded. Both addresses are next to /v1, not below it,
and the server has to see the same file system. Any other server is refused by name.

Shapes: N target tokens, D width, V vocabulary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rectune.data.packing import Batch, EncodedLike, collate, pack
from rectune.errors import UserError
from rectune.logprobs.elementwise import Shape, entropy_of, shaped_logits
from rectune.models.scorer import Head, Scorer
from rectune.runtime.memory import repeat_while_out_of_memory
from rectune.sampling.openai import OpenAIClient, OpenAIEngine
from rectune.sampling.types import Completion, Request, SamplingParams
from rectune.training.run_dir import save_model

log = logging.getLogger("rectune")

Made = TypeVar("Made")


class TokenLimit:
    """Most tokens of a micro-batch of several rows, fewer once they did not fit into memory.

    A longer row is a micro-batch by itself. However a pass is cut its sums are the same, up to the order in which
    floats are added.

    Attributes:
        tokens: The limit as it is now; part of a checkpoint, since the order of sums depends on it.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def fit(self, work: Callable[[int], Made], lengths: Sequence[int]) -> Made:
        """What `work` gives with the capacity that rows of these lengths have, or a smaller one where memory runs out.

        Raises:
            UserError: The longest row does not fit into memory by itself.
        """
        longest = max(lengths, default=1)
        return repeat_while_out_of_memory(
            lambda: work(max(self.tokens, longest)), lambda: self._halve(longest, sum(lengths))
        )

    def _halve(self, longest: int, total: int) -> None:
        if self.tokens <= longest:
            raise UserError(
                f"{longest} tokens of one prompt and answer do not fit into memory",
                where="max_new_tokens",
                hint="lower it or logits_memory_mb, or turn on gradient_checkpointing or LoRA (lora_r)",
            )
        tried = min(self.tokens, total)
        self.tokens = max(longest, tried // 2)
        log.warning(
            "out of memory at up to %d tokens at once: repeated, with the same gradient, with at most %d, and so are"
            " all passes that follow",
            tried,
            self.tokens,
        )


class Policy(nn.Module):
    """Model and value head; its parameters are what is trained.

    Args:
        model: A causal model that a `Scorer` can score, or a peft model around one.
        value: Give it a value head.
        temperature: Of the sampling; log-probabilities and entropies are those of the tempered model.
        memory_budget: Bytes for the head's logits.
    """

    def __init__(self, model: Any, *, value: bool, temperature: float, memory_budget: int) -> None:
        super().__init__()
        self.model = model
        self.scorer = Scorer(model, memory_budget=memory_budget)
        self.scorer.temperature = temperature
        head = self.scorer.head()  # refuses a temperature that cannot be applied
        self.value: nn.Linear | None = None
        if value:
            self.value = nn.Linear(head.weight.shape[1], 1, device=head.weight.device)
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)

    def columns(
        self, batch: Batch, *, reference: Scorer | None = None, entropy_gradient: bool = False
    ) -> dict[str, Tensor]:
        """Columns of the N target tokens: `logp`, `entropy`, `row`, and where there are such `value` and `ref_logp`.

        Args:
            reference: Of `ref_logp`.
            entropy_gradient: `entropy` is differentiable, at the cost of the head's product a few times more.
        """
        names = ["logp", "hidden", *([] if entropy_gradient else ["entropy"])]
        names += [] if reference is None else ["ref_logp"]
        columns = self.scorer.columns(batch, names, reference=reference)
        hidden = columns.pop("hidden")
        if self.value is not None:
            columns["value"] = self.value(hidden).squeeze(1).to(columns["logp"].dtype)
        if entropy_gradient:
            columns["entropy"] = entropies(hidden, self.scorer.head(), self.scorer.memory_budget)
        return columns

    @torch.no_grad()
    def score(
        self, rows: Sequence[EncodedLike], capacity: int, *, reference: Scorer | None = None
    ) -> list[dict[str, Tensor]]:
        """Columns of each row by itself, without gradient and dropout, on the CPU: the policy as it is now."""
        training = self.model.training
        self.model.eval()
        found: list[dict[str, Tensor]] = [{} for _ in rows]
        for places in pack([len(row.input_ids) for row in rows], capacity):
            columns = self.columns(collate([rows[i] for i in places], self.device), reference=reference)
            ends = torch.bincount(columns.pop("row"), minlength=len(places)).cumsum(0)[:-1].cpu()
            for name, column in columns.items():
                for place, part in zip(places, column.cpu().tensor_split(ends), strict=True):
                    found[place][name] = part
        self.model.train(training)
        return found

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def entropies(hidden_ND: Tensor, head: Head, memory_budget: int) -> Tensor:
    """Entropy of each next-token distribution in nats, (N,), differentiable; logits only of some rows at a time."""
    shape = Shape(head.softcap, head.logit_scale)

    def some(part_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        return entropy_of(shaped_logits(part_ND @ weight_VD.to(part_ND.dtype).T, bias_V, shape)[0])

    rows = max(1, memory_budget // (16 * head.weight.shape[0]))  # four float32 matrices at a time
    parts = [
        checkpoint(some, part, head.weight, head.bias, use_reentrant=False, preserve_rng_state=False)
        for part in hidden_ND.split(rows)
    ]
    return torch.cat(parts)


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Half the squared error of each value; a step of more than `clip` from the old value gains nothing (0: no clip).

    PPO's clipped value loss, as in the code of arXiv:1707.06347: the larger of both errors counts.
    """
    error = (value - returns).square()
    if clip:
        near = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error


class ReloadingServer:
    """A `OpenAIEngine` whose server reads the model's present weights before each call.

    Args:
        engine: Of the server.
        model, tokenizer: Saved to `folder` before each call.
        folder: Where the server finds them, by the same path.

    Raises:
        UserError: The server cannot reload weights.
    """

    def __init__(self, engine: OpenAIEngine, model: Any, tokenizer: Any, folder: Path) -> None:
        self.engine, self.model, self.folder = engine, model, folder.absolute()
        self.name, self.model_name = engine.name, engine.model_name
        self.tokenizer, self.template = tokenizer, engine.template
        self.api = OpenAIClient(engine.api.url.removesuffix("/v1"), timeout=engine.api.timeout, retries=0)

    @property
    def fingerprint(self) -> str:
        return self.engine.fingerprint

    def complete(self, requests: Iterable[Request], settings: SamplingParams) -> Iterator[Completion]:
        """As any engine's, from the weights as they are now."""
        save_model(self.folder, self.model, self.tokenizer, self.template)
        self.reload()
        return self.engine.complete(requests, settings)

    def reload(self) -> None:
        """Have the server read the folder: by SGLang's address, else by vLLM's."""
        answer = self._post("/update_weights_from_disk", {"model_path": str(self.folder)})
        if answer is not None:
            if answer.get("success") is not True:
                said = answer.get("message") or answer
                raise UserError(f"the server cannot read the weights: {said}", where=self.folder)
            return
        method = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        if self._post("/collective_rpc", method) is None:
            raise UserError(
                "this server cannot reload weights",
                where=self.api.url,
                hint="SGLang can, vLLM with VLLM_SERVER_DEV_MODE=1 can; or use backend = 'hf'",
            )
        self._post("/reset_prefix_cache", {})

    def _post(self, path: str, body: Mapping[str, object]) -> Mapping[str, object] | None:
        """The server's answer; None where it does not know the path."""
        status, text = self.api.call(path, body)
        if status in (404, 405):
            return None
        try:
            answer = json.loads(text or "{}")
        except ValueError:
            answer = {"message": text[:200]}
        if not 200 <= status < 300:
            said = answer.get("message") if isinstance(answer, dict) else answer
            raise UserError(
                f"the server cannot reload weights: {status} {said or ''}", where=self.api.url + path
            )
        return answer if isinstance(answer, dict) else {}
