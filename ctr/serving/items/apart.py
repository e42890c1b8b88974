"""A version with more items, made in a process of its own that takes no turn from the threads that answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import msgspec

from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import Upserted, upsert_items
from features.errors import ConfigError, DataError, NewItemsError, NumericalError, QuadRankError

KINDS: dict[str, type[QuadRankError]] = {  # the first that an error is one of
    kind.__name__: kind for kind in (ConfigError, NewItemsError, DataError, NumericalError)
}
NICENESS = 10  # requests come first


def upsert_apart(path: Path, body: bytes, most: int) -> Upserted:
    """As `upsert_items`, of a body of `POST /v1/items`.

    Args:
        path: the bundle.
        body: a JSON object.
        most: items of one request; more are refused.

    Raises:
        What `upsert_items` and `items_of_json` raise.
        RuntimeError: the process ended by itself; says with what, and what it printed.
    """
    # -P: what lies in the server's working folder is not imported.
    command = [sys.executable, "-P", "-m", __name__, str(path), str(most)]
    done = subprocess.run(command, input=body, capture_output=True, check=False)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        printed = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"{path}: making a version ended with {done.returncode}: {printed}") from None
    if "refused" in told:
        raise KINDS[told["refused"]](told["reason"])
    return Upserted(Path(told.pop("path")), **told)


def main(path: str, most: str) -> None:
    """Read a body from stdin, and write to stdout what was made of it, or why not."""
    os.nice(NICENESS)
    raw = msgspec.json.decode(sys.stdin.buffer.read())
    try:
        made = upsert_items(Path(path), lambda encoder: items_of_json(encoder, raw, int(most)))
        told = asdict(made) | {"path": str(made.path)}
    except tuple(KINDS.values()) as error:
        kind = next(name for name, known in KINDS.items() if isinstance(error, known))
        told = {"refused": kind, "reason": str(error)}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
