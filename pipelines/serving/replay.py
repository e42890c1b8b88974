"""`quadrank replay`: served features and scores computed again, and the share of each that is equal."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ctr.serving.ranker import Ranker
from ctr.serving.served.logged import read_answers
from ctr.serving.served.replay import SCORE, Replayed, replay
from ctr.serving.served.shares import Share, Shares
from features.contract.contract import Contract
from features.errors import ConfigError, DataError
from features.requests.as_logged import open_as_logged
from features.sources.files import find_files


def replay_log(folder: Path, bundle: Path, rows: int | None, root: str | None, console: Console) -> dict[str, Any]:
    """Compute logged answers again, print the shares that are equal, and return them for JSON.

    Args:
        folder: of the served log.
        bundle: the one that served, or a pointer to it.
        rows: how many of the newest answers; default all.
        root: folder that relative paths of the bundle's contract start from, its `root`, which a bundle does not keep;
            default: the current folder.
        console: where messages are printed.

    Raises:
        ConfigError: no part of a log, or no answer of the bundle's version.
        DataError: a part that is damaged, or a raw log that cannot be read.
    """
    ranker = Ranker.load(bundle)
    encoder = ranker.encoder
    contract = encoder.contract if root is None else encoder.contract.model_copy(update={"root": root})
    lacking = _why_no_raw_log(contract)
    with nullcontext() if lacking else open_as_logged(replace(encoder, contract=contract)) as raw_log:
        found = replay(islice(read_answers(folder), rows), ranker, raw_log)
    if not found.compared:
        newest, more = ("", "") if rows is None else ("the newest ", " Look at more with --rows, or")
        raise ConfigError(
            f"{folder}: none of {newest}{found.answers} answers is of {ranker.model_version}; there are those of "
            f"{', '.join(sorted(found.other_versions))}.{more} {'name' if more else 'Name'} the bundle that served "
            "with --bundle."
        )
    console.print(f"{found.compared} answers of {ranker.model_version} computed again")
    if found.other_versions:
        others = ", ".join(f"{name} ({count})" for name, count in found.other_versions.items())
        console.print(f"not computed: answers of {others}")
    if lacking:
        console.print(f"features are not computed again, scores alone: {lacking}")
    if found.without_user:
        console.print(f"{found.without_user} answers have no user that the raw log knows: their pasts are not compared")
    if found.without_score:
        console.print(
            f"{found.without_score} answers are of hashed users, whose index the model reads and the log does not "
            "hold: their scores are not compared"
        )
    _print(found, console)
    return {
        "answers": found.answers,
        "compared": found.compared,
        "other_versions": dict(found.other_versions),
        "without_user": found.without_user,
        "without_score": found.without_score,
        "raw_log": lacking is None,
        "shares": {name: of.share for name, of in found.features.of.items()},
        "scores": found.scores.of.get(SCORE, Share()).share,
        "examples": {name: of.examples for name, of in _all(found).items() if of.examples},
    }


def _why_no_raw_log(contract: Contract) -> str | None:
    """Why there is nothing to compute features from; None where there is."""
    if contract.interactions.time is None or contract.history.given is not None:
        return "the rows of the raw log bring their histories"
    try:
        find_files(contract.resolve(contract.interactions.path))
    except DataError as error:
        return f"{error} A bundle keeps no `root` of its contract: name the folder of the raw log with --root."
    return None


def _all(found: Replayed) -> dict[str, Share]:
    shares: tuple[Shares, Shares] = (found.features, found.scores)
    return {name: of for each in shares for name, of in each.of.items()}


def _print(found: Replayed, console: Console) -> None:
    table = Table(title="equal offline", title_justify="left")
    for name in ("column", "share", "compared"):
        table.add_column(name, justify="left" if name == "column" else "right")
    for name, of in _all(found).items():
        share = "" if of.share is None else f"{of.share:.6f}"
        table.add_row(name, share, f"{of.compared:,}")
    console.print(table)
    for name, of in _all(found).items():
        for one in of.examples:
            console.print(
                f"{name} of request {one['request']}, place {one['place']}: served {one['served']!r}, "
                f"offline {one['offline']!r}"
            )
