"""Write requirements.lock: what `pip install rectune[peft,gguf]` brings, each release with the SHA-256 of its archives.

pip itself resolves (`--dry-run --report`) against constraints.txt, so nothing is installed. The lock is for the
Python and platform that runs this. Where pip's index also offers another build of a pinned release (torch: with CUDA
and for CPUs), the sums of both are listed. Install with `pip install --require-hashes -r requirements.lock`.

    python scripts/lock.py
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = ("peft", "gguf")


def main() -> int:
    wanted = requirements()
    sums: dict[str, set[str]] = {}
    versions: dict[str, str] = {}
    # `===` takes the build without a local label, as the public index has it; `==` what this index prefers.
    for torch in ("==", "==="):
        for name, version, sha256 in resolve([*wanted, f"torch{torch}{pinned('torch')}"]):
            sums.setdefault(name, set()).add(sha256)
            versions[name] = version.partition("+")[0]
    lines = [
        f"{name}=={versions[name]} \\\n"
        + " \\\n".join(f"    --hash=sha256:{one}" for one in sorted(sums[name]))
        for name in sorted(versions)
    ]
    system = (
        f"Python {sys.version_info.major}.{sys.version_info.minor}, {platform.system()} {platform.machine()}"
    )
    made = "scripts/lock.py from constraints.txt"
    head = f"# Made by {made} for {system}: rectune[{','.join(EXTRAS)}] without rectune.\n"
    LOCK.write_text(head + "\n".join(lines) + "\n")
    print(f"{LOCK.name}: {len(lines)} packages")
    return 0


def requirements() -> list[str]:
    """What the package and its released extras need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(one for extra in EXTRAS for one in extras[extra])]


def pinned(name: str) -> str:
    """The version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def resolve(wanted: list[str]) -> list[tuple[str, str, str]]:
    """Name, version and SHA-256 of every archive that pip would install into an empty environment."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "constraints.txt"), *wanted], stdout=subprocess.PIPE, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return [
        (
            one["metadata"]["name"].lower().replace("_", "-").replace(".", "-"),
            one["metadata"]["version"],
            one["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for one in found
    ]


if __name__ == "__main__":
    sys.exit(main())
