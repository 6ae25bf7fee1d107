"""On a GPU: the head, packed rows, training, sampling and the diagnosis, against the CPU where it is the judge.

Everything else in the suite that trains, samples or measures through the package's own verbs runs on the GPU as well
where there is one; here is what it does not cover.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from heads import CHUNK, EVERYTHING, Case, assert_as_exact_as_dense
from rectune.columns import HEAD_COLUMNS
from rectune.config import load_config
from rectune.data.packing import collate
from rectune.data.tokenization import Encoded
from rectune.errors import UserError
from rectune.logprobs import elementwise, token_columns
from rectune.models.scorer import Scorer
from rectune.sampling.hf.engine import HFEngine
from rectune.sampling.types import Request, SamplingParams
from rectune.training.trainer import train
from toys import byte_tokenizer, complete, save_toy, tiny_model
from training_runs import OVER_ROWS, make_toy, metrics, same_runs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
PROMPTS = ("What is 48?", "Hi", "Hello there, how are you doing on this day? 4848", "A longer prompt " * 6)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_toy(tmp_path_factory.mktemp("toy"))


def rectune(*arguments: object, gpu: bool = True) -> str:
    """What the command prints, run by itself with the GPU or without."""
    environment = os.environ if gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "rectune", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def options(settings: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


# --- The head -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["everything", "chunks"])
@pytest.mark.parametrize("n", [0, 1, CHUNK, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_as_exact_as_dense(dtype: torch.dtype, n: int, regime: str) -> None:
    case = Case(n, 1031, dtype, bias=True).cuda()
    budget = EVERYTHING if regime == "everything" else CHUNK * case.row_bytes
    assert_as_exact_as_dense(case, implementation="plain", memory_budget=budget)
    capped = {"softcap": 3.0, "logit_scale": 0.7}
    assert_as_exact_as_dense(case, head=capped, implementation="plain", memory_budget=budget)
    assert_as_exact_as_dense(case, "kl", head=capped, implementation="plain", memory_budget=2 * budget)


@pytest.mark.filterwarnings("default")  # of Triton's and torch's own
def test_compiled_is_as_exact_as_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "_COMPILE_FROM", 0)
    compiled = []
    original = elementwise._compiled
    monkeypatch.setattr(elementwise, "_compiled", lambda f: (compiled.append(f.__name__), original(f))[1])
    for n, rows in ((50, 100), (20, 8)):
        case = Case(n, 1031, torch.bfloat16).cuda()
        assert_as_exact_as_dense(case, implementation="fused", memory_budget=rows * case.row_bytes)
        assert_as_exact_as_dense(case, "kl", implementation="fused", memory_budget=2 * rows * case.row_bytes)
    assert set(compiled) == {"sums", "softmax_", "divergence", "differences_"}


def test_ids_that_do_not_exist_leave_the_gpu_usable() -> None:
    """An index out of range on a GPU is an assertion there, behind which nothing more can be computed."""
    case, model = Case(41, 1031, torch.float32).cuda(), tiny_model().cuda()
    for target in (1031, -100):
        with pytest.raises(UserError, match=f"target {target} is not an id of a vocabulary of 1031"):
            token_columns(case.hidden, case.weight, torch.full_like(case.targets, target))
    with pytest.raises(UserError, match="are on cpu and cuda:0"):
        token_columns(case.hidden, case.weight.cpu(), case.targets)
    row = Encoded([5, 300, 6], [-100, -100, 6], [False] * 3)
    with pytest.raises(UserError, match="token id 300 has no embedding: the model has 272"):
        Scorer(model).columns(collate([row], "cuda"))
    with pytest.raises(UserError, match="the rows are on cpu, the model on cuda:0"):
        Scorer(model).columns(collate([row]))
    assert token_columns(case.hidden, case.weight, case.targets)["logp"].isfinite().all()


@pytest.mark.parametrize("implementation", ["plain", "fused"])
def test_columns_are_the_cpus(implementation: Any) -> None:
    case = Case(41, 1031, torch.float32)
    expected, ours = (
        token_columns(
            c.hidden, c.weight, c.targets, HEAD_COLUMNS, implementation=implementation, **c.reference
        )
        for c in (case, case.cuda())
    )
    for name in HEAD_COLUMNS:
        assert ours[name].is_cuda
        torch.testing.assert_close(ours[name].cpu(), expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("implementation", ["plain", "fused"])
@pytest.mark.parametrize("column", ["logp", "kl"])
def test_memory_stays_within_the_budget(column: str, implementation: Any) -> None:
    """A real vocabulary; past the budget come only outputs and gradients, the weight's in float32 as well."""
    rows, vocabulary, width, budget = 4096, 151_936, 64, 256 << 20
    case = Case(rows, vocabulary, torch.bfloat16, d=width).cuda()
    case.run(column, implementation=implementation, memory_budget=budget)  # compiles
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.run(column, implementation=implementation, memory_budget=budget)
    peak = torch.cuda.max_memory_allocated() - before
    assert rows * case.row_bytes > 4 * budget
    outputs = (vocabulary + rows) * width * (2 + 2 + 4) + 64 * rows
    assert peak <= budget + outputs, f"{peak / 2**20:.0f} MiB, of them {outputs / 2**20:.0f} of outputs"


# --- Packed rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_row_is_as_alone_on_the_cpu(architecture: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (5, 33, 2, 70):
        ids = torch.randint(3, 260, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [-100, *ids[1:]], [False] * length))
    model = tiny_model(architecture)
    with torch.no_grad():
        expected = torch.cat([Scorer(model).columns(collate([row]))["logp"] for row in rows])
        packed = Scorer(model.to("cuda", dtype)).columns(collate(rows, "cuda"))["logp"].cpu()
    close = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(packed, expected, **close)


