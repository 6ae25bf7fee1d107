"""The openai backend: any server with OpenAI's `/v1/completions` and log-probs (vLLM, SGLang, llama.cpp's server).

Prompts are sent as token ids, those of training, so the server's own chat template is not used. How servers differ:

- Token ids of the completion: vLLM's `token_ids`, or `token_id:N` in place of the token's text; llama.cpp's
  `content[].id`; elsewhere (SGLang, llama-cpp-python) the token's text, if exactly one token of the vocabulary reads
  like that.
- llama.cpp leaves out tokens that end within a character, such as the first bytes of an emoji. The completion keeps its
  text, has no log-probs, and its token ids are those of the text.
- llama-cpp-python's server, which calls itself "me", takes prompts as text. It returns how many tokens it has read: if
  that is not the number of training, the run stops.
- Defaults: vLLM and SGLang take top_k, min_p and penalties from the model's generation_config, llama.cpp's servers have
  their own. All are switched off in every request. A server that refuses such a field (OpenAI's, `transformers serve`)
  is sent the request again without it, with a warning: there its own value applies.
- Sampling is the server's. It gets a seed for every sample; whether batching changes samples depends on the server.
- Log-probs at temperature 1 are vLLM's (`--logprobs-mode raw_logprobs`, its default) and llama.cpp's. SGLang returns
  those of the tempered model.
- `transformers serve` has neither log-probs nor prompts as token ids: `logprobs=False` requests text alone, and sends
  text once token ids are refused. It samples only for a model whose generation_config has do_sample, and is greedy
  otherwise, at any temperature.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import logging
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from email.message import Message
from functools import cached_property
from itertools import islice
from typing import Any, TypedDict, cast

from rectune.data.chat_template import Template, choose_template
from rectune.data.tokenization import stop_ids
from rectune.errors import UserError
from rectune.models.load import load_tokenizer
from rectune.sampling.types import (
    Completion,
    Request,
    SamplingParams,
    cut,
    finish_reason,
    sample_key,
    special_stops,
)

log = logging.getLogger("rectune")

CONCURRENCY = 64
FIRST_WAIT, MAX_WAIT, MAX_RETRY_AFTER = 0.5, 60.0, 900.0
"""Seconds; the last where the server says how long to wait."""
RETRIED = {408, 425, 429}
"""Status codes, besides 500 and above, after which a request is sent again."""
MAX_BYTES = 16 << 20
"""Size of a response that is read."""
NEEDED = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs"}
"""Fields of a request that are never left out; the others only switch off a default of the server."""


class ModelEntry(TypedDict, total=False):
    """A model in the response to GET /models; which fields there are depends on the server."""

    id: str
    aliases: list[str] | None
    owned_by: str
    root: str
    """Folder or hub id (vLLM)."""
    parent: str | None
    meta: object
    """Sizes of the model (llama.cpp)."""


class TokenLogprob(TypedDict):
    """A token of the completion, as llama.cpp's server has it."""

    id: int
    logprob: float


class Logprobs(TypedDict, total=False):
    """OpenAI's lists, or llama.cpp's `content`."""

    tokens: list[str]
    token_logprobs: list[float]
    content: list[TokenLogprob]


class Choice(TypedDict, total=False):
    """The completion in the response to POST /completions; `token_ids` is vLLM's."""

    text: str
    finish_reason: str
    logprobs: Logprobs | None
    token_ids: list[int] | None


class CompletionBody(TypedDict, total=False):
    """The body of POST /completions. Fields outside `NEEDED` are left out for a server that refuses them."""

    model: str
    prompt: list[int] | str
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: list[str]
    logprobs: int
    presence_penalty: float
    frequency_penalty: float
    # The rest is not OpenAI's.
    top_k: int
    min_p: float
    repetition_penalty: float
    repeat_penalty: float
    """llama.cpp's name for `repetition_penalty`."""
    stop_token_ids: list[int]
    ignore_eos: bool
    skip_special_tokens: bool
    add_special_tokens: bool
    return_token_ids: bool


