"""Honest timing: contestants take turns within one run, and ratios are paired round by round."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rectune.models.load import choose_dtype
from rectune.runtime.distributed import default_device

DEVICE = default_device()
DTYPE = choose_dtype("auto", DEVICE)[0]
RESULTS = Path(__file__).parent / "results"


def side_by_side(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int = 7, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; all run once per round, so that drift hits them alike."""
    for _ in range(warmup):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(timed(run))
    return seconds


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call; of one of ten on a GPU, which takes milliseconds where a CPU takes seconds."""
    calls = 1 if DEVICE.type == "cpu" else 10
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - start) / calls


def padded_batch(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of rows of these lengths as transformers' users batch them, all 0, and the mask of what is not padding."""
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.long, device=DEVICE)
    return ids, (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(DEVICE)


def wait() -> None:
    """Until a GPU has done what it was given."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def ratios(seconds: dict[str, list[float]], unit: str) -> dict[str, dict[str, float]]:
    """Per contestant: median seconds, and median, least and largest of its ratio to `unit` in the same round."""
    table = {}
    for name, times in seconds.items():
        paired = [t / u for t, u in zip(times, seconds[unit], strict=True)]
        table[name] = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(paired),
            "low": min(paired),
            "high": max(paired),
        }
    return table


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    """Prints what `ratios` gives, and any further figures of the rows behind it."""
    known = ("seconds", "ratio", "low", "high")
    print(f"\n{title}")
    print(f"{'':34}{'seconds':>9}{'ratio':>8}   spread")
    for name, row in table.items():
        more = "".join(f"   {key.replace('_', ' ')} {row[key]:.2f}" for key in row if key not in known)
        print(
            f"{name:34}{row['seconds']:9.3f}{row['ratio']:8.2f}   {row['low']:.2f} to {row['high']:.2f}{more}"
        )


def entry(
    what: str, ours: float, *, trl: float | None = None, transformers: float | None = None,
    other: float | None = None, limit: float | None = None, ratio: float | None = None, to: str = "",
    target: float | None = None, smaller: bool = False,
) -> dict[str, object]:  # fmt: skip
    """A line of the table of all benchmarks; figures of one line have one unit, told in `what`.

    Args:
        ratio: The line's verdict, measured side by side, larger is better unless `smaller`.
        to: What it is the ratio to: a column of the line.
        target: What the ratio should reach, or the figure itself where there is none.
    """
    return {
        "what": what, "ours": ours, "trl": trl, "transformers": transformers, "other": other, "limit": limit,
        "ratio": ratio, "to": to, "target": target, "smaller": smaller,
    }  # fmt: skip


def worse(history: list[dict[str, Any]], tolerance: float = 0.1) -> list[str]:
    """Which ratios of the newest run got worse by more than `tolerance` since the last one on such a machine."""
    now, kind = history[-1], ("cpu", "threads", "torch")
    before = [run for run in history[:-1] if all(run["machine"].get(k) == now["machine"][k] for k in kind)]
    if not before:
        return []
    then = {line["what"]: line for line in before[-1]["lines"]}
    sentences = []
    for line in now["lines"]:
        old = (then.get(line["what"]) or {}).get("ratio")
        if old and line["ratio"]:
            change = old / line["ratio"] if not line["smaller"] else line["ratio"] / old
            if change > 1 + tolerance:
                sentences.append(
                    f"worse: {line['what']}, ratio to {line['to']} {line['ratio']:.2f}, was {old:.2f} "
                    f"on {before[-1]['machine']['date']}"
                )
    return sentences


def save(name: str, figures: object, lines: list[dict[str, object]] | None = None) -> None:
    """Keeps the newest figures, and of every run the lines of the table; says what got worse.

    In results/NAME.json; what a GPU gave is in results/cuda.
    """
    path = RESULTS / f"{name}.json" if DEVICE.type == "cpu" else RESULTS / DEVICE.type / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    history = json.loads(path.read_text()).get("history", []) if path.exists() else []
    machine = {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if lines:
        history.append({"machine": machine, "lines": lines})
        for sentence in worse(history):
            print(sentence)
    content = {"machine": machine, "figures": figures, "history": history}
    path.write_text(json.dumps(content, indent=1) + "\n")


def processor() -> str:
    """The kind of GPU, or of processor and whether it multiplies bfloat16."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    kind = platform.processor() or platform.machine()
    with suppress(OSError):
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        kind = names[0].partition(":")[2].strip() if names else kind
    return kind + (", bfloat16" if torch.cpu._is_avx512_bf16_supported() else "")
