"""Known security holes of the pinned packages, by pip-audit: where it is installed and its database can be reached.

python scripts/audit.py
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SECONDS = 60


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
        "--progress-spinner",
        "off",
    ]
    try:
        done = subprocess.run([*command, "--timeout", "10"], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"audit: skipped, its database did not answer within {SECONDS} s")
        return 0
    # 1 with a table on stdout: holes were found. 1 without: it could not ask.
    if done.returncode and not done.stdout.strip():
        print(
            f"audit: skipped, its database cannot be reached ({done.stderr.strip().splitlines()[-1][:200]})"
        )
        return 0
    print("audit:", (done.stdout or done.stderr).strip())
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
