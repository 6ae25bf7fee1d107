"""The protocol between `sample` and its engines: requests with sampling parameters in, completions out.

Engines are `hf/engine.py`, `openai.py` and `vllm.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rectune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rectune.config import AnswerConfig, NucleusConfig, RFTConfig
    from rectune.data.chat_template import Template


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are sampled, the same for all requests of a call. Names are those of vLLM.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: 1 samples from the whole vocabulary.
        max_new_tokens: Maximum length of a completion.
        seed: First part of every sample's key; the others are its problem and its index.
        stop: Texts at which a completion ends; they are not part of it (`stop_strings.py`).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 4096
    seed: int = 0
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: NucleusConfig, seed: int) -> SamplingParams:
        """The parameters that a verb's config names."""
        return cls(config.temperature, config.top_p, config.max_new_tokens, seed, config.stop)

    def check(self) -> None:
        """Raise `UserError` for a parameter that is out of range; it names the parameter."""
        for name, valid, rule in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
        ):
            if not valid:
                raise UserError(f"must be {rule} (got {getattr(self, name)})", where=name)
        if not all(self.stop):
            raise UserError("a stop text is empty", where="stop")


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to generate. Consecutive requests with the same prompt share its computation.

    Attributes:
        where: `file:line` of the problem, for messages to the user.
    """

    problem_id: str
    sample_index: int
    prompt_ids: tuple[int, ...]
    where: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote for one request.

    Attributes:
        token_ids: New tokens, the end-of-turn token included where one was sampled, those of a stop text excluded.
        logprobs: Log-probability of each under the model at temperature 1 (before top_p).
        text: The tokens as text, without special tokens.
        finish_reason: "stop" (the model ended its turn or wrote a stop text) or "length".
        not_taken: Parameters that the server refused, so that its own values applied.
    """

    request: Request
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
    not_taken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which engine to load for a model (`sample.load_engine`). Names are those of `config.BackendConfig`.

    Attributes:
        backend: "hf" (a model in this process), "openai" (an OpenAI-compatible server) or "vllm".
        batch_size: Maximum number of sequences generated concurrently, or of requests in flight. None: its default.
        dtype: Of the hf and vllm backends: "auto", "bfloat16" or "float32".
        base_url: Address of the openai backend's server.
        served_model_name: Name of the model on the server, if it is another.
        logprobs: False accepts a server without log-probs; they are then empty in the samples.
    """

    backend: str = "hf"
    batch_size: int | None = None
    dtype: str = "auto"
    base_url: str | None = None
    served_model_name: str | None = None
    logprobs: bool = True

    @classmethod
    def of(cls, config: AnswerConfig | RFTConfig) -> EngineSpec:
        """The engine that a verb's config names."""
        return cls(
            config.backend,
            config.sampling_batch_size,
            config.dtype,
            config.base_url,
            config.served_model_name,
            logprobs=getattr(config, "logprobs", True),
        )


class Engine(Protocol):
    """A backend that generates completions.

    Attributes:
        name, model_name, fingerprint: Written into every sample; the fingerprint identifies the weights.
        tokenizer, template: Make the prompts.
    """

    name: str
    model_name: str
    tokenizer: PreTrainedTokenizerBase
    template: Template

    @property
    def fingerprint(self) -> str: ...

    def complete(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Completion]:
        """Completions in the order in which they finish, each exactly once."""
        ...


def sample_key(seed: int, problem_id: str, sample_index: int) -> int:
    """128 bits that identify a sample, the same in every process and version."""
    name = f"{seed}\0{sample_index}\0{problem_id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")


def repetition(token_ids: Sequence[int]) -> float:
    """Share of a completion's 4-grams of tokens that occur earlier in it; 0 below 20 tokens."""
    if len(token_ids) < 20:
        return 0.0
    grams = [tuple(token_ids[i : i + 4]) for i in range(len(token_ids) - 3)]
    return 1 - len(set(grams)) / len(grams)
