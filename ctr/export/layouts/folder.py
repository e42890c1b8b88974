"""A bundle as it is, copied and loaded where it lies then."""

from __future__ import annotations

from pathlib import Path

from ctr.export.layouts.files import copy_bundle
from ctr.serving.bundle import Bundle
from ctr.serving.ranker import Ranker


def write_copy(bundle: Bundle, folder: Path) -> float:
    """Copy every file of a bundle, load the copy as a server does and replay its golden requests.

    Args:
        bundle: a verified one.
        folder: an empty one.

    Returns:
        The largest `logit_difference` of the replay.

    Raises:
        DataError: a file of the bundle changed while it was copied.
        NumericalError: the copy gives other scores.
    """
    copy_bundle(bundle, folder)
    return Ranker.load(folder).replay()
