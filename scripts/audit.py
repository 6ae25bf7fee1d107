"""Known security holes of the locked packages, by pip-audit: where it is installed and its database can be reached.

python scripts/audit.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SECONDS = 120


def main() -> int:
    if find_spec("pip_audit") is None:
        print("audit: skipped, pip-audit is not installed (pip install pip-audit)")
        return 0
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(LOCK),
        "--disable-pip",
        "--format",
        "json",
    ]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=SECONDS
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        found = []
    known = [one for one in found if "skip_reason" not in one]
    if not known:
        print("audit: skipped, the database of pip-audit cannot be reached or does not know the packages")
        return 0
    holes = [(one["name"], one["version"], hole) for one in known for hole in one["vulns"]]
    for name, version, hole in holes:
        print(
            f"audit: {name} {version}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no release'}"
        )
    print(f"audit: {len(holes)} known holes in {len(known)} of {len(found)} packages")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
