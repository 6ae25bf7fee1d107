"""A whole comparison at mini scale: three objectives, three seeds, sixteen samples of 800 problems, entropy control.

    python benchmarks/comparison.py --against ../other      a comparison takes five minutes of a processor

Whole processes of `rectune compare`, one thread each, in turns; with `--against` also that of another checkout, whose
weights and answers have to be the same. Seconds are of the processor, grading processes included, so that what else
the machine does hardly matters. `--problems 160` asks fewer. The base model is trained once, in RECTUNE_CACHE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import entry, ratios, save, show

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from recipes.mini.task import DOMAINS, _base_settings, load_mini, make_task  # noqa: E402

from rectune.config import load_config  # noqa: E402
from rectune.training.trainer import train  # noqa: E402


def command(task: Path, problems: int, folder: Path) -> list[str]:
    """What a user would type, but for the sweep, which older versions do not run by default."""
    mini, files = load_mini(), {}
    for name in DOMAINS:
        lines = (task / f"{name}.jsonl").read_text().splitlines(keepends=True)
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(lines[: max(1, len(lines) * problems // 800)]))
    given = {
        **mini["settings"],
        "model": task / "base/model",
        "data": task / "demonstrations.jsonl",
        "eval_data": task / "holdout.jsonl",
        "tasks_in": files["in_domain"],
        "tasks_out": f"{files['other_stories']},{files['more_steps']}",
        "objectives": "sft,dft,power:alpha=0.5",
        "seeds": 3,
        "learning_rate": 1e-3,
        "min_eos_weight": 0,
        "chat_template": "none",
        "num_samples": mini["draws"]["n"],
        "max_new_tokens": mini["draws"]["max_new_tokens"],
    }
    flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "rectune", "compare", *flags]


def seconds(tree: Path, arguments: list[str], out: Path) -> tuple[float, float]:
    """Of the processor, and of the clock."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    new = "automatic_rates" in (tree / "src/rectune/experiments/lr_sweep.py").read_text()
    more = ["--output-dir", str(out), *(["--sweep", "none"] if new else [])]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*arguments, *more], check=True, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - began


def result(out: Path) -> str:
    """A digest of all weights and of all graded answers."""
    digest = hashlib.sha256()
    for path in sorted(out.rglob("model.safetensors")):
        digest.update(path.read_bytes())
    for path in sorted(out.rglob("graded.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        fields = ("problem_id", "sample_index", "token_ids", "logprobs", "verdict")
        digest.update(json.dumps(sorted([line[name] for name in fields] for line in lines)).encode())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--problems", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    task = make_task(load_mini())
    train(load_config(None, _base_settings(task)), resume=True)
    trees = {"rectune compare": HERE, **({"other checkout": options.against} if options.against else {})}
    used: dict[str, list[float]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        arguments = command(task, options.problems, Path(folder))
        for number in range(options.rounds):
            results = set()
            for name, tree in trees.items():
                out = Path(folder, f"{name}-{number}")
                processor, clock = seconds(tree.resolve(), arguments, out)
                used[name].append(processor)
                results.add(result(out))
                print(f"{name}: {processor:.1f} s of the processor, {clock:.1f} s", flush=True)
            if options.against:
                same = len(results) == 1
                print("the same weights and answers" if same else "other weights or answers", flush=True)
    table = ratios(used, "rectune compare")
    show(f"a comparison on {options.problems} problems, seconds of the processor", table)
    other = table.get("other checkout")
    what = f"comparison on {options.problems} problems, s"
    line = entry(what, table["rectune compare"]["seconds"], other=other["seconds"] if other else None,
                 ratio=other["ratio"] if other else None, to="other", target=1.5)  # fmt: skip
    save("comparison", table, [line])


if __name__ == "__main__":
    main()
