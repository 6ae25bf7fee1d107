"""Sampling: problems in, a resumable file of samples out, whichever engine generates them.

An engine turns requests (prompt ids and the key of a sample) into completions with log-probs, in any order. `sample`
makes the requests, leaves out those that the file already has, and appends a line per completion. The protocol is in
`types.py`; the engines are `hf/engine.py`, `openai.py` and `vllm.py`; the file is in `writer.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rectune.data.chat_template import check_template, choose_template, without_date
from rectune.data.findings import say_findings
from rectune.data.schema import Problem
from rectune.data.tokenization import prompt_ids
from rectune.data.trained_prompt import TEMPLATE, run_prompt
from rectune.errors import UserError, unknown_name
from rectune.models.load import load_tokenizer
from rectune.records import Sample, SampledTurn
from rectune.runtime.distributed import share
from rectune.runtime.io import check_output, translate_disk_errors, write_text
from rectune.runtime.progress import reporter
from rectune.runtime.signals import on_interrupt
from rectune.sampling.stop_strings import check_stops, template_stops
from rectune.sampling.types import Completion, Engine, EngineSpec, Request, SamplingParams
from rectune.sampling.writer import shared_file

BACKENDS = ("hf", "openai", "vllm")


def sample(
    model: str,
    problems: Sequence[Problem],
    *,
    out: Path,
    num_samples: int = 16,
    params: SamplingParams = SamplingParams(),  # noqa: B008
    engine: Engine | EngineSpec = EngineSpec(),  # noqa: B008
    template: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Path:
    """Sample `num_samples` answers to every problem and append them to `out`, one JSON object a line.

    A file that already has some of the samples is resumed: finished ones are skipped, a torn last line is removed
    first, and a larger `num_samples` adds to them. Several processes (torchrun, accelerate) share the problems.

    Args:
        model: Hub id, folder or packaged name.
        problems: With unique ids.
        params: How tokens are sampled. Its stop texts are used in addition to the template's own start of a user turn.
        engine: The engine to use, or what to load for `model`.
        template: As in training: "auto", "none", the name of one of the tokenizer's, or a file. None: that of the
            training run that the model is of, else "auto". Ignored where `engine` is loaded already.
        progress: Called with (samples done, samples in all, tokens sampled by this call) after every sample; by
            default a bar on stderr if that is a terminal.

    Returns:
        `out`.

    Raises:
        UserError: No problem, duplicate ids, a parameter out of range, an unknown backend, an unreachable server, or a
            file whose samples are of other settings.
    """
    params.check()
    _check_problems(problems, num_samples)
    check_output(Path(out))
    if isinstance(engine, EngineSpec):
        engine = load_engine(model, engine, template)
    params = replace(params, stop=all_stops(engine, params.stop))
    say_findings(problems, engine.tokenizer, engine.template)
    by_id = {problem.problem_id: problem for problem in problems}
    prompts = {name: _prompt(engine, problem) for name, problem in by_id.items()}
    texts = {name: str(engine.tokenizer.decode(list(ids))) for name, ids in prompts.items()}
    expected = {}
    for name, problem in by_id.items():
        empty = Completion(Request(name, 0, ()), [], [], "", "")
        expected[name] = _to_sample(empty, problem, texts[name], params, engine)
    with translate_disk_errors(out), shared_file(Path(out), expected) as file:
        index, of = share()
        mine = problems[index::of]
        todo = [
            Request(problem.problem_id, i, prompts[problem.problem_id], problem.where)
            for problem in mine
            for i in range(num_samples)
            if (problem.problem_id, i) not in file.finished
        ]
        total, tokens = len(mine) * num_samples, 0
        done = total - len(todo)
        with (
            on_interrupt(lambda: f"{out}: {done} of {total} samples are there; run it again to resume"),
            reporter(progress, done, total) as report,
        ):
            for completion in engine.complete(todo, params):
                name = completion.request.problem_id
                file.append(_to_sample(completion, by_id[name], texts[name], params, engine))
                done, tokens = done + 1, tokens + len(completion.token_ids)
                report(done, total, tokens)
    return out


def _check_problems(problems: Sequence[Problem], num_samples: int) -> None:
    if num_samples < 1:
        raise UserError(f"must be at least 1 (got {num_samples})", where="num_samples")
    if not problems:
        raise UserError("no problems to sample answers for", where="problems")
    counts = Counter(p.problem_id for p in problems)
    if repeated := next((name for name, count in counts.items() if count > 1), None):
        where = [p.where for p in problems if p.problem_id == repeated]
        raise UserError(f"problem id '{repeated}' occurs {len(where)} times", where=where[1] or "problems")


def all_stops(engine: Engine, stop: Sequence[str]) -> tuple[str, ...]:
    """The stop texts of a run: those given, and what the template writes before the next user turn."""
    return check_stops((*stop, *template_stops(engine.tokenizer, engine.template)))


def _prompt(engine: Engine, problem: Problem) -> tuple[int, ...]:
    """The prompt's token ids, those of training."""
    ids = prompt_ids(problem.prompt, engine.tokenizer, engine.template)
    if not ids:
        raise UserError(f"problem '{problem.problem_id}' has an empty prompt", where=problem.where or None)
    return tuple(ids)


