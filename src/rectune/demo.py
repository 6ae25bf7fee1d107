"""`make demo`: SFT and DFT on the same real demonstrations, and what became of both, in about fifteen minutes.

SmolLM2-135M learns to write the calculation that solves a word problem of GSM8K. Both runs start from the same weights
and read the same rows in the same order; only the objective differs. Then base, SFT and DFT answer held-out GSM8K
problems (in domain) and SVAMP problems (out of domain). Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rectune.cli import print_table, run

OBJECTIVES = ("sft", "dft")
DOMAINS = {"gsm8k-calculations": "in domain", "svamp-calculations": "out of domain"}
RECIPE = files("rectune") / "recipes" / "demo.toml"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rectune.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="where the runs go (default: %(default)s)"
    )
    parser.add_argument("--model", default="smollm2-135m", help="base model (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer steps instead of one pass over 1,400 rows")
    parser.add_argument("--limit", type=int, help="problems of each benchmark instead of all")
    parser.add_argument("-n", type=int, default=4, help="answers to each problem (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of row order and draws (default: %(default)s)")
    options = parser.parse_args(arguments)
    runs = {name: train_one(name, options) for name in OBJECTIVES}
    folders = {
        name: evaluate_one(name, options.model if name == "base" else str(options.out / name), options)
        for name in ("base", *OBJECTIVES)
    }
    print(f"\nHold-out rows of GSM8K calculations, {options.model}; the same rows in the same order\n")
    print_table(training_table(runs), as_json=False)
    print(
        f"Held-out problems, {options.n} answers each at temperature 1, accuracy in % with 95 % intervals\n"
    )
    print_table(accuracy_table(folders), as_json=False)
    for line in verdict(folders["dft"], folders["sft"]):
        print(line)
    print(f"\nRuns: {', '.join(str(options.out / name) for name in OBJECTIVES)}")
    print(f"Answers and figures: {', '.join(str(folder) for folder in folders.values())}")


def train_one(objective: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one objective, or go on with it; the run's summary. A process of its own has its own peak memory."""
    out: Path = options.out / objective
    command = [sys.executable, "-m", "rectune.cli", "train", str(RECIPE), "--resume", "--out", str(out)]
    command += ["--model", options.model, "--seed", str(options.seed), "--objective.name", objective]
    command += ["--steps", str(options.steps)] if options.steps else []
    print(f"\n{objective.upper()}: rectune {' '.join(command[3:])}", file=sys.stderr)
    if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        sys.exit(code)  # the reason stands on stderr
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def evaluate_one(name: str, model: str, options: argparse.Namespace) -> Path:
    """Sample and grade on both domains; the folder of the evaluation."""
    from rectune.evaluation.evaluate import evaluate

    out: Path = options.out / "evaluations" / name
    evaluate(
        model, list(DOMAINS), out=out, n=options.n, max_new_tokens=32, template="none",
        limit=options.limit, seed=options.seed,
    )  # fmt: skip
    return out


def training_table(runs: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Hold-out figures before and after, and what the training took."""
    first = next(iter(runs.values()))
    rows = {"base": (first["before"], None), **{name: (run["after"], run) for name, run in runs.items()}}
    return [
        {
            "model": name,
            "NLL": f"{figures['nll']:.3f}",
            "mean p": f"{figures['mean_p']:.3f}",
            "token accuracy": f"{figures['accuracy']:.1%}",
            "p < 0.01": f"{figures['low_p']:.1%}",
            "p > 0.9": f"{figures['high_p']:.1%}",
            "p of turn end": f"{figures['eos_p']:.3f}",
            "tokens/s": f"{run['tokens_per_second']:.0f}" if run else "",
            "peak memory": f"{run['peak_memory_mib'] / 1024:.1f} GiB" if run else "",
        }
        for name, (figures, run) in rows.items()
    ]


def accuracy_table(folders: dict[str, Path]) -> list[dict[str, str]]:
    """Accuracy in and out of domain, and what the answers look like."""
    from rectune.evaluation.compare import read_evaluation

    table = []
    for name, folder in folders.items():
        for benchmark, numbers in read_evaluation(folder)["benchmarks"].items():
            avg, samples = numbers["avg"], numbers["samples"]
            shape = numbers["operations"]
            two = sum(
                count for operations, count in shape.items() if operations.isdigit() and int(operations) >= 2
            )
            table.append(
                {
                    "model": name,
                    "problems": f"{benchmark} ({DOMAINS[benchmark]})",
                    "accuracy": f"{100 * avg['mean']:.1f} [{100 * avg['low']:.1f}, {100 * avg['high']:.1f}]",
                    "stopped": f"{numbers['stopped']:.0%}",
                    "tokens": f"{numbers['tokens']:.1f}",
                    "one operation": f"{shape.get('1', 0) / samples:.0%}",
                    "two or more": f"{two / samples:.0%}",
                    "no calculation": f"{shape.get('none', 0) / samples:.0%}",
                }
            )
    return sorted(table, key=lambda row: list(DOMAINS).index(row["problems"].split()[0]))


def verdict(dft: Path, sft: Path) -> list[str]:
    """One sentence per domain: the paired difference DFT - SFT, whichever way it falls."""
    from rectune.evaluation.compare import compare_evaluations

    lines = []
    for benchmark, numbers in compare_evaluations(dft, sft)["benchmarks"].items():
        gain = numbers["difference"]
        interval = (
            f"95 % interval {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}, p = {gain['p_value']:.2g}"
        )
        if gain["low"] > 0 or gain["high"] < 0:
            winner, loser = ("DFT", "SFT") if gain["mean"] > 0 else ("SFT", "DFT")
            what = f"{winner} beats {loser} by {100 * abs(gain['mean']):.1f} points"
        else:
            what = "no difference can be shown"
        lines.append(f"{DOMAINS[benchmark]:14} {what} (DFT - SFT {100 * gain['mean']:+.1f}, {interval})")
    return lines


if __name__ == "__main__":
    sys.exit(run(main))
