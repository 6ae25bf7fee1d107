"""`make demo`: does DFT fit these demonstrations, and did it help? Two commands that you could type, and one page.

SmolLM2-135M learns to write the calculation that solves a word problem of GSM8K. First the data are diagnosed under
the model; then SFT and DFT start from the same weights and read the same rows in the same order, and base, SFT and DFT
answer held-out GSM8K problems (in domain) and SVAMP problems (out of domain). Run again, it resumes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from rectune.cli.app import main as rectune

RECIPE = files("rectune") / "assets" / "demo.toml"
SLOW = {"max-steps": "14", "limit": "32", "eval-split-size": "0.04"}
"""Without bfloat16 products in hardware training is five times slower: 224 of the 1,400 rows to learn from and 56 to
watch, 32 problems of each benchmark."""
IN, OUT = "gsm8k-calculations", "svamp-calculations"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rectune.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/demo"), help="where the runs go (default: %(default)s)"
    )
    parser.add_argument("--model", help="base model instead of the recipe's")
    parser.add_argument("--max-steps", help="optimizer steps instead of one pass over 1,400 rows")
    parser.add_argument("--limit", help="problems of each benchmark instead of all")
    parser.add_argument(
        "-n", "--num-samples", default="4", help="answers to each problem (default: %(default)s)"
    )
    parser.add_argument("--seeds", default="1", help="runs of each objective (default: %(default)s)")
    parser.add_argument("--seconds", default="30", help="of the diagnosis (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.model is None and options.max_steps is None and options.limit is None and is_slow():
        print(
            "demo: this processor has no bfloat16 products, so the demo is a smaller one of "
            f"{SLOW['max-steps']} steps and {SLOW['limit']} problems; --max-steps 88 is the whole of it",
            file=sys.stderr,
        )
        flags = SLOW
    else:
        given = {"max-steps": options.max_steps, "limit": options.limit}
        flags = {name: value for name, value in given.items() if value}
    recipe, out = (
        [str(RECIPE), *(["--model", options.model] if options.model else [])],
        str(options.output_dir),
    )
    diagnose = ["diagnose", *recipe, "--seconds", options.seconds, "--output-dir", f"{out}/diagnosis"]
    compare = [
        "compare",
        *recipe,
        *(word for name, value in flags.items() for word in (f"--{name}", value)),
        "--objectives",
        "sft,dft",
    ]
    compare += ["--seeds", options.seeds, "--tasks-in", IN, "--tasks-out", OUT, "--margin", "3"]
    compare += ["-n", options.num_samples, "--max-new-tokens", "32", "--output-dir", out]
    return step(diagnose) or step(compare)


def is_slow() -> bool:
    """Whether training would be in float32, on a CPU."""
    import torch

    from rectune.models.load import choose_dtype
    from rectune.runtime.distributed import default_device

    return choose_dtype("auto", default_device())[0] == torch.float32


def step(command: list[str]) -> int:
    """Show a command as one would type it, and run it."""
    print(f"\n$ rectune {shlex.join(command)}\n", file=sys.stderr)
    return rectune(command)


if __name__ == "__main__":
    sys.exit(main())
