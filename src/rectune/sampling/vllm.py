"""The vllm backend: vLLM in this process, behind the extra `vllm`. Not tested with vLLM itself, which needs a GPU.

vLLM batches and stores keys and values; it is given token ids with a seed for each sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from rectune.data.chat_template import choose_template
from rectune.data.tokenization import stop_ids
from rectune.errors import UserError
from rectune.models.folder import adapter_folder, find_folder
from rectune.models.load import fingerprint_of_files
from rectune.sampling.types import (
    Completion,
    Request,
    SamplingParams,
    cut,
    finish_reason,
    sample_key,
    special_stops,
)

WAVE = 4096  # requests handed over at once, so that finished ones reach the file before all are done


class VLLMEngine:
    """Samples with vLLM.

    Args:
        model: Hub id or folder.
        template: As in training.
        dtype: "auto" (as stored), "bfloat16" or "float32".

    Raises:
        UserError: vLLM is not installed, or the model is an adapter.
    """

    name = "vllm"

    def __init__(self, model: str, *, template: str = "auto", dtype: str = "auto") -> None:
        if adapter_folder(model) is not None:
            hint = "merge it, or use --backend hf"
            raise UserError(
                "this is an adapter, and the vllm backend takes whole models", where=model, hint=hint
            )
        if find_spec("vllm") is None:
            hint = "serve it in an environment of its own and use --backend openai, or pip install 'rectune[vllm]'"
            raise UserError("vLLM is not installed", where="backend", hint=hint)
        from vllm import LLM

        self.model_name = model
        self.llm = LLM(
            model=str(find_folder(model) or model),
            dtype=dtype,
            generation_config="vllm",
            logprobs_mode="raw_logprobs",
        )
        self.tokenizer = self.llm.get_tokenizer()
        self.template = choose_template(template, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """Of the files that vLLM read; of a model that is in no folder its name."""
        return f"vllm:{fingerprint_of_files(self.model_name) or self.model_name}"

    def complete(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Completion]:
        """Completions in waves of `WAVE` requests."""
        waiting = list(requests)
        for start in range(0, len(waiting), WAVE):
            yield from self._wave(waiting[start : start + WAVE], params)

    def _wave(self, requests: list[Request], params: SamplingParams) -> Iterator[Completion]:
        import vllm

        special = special_stops(self.tokenizer, params.stop)
        ends = sorted({*stop_ids(self.tokenizer, self.template), *special})
        sampling_params = [
            vllm.SamplingParams(  # all, so that none is taken from a generation_config
                n=1,
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=-1,
                min_p=0.0,
                repetition_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                max_tokens=params.max_new_tokens,
                seed=sample_key(params.seed, r.problem_id, r.sample_index) % 2**31,
                stop=list(params.stop),
                stop_token_ids=ends,
                ignore_eos=False,
                skip_special_tokens=True,
                logprobs=0,
            )
            for r in requests
        ]
        prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests]
        outputs = self.llm.generate(prompts, sampling_params)
        for request, output in zip(requests, outputs, strict=True):
            new = output.outputs[0]
            reason = finish_reason(new.finish_reason, request, "vllm")
            ids = list(new.token_ids)
            logps = [step[token].logprob for step, token in zip(new.logprobs, ids, strict=True)]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            yield cut(Completion(request, ids, logps, text, reason), self.tokenizer, params.stop)
