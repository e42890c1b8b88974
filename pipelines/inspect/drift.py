"""Compare a new feature set with a base: a table, a figure, and exit code 3 if there is drift."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from features.contract.settings import validate
from features.errors import ConfigError
from features.monitor.drift.compare import Change, ColumnDrift, Drift, DriftSettings, RowSelection, compare
from features.monitor.profile.file import load_profile
from features.store.feature_set import SPLITS
from pipelines.cells import narrow_table

DRIFT = 3  # done, and drift was found


def drift_between(
    base: Path,
    new: Path,
    split: str | None,
    days: tuple[int | None, int | None],
    overrides: dict[str, Any],
    picture: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Compare the profiles of two feature sets, print what changed, and return the JSON summary.

    Args:
        base, new: folders of feature sets, or their `profile.json`.
        split: train, valid or test; default all rows.
        days: numbers of newest UTC days of the base and the new one; default all.
        overrides: `--set drift.KEY=VALUE`.
        picture: PNG file to write; default none.
        console: where messages are printed.

    Raises:
        ConfigError: no such split, no rows in it, an impossible threshold.
        DataError: no profile, or one of another format.
    """
    chosen = next((name for name in SPLITS if name == split), None)
    if split is not None and chosen is None:
        raise ConfigError(f"--split {split}: choose one of {', '.join(SPLITS)}.")
    settings = validate(DriftSettings, overrides, "--set drift")
    parts = [RowSelection(chosen, newest) for newest in days]
    drift = compare(load_profile(base), load_profile(new), settings, *parts)
    console.print(_table(drift, f"{base} ({drift.base_rows:,} rows) against {new} ({drift.new_rows:,} rows)"))
    console.print(_sentence(drift))
    for option, asked, compared in (
        ("--base-days", days[0], drift.base_days),
        ("--new-days", days[1], drift.new_days),
    ):
        if (told := _more_days(option, asked, compared)) is not None:
            console.print(told, style="yellow")
    if picture is not None:
        # matplotlib takes a second to import
        from ctr.reporting.figures import save_png
        from pipelines.inspect.drift_figure import drift_figure

        save_png(drift_figure(drift), picture)
        console.print(f"picture: {picture}")
    return {
        "status": "drift" if drift.found else "done",
        "exit_code": DRIFT if drift.found else 0,
        "rows": {"base": drift.base_rows, "new": drift.new_rows},
        "days": {"base": list(drift.base_days), "new": list(drift.new_days)},
        "thresholds": settings.model_dump(),
        "columns": [_as_json(column) for column in drift.columns],
    }


def _as_json(column: ColumnDrift) -> dict[str, Any]:
    return {
        "column": column.column,
        "verdict": column.verdict,
        "changes": {
            change.measure: {
                name: value
                for name, value in (
                    ("base", change.base),
                    ("new", change.new),
                    ("size", change.size),
                    ("chance", change.chance),
                    ("alarm", change.alarm),
                )
                if value is not None
            }
            for change in column.changes
        },
    }


def _sentence(drift: Drift) -> str:
    drifted = [column.column for column in drift.columns if column.alarm]
    if drifted:
        return f"drift in {len(drifted)} of {len(drift.columns)} columns, first in {drifted[0]}"
    unclear = sum(column.verdict == "too few rows" for column in drift.columns)
    told = f"; {unclear} with too few rows" if unclear else ""
    return f"no drift in {len(drift.columns)} columns{told}"


def _more_days(option: str, asked: int | None, compared: tuple[str, str]) -> str | None:
    """What is compared instead of so many days; None where these are."""
    first, last = compared
    count = (date.fromisoformat(last) - date.fromisoformat(first)).days + 1
    if asked is None or count <= asked:
        return None
    return (
        f"{option} {asked}: {count} days are compared, {first} to {last}. Of so many days a profile counts runs, all "
        "days of one together; build a feature set of 64 days or fewer to compare single ones."
    )


def _table(drift: Drift, title: str) -> Table:
    table = narrow_table(title)
    table.add_column("column", overflow="fold")
    table.add_column("verdict")
    for heading in ("PSI", "JS", "share of", "base", "new", "chance"):
        table.add_column(heading, justify="left" if heading == "share of" else "right", no_wrap=True)
    for column in drift.columns:
        share = next((change for change in column.changes if change.base is not None), None)
        table.add_row(
            column.column,
            column.verdict,
            _size(column.change("psi")),
            _size(column.change("js")),
            "" if share is None else _mark(share, share.measure.replace("_", " ")),
            "" if share is None else f"{share.base:.2%}",
            "" if share is None else f"{share.new:.2%}",
            f"{min(change.chance for change in column.changes):.1g}" if column.changes else "",
            style="bold red" if column.alarm else None,
        )
    return table


def _size(change: Change | None) -> str:
    return "" if change is None else _mark(change, f"{change.size:.3f}")


def _mark(change: Change, text: str) -> str:
    """The text, with a star if the measure alarms."""
    return f"{text} *" if change.alarm else text
