"""Columns of the raw log that a user's past is made of: what its event columns, its filter and the label read."""

from __future__ import annotations

from features.contract.columns import Gap, Residual
from features.contract.contract import Contract
from features.contract.labels import CLICKED_NAMES, LABEL_NAMES, columns_read


def event_columns(contract: Contract) -> frozenset[str]:
    """Names that columns of an event may have: of those that are none in the log, nothing is read.

    User, item and time stand for themselves. Where an event column is the label, what the label is made of is read.
    """
    log, history = contract.interactions, contract.history
    texts = [spec.source or name for name, spec in history.columns.items() if not isinstance(spec, Gap | Residual)]
    texts += [text for text in (history.events if history.events != "all" else None, log.label) if text]
    found = frozenset().union(*map(columns_read, texts))
    if log.tells_clicks:
        found |= set(CLICKED_NAMES)
    computed = set(LABEL_NAMES) if log.label not in LABEL_NAMES else set(LABEL_NAMES) - {log.label}
    return found - computed - {log.user, log.item, log.time}
