"""The command line: one verb, one function of the same name, which imports what it needs when it is called.

Results go to stdout, progress and messages to stderr. Exit code 0: done, 2: a mistake of the user (one line,
no traceback), 130 or 143: stopped by Ctrl-C or SIGTERM, 1: a defect of ours. Verbs with a flag for every setting
are in `cli/commands.py`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

import rectune
from rectune.cli.console import messages, print_lines, print_table
from rectune.cli.parameters import Count, Switch, Texts
from rectune.errors import UserError
from rectune.runtime.distributed import exit_process
from rectune.runtime.escape import visible
from rectune.runtime.signals import interruptible, stopped_by

app = App(
    name="rectune",
    help="Fine-tune language models on demonstrations so that they generalise.",
    version=rectune.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


# By its path, because its flags need pydantic: `rectune --help` would take twice as long.
app.command(
    "rectune.cli.commands:diagnose",
    name="diagnose",
    help="Say which objective fits the data, before any training.",
)
app.command(
    "rectune.cli.commands:check", name="check", help="Say what data are, and what would be made of them."
)
app.command("rectune.cli.commands:train", name="train", help="Fine-tune a model on demonstrations.")
app.command(
    "rectune.cli.commands:rl", name="rl", help="Train a model on its own graded answers: GRPO or PPO."
)
app.command(
    "rectune.cli.commands:rft",
    name="rft",
    help="Sample, grade, select and train on a model's own answers: RFT, DPO.",
)
app.command(
    "rectune.cli.commands:compare",
    name="compare",
    help="Train with several objectives and judge them in pairs.",
)
app.command(
    "rectune.cli.commands:reproduce", name="reproduce", help="Carry out a table or figure of the paper again."
)


@app.command(name="list")
def list_(
    what: Literal["objectives", "columns", "tasks", "models", "recipes"],
    /,
    *,
    json: Switch = False,
) -> None:
    """Print what there is to choose from.

    Args:
        what: Which list.
        json: Print JSON instead of a table.
    """
    from rectune.cli.catalog import LISTS

    print_table(list(LISTS[what]()), as_json=json)


@app.command
def sample(
    *,
    model: str,
    problems: str,
    output: Path,
    num_samples: Count = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    stop: Texts = (),
    seed: int = 0,
    backend: Literal["hf", "openai", "vllm"] = "hf",
    base_url: str | None = None,
    served_model_name: str | None = None,
    no_logprobs: Switch = False,
    sampling_batch_size: int | None = None,
    system_prompt: str | None = None,
    chat_template: str | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    include_path: Path | None = None,
) -> None:
    """Draw answers to problems from a model, one JSON object a line; run again, it goes on.

    A model that was trained here is asked as it was trained, as in `rectune eval`.

    Args:
        model: Hub id, folder, training run or packaged model; with the server engine its tokenizer is what is read.
        problems: JSONL file of problems, or the name of a benchmark.
        output: JSONL file of samples; answers that it lacks are appended.
        num_samples: Answers to each problem.
        temperature: Sampling temperature; 0 takes the most probable token.
        top_p: Nucleus sampling: smallest set of tokens with cumulative probability >= TOP_P.
        max_new_tokens: Maximum length of an answer in tokens.
        stop: Text at which an answer ends, as \\nQuestion: (\\n is a line end); may be given several times.
        seed: Random seed for sampling; answers do not depend on batch size and order.
        backend: hf samples from the model here, vllm in a vLLM engine, openai from an OpenAI-compatible server.
        base_url: Address of the openai backend's server, such as http://127.0.0.1:8000/v1.
        served_model_name: Name of the model on the server, if it is not --model.
        no_logprobs: Accept servers that return no log-probabilities; samples are saved without them.
        sampling_batch_size: Maximum number of sequences generated concurrently.
        system_prompt: System message, instead of the run's; "" for none.
        chat_template: auto, none, the name of one of the tokenizer's, or a Jinja file; instead of the run's.
        dtype: Of the hf and vllm backends.
        include_path: Folder with the benchmark's file.
    """
    from rectune.evaluation.prompts import problems_for
    from rectune.sampling.sample import sample as sample_answers
    from rectune.sampling.types import EngineSpec, SamplingParams

    asked = problems_for(
        model, problems, system=system_prompt, template=chat_template, benchmark_dir=include_path
    )
    params = SamplingParams(temperature, top_p, max_new_tokens, seed, tuple(stop))
    engine = EngineSpec(
        backend, sampling_batch_size, dtype, base_url, served_model_name, logprobs=not no_logprobs
    )
    sample_answers(
        model,
        asked,
        out=output,
        num_samples=num_samples,
        params=params,
        engine=engine,
        template=chat_template,
    )
    print_lines(output)


@app.command
def grade(
    samples: Path, /, *, output: Path, grading_workers: int | None = None, grading_timeout: float = 5.0
) -> None:
    """Add a verdict to every answer of a JSONL file; run again, it goes on.

    Args:
        samples: Lines with `answer` (gold), `text` (the model's words) and perhaps `grader` (default: math).
        output: The same lines with `verdict` and `extracted`, and with `verdict_reason` for an `error`.
        grading_workers: Processes that grade answers; unset: one for each core.
        grading_timeout: Seconds that grading one answer may take.
    """
    from rectune.grading import grade as judge

    print_lines(judge(samples, output, workers=grading_workers, timeout=grading_timeout))


@app.command
def select(
    graded: Path,
    /,
    *,
    output: Path,
    purpose: Annotated[Literal["sft", "dpo"], Parameter(name="--for")],
    per_problem: int = 4,
    balance: Switch = False,
    include_unjudged: Switch = False,
    include_unfinished: Switch = False,
    seed: int = 0,
) -> None:
    """Turn graded answers into training rows, or into pairs of a better and a worse one.

    Args:
        graded: What `rectune grade` wrote.
        output: Rows or pairs, JSONL; the counts go to OUTPUT.counts.json.
        purpose: sft keeps correct answers (RFT, offline DFT), dpo pairs correct with wrong ones.
        per_problem: Maximum number of rows or pairs of one problem.
        balance: Repeat rows until every problem has as many as the one with the most.
        include_unjudged: For pairs, count answers whose grading timed out or failed as wrong.
        include_unfinished: Also use correct answers that reached the token limit.
        seed: Random seed of the choice among more answers than are kept.
    """
    from rectune.grading.selection import select as choose

    counts = choose(
        graded, output, purpose=purpose, per_problem=per_problem, balance=balance,
        unjudged=include_unjudged, unfinished=include_unfinished, seed=seed,
    )  # fmt: skip
    print_table([counts], as_json=False)


@app.command(name="eval")
def eval_(
    *,
    model: str,
    tasks: str = "",
    output_dir: Path,
    num_samples: Count = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    stop: Texts = (),
    seed: int = 0,
    limit: int | None = None,
    include_path: Path | None = None,
    prompt: str | None = None,
    system_prompt: str | None = None,
    chat_template: str | None = None,
    check_overlap: str | None = None,
    backend: Literal["hf", "openai", "vllm"] = "hf",
    base_url: str | None = None,
    served_model_name: str | None = None,
    no_logprobs: Switch = False,
    sampling_batch_size: int | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    json: Switch = False,
) -> None:
    """Measure accuracy on benchmarks with intervals: sample, grade, count. The paper's protocol is the default.

    Args:
        model: Hub id, local folder, packaged model, or the folder of a training run, whose prompt is then used.
        tasks: Names separated by commas, see `rectune list tasks`, or JSONL files of your own problems.
        output_dir: Folder of the evaluation; run again, it resumes.
        num_samples: Answers to each problem.
        temperature: Sampling temperature; 0 takes the most probable token.
        top_p: Nucleus sampling: smallest set of tokens with cumulative probability >= TOP_P.
        max_new_tokens: Maximum length of an answer in tokens.
        stop: Text at which an answer ends, as \\nQuestion: (\\n is a line end); may be given several times.
        seed: Random seed for sampling and for the --limit subset.
        limit: Maximum number of problems of each benchmark.
        include_path: Folder with the benchmarks' files; unset: packaged, or from the hub.
        prompt: The user's turn with {question} in it, instead of the run's or the benchmark's.
        system_prompt: System message, instead of the run's; "" for none.
        chat_template: auto, none, the name of one of the tokenizer's, or a Jinja file; instead of the run's.
        check_overlap: Training rows in which to look for the problems' texts.
        backend: hf samples from the model here, vllm in a vLLM engine, openai from an OpenAI-compatible server.
        base_url: Address of the openai backend's server, such as http://127.0.0.1:8000/v1.
        served_model_name: Name of the model on the server, if it is not --model.
        no_logprobs: Accept servers that return no log-probabilities; samples are saved without them.
        sampling_batch_size: Maximum number of sequences generated concurrently.
        dtype: Of the hf and vllm backends.
        json: Print all figures as JSON.
    """
    from rectune.evaluation.evaluate import evaluate, table

    result = evaluate(
        model, [name.strip() for name in tasks.split(",") if name.strip()], out=output_dir, n=num_samples,
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, stop=stop, seed=seed, limit=limit,
        benchmark_dir=include_path, prompt=prompt, system=system_prompt, template=chat_template,
        check_overlap=check_overlap, engine=backend, server_url=base_url, served_name=served_model_name,
        server_logprobs=not no_logprobs, batch_size=sampling_batch_size, precision=dtype,
    )  # fmt: skip
    if json:
        print_table([result.to_dict()], as_json=True)
        return
    print_table(table(result), as_json=False)


@app.command
def report(
    *runs: Path,
    output: Path | None = None,
    format: Literal["html", "markdown"] = "html",
    tasks_in: str = "",
    tasks_out: str = "",
    json: Switch = False,
) -> None:
    """Put runs on one self-contained page: verdict first, then accuracies, curves, answers, settings and cost.

    Args:
        runs: Folders of runs, evaluations, comparisons, diagnoses or a transformers Trainer, or that hold such.
        output: File to write; by default report.html, or report.md for markdown, and none with --json.
        format: A page, or text with tables for a pull request.
        tasks_in: Benchmarks of the training rows' domain, separated by commas, where no comparison says so.
        tasks_out: Benchmarks of another domain.
        json: Print all that is on the page as JSON.
    """
    from rectune.reporting.report import report as make
    from rectune.runtime.io import to_json

    if output is None and not json:
        output = Path("report.html" if format == "html" else "report.md")
    inside, outside = (
        [name.strip() for name in names.split(",") if name.strip()] for names in (tasks_in, tasks_out)
    )
    found = make(runs, out=output, format=format, benchmarks_in=inside, benchmarks_out=outside)
    if json:
        print_lines(to_json(found.to_dict(), indent=2, ensure_ascii=False))
        return
    print_lines(*found.verdict.sentences, output)


def run(command: Callable[[], object]) -> int:
    """Run a command with messages on stderr, and return the exit code that the module's docstring names."""
    handler = messages()
    log = logging.getLogger("rectune")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with interruptible():
            command()
    except (UserError, CycloptsError) as error:
        print("rectune:", visible(" ".join(str(error).split())), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("rectune:", visible(str(error) or "interrupted"), file=sys.stderr)
        return 128 + stopped_by(error)
    except (MemoryError, RuntimeError) as error:
        from rectune.runtime.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        less = "lower a batch size or length, or take a smaller model"
        print(f"rectune: out of memory; what is written so far is kept; {less}", file=sys.stderr)
        return 2
    finally:
        log.removeHandler(handler)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    code = run(
        lambda: app(
            arguments, exit_on_error=False, print_error=False, verbose=False, result_action="return_value"
        )
    )
    if arguments is None:
        exit_process(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
