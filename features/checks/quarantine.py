"""Rows that are put aside: written with the reason, and left out of the log."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from features.checks.row_rules import ROW, Violation, numbered
from features.chunk import EVENT, ITEM, LABEL, REQUEST, SPLIT, TIME, USER, WEIGHT
from features.contract.contract import Contract
from features.errors import DataError
from features.sources.tables import scan

QUARANTINE = "quarantine.parquet"


def quarantine(
    frame: pl.LazyFrame, path: str, contract: Contract, violations: Iterable[Violation], rows: int, staging: Path
) -> tuple[pl.LazyFrame, int]:
    """Write the rows of these violations to `quarantine.parquet` and take them out of the log.

    The file has the log's own columns as they were (those under fixed names, if the log is not read row by row:
    exploded impressions, several files, `--as-of`), with `reason` (`check: column`, joined by `; `) and `row` (number
    of the row as read, from 0) before them; in the log's order.

    Args:
        frame: the log under fixed names.
        path: of it, for messages.
        contract: `checks.max_quarantine`, and how the log is read.
        violations: whose `places_N` are to go.
        rows: of the log.
        staging: folder of the feature set.

    Returns:
        The rows that stay, in their order, and how many were put aside.

    Rows beyond a cap count for nothing there: however many a bot sends, what is left is as good as without it.

    Raises:
        DataError: too many or all of them. The file is then kept beside the feature set's versions.
    """
    violations = list(violations)
    reasons = _reasons(violations)
    counted = np.unique(np.concatenate([[], *(one.places_N for one in violations if one.policy != "cap")]))
    file = staging / QUARANTINE
    _write(frame, path, contract, reasons, rows, file)
    share = len(counted) / rows
    if share > contract.checks.max_quarantine or reasons.height == rows:
        # Named by the contract: a later attempt replaces it, so that they do not pile up.
        kept = staging.parent / f"quarantine-{contract.fingerprint()[:8]}.parquet"
        file.replace(kept)
        counts = reasons.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
        by_reason = ", ".join(f"{count} for {reason}" for reason, count in counts.rows())
        raise DataError(
            f"{path}: {len(counted)} of {rows} rows ({share:.2%}) would be put aside ({by_reason}), more than "
            f"checks.max_quarantine {contract.checks.max_quarantine:g} allows. They lie in {kept}; nothing was "
            "published. Correct the export, or raise the limit."
        )
    stay = numbered(frame).join(reasons.lazy().select(ROW), on=ROW, how="anti", maintain_order="left")
    return stay.drop(ROW), reasons.height


def rows_as_read(contract: Contract, path: str, rows: int) -> pl.LazyFrame | None:
    """The log with its own columns, where its rows are those of the frame one by one; else None."""
    if contract.interactions.tells_clicks or contract.split.by == "files":
        return None
    raw = scan(path, contract.interactions.format)
    # `--as-of` leaves rows out.
    return raw if raw.select(pl.len()).collect(engine="streaming").item() == rows else None


def _reasons(violations: Iterable[Violation]) -> pl.DataFrame:
    """One line a row: its number and all its reasons."""
    long = pl.concat(
        pl.DataFrame({ROW: violation.places_N}, schema={ROW: pl.Int64}).with_columns(
            pl.lit(f"{violation.check}: {violation.column}").alias("reason")
        )
        for violation in violations
    )
    return long.group_by(ROW, maintain_order=True).agg(pl.col("reason").str.join("; ")).sort(ROW)


def _write(frame: pl.LazyFrame, path: str, contract: Contract, reasons: pl.DataFrame, rows: int, file: Path) -> None:
    raw = rows_as_read(contract, path, rows)
    if raw is None:
        raw = _renamed(frame, contract)
    own = {name: f"log.{name}" for name in raw.collect_schema().names() if name in ("reason", "row", ROW)}
    rows_out = (
        numbered(raw.rename(own))
        .join(reasons.lazy(), on=ROW, how="inner", maintain_order="left")
        .select("reason", pl.col(ROW).alias("row"), pl.exclude("reason", ROW))
    )
    rows_out.sink_parquet(file, engine="streaming")


def _renamed(frame: pl.LazyFrame, contract: Contract) -> pl.LazyFrame:
    """The frame's columns as the person who reads the file calls them."""
    log = contract.interactions
    names = {USER: log.user, ITEM: log.item, TIME: log.time, LABEL: "label", WEIGHT: log.weight, REQUEST: log.request}
    columns = frame.drop(EVENT, SPLIT, strict=False).with_columns(pl.from_epoch(TIME, "us"))
    return columns.rename(lambda key: names.get(key) or key.removeprefix("_"))
