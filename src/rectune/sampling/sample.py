"""Sampling: problems in, a resumable file of samples out, whichever engine draws them.

An engine turns requests (prompt ids plus the name of a sample) into completions with log-probs, in any order.
`sample` names the requests, leaves out those that the file already has, and appends a line per completion.
The engines are `sampling/hf/engine.py`, `openai.py` and `vllm.py`; reading and checking the file is in `writer.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rectune.data.chat_template import check_template
from rectune.data.findings import say_findings
from rectune.data.schema import Problem, Sample
from rectune.data.tokenization import prompt_ids
from rectune.data.trained_prompt import run_prompt
from rectune.errors import UserError, unknown_name
from rectune.runtime.distributed import share
from rectune.runtime.io import check_output, translate_disk_errors
from rectune.runtime.progress import reporter
from rectune.runtime.signals import on_interrupt
from rectune.sampling.stop_strings import check_stops, template_stops
from rectune.sampling.types import Completion, Engine, Request, SamplingParams
from rectune.sampling.writer import shared_file

log = logging.getLogger("rectune")

ENGINES = ("hf", "openai", "vllm")


def sample(
    model: str,
    problems: Sequence[Problem],
    *,
    out: Path,
    n: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    seed: int = 0,
    stop: Sequence[str] = (),
    engine: str | Engine = "hf",
    batch_size: int | None = None,
    template: str | None = None,
    precision: str = "auto",
    server_url: str | None = None,
    served_name: str | None = None,
    server_logprobs: bool = True,
    progress: Callable[[int, int, int], None] | None = None,
) -> Path:
    """Draw `n` answers to every problem and append them to `out`, one JSON object a line.

    A file that already has some of the samples is gone on with: finished ones are skipped, a torn last line
    is removed first, and a larger `n` adds to them. Several processes (torchrun, accelerate) share the problems.

    Args:
        model: Hub id, folder or packaged name.
        problems: With unique ids.
        stop: Texts at which an answer ends, besides the template's own mark of the next turn (`stop_strings.py`).
        engine: "hf", "openai", "vllm", or an engine of your own.
        batch_size: Sequences in work at once (local) or requests in flight (server); None: its own choice.
        template: As in training: "auto", "none", the name of one of the tokenizer's, or a file. None: that of the
            training run that the model is of, else "auto".
        precision: Of the local engine: "auto", "bf16" or "fp32".
        server_url: Address of an OpenAI-compatible server, for the server engine.
        served_name: What the server calls the model, where that is not `model`.
        server_logprobs: False takes a server without log-probs; they are then empty in the file.
        progress: Called with (samples done, samples in all, tokens drawn by this call) after every sample; by
            default a bar on stderr where that is a terminal.

    Returns:
        `out`.

    Raises:
        UserError: No problem, duplicate ids, n = 0, a setting out of range, an unknown engine, an unreachable
            server, or a file whose samples were drawn otherwise.
    """
    settings = SamplingParams(temperature, top_p, max_new_tokens, seed, check_stops(stop))
    settings.check()
    _check_problems(problems, n)
    if engine == "vllm" and share()[1] > 1:
        raise UserError("vllm starts its own processes", where="engine", hint="start rectune once")
    drawer = engine
    check_output(Path(out))
    if isinstance(drawer, str):
        server = {"url": server_url, "served_name": served_name, "logprobs": server_logprobs}
        if template is None:
            template = run.template if (run := run_prompt(model)) else "auto"
        drawer = _engine(model, drawer, batch_size, template, precision, server)
    settings = replace(settings, stop=all_stops(drawer, settings.stop))
    say_findings(problems, drawer.tokenizer, drawer.template)
    prompts = {p.problem_id: _prompt(drawer, p) for p in problems}
    by_id = {p.problem_id: p for p in problems}

    def line(completion: Completion) -> Sample:
        request = completion.request
        problem = by_id[request.problem_id]
        return Sample(
            problem_id=request.problem_id,
            sample_index=request.sample_index,
            prompt=prompts[request.problem_id][1],
            text=completion.text,
            answer=problem.answer,
            grader=problem.grader,
            token_ids=completion.token_ids,
            logprobs=[round(x, 6) for x in completion.logprobs],
            finish_reason=completion.finish_reason,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            engine=drawer.name,
            model=drawer.model_name,
            fingerprint=drawer.fingerprint,
            extra=problem.extra,
            turns=problem.prompt,
            max_new_tokens=max_new_tokens,
            stop=settings.stop,
            not_taken=completion.not_taken,
        )

    expected = {
        p.problem_id: line(Completion(Request(p.problem_id, 0, ()), [], [], "", "")) for p in problems
    }
    with translate_disk_errors(out), shared_file(Path(out), expected) as file:
        index, of = share()
        mine = problems[index::of]
        todo = [
            Request(p.problem_id, i, prompts[p.problem_id][0], p.where)
            for p in mine
            for i in range(n)
            if (p.problem_id, i) not in file.finished
        ]
        total, done, tokens = len(mine) * n, len(mine) * n - len(todo), 0
        words = "samples are there; run it again, it goes on"
        with (
            on_interrupt(lambda: f"{out}: {done} of {total} {words}"),
            reporter(progress, done, total) as report,
        ):
            for completion in drawer.complete(todo, settings):
                file.append(line(completion))
                done, tokens = done + 1, tokens + len(completion.token_ids)
                report(done, total, tokens)
    return out


def _check_problems(problems: Sequence[Problem], n: int) -> None:
    if n < 1:
        raise UserError(f"{n} is out of range", where="n", hint="must be at least 1")
    if not problems:
        raise UserError("there is no problem to sample answers for", where="problems")
    counts = Counter(p.problem_id for p in problems)
    if repeated := next((name for name, count in counts.items() if count > 1), None):
        where = [p.where for p in problems if p.problem_id == repeated]
        raise UserError(f"problem id '{repeated}' occurs {len(where)} times", where=where[1] or "problems")


def all_stops(engine: Engine, stop: Sequence[str]) -> tuple[str, ...]:
    """The stop texts of a run: those given, and the template's own mark of the next turn."""
    return check_stops((*stop, *template_stops(engine.tokenizer, engine.template)))


def _prompt(engine: Engine, problem: Problem) -> tuple[tuple[int, ...], str]:
    """The prompt's token ids, those of training, and its text as the model reads it."""
    ids = prompt_ids(problem.prompt, engine.tokenizer, engine.template)
    if not ids:
        raise UserError(f"problem '{problem.problem_id}' has an empty prompt", where=problem.where or None)
    return tuple(ids), str(engine.tokenizer.decode(ids))


def _engine(
    model: str, name: str, batch_size: int | None, template: str, precision: str, server: dict[str, Any]
) -> Engine:
    """The engine of that name. Imported here, so that a server needs no weights in this process."""
    check_template(template)
    if name == "hf":
        from rectune.sampling.hf.engine import HFEngine

        return HFEngine.load(model, template=template, precision=precision, batch_size=batch_size)
    if name == "openai":
        from rectune.sampling.openai import OpenAIEngine

        if server["url"] is None:
            raise UserError(
                "the server engine needs an address", where="server_url", hint="http://HOST:PORT/v1"
            )
        return OpenAIEngine(model, **server, template=template, concurrency=batch_size)
    if name == "vllm":
        from rectune.sampling.vllm import VLLMEngine

        return VLLMEngine(model, template=template, precision=precision)
    raise unknown_name("engine", name, ENGINES)