class Refused(UserError):
    """The server refused a request for its content."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could give another server's response, and send the key to it."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class OpenAIClient:
    """An HTTP client of one API.

    Args:
        url: Such as http://localhost:8000/v1. The key, if one is needed, is read from OPENAI_API_KEY.
        timeout: Seconds without a byte after which a try has failed.
        retries: Further tries after the first.
    """

    def __init__(self, url: str, *, timeout: float, retries: int) -> None:
        if not url.startswith(("http://", "https://")):
            hint = "such as http://localhost:8000/v1"
            raise UserError(f"'{url}' is not an address", where="base_url", hint=hint)
        if "@" in url.split("/")[2]:
            hint = "put the key in OPENAI_API_KEY"
            raise UserError("the address contains a name or a password", where="base_url", hint=hint)
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries

    def models(self) -> list[ModelEntry]:
        """The server's models (GET /models); empty if it lists none in a form that can be read.

        Raises:
            UserError: Nothing speaks HTTP there.
        """
        status, text = self.call("/models")
        try:
            listed: Any = json.loads(text)["data"] if status < 300 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
        entries = listed if isinstance(listed, list) else []
        return [cast(ModelEntry, entry) for entry in entries if isinstance(entry, dict)]

    def post(self, path: str, body: Mapping[str, object], stop: threading.Event) -> Any:
        """The JSON response to `body`; gives up once `stop` is set.

        Raises:
            Refused: The server refused the request.
            UserError: All tries failed.
        """
        for attempt in range(self.retries + 1):
            wait_at_least = 0.0
            try:
                status, headers, content = self._send(path, body)
                if 200 <= status < 300:
                    return _parse(content)
                problem: object = f"{status} {_message(content)}"
                if status not in RETRIED and status < 500:
                    raise Refused(f"the server refuses the request: {problem}", where=self.url)
                wait_at_least = retry_after(headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                problem = error  # no connection, a time-out, a connection cut off, half a response
            backoff = min(MAX_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
            if attempt == self.retries or stop.wait(max(wait_at_least, backoff)):
                break
        raise self._no_answer(f" after {attempt + 1} tries", problem)

    def call(self, path: str, body: Mapping[str, object] | None = None) -> tuple[int, str]:
        """Status and text of a single response to `body`, or to GET without one, whatever they are.

        Raises:
            UserError: Nothing speaks HTTP there.
        """
        try:
            status, _, content = self._send(path, body)
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer("", error) from None
        return status, content.decode("utf-8", "replace")

    def _send(self, path: str, body: Mapping[str, object] | None = None) -> tuple[int, Message, bytes]:
        """Status, headers and at most a little more than `MAX_BYTES` of the response."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                return response.status, response.headers, response.read(MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read(1 << 16)

    def _no_answer(self, tries: str, problem: object) -> UserError:
        reason = str(getattr(problem, "reason", problem)) or type(problem).__name__
        return UserError(f"no answer{tries}: {reason}", where=self.url, hint="is the server running there?")


def retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header, which is a number of seconds or a date; 0 without one."""
    seconds = 0.0
    try:
        seconds = float(value or 0)
    except ValueError:
        with suppress(ValueError, OverflowError):
            seconds = email.utils.parsedate_to_datetime(str(value)).timestamp() - time.time()
    return min(MAX_RETRY_AFTER, max(0.0, seconds))


def _parse(content: bytes) -> Any:
    if len(content) > MAX_BYTES:
        raise ValueError(f"the response is larger than {MAX_BYTES >> 20} MiB")
    return json.loads(content)


def _message(content: bytes) -> str:
    """The server's error message, one line of at most 300 characters."""
    text = content.decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        found = found.get("error") or found.get("detail") or text if isinstance(found, dict) else text
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    text = " ".join(str(text).split())
    if key := os.environ.get("OPENAI_API_KEY"):
        text = text.replace(key, "***")  # some servers repeat the key that they refuse
    return text[:300]


