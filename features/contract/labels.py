"""Features that would tell the answer: columns that read the label, or what the label is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from features.contract.columns import ColumnSpec
from features.contract.log import Interactions

# Names of the computed label in expressions over the log; of a candidate, whether it was clicked.
LABEL_NAMES = ("label", "_label")
CLICKED_NAMES = ("clicked", "_clicked")


def columns_read(text: str) -> frozenset[str]:
    """Columns that a contract's text may read: it names one, or is an SQL expression over some.

    Without the table both are possible (`click-through` is a column or a difference), so both are given.
    """
    try:
        roots = pl.sql_expr(text).meta.root_names()
    except pl.exceptions.PolarsError:
        roots = []
    return frozenset({text, *roots})


def label_columns(log: Interactions) -> dict[str, str]:
    """Columns of the log that a label is made of, each with the key of the contract that reads it.

    User, item, time and request are no such columns, even where a label compares them: every request knows them.
    """
    found = dict.fromkeys(LABEL_NAMES, "interactions.label")
    if log.candidates is not None:
        key = "clicked" if log.candidates.clicked else "column"
        clicked = (*CLICKED_NAMES, log.candidates.clicked or log.candidates.column)
        found |= dict.fromkeys(clicked, f"interactions.candidates.{key}")
    if log.served is not None:
        found |= dict.fromkeys(CLICKED_NAMES, "interactions.served")
    targets = {f"interactions.labels.{name}": text for name, text in log.labels.items()}
    if log.label is not None:
        targets["interactions.label"] = log.label
    for key, text in targets.items():
        found |= dict.fromkeys(columns_read(text), key)
    known = {log.user, log.item, log.time, log.request}
    return {name: key for name, key in found.items() if name not in known}


def label_features(log: Interactions, sections: Mapping[str, Mapping[str, ColumnSpec]]) -> Iterator[str]:
    """What is wrong with each column, of these sections of the contract, that reads a label.

    Args:
        log: whose labels, and what it allows.
        sections: key of the contract -> columns by name that are computed from the log.
    """
    made_of = label_columns(log)
    for name in log.allow_label_features:
        if name not in made_of:
            yield f"interactions.allow_label_features: no label reads {name!r}; remove it from the list"
    for section, columns in sections.items():
        for name, spec in columns.items():
            text = spec.source or name
            read = sorted((columns_read(text) & made_of.keys()) - set(log.allow_label_features))
            if not read or text in log.allow_label_features:
                continue
            first = text if text in read else read[0]
            yield (
                f"{section}.{name}: reads {first!r}, which the label is made of ({made_of[first]}): it would tell the "
                "answer, and no request knows it. Remove it; or, if it is known before the outcome, say "
                f"`interactions.allow_label_features: [{first if text in read else ', '.join(read)}]`"
            )
