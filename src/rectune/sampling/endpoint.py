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
from typing import Any

from rectune.errors import UserError

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds
PASSING = {408, 425, 429}


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
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries

    def models(self) -> list[dict[str, Any]]:
        """What the server tells of its models (GET /models); nothing where it tells nothing that can be read.

        Raises:
            UserError: Nothing speaks HTTP there.
        """
        try:
            with urllib.request.urlopen(self._request("/models", None), timeout=self.timeout) as answer:
                found = json.load(answer)["data"]
        except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
            return []
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer("", getattr(error, "reason", error)) from None
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> Any:
        """The answer to `body`; gives up once `stop` is set.

        Raises:
            UserError: The server refused the request, or all tries failed.
        """
        request = self._request(path, json.dumps(body).encode())
        for attempt in range(self.retries + 1):
            least = 0.0
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                problem: object = f"{error.code} {_message(error)}"
                if error.code not in PASSING and error.code < 500:
                    raise UserError(f"the server refuses the request: {problem}", where=self.url) from None
                least = retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError) as error:
                # No connection, a time-out, a connection cut off, half an answer. URLError is an OSError.
                problem = getattr(error, "reason", error)
            wait = max(least, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0))
            if attempt == self.retries or stop.wait(wait):
                break
        raise self._no_answer(f" after {attempt + 1} tries", problem)

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
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says in words, one line of at most 300 characters."""
    text = error.read().decode("utf-8", "replace")
    try:
        found = json.loads(text)
        found = found.get("error") or found.get("detail") or text if isinstance(found, dict) else text
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    except ValueError:
        pass
    return " ".join(text.split())[:300]
