"""The protocol between `sample` and its engines: requests with sampling parameters in, completions out; stop texts.

Engines are `hf/engine.py`, `openai.py` and `vllm.py`. All of them end a completion where the first stop text begins, as
vLLM does, and cut text and tokens there (`cut`). A stop text may begin or end inside a token: the tokens that are kept
are the fewest whose text holds the kept text, so that only the last of them can reach into the stop text. A stop text
that is a special token stops by its id, since special tokens are not in a completion's text.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from transformers import PreTrainedTokenizerBase

from rectune.data.chat_template import Template, Writer
from rectune.data.schema import Turn
from rectune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rectune.config import AnswerConfig, NucleusConfig, RFTConfig
    from rectune.data.chat_template import Template


MARKS = ("<answer of the probe>", "<question of the probe>")
"""Stand for an assistant turn and the next user turn where the text between them is looked at."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are sampled, the same for all requests of a call. Names are those of vLLM.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: 1 samples from the whole vocabulary.
        max_new_tokens: Maximum length of a completion.
        seed: First part of every sample's key; the others are its problem and its index.
        stop: Texts at which a completion ends; they are not part of it.
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
        check_stops(self.stop)


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


def finish_reason(reported: str | None, request: Request, where: str) -> str:
    """The `finish_reason` of a completion, given what vLLM, SGLang or another server reports.

    Args:
        where: The engine, for the error.

    Raises:
        UserError: The engine gave the request up ("abort", "error"), so that what it has is no answer.
    """
    if reported in ("abort", "error"):
        raise UserError(
            f"sample {request.sample_index} of {request.problem_id} ended with '{reported}'",
            where=where,
            hint="see the engine's log; run the command again: finished samples are kept",
        )
    return (
        "length" if reported in ("length", "repetition") else "stop"
    )  # vLLM ends answers that repeat themselves


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


def check_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The stop texts, each once. Raises `UserError` for one without a character."""
    stop = (stop,) if isinstance(stop, str) else stop
    if not all(isinstance(text, str) and text for text in stop):
        raise UserError("a stop text is empty", where="stop")
    return tuple(dict.fromkeys(stop))


def template_stops(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, ...]:
    """What the template writes in front of the next user turn, where that is plain text, such as "\\nUser:".

    A model that was not trained to end its turn continues with it and answers questions of its own.
    """
    if template.text is None:
        return ()
    turns = (Turn("user", "probe"), Turn("assistant", MARKS[0]), Turn("user", MARKS[1]))
    try:
        text = Writer(template, tokenizer).text(turns, "rows.template")
    except UserError:  # the template takes one question only
        return ()
    mark = text.partition(MARKS[0])[2].partition(MARKS[1])[0].partition(template.closing)[2]
    special = (token.content for token in tokenizer.added_tokens_decoder.values())
    if not mark.strip() or any(token in mark for token in special):
        return ()
    line_end = "\n" if "\n" in mark[: len(mark) - len(mark.lstrip())] else ""
    return (line_end + mark.strip(),)


def special_stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> set[int]:
    """Ids of the stop texts that are special tokens."""
    return {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content in stop
    }


def stopped_by(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], stop: Sequence[str]) -> bool:
    """Whether the answer so far has a stop text in it; looks at its last tokens, so it has to be called for each."""
    if not stop:
        return False
    longest = max(len(text.encode()) for text in stop)  # a token is at least a byte, special ones aside
    tail = str(tokenizer.decode(token_ids[-longest - 4 :], skip_special_tokens=True))
    return _first(tail, stop) is not None and (
        len(token_ids) <= longest + 4
        or _first(str(tokenizer.decode(token_ids, skip_special_tokens=True)), stop) is not None
    )


def cut(completion: Completion, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Completion:
    """The completion up to its first stop text, with the finish reason "stop"; itself where there is none in it."""
    end = _first(completion.text, stop)
    if end is None:
        return completion
    ids, text = completion.token_ids, completion.text[:end]

    def reach(count: int) -> int:
        return len(str(tokenizer.decode(ids[:count], skip_special_tokens=True)).rstrip("\ufffd"))

    kept = bisect_left(range(len(ids)), len(text.rstrip("\ufffd")), key=reach)
    return replace(
        completion, token_ids=ids[:kept], logprobs=completion.logprobs[:kept], text=text, finish_reason="stop"
    )


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text in `text` begins."""
    return min((start for stop_text in stop if (start := text.find(stop_text)) >= 0), default=None)
