"""One table of what the benchmarks last found, and of what got worse.

    python benchmarks/table.py

Reads results/*.json, or results/cuda/*.json where there is a GPU.
A figure is compared with the last one of the same processor, threads and torch.
"""

from __future__ import annotations

import json

from common import DEVICE, RESULTS, worse

COLUMNS = ("ours", "trl", "transformers", "other", "limit")


def main() -> None:
    print(f"{'':38}" + "".join(f"{name:>13}" for name in COLUMNS) + f"{'ratio':>8}  to{'':13}target  date")
    found = []
    for path in sorted((RESULTS if DEVICE.type == "cpu" else RESULTS / DEVICE.type).glob("*.json")):
        history = json.loads(path.read_text()).get("history", [])
        if not history:
            continue
        for line in history[-1]["lines"]:
            cells = "".join(f"{line[name]:13,.3g}" if line.get(name) else f"{'':13}" for name in COLUMNS)
            ratio = f"{line['ratio']:8.2f}" if line.get("ratio") is not None else " " * 8
            target = f"{line['target']:6g}" if line.get("target") is not None else " " * 6
            print(
                f"{line['what']:38}{cells}{ratio}  {line.get('to') or '':15}{target}  {history[-1]['machine']['date']}"
            )
        found += worse(history)
    for sentence in found:
        print(sentence)


if __name__ == "__main__":
    main()