def _to_sample(
    completion: Completion, problem: Problem, prompt: str, params: SamplingParams, engine: Engine
) -> Sample:
    return Sample(
        problem_id=problem.problem_id,
        sample_index=completion.request.sample_index,
        prompt=prompt,
        text=completion.text,
        answer=problem.answer,
        grader=problem.grader,
        token_ids=completion.token_ids,
        logprobs=[round(x, 6) for x in completion.logprobs],
        finish_reason=completion.finish_reason,
        seed=params.seed,
        temperature=params.temperature,
        top_p=params.top_p,
        engine=engine.name,
        model=engine.model_name,
        fingerprint=engine.fingerprint,
        extra=problem.extra,
        turns=[SampledTurn(**asdict(turn)) for turn in problem.prompt],
        max_new_tokens=params.max_new_tokens,
        stop=list(params.stop),
        not_taken=list(completion.not_taken),
    )


def load_engine(model: str, spec: EngineSpec, template: str | None) -> Engine:
    """The engine of a backend for a model by name. Imports the backend only, so that a server needs no torch model.

    Raises:
        UserError: An unknown backend, no address for a server, and all that loading raises.
    """
    if template is None:
        template = run.template if (run := run_prompt(model)) else "auto"
    check_template(template)
    if spec.backend == "hf":
        from rectune.sampling.hf.engine import HFEngine

        return HFEngine.load(model, template=template, dtype=spec.dtype, batch_size=spec.batch_size)
    if spec.backend == "openai":
        from rectune.sampling.openai import OpenAIEngine

        if spec.base_url is None:
            what = "the openai backend needs the address of a server"
            raise UserError(what, where="base_url", hint="http://HOST:PORT/v1")
        return OpenAIEngine(
            model,
            spec.base_url,
            served_model_name=spec.served_model_name,
            template=template,
            concurrency=spec.batch_size,
            logprobs=spec.logprobs,
        )
    if spec.backend == "vllm":
        from rectune.sampling.vllm import VLLMEngine

        if share()[1] > 1:
            raise UserError("vllm starts its own processes", where="backend", hint="start rectune once")
        return VLLMEngine(model, template=template, dtype=spec.dtype)
    raise unknown_name("backend", spec.backend, BACKENDS)


def frozen_template(folder: Path, name: str, model: str) -> str:
    """`name`; for a template that writes today's date, a file in `folder` that writes the date of the first call.

    A run resumed on another day then reads the same prompts.

    Args:
        model: Whose tokenizer it is for.

    Raises:
        UserError: The template cannot be used, or the folder cannot be written.
    """
    template = choose_template(name, load_tokenizer(model)) if name != "none" else None
    if template is None or not template.today:
        return name
    path = folder / TEMPLATE
    with translate_disk_errors(folder):
        if not path.is_file() or without_date(path.read_text("utf-8")) != template.saved():
            write_text(path, template.kept())
    return str(path)
