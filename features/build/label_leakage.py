"""Whether item vectors that are learned from clicks leak the labels of training rows."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from features.checks.check_log import Finding
from features.chunk import ITEM, LABEL
from features.contract.contract import Contract
from features.sources.keys import canonical
from features.vectors.read import learned_file

FEWEST_ROWS = 100  # without a vector: of fewer a rate says little
LOWEST_SHARE = 0.5  # of the positive rate of rows with a vector


def label_leakage(contract: Contract, folder: Path, train: pl.LazyFrame) -> tuple[Finding, ...]:
    """A warning for each learned set whose missing vectors predict the label of training rows.

    A click can be what gives its item a vector. Then an item without one has hardly a click in training, whatever it is
    worth later, and a model learns that from the flag of a missing vector.

    Args:
        contract: whose sets were learned.
        folder: of the feature set.
        train: rows of the training window, under the log's fixed names.
    """
    if not contract.learned_sets:
        return ()
    rows = train.filter(pl.col(LABEL).is_not_null()).group_by(ITEM).agg(pl.len(), pl.col(LABEL).cast(pl.Float64).sum())
    of_items = rows.collect(engine="streaming")
    keys = canonical(of_items[ITEM])
    found = []
    for name, spec in contract.learned_sets.items():
        has = keys.is_in(pl.read_parquet(learned_file(folder, name))[spec.id].implode())
        (rows_with, clicks_with), (rows_without, clicks_without) = (
            (int(some["len"].sum()), float(some[LABEL].sum())) for some in (of_items.filter(has), of_items.filter(~has))
        )
        if not rows_with or rows_without < FEWEST_ROWS:
            continue
        rate, rate_without = clicks_with / rows_with, clicks_without / rows_without
        if rate_without < LOWEST_SHARE * rate:
            message = (
                f"embeddings.{name}: of {rows_without} training rows whose item has no vector {rate_without:.1%} are "
                f"positive, of the others {rate:.1%}. A click itself gives its item a vector, so the set leaks "
                "labels: what a missing vector says of them in training, it does not say later. Compare a training "
                "without the set, or with `learn: tables`."
            )
            found.append(Finding("learned", "warn", name, rows_without, rows_with + rows_without, "", message))
    return tuple(found)
