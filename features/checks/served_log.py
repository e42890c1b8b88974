"""What a served log and its outcomes say of each other: ids that do not fit, and outcomes that do not count."""

from __future__ import annotations

import polars as pl

from features.checks.check_log import Finding
from features.contract.contract import Contract
from features.errors import DataError
from features.sources.served import outcomes_of, served_answers, typed_ids
from features.sources.tables import readable


def refuse_served_ids(contract: Contract, as_of: str | None = None) -> None:
    """Raise DataError, with an example, for ids of a served log that are text where the catalogue has whole numbers."""
    if contract.interactions.served is None:
        return
    path = contract.resolve(contract.interactions.path)
    answers = served_answers(contract, path, as_of)
    for column, table in (("candidates", contract.items), ("user", contract.users)):
        typed = typed_ids(column, table, contract)
        if table is None or typed.meta.eq(pl.col(column)):
            continue
        ids = answers.select(column)
        ids = (ids.explode(column) if column == "candidates" else ids).drop_nulls()
        wrong = ids.filter(typed.is_null()).select(pl.len(), example=pl.col(column).first())
        with readable(path):
            count, example = wrong.collect(engine="streaming").row(0)
        if count:
            hint = " A hashed user has no row of `users`: remove the table." if column == "user" else ""
            raise DataError(
                f"{path}: column {column!r}: {count} ids, e.g. {example!r}, are no whole numbers, but those of "
                f"{contract.resolve(table.path)} are.{hint} Let both name the same ids."
            )


def served_findings(contract: Contract, path: str, as_of: str | None = None) -> tuple[Finding, ...]:
    """Outcomes that do not count, answers that are left out, and hashed users, each with its number."""
    served = contract.interactions.served
    if served is None:
        return ()
    found = outcomes_of(contract, as_of)
    wait = f"{served.wait // 1_000_000} s"
    told = {
        "late": f"{found.late} outcomes came more than {wait} after their answer and do not count. Raise "
        "interactions.served.wait if they should.",
        "early": f"{found.early} outcomes are older than their answer and do not count. Compare the clocks of the "
        "server and of what wrote the outcomes.",
        "unshown": f"{found.unshown} outcomes are of items that their answer did not show, and do not count.",
        "unknown": f"{found.unknown} outcomes are of requests that the log does not hold: of other days, or dropped by "
        "the server (quadrank_log_dropped_total).",
        "repeated": f"{found.repeated} outcomes repeat one of the same request and item, which counts once.",
        "undecided": f"{found.undecided} of {found.answers} answers are younger than {wait} at the end of the log: "
        "their outcomes are not known yet, and they are left out.",
        "twice": f"{found.twice} request ids stand at more than one answer; of an item that several of them "
        "showed, the last counts alone.",
        "anonymous": f"{found.anonymous} of {found.answers} answers have no user and are left out.",
        "hashed": f"{found.hashed} answers have hashed users, whom other tables know by other ids.",
    }
    return tuple(
        Finding("served", "warn", name, rows, found.answers, "", text)
        for name, text in told.items()
        if (rows := getattr(found, name))
    )
