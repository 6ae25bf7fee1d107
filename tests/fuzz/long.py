"""`make fuzz`: every target with new examples for a given time, by hypothesis, and by atheris where it is installed.

Stops at the first failure with the smallest example that hypothesis finds. atheris drives the same targets by the
coverage of rectune's code: hypothesis draws from atheris' bytes.

    python tests/fuzz/long.py --seconds 3600 [TARGET...]
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

ROUND = 50  # examples between looks at the clock


def main() -> int:
    """Share the time out over targets and engines; each engine runs a target in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="of each engine, over all targets")
    parser.add_argument("--backend", choices=("hypothesis", "atheris"), help="in this process, one target")
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # a name of the hub is fair input, but nobody is to be asked for it
    warnings.simplefilter("ignore")
    logging.getLogger("rectune").setLevel(logging.CRITICAL)
    if options.backend:
        (name,) = options.targets
        (by_hypothesis if options.backend == "hypothesis" else by_atheris)(name, options.seconds)
        return 0
    from fuzz.targets import TARGETS  # not before atheris, which has to see every import

    options.targets = options.targets or list(TARGETS)
    engines = ["hypothesis", *(["atheris"] if find_spec("atheris") else [])]
    if "atheris" not in engines:
        print("atheris is not installed, so that half is left out (pip install atheris)")
    for name in options.targets:
        for engine in engines:
            share = options.seconds / len(options.targets)
            command = [sys.executable, __file__, "--backend", engine, "--seconds", str(share), name]
            if subprocess.run(command).returncode:
                print(f"fuzz: {name} fails ({engine})")
                return 1
    return 0


def by_hypothesis(name: str, seconds: float) -> None:
    """Rounds of new examples until the time is over."""
    from fuzz.targets import TARGETS

    start, done = time.monotonic(), 0
    while time.monotonic() - start < seconds:

        @seed(time.time_ns())
        @settings(max_examples=ROUND, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def run(data: st.DataObject) -> None:
            nonlocal done
            done += 1
            TARGETS[name](data.draw)

        run()
    print(
        f"{name}: {done:,} examples in {time.monotonic() - start:.0f} s, nothing but clear errors", flush=True
    )


def by_atheris(name: str, seconds: float) -> None:
    """Coverage-guided; libFuzzer ends the process when the time is over."""
    import atheris

    with atheris.instrument_imports(include=["rectune"]):
        from fuzz.targets import TARGETS

        for module in ("config", "data.loading", "data.converters", "reporting.report", "grading.files",
                       "grading.math", "diagnosis.page", "evaluation.accuracy"):  # fmt: skip
            __import__(f"rectune.{module}")

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        TARGETS[name](data.draw)

    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))  # long enough for hypothesis to draw a whole input from
    for number in range(20):
        (corpus / str(number)).write_bytes(random.Random(number).randbytes(2000))
    limits = (
        f"-artifact_prefix={corpus}/ -max_total_time={max(1, int(seconds))} -timeout=60 -rss_limit_mb=4096"
    )
    arguments = [sys.argv[0], *limits.split(), "-len_control=0", str(corpus)]
    atheris.Setup(arguments, run.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
