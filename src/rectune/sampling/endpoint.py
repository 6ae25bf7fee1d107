"""JSON over HTTP to one address, tried again where waiting can help.

Passing reasons: no connection, a time-out, and the codes 408, 425, 429 and 5xx. The wait doubles with every try, with
jitter so that many clients do not come back at once, and is never less than the server's Retry-After.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from rectune.errors import UserError

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
                f"'{url}' is no address", where="server_url", hint="such as http://localhost:8000/v1"
            )
        if "@" in url.split("/")[2]:
            raise UserError(
                "has a name or a password in it", where="server_url", hint="put the key in OPENAI_API_KEY"
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