# --- Training -------------------------------------------------------------------------------------------


def test_it_trains_as_the_cpu_does(toy: dict[str, Any], tmp_path: Path) -> None:
    for where in ("gpu", "cpu"):
        rectune("train", *options({**toy, "output_dir": tmp_path / where}), gpu=where == "gpu")
    ours, theirs = (metrics(tmp_path / where, "train") for where in ("gpu", "cpu"))
    assert len(ours) == 6
    for name in ("nll", "objective", "grad_norm", "mean_p"):
        assert [a[name] for a in ours] == pytest.approx([b[name] for b in theirs], rel=1e-3)
    machines = [json.loads((tmp_path / where / "environment.json").read_text()) for where in ("gpu", "cpu")]
    assert machines[0]["processor"] == torch.cuda.get_device_name() != machines[1]["processor"]


@pytest.mark.parametrize("objective", OVER_ROWS)
def test_a_run_that_was_stopped_ends_in_the_same_bits(
    toy: dict[str, Any], tmp_path: Path, objective: str
) -> None:
    settings = {**toy, "dtype": "bfloat16", "objective": objective, "save_steps": 2}
    settings["data"] = tmp_path / "rows.jsonl"  # long ones, whose attention has several blocks to add up
    rows = [{"prompt": f"{n}?", "completion": f"{n % 7} " * (50 + 20 * n)} for n in range(20)]
    settings["data"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {"max_length": 512, "tokens_per_micro_batch": 1024}
    train(load_config(None, {**settings, "output_dir": tmp_path / "whole"}))
    stopped = load_config(None, {**settings, "output_dir": tmp_path / "stopped"})
    train(stopped, until=3)
    train(stopped, resume=True)
    same_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """Leaves the process so many MiB of the GPU."""

    def leave(mib: int) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(mib * 2**20 / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_halves_the_micro_batch(
    toy: dict[str, Any],
    tmp_path: Path,
    little_memory: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The real error, in forward or backward; same gradients up to the order of floats."""
    save_toy(tmp_path / "model", hidden_size=256, intermediate_size=4096, num_hidden_layers=4)
    rows = [{"prompt": f"{n}?", "completion": f"{n % 7} " * 200} for n in range(32)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        **toy, "model": tmp_path / "model", "data": tmp_path / "rows.jsonl", "max_length": 512, "max_steps": 3,
        "batch_size": 16, "tokens_per_micro_batch": 8192, "eval_split_size": 0,
    }  # fmt: skip
    train(load_config(None, {**settings, "output_dir": tmp_path / "plenty"}))
    assert "out of memory" not in caplog.text
    little_memory(1024)
    train(load_config(None, {**settings, "output_dir": tmp_path / "little"}))
    assert "out of memory" in caplog.text
    plenty, little = (metrics(tmp_path / name, "train") for name in ("plenty", "little"))
    for name in ("nll", "objective", "grad_norm"):
        assert [a[name] for a in plenty] == pytest.approx([b[name] for b in little], rel=1e-3)


# --- Sampling and diagnosing -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_generate_token_for_token(architecture: str) -> None:
    model = tiny_model(architecture).cuda()
    engine = HFEngine(model, byte_tokenizer(), batch_size=3)
    asked = [Request(f"p{i}", 0, tuple(byte_tokenizer()(p).input_ids)) for i, p in enumerate(PROMPTS)]
    for done in engine.complete(asked, SamplingParams(temperature=0.0, max_new_tokens=150)):
        prompt = torch.tensor([done.request.prompt_ids], device="cuda")
        reference = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=150,
            eos_token_id=sorted(engine.stop_ids),
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        assert done.token_ids == reference


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_samples_are_the_cpus_up_to_rounding(top_p: float) -> None:
    settings = SamplingParams(temperature=1.0, top_p=top_p, max_new_tokens=60)
    prompts = [(f"p{i}", tuple(byte_tokenizer()(prompt).input_ids)) for i, prompt in enumerate(PROMPTS)]
    requests = [Request(name, k, ids) for name, ids in prompts for k in range(8)]
    cpu, cuda = (
        complete(HFEngine(tiny_model().to(device), byte_tokenizer(), batch_size=5), requests, settings)
        for device in ("cpu", "cuda")
    )
    same = [key for key, answer in cpu.items() if answer.token_ids == cuda[key].token_ids]
    assert len(same) >= 30 and len(requests) == 32
    for key in same:
        assert cpu[key].logprobs == pytest.approx(cuda[key].logprobs, abs=1e-4)


def test_the_diagnosis_is_the_cpus(toy: dict[str, Any], tmp_path: Path) -> None:
    settings = {name: toy[name] for name in ("model", "data", "max_length", "dtype")}
    found = []
    for where in ("gpu", "cpu"):
        asked = options({**settings, "rows": 30, "output_dir": tmp_path / where})
        found.append(json.loads(rectune("diagnose", *asked, "--json", gpu=where == "gpu")))
    numbers = [dict(leaves(one)) for one in found]
    assert numbers[0].keys() == numbers[1].keys() and len(numbers[0]) > 100
    timed = {name for name in numbers[0] if "second" in name}
    for name in numbers[0].keys() - timed:
        assert numbers[0][name] == pytest.approx(numbers[1][name], rel=1e-2, abs=1e-4), name


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{place}")
    elif isinstance(value, float):
        yield name, value