class OpenAIEngine:
    """Samples from a server.

    Args:
        model: Hub id, folder or packaged name; its tokenizer makes the prompts.
        url: Address of the API, such as http://localhost:8000/v1.
        served_model_name: Name of the model on the server; by default `model`.
        template: As in training.
        concurrency: Requests in flight.
        logprobs: False accepts servers that return none: log-probs are then empty, and token ids are those of the text.
        timeout: Seconds for one request.
        retries: Further tries of a request that failed for a temporary reason.

    Raises:
        UserError: No server answers at `url`, or the model has no tokenizer.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        url: str,
        *,
        served_model_name: str | None = None,
        template: str | Template = "auto",
        concurrency: int | None = None,
        logprobs: bool = True,
        timeout: float = 600.0,
        retries: int = 6,
    ) -> None:
        self.api = OpenAIClient(url, timeout=timeout, retries=retries)
        self.model_name, self.served_model_name = model, served_model_name or model
        self.entry = model_entry(self.served_model_name, self.api.models())
        self.llama_cpp_python = self.entry.get("owned_by") == "me"
        self.sends_text = self.llama_cpp_python  # else token ids, in which no text can become a control token
        try:
            self.tokenizer = load_tokenizer(model)
        except UserError as error:
            hint = "give the model's folder or hub id, for its tokenizer, and --served-model-name if that differs"
            raise UserError(error.what, where=error.where, hint=hint) from error
        self.template = choose_template(template, self.tokenizer)
        self.stop_ids = stop_ids(self.tokenizer, self.template)
        self.concurrency, self.logprobs = concurrency or CONCURRENCY, logprobs
        self._refused = set[str]()  # fields that the server does not know
        self._refusing = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """The served name, and a digest of the server's entry for it in /v1/models: a server shows no weights.

        vLLM lists the folder (`root`), llama.cpp sizes (`meta`), others hardly anything. The time of creation is left
        out, since it is the time of the request with both.
        """
        shown = {"id", "owned_by", "root", "parent", "meta"}
        kept = {key: value for key, value in self.entry.items() if key in shown and value}
        if isinstance(meta := kept.get("meta"), dict):
            kept["meta"] = {key: value for key, value in meta.items() if key != "n_ctx"}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
        return f"served:{self.served_model_name}" + (f":{digest}" if kept else "")

    def complete(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Completion]:
        """Completions in the order in which they arrive; at most `concurrency` requests are in flight."""
        waiting, stop = iter(requests), threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:

            def start(count: int) -> set[Future[Completion]]:
                return {
                    pool.submit(self._generate, request, params, stop) for request in islice(waiting, count)
                }

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

    def _generate(self, request: Request, params: SamplingParams, stop: threading.Event) -> Completion:
        response, not_taken = self._post(self._body(request, params), stop)
        try:
            completion = cut(self._completion(request, response), self.tokenizer, params.stop)
            return replace(completion, not_taken=not_taken)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"the server's response is not a completion ({error!r:.200})"
            raise UserError(what, where=self.api.url) from None

    def _post(self, body: CompletionBody, stop: threading.Event) -> tuple[Any, tuple[str, ...]]:
        """The response to `body`, sent as text if the server takes no ids; and the fields left out as unknown."""
        while True:
            if self.sends_text and isinstance(body["prompt"], list):
                # its beginning-of-text token is in the text already
                body |= {"prompt": str(self.tokenizer.decode(body["prompt"])), "add_special_tokens": False}
            sent = {name: value for name, value in body.items() if name not in self._refused}
            try:
                return self.api.post("/completions", sent, stop), tuple(sorted(body.keys() - sent.keys()))
            except Refused as refusal:
                named = {name for name in sent.keys() - NEEDED if re.search(rf"\b{name}\b", refusal.what)}
                if not named and (self.logprobs or isinstance(sent["prompt"], str)):
                    raise
                if not named:
                    self.sends_text = True
                    continue
                with self._refusing:
                    if new := sorted(named - self._refused):
                        what = "%s does not take %s: its own values apply, possibly of the model's generation_config"
                        log.warning(what, self.api.url, ", ".join(new))
                    self._refused |= named

    def _completion(self, request: Request, response: Any) -> Completion:
        choice, usage = response["choices"][0], response.get("usage") or {}
        read = usage.get("prompt_tokens", len(request.prompt_ids))
        if (self.sends_text or not self.logprobs) and read != len(request.prompt_ids):
            raise UserError(
                f"the server reads the prompt as {read} tokens, training as {len(request.prompt_ids)}",
                where=self.api.url,
                hint="its tokenizer or its start-of-text differs; use a server that takes token ids",
            )
        reason = finish_reason(choice.get("finish_reason"), request, self.api.url)
        ids, logps = self._tokens(choice) if self.logprobs else ([], [])
        fewer = "content" in (choice.get("logprobs") or {}) and usage.get("completion_tokens", 0) > len(ids)
        if not self.logprobs or fewer:  # fewer than were sampled: llama.cpp, see above
            ids = self.tokenizer(choice["text"], add_special_tokens=False).input_ids
            return Completion(request, ids, [], choice["text"], reason)
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return Completion(request, ids, logps, text, reason)

    def _body(self, request: Request, params: SamplingParams) -> CompletionBody:
        key = sample_key(params.seed, request.problem_id, request.sample_index)
        body: CompletionBody = {
            "model": self.served_model_name,
            "prompt": list(request.prompt_ids),
            "n": 1,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": key % 2**31,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "top_k": 0 if self.llama_cpp_python else -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "repeat_penalty": 1.0,
            "stop_token_ids": sorted({*self.stop_ids, *special_stops(self.tokenizer, params.stop)}),
            "ignore_eos": False,
            "skip_special_tokens": True,
        }
        if params.stop:
            body["stop"] = list(params.stop)
        if self.logprobs:
            body |= {"logprobs": 1, "return_token_ids": True}
        return body

    def _tokens(self, choice: Choice) -> tuple[list[int], list[float]]:
        """Ids and log-probs of the new tokens, from whichever form the server has."""
        given = choice.get("logprobs") or {}
        if "content" in given:  # llama.cpp
            return [t["id"] for t in given["content"]], [float(t["logprob"]) for t in given["content"]]
        logps, texts = given.get("token_logprobs"), given.get("tokens")
        if logps is None or texts is None:
            hint = "vLLM, SGLang and llama.cpp do"
            raise UserError("the server returns no log-probs", where=self.api.url, hint=hint)
        ids = choice.get("token_ids") or [self._token_id(text) for text in texts]
        if len(ids) != len(logps):
            what = f"the server returns {len(ids)} token ids and {len(logps)} log-probs"
            raise UserError(what, where=self.api.url)
        return list(ids), [float(x) for x in logps]

    def _token_id(self, text: str) -> int:
        if text.startswith("token_id:"):
            return int(text.removeprefix("token_id:"))
        if text not in self._unique_tokens:
            raise UserError(
                f"the server returns no token ids, and not exactly one token reads {text!r}",
                where=self.api.url,
                hint="vLLM and llama.cpp return ids",
            )
        return self._unique_tokens[text]

    @cached_property
    def _unique_tokens(self) -> dict[str, int]:
        """Ids of the tokens whose text no other token has, by text."""
        texts = [str(self.tokenizer.decode([i])) for i in range(len(self.tokenizer))]
        counts = Counter(texts)
        return {text: i for i, text in enumerate(texts) if counts[text] == 1}


def model_entry(name: str, models: Sequence[ModelEntry]) -> ModelEntry:
    """A server's entry for the model that it calls `name`; a server with one model answers to any name."""
    named = [entry for entry in models if name in (entry.get("id"), *(entry.get("aliases") or ()))]
    return named[0] if named else (models[0] if len(models) == 1 else {})
