"""A server that draws with the weights in training: they are saved, and the server is told to read them.

SGLang answers `POST /update_weights_from_disk`; vLLM, where it runs with VLLM_SERVER_DEV_MODE=1, `POST /collective_rpc`
with its workers' `reload_weights`, whose cached prefixes are then thrown away. Both lie beside the OpenAI address (not
below /v1), and the server has to see the same file system. Any other server is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rectune.errors import UserError
from rectune.sampling.openai import OpenAIClient, OpenAIEngine
from rectune.sampling.types import Completion, Request, SamplingParams
from rectune.training.run_dir import save_model


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
        answer = self._ask("/update_weights_from_disk", {"model_path": str(self.folder)})
        if answer is not None:
            if answer.get("success") is not True:
                said = answer.get("message") or answer
                raise UserError(f"the server cannot read the weights: {said}", where=self.folder)
            return
        method = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        if self._ask("/collective_rpc", method) is None:
            raise UserError(
                "this server cannot reload weights",
                where=self.api.url,
                hint="SGLang can, vLLM with VLLM_SERVER_DEV_MODE=1 can; or use backend = 'hf'",
            )
        self._ask("/reset_prefix_cache", {})

    def _ask(self, path: str, body: Mapping[str, object]) -> Mapping[str, object] | None:
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
