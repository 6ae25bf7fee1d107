"""The server engine: any server with OpenAI's `/v1/completions` and log-probs (vLLM, SGLang, llama.cpp's server).

Prompts are sent as token ids, those of training, so the server's own chat template plays no part. Retries and
addresses are in `endpoint.py`. What the servers differ in:

- Token ids of the answer: vLLM's `token_ids`, or `token_id:N` in place of the token's text; llama.cpp's
  `content[].id`; elsewhere (SGLang, llama-cpp-python) the token's text, where exactly one word of the vocabulary reads
  like that.
- llama.cpp leaves out tokens that end within a character, such as the first bytes of an emoji. The answer that has one
  keeps its text, has no log-probs, and its token ids are those of the text.
- The server of llama-cpp-python, which calls itself "me", takes prompts as text. It says how many tokens it has read:
  where that is not the number of training, the run stops.
- Defaults: vLLM and SGLang take top_k, min_p and penalties from the model's generation_config, llama.cpp's servers have
  their own. All are switched off in every request. A server that knows no such field and says so (OpenAI's,
  `transformers serve`) is sent the request again without it, with a warning: there its own value applies.
- Draws are the server's. It gets a seed of its own for every sample; whether batching changes them is its matter.
- Log-probs at temperature 1 are vLLM's (`--logprobs-mode raw_logprobs`, its default) and llama.cpp's. SGLang gives
  those of the tempered model.
- `transformers serve` has neither log-probs nor prompts as token ids: `logprobs=False` asks it for text alone, and
  sends text once token ids are refused. It draws only for a model whose generation_config has do_sample, and is greedy
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import IO, Any

from rectune.data.chat_template import Template, choose_template
from rectune.data.tokenization import stop_ids
from rectune.errors import UserError
from rectune.models.load import load_tokenizer
from rectune.sampling.stop_strings import cut, special_stops
from rectune.sampling.types import Completion, Request, SamplingParams, sample_key

FIRST_WAIT, LONGEST_WAIT, LONGEST_TOLD = 0.5, 60.0, 900.0  # seconds; the last where the server says how long
PASSING = {408, 425, 429}
LARGEST = 16 << 20
"""Bytes of an answer that are read."""


class Refused(UserError):
    """The server refused a request for what is in it."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An answer from elsewhere is none of ours, and the key is not for elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class Api:
    """One API.

    Args:
        url: Such as http://localhost:8000/v1. The key, if one is needed, is in OPENAI_API_KEY.
        timeout: Seconds without a byte after which a try has failed.
        retries: Further tries after the first.
    """

    def __init__(self, url: str, *, timeout: float, retries: int) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"'{url}' is no address", where="base_url", hint="such as http://localhost:8000/v1"
            )
        if "@" in url.split("/")[2]:
            raise UserError(
                "has a name or a password in it", where="base_url", hint="put the key in OPENAI_API_KEY"
            )
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries

    def models(self) -> list[dict[str, Any]]:
        """What the server tells of its models (GET /models); nothing where it tells nothing that can be read.

        Raises:
            UserError: Nothing speaks HTTP there.
        """
        try:
            with _OPENER.open(self._request("/models", None), timeout=self.timeout) as answer:
                found = _load(answer)["data"]
        except (urllib.error.HTTPError, ValueError, KeyError, TypeError, RecursionError):
            return []
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer("", getattr(error, "reason", error)) from None
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> Any:
        """The answer to `body`; gives up once `stop` is set.

        Raises:
            Refused: The server refused the request.
            UserError: All tries failed.
        """
        request = self._request(path, json.dumps(body).encode())
        for attempt in range(self.retries + 1):
            least = 0.0
            try:
                with _OPENER.open(request, timeout=self.timeout) as answer:
                    return _load(answer)
            except urllib.error.HTTPError as error:
                problem: object = f"{error.code} {_message(error)}"
                if error.code not in PASSING and error.code < 500:
                    raise Refused(f"the server refuses the request: {problem}", where=self.url) from None
                least = retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                # No connection, a time-out, a connection cut off, half an answer. URLError is an OSError.
                problem = getattr(error, "reason", error)
            wait = max(least, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0))
            if attempt == self.retries or stop.wait(wait):
                break
        raise self._no_answer(f" after {attempt + 1} tries", problem)

    def call(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        """Status and text of the one answer to `body`, whatever they are.

        Raises:
            UserError: Nothing speaks HTTP there.
        """
        request = self._request(path, json.dumps(body).encode())
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                return answer.status, answer.read(LARGEST).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read(1 << 16).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer("", getattr(error, "reason", error)) from None

    def _request(self, path: str, body: bytes | None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(self.url + path, data=body, headers=headers)

    def _no_answer(self, tries: str, problem: object) -> UserError:
        reason = str(problem) or type(problem).__name__
        return UserError(f"no answer{tries}: {reason}", where=self.url, hint="is the server running there?")


def retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header, which is a number of seconds or a date; 0 without one."""
    seconds = 0.0
    with suppress(ValueError, OverflowError):
        seconds = float(value or 0)
        return min(LONGEST_TOLD, max(0.0, seconds))
    with suppress(ValueError, OverflowError):
        seconds = email.utils.parsedate_to_datetime(str(value)).timestamp() - time.time()
    return min(LONGEST_TOLD, max(0.0, seconds))


def _load(answer: IO[bytes]) -> Any:
    """The JSON of an answer, of which no more is read than is kept in memory."""
    text = answer.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"the answer is larger than {LARGEST >> 20} MiB")
    return json.loads(text)


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says in words, one line of at most 300 characters."""
    text = error.read(1 << 16).decode("utf-8", "replace")
    try:
        found = json.loads(text)
        found = found.get("error") or found.get("detail") or text if isinstance(found, dict) else text
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    except (ValueError, RecursionError):
        pass
    text = " ".join(str(text).split())
    if key := os.environ.get("OPENAI_API_KEY"):
        text = text.replace(key, "***")  # some servers repeat the key that they refuse
    return text[:300]


log = logging.getLogger("rectune")

CONCURRENCY = 64
NEEDED = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs"}
"""Fields of a request that are never left out; the others only say that a default of the server's is off."""


class OpenAIEngine:
    """Draws completions from a server.

    Args:
        model: Hub id, folder or packaged name; its tokenizer makes the prompts.
        url: Address of the API, such as http://localhost:8000/v1.
        served_model_name: What the server calls the model; by default `model`.
        template: As in training.
        concurrency: Requests in flight.
        logprobs: False takes servers that return none: log-probs are then empty, and token ids are those of the text.
        timeout: Seconds for one request.
        retries: Further tries of a request that failed for a passing reason.

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
        self.api = Api(url, timeout=timeout, retries=retries)
        self.model_name, self.served_model_name = model, served_model_name or model
        self.told = entry_of(self.served_model_name, self.api.models())
        self.llama_cpp_python = self.told.get("owned_by") == "me"
        self.reads_text = (
            self.llama_cpp_python
        )  # else token ids, in which no text is taken for a control token
        try:
            self.tokenizer = load_tokenizer(model)
        except UserError as error:
            hint = "give the model's folder or hub id, for its tokenizer, and --served-model-name if that differs"
            raise UserError(error.what, where=error.where, hint=hint) from error
        self.template = choose_template(template, self.tokenizer)
        self.stop_ids = stop_ids(self.tokenizer, self.template)
        self.concurrency, self.logprobs = concurrency or CONCURRENCY, logprobs
        self._unknown = set[str]()  # fields that the server has refused
        self._learning = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """The name of the model that is served, and a digest of what /v1/models says of it: a server shows no weights.

        vLLM tells the folder (`root`), llama.cpp sizes (`meta`), others hardly anything. The time of creation is left
        out, since it is the time of the question with both.
        """
        kept = {
            key: self.told[key] for key in ("id", "owned_by", "root", "parent", "meta") if self.told.get(key)
        }
        if isinstance(kept.get("meta"), dict):
            kept["meta"] = {key: value for key, value in kept["meta"].items() if key != "n_ctx"}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
        return f"served:{self.served_model_name}" + (f":{digest}" if kept else "")

    def complete(self, requests: Iterable[Request], settings: SamplingParams) -> Iterator[Completion]:
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

    def _one(self, request: Request, settings: SamplingParams, stop: threading.Event) -> Completion:
        answer, not_taken = self._ask(self._body(request, settings), stop)
        try:
            completion = cut(self._completion(request, answer), self.tokenizer, settings.stop)
            return replace(completion, not_taken=not_taken)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"the server's answer is no completion ({error!r:.200})", where=self.api.url
            ) from None

    def _ask(self, body: dict[str, Any], stop: threading.Event) -> tuple[Any, tuple[str, ...]]:
        """The answer to `body`, sent as text where the server takes no ids; the fields left out as unknown."""
        while True:
            if self.reads_text and isinstance(body["prompt"], list):
                # its beginning-of-text token is in the text already
                body |= {"prompt": self.tokenizer.decode(body["prompt"]), "add_special_tokens": False}
            sent = {name: value for name, value in body.items() if name not in self._unknown}
            try:
                return self.api.post("/completions", sent, stop), tuple(sorted(body.keys() - sent.keys()))
            except Refused as refusal:
                named = {
                    name for name in sent if name not in NEEDED and re.search(rf"\b{name}\b", refusal.what)
                }
                if not named and (self.logprobs or isinstance(sent["prompt"], str)):
                    raise
                if not named:
                    self.reads_text = True
                    continue
                with self._learning:
                    if new := sorted(named - self._unknown):
                        log.warning(
                            "%s does not take %s: its own values apply, which may be those of the model's "
                            "generation_config",
                            self.api.url,
                            ", ".join(new),
                        )
                    self._unknown |= named

    def _completion(self, request: Request, answer: Any) -> Completion:
        choice = answer["choices"][0]
        read = (answer.get("usage") or {}).get("prompt_tokens", len(request.prompt_ids))
        if (self.reads_text or not self.logprobs) and read != len(request.prompt_ids):
            raise UserError(
                f"the server reads the prompt as {read} tokens, training as {len(request.prompt_ids)}",
                where=self.api.url,
                hint="its tokenizer or its start-of-text differs; a server that takes token ids has no such trouble",
            )
        reason = "length" if choice.get("finish_reason") == "length" else "stop"
        if not self.logprobs:
            ids = self.tokenizer(choice["text"], add_special_tokens=False).input_ids
            return Completion(request, ids, [], choice["text"], reason)
        ids, logps = self._tokens(choice)
        drawn = (answer.get("usage") or {}).get("completion_tokens", 0)
        if "content" in choice["logprobs"] and drawn > len(ids):  # see the module on llama.cpp
            ids = self.tokenizer(choice["text"], add_special_tokens=False).input_ids
            return Completion(request, ids, [], choice["text"], reason)
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return Completion(request, ids, logps, text, reason)

    def _body(self, request: Request, settings: SamplingParams) -> dict[str, Any]:
        key = sample_key(settings.seed, request.problem_id, request.sample_index)
        body: dict[str, Any] = {
            "model": self.served_model_name,
            "prompt": list(request.prompt_ids),
            "n": 1,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": key % 2**31,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # The rest is not OpenAI's.
            "top_k": 0 if self.llama_cpp_python else -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "repeat_penalty": 1.0,  # llama.cpp's name for it
            "stop_token_ids": sorted({*self.stop_ids, *special_stops(self.tokenizer, settings.stop)}),
            "ignore_eos": False,
            "skip_special_tokens": True,
        }
        if settings.stop:
            body["stop"] = list(settings.stop)
        if self.logprobs:
            body |= {"logprobs": 1, "return_token_ids": True}
        return body

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


def entry_of(name: str, models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a server tells of the model it calls `name`; a server with one model answers to any name."""
    named = [entry for entry in models if name in (entry.get("id"), *(entry.get("aliases") or ()))]
    return named[0] if named else (models[0] if len(models) == 1 else {})
