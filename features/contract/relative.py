"""Request-relative columns: how a number of a candidate stands among those of the other candidates of its request."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from features.contract.columns import ColumnSpec, Numeric, RelativeKind
from features.contract.log import Counter, History, Interactions

CANDIDATES = "candidates"  # the column of the kind `count`


@dataclass(frozen=True)
class RelativeColumn:
    """One number of a candidate that depends on the other candidates.

    Args:
        name: of the column.
        kind: how it is computed (`features.point_in_time.relative`).
        of: the counter or item column that is compared; None for `count`, which compares nothing.
    """

    name: str
    kind: RelativeKind
    of: str | None

    @property
    def column(self) -> Numeric:
        """How it is scaled."""
        return Numeric(type="numeric", transform="log1p" if self.kind == "count" else "none")


def relative_columns(
    counters: Mapping[str, Counter], item_columns: Mapping[str, ColumnSpec]
) -> tuple[RelativeColumn, ...]:
    """The columns that counters of items and item columns declare, in their order; the number of candidates is last."""
    declared = [(name, counter.relative) for name, counter in counters.items()]
    declared += [(name, spec.relative) for name, spec in item_columns.items() if isinstance(spec, Numeric)]
    found = [
        RelativeColumn(f"{name}_{kind}", kind, name) for name, kinds in declared for kind in kinds if kind != "count"
    ]
    if any("count" in kinds for _, kinds in declared):
        found.append(RelativeColumn(CANDIDATES, "count", None))
    return tuple(found)


def refused_relative(
    log: Interactions,
    history: History,
    counters: Mapping[str, Counter],
    tables: Mapping[str, Mapping[str, ColumnSpec]],
    of_requests: Container[str],
    reserved: frozenset[str],
) -> Iterator[str]:
    """What is wrong with the columns that are declared `relative`, and the way out.

    Args:
        log, history, counters: of the contract.
        tables: columns of `items` and `users`.
        of_requests: counters that are one number for all candidates.
        reserved: names that the feature set uses itself.
    """
    sections: dict[str, Mapping[str, ColumnSpec]] = {
        "users.columns": tables["users"],
        "interactions.context": log.context,
        "history.columns": history.columns,
    }
    shared = [
        f"{section}.{name}"
        for section, columns in sections.items()
        for name, spec in columns.items()
        if isinstance(spec, Numeric) and spec.relative
    ]
    shared += [f"counters.{name}" for name, counter in counters.items() if name in of_requests and counter.relative]
    for where in shared:
        yield (
            f"{where}.relative: is one number for all candidates of a request, so none stands above another. Declare "
            "it of a counter of items or of a numeric item column"
        )
    declared = relative_columns(counters, tables["items"])
    if not declared:
        return
    if log.negatives is not None:
        yield (
            "interactions.negatives: a positive and the negatives drawn for it are no list that was ranked, so nothing "
            "can be `relative` to it. Remove `relative`, or learn from a log that holds what was shown"
        )
    elif log.request is None:
        yield (
            "interactions.request: missing. `relative` compares the candidates of one request: name the column of its "
            "id, e.g. impression_id, or remove `relative`"
        )
    both = [column.of for column in declared if column.of in counters and column.of in tables["items"]]
    if both:
        yield f"relative: {both[0]!r} is a counter and an item column. Rename one of the two, to tell what is compared"
        return
    names = [column.name for column in declared]
    taken = {*log.context, *counters, *tables["items"], *tables["users"], *log.labels, *reserved}
    for name in names:
        if name in taken or names.count(name) > 1:
            yield f"relative: makes a column {name!r}, but there is another of that name. Rename one of the two"
            return
