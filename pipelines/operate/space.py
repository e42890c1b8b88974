"""Room on the disk for a job, asked for before its work starts: about what the last one took."""

from __future__ import annotations

from features.errors import DataError
from features.store.disk import folder_bytes, require_space
from features.store.pointer import NEWEST, follow
from pipelines.workspace import METRICS, Workspace

LEAST = 64 * 2**20  # bytes: of a first job, of which nothing is known
MARGIN = 1.2
COPIES_OF_A_BUNDLE = 2  # in bundles/, and in the artifacts of MLflow


def bytes_of_a_job(workspace: Workspace, name: str) -> int:
    """What a run and its bundle will take, bytes: as much as the last ones, and a fifth more."""
    runs = sorted(path.parent for path in workspace.runs.glob(f"*-{name}-*/{METRICS}"))
    bundles = workspace.bundles(name)
    try:
        newest = follow(bundles / NEWEST)
    except DataError:
        newest = bundles / "none"  # it names nothing, which `quadrank doctor` says and a job mends
    last = (folder_bytes(runs[-1]) if runs else 0) + COPIES_OF_A_BUNDLE * folder_bytes(newest)
    return max(LEAST, int(MARGIN * last))


def require_room(workspace: Workspace, name: str) -> None:
    """Refuse a job that the disk has no room for. Raises DiskError; its feature set is asked for when it is built."""
    require_space(workspace.root.absolute(), bytes_of_a_job(workspace, name), f"a run of {name!r} with its bundle")
