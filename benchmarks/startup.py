"""How long the command line takes to answer, side by side with TRL's.

    python benchmarks/startup.py        half a minute

Whole processes, from start to end, in turns; the bare interpreter is the limit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from common import entry, ratios, save, show, side_by_side


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    programs = Path(sys.executable).parent
    contestants = {
        "python -c pass": partial(run, sys.executable, "-c", "pass"),
        "import rectune": partial(run, sys.executable, "-c", "import rectune"),
        "rectune --help": partial(run, str(programs / "rectune"), "--help"),
    }
    if find_spec("trl") is not None:
        contestants["trl --help"] = partial(run, str(programs / "trl"), "--help")
    table = ratios(side_by_side(contestants, rounds=options.rounds), "rectune --help")
    show("whole processes", table)
    limit, trl = table["python -c pass"]["seconds"], table.get("trl --help", {}).get("seconds")
    save(
        "startup",
        table,
        [
            entry(
                "rectune --help, s", table["rectune --help"]["seconds"], trl=trl, limit=limit,
                ratio=table["trl --help"]["ratio"] if trl else None, to="trl", target=0.2,
            ),
            entry("import rectune, s", table["import rectune"]["seconds"], limit=limit, target=0.1),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
