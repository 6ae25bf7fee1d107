"""Speed and memory of the head against the three matrix products that it cannot do without.

    python benchmarks/head.py            speed, about three minutes
    python benchmarks/head.py --memory   peak memory at N 16384, V 151936, about three minutes and 14 GiB
    python benchmarks/head.py --rows 16384   other shapes: so many rows; on a GPU few take no time

Speed: bfloat16 (float32 where the processor has no bfloat16 products), forward and backward. The unit is the time
of the bare products h @ w.T, G @ w and G.T @ h into memory that is already there ("products"), the strictest reading;
"products, allocating" is the same written the usual way. TRL's head takes part where TRL is installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from common import DEVICE, DTYPE, entry, ratios, save, show, side_by_side
from torch import Tensor

from rectune.logprobs import MEMORY_BUDGET, Implementation, token_logprobs

TRL_CHUNK = 32768  # the vocabulary tile that TRL 1.16 uses
SHAPES = ((2048, 576, 49152), (1024, 1536, 151936))


def inputs(N: int, D: int, V: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=DTYPE, device=DEVICE, requires_grad=True)
    weight = torch.empty(V, D, dtype=DTYPE, device=DEVICE).normal_(std=D**-0.5).requires_grad_()
    return hidden, weight, torch.randint(V, (N,), device=DEVICE), torch.rand(N, device=DEVICE)


def head(
    implementation: Implementation,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    upstream: Tensor,
    memory_budget: int = MEMORY_BUDGET,
) -> None:
    logp = token_logprobs(hidden, weight, targets, implementation=implementation, memory_budget=memory_budget)
    torch.autograd.grad((logp * upstream).sum(), (hidden, weight))


def trl_head(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> None:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    logp = ChunkedLogProbFunction.apply(  # type: ignore[no-untyped-call]
        hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, ()
    )[0]
    torch.autograd.grad((logp * upstream).sum(), (hidden, weight))


def liger_head(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> None:
    """Liger's loss, whose token scaling is DFT's; it has no log-probabilities, so that upstream is one for all."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(use_token_scaling=True, accum_dtype=torch.float32)
    torch.autograd.grad(loss(weight, hidden, targets), (hidden, weight))


def speed(rows: int | None) -> None:
    figures, lines = {}, []
    for N, D, V in [(rows or n, d, v) for n, d, v in SHAPES]:
        arguments = inputs(N, D, V)
        h, w = (t.detach() for t in arguments[:2])
        G, dh, dw = torch.zeros(N, V, dtype=h.dtype, device=DEVICE), torch.empty_like(h), torch.empty_like(w)

        def products(h: Tensor = h, w: Tensor = w, G: Tensor = G, dh: Tensor = dh, dw: Tensor = dw) -> None:
            torch.mm(h, w.T, out=G), torch.mm(G, w, out=dh), torch.mm(G.T, h, out=dw)

        def allocating(h: Tensor = h, w: Tensor = w, G: Tensor = G) -> None:
            h @ w.T, G @ w, G.T @ h

        contestants: dict[str, Callable[[], object]] = {
            "products": products,
            "products, allocating": allocating,
        }
        for implementation in ("fused", "plain", "dense"):
            contestants[implementation] = partial(head, implementation, *arguments)
        if V > 100_000:
            contestants["fused, 512 MiB"] = partial(head, "fused", *arguments, memory_budget=512 << 20)
        if (V < 100_000 or DEVICE.type != "cpu") and trl_available():
            contestants["TRL's head"] = partial(trl_head, *arguments)
        if DEVICE.type != "cpu" and find_spec("liger_kernel"):
            contestants["Liger's loss"] = partial(liger_head, *arguments)
        times = side_by_side(contestants, rounds=5, warmup=1)
        table, usual = ratios(times, "products"), ratios(times, "products, allocating")
        for name, row in table.items():
            row["ratio_allocating"] = usual[name]["ratio"]
        show(f"N {N}, D {D}, V {V}, {DTYPE}, forward + backward; unit: products".replace("torch.", ""), table)
        if DEVICE.type == "cuda":
            print_peaks(contestants, sum(t.numel() * t.element_size() for t in (h, w)))
        figures[f"N{N}-D{D}-V{V}"] = table
        seconds = {name: row["seconds"] for name, row in table.items()}
        lines.append(
            entry(
                f"head, N {N}, V {V}, s", seconds["fused"], trl=seconds.get("TRL's head"),
                transformers=seconds["dense"], limit=seconds["products"], ratio=table["fused"]["ratio"],
                to="limit", target=1.4 if V < 100_000 else 1.15, smaller=True,
            )
        )  # fmt: skip
    save("head", figures, lines)


def print_peaks(contestants: dict[str, Callable[[], object]], gradients: int) -> None:
    """What each takes on the GPU at most beyond its inputs and the gradients that it gives back."""
    for name, run in contestants.items():
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        print(f"{name:34}{(torch.cuda.max_memory_allocated() - before - gradients) / 2**20:9.0f} MiB")


def trl_available() -> bool:
    try:
        import trl.kernels.chunked_logprob  # noqa: F401
    except ImportError:
        return False
    return True


def measure_memory(implementation: Implementation, N: int, D: int, V: int) -> None:
    """Run in a process of its own: peak resident memory beyond inputs, gradients and what imports take."""
    head(implementation, *inputs(64, D, V))  # compilation and libraries are not what is measured
    arguments = inputs(N, D, V)
    gradients = sum(t.numel() * t.element_size() for t in arguments[:2])
    accumulator = arguments[1].numel() * 4  # the weight's gradient in float32
    before = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    head(implementation, *arguments)
    print((memory_kib("VmHWM") - before) / 1024 - (gradients + accumulator) / 2**20)


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def memory() -> None:
    N, D, V = 16384, 256, 151936
    figures = {}
    for implementation in ("fused", "plain", "dense"):
        command = [sys.executable, __file__, "--measure", implementation, str(N), str(D), str(V)]
        run = subprocess.run(command, capture_output=True, text=True)
        figures[implementation] = float(run.stdout) if run.returncode == 0 else None
        shown = f"{figures[implementation]:.0f} MiB" if run.returncode == 0 else f"failed ({run.returncode})"
        print(f"{implementation:8} {shown}", flush=True)
    print(f"budget   {MEMORY_BUDGET >> 20} MiB; N {N}, D {D}, V {V}, {DTYPE}".replace("torch.", ""))
    save("head_memory", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_memory(options.measure[0], *map(int, options.measure[1:]))
    elif options.memory:
        memory()
    else:
        speed(options.rows)
