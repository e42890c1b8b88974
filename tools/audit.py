"""Look the pinned packages up in the database of known vulnerabilities: what `make audit` runs.

    .venv/bin/python -m tools.audit

pip-audit is fetched by uv and reads the lock file as it is. A database that does not answer checks nothing, and is no
failure: a change must not wait for it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

UV = str(Path(sys.executable).parent / "uv")
COMMAND = [UV, "tool", "run", "pip-audit", "--requirement", "requirements.lock", "--require-hashes", "--disable-pip"]
# What uv and pip-audit say of an index or a database that they cannot reach.
AWAY = re.compile(
    r"ConnectionError|ConnectTimeout|Max retries exceeded|Could not connect|Failed to fetch|error sending request|"
    r"Name or service not known|Temporary failure in name resolution|ServiceError|50[234] Server Error"
)


def main(command: list[str] = COMMAND) -> int:
    """0 where nothing is known, or nothing could be asked; 1 with the list of pip-audit."""
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode == 0:
        return 0
    if "Found " not in done.stdout + done.stderr and AWAY.search(done.stderr):
        print("audit: the database does not answer, nothing was checked", file=sys.stderr)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
