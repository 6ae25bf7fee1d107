"""The server engine: any server with OpenAI's `/v1/completions` and log-probs (vLLM, SGLang, llama.cpp's server).

Prompts are sent as token ids, those of training, so the server's own chat template plays no part. Retries and
addresses are in `endpoint.py`. What the servers differ in:

- Token ids of the answer: vLLM's `token_ids`, or `token_id:N` in place of the token's text; llama.cpp's
  `content[].id`; elsewhere (SGLang) the token's text, where exactly one word of the vocabulary reads like that.
- Draws are the server's. It gets a seed of its own for every sample; whether batching changes them is its matter.
- Log-probs at temperature 1 are vLLM's (`--logprobs-mode raw_logprobs`, its default) and llama.cpp's. SGLang gives
  those of the tempered model.
- `transformers serve` has neither log-probs nor prompts as token ids: `logprobs=False` asks it for text alone. It
  draws only for a model whose generation_config has do_sample, and is greedy otherwise, at any temperature.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from itertools import islice
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rectune.data.encoding import choose_template, stop_ids
from rectune.errors import UserError
from rectune.models.loading import find_folder
from rectune.sampling.draws import sample_key
from rectune.sampling.endpoint import Api
from rectune.sampling.engine import Completion, DrawSettings, Request

CONCURRENCY = 64


class ServerEngine:
    """Draws completions from a server.

    Args:
        model: Hub id, folder or packaged name; its tokenizer makes the prompts.
        url: Address of the API, such as http://localhost:8000/v1.
        served_name: What the server calls the model; by default `model`.
        template: As in training.
        concurrency: Requests in flight.
        logprobs: False takes servers that return none: log-probs are then empty, and token ids are those of the text.
        timeout: Seconds for one request.
        retries: Further tries of a request that failed for a passing reason.

    Raises:
        UserError: No server answers at `url`, or the model has no tokenizer.
    """

    name = "server"

    def __init__(
        self,
        model: str,
        url: str,
        *,
        served_name: str | None = None,
        template: str = "auto",
        concurrency: int | None = None,
        logprobs: bool = True,
        timeout: float = 600.0,
        retries: int = 6,
    ) -> None:
        self.api = Api(url, timeout=timeout, retries=retries)
        self.api.reach()
        self.model_name, self.served_name = model, served_name or model
        self.tokenizer = load_tokenizer(model)
        self.template = choose_template(template, self.tokenizer)
        self.stop_ids = stop_ids(self.tokenizer, self.template)
        self.concurrency, self.logprobs = concurrency or CONCURRENCY, logprobs

    @property
    def fingerprint(self) -> str:
        """The name of the model that is served: a server does not show its weights."""
        return f"served:{self.served_name}"

    def complete(self, requests: Iterable[Request], settings: DrawSettings) -> Iterator[Completion]:
        """Completions in the order in which they arrive; at most `concurrency` requests are under way."""
        waiting, stop = iter(requests), threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:

            def start(count: int) -> set[Future[Completion]]:
                return {pool.submit(self._one, request, settings, stop) for request in islice(waiting, count)}

            running = start(self.concurrency)
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    running |= start(len(done))
                    for future in done:
                        yield future.result()
            finally:
                stop.set()  # the pool waits for its threads: let them give up between tries
                for future in running:
                    future.cancel()

    def _one(self, request: Request, settings: DrawSettings, stop: threading.Event) -> Completion:
        choice = self.api.post("/completions", self._body(request, settings), stop)["choices"][0]
        reason = "length" if choice.get("finish_reason") == "length" else "stop"
        if not self.logprobs:
            ids = self.tokenizer(choice["text"], add_special_tokens=False).input_ids
            return Completion(request, ids, [], choice["text"], reason)
        ids, logps = self._tokens(choice)
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return Completion(request, ids, logps, text, reason)

    def _body(self, request: Request, settings: DrawSettings) -> dict[str, Any]:
        key = sample_key(settings.seed, request.problem_id, request.sample_index)
        body: dict[str, Any] = {
            "model": self.served_name,
            "prompt": list(request.prompt_ids),
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": key % 2**31,
        }
        if not self.logprobs:
            return body | {"prompt": self.tokenizer.decode(list(request.prompt_ids))}
        # The last line is not OpenAI's: ids in the answer (vLLM), the ends of a turn (vLLM, SGLang), and the
        # servers' own defaults of top_k and min_p off.
        body |= {"logprobs": 1, "n": 1}
        extra = {"return_token_ids": True, "stop_token_ids": self.stop_ids, "top_k": -1, "min_p": 0.0}
        return body | extra

    def _tokens(self, choice: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Ids and log-probs of the new tokens, from whichever form the server has."""
        found = choice.get("logprobs") or {}
        if "content" in found:  # llama.cpp
            return [t["id"] for t in found["content"]], [float(t["logprob"]) for t in found["content"]]
        logps, words = found.get("token_logprobs"), found.get("tokens")
        if logps is None or words is None:
            raise UserError(
                "the server returns no log-probs", where=self.api.url, hint="vLLM, SGLang and llama.cpp do"
            )
        ids = choice.get("token_ids") or [self._id(word) for word in words]
        if len(ids) != len(logps):
            raise UserError(
                f"the server returns {len(ids)} token ids and {len(logps)} log-probs", where=self.api.url
            )
        return list(ids), [float(x) for x in logps]

    def _id(self, word: str) -> int:
        if word.startswith("token_id:"):
            return int(word.removeprefix("token_id:"))
        if word not in self._vocabulary:
            raise UserError(
                f"the server returns no token ids, and not exactly one token reads {word!r}",
                where=self.api.url,
                hint="vLLM and llama.cpp return ids",
            )
        return self._vocabulary[word]

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        """Ids of the tokens whose text no other token has."""
        texts = [str(self.tokenizer.decode([i])) for i in range(len(self.tokenizer))]
        first: dict[str, int] = {}
        twice = set()
        for i, text in enumerate(texts):
            if first.setdefault(text, i) != i:
                twice.add(text)
        return {text: i for text, i in first.items() if text not in twice}


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id, folder or packaged name, without its weights."""
    try:
        return AutoTokenizer.from_pretrained(find_folder(model) or model)
    except (OSError, ValueError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        hint = "the prompts need the model's tokenizer; give its folder or hub id, and --served-name if that differs"
        raise UserError(line, where=model, hint=hint) from error
