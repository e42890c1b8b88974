"""Whether a model can go on from the weights of another run: refused where they would mean something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ctr.config import ModelConfig
from ctr.training.warm.parent import Parent
from features.contract.columns import Residual
from features.contract.log import Counter
from features.encoding.base import ColumnEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import NumericEncoder
from features.encoding.time import DatePartEncoder
from features.errors import ConfigError
from features.monitor.drift.vectors import MOST_CHANGED, distances, items_of_both
from features.store.feature_set import FeatureSet

# What may change between a run and the one that goes on from it: no weight depends on it.
FREE = {"architecture", "dropout", "id_dropout", "trees", "tree_rate", "tree_leaves", "tree_l2", "tree_patience"}
SECTIONS = ("item", "user", "context", "candidate", "event")
OF_COUNTERS = ("context", "candidate")
TOLERANCE = 0.01  # of a vector's length


def require_agreement(parent: Parent, config: ModelConfig, feature_set: FeatureSet) -> None:
    """Refuse a warm start whose weights would mean something else than they did.

    Args:
        parent: to go on from.
        config: of the model to train.
        feature_set: to train it on.

    Raises:
        ConfigError: another kind or size of model, other columns, labels or vector sets, or other vectors and codes of
            the same items. Names what differs.
    """
    reasons = list(_differences(parent, config, feature_set))
    if reasons:
        raise ConfigError(
            f"--warm-start: this training cannot go on from run {parent.run_id}: {'; '.join(reasons)}. Train once "
            "without --warm-start; later runs can go on from that one."
        )


def _differences(parent: Parent, config: ModelConfig, feature_set: FeatureSet) -> Iterator[str]:
    theirs, ours = parent.model.config.model_dump(), config.model_dump()
    if config.tower == "none":
        yield "trees alone (model.tower none) are grown anew by each run"
    for key in sorted(ours.keys() - FREE):
        if theirs[key] != ours[key]:
            yield f"model.{key} is {ours[key]!r}, it had {theirs[key]!r}"
    old, new, now = parent.feature_set.schema, feature_set.schema, Encoder.load(feature_set.path)
    for section in SECTIONS:
        read = _read_as(section, parent.feature_set, parent.encoder), _read_as(section, feature_set, now)
        yield from _other_columns(section, *read)
    if old.history_max_len != new.history_max_len and config.attention == "transformer":
        yield f"history.max_len is {new.history_max_len}, it was {old.history_max_len}"
    sets = [{one.name: one.width for one in schema.vectors} for schema in (old, new)]
    if list(sets[0].items()) != list(sets[1].items()):
        yield f"its vector sets (name: width) were {sets[0]}, they are {sets[1]}"
        return
    if old.item[0].name == new.item[0].name:
        yield from _other_content(parent, feature_set, now)


def _read_as(section: str, feature_set: FeatureSet, encoder: Encoder) -> dict[str, str]:
    """How each column becomes what the model sees, by name: the kind of its encoder, and of which quantity it is."""
    encoders: Mapping[str, ColumnEncoder] = getattr(encoder, section)
    contract, found = feature_set.contract, {}
    for field in getattr(feature_set.schema, section):
        reader = encoders.get(field.name)  # codes of vectors have none here, nor relative columns, which are numbers
        kind, of = field.kind if reader is None else reader.kind, ""
        if isinstance(reader, DatePartEncoder):
            of = reader.part
        elif section == "event":
            spec = contract.history.columns.get(field.name)
            if isinstance(spec, Residual):
                kind, of = spec.type, spec.counter
            elif isinstance(reader, NumericEncoder) and reader.transform != "none":
                of = reader.transform  # numbers of events have no curve that could be read on another scale
        elif section in OF_COUNTERS and field.name in contract.counters:
            of = _quantity(contract.counters[field.name])
        found[field.name] = f"{kind} ({of})" if of else kind
    return found


def _quantity(counter: Counter) -> str:
    """What a counter counts; how fresh it is and how fast it forgets changes no meaning."""
    more = counter.number or counter.label
    return f"{counter.value} of {', '.join(counter.keys)}" + (f": {more}" if more else "")


def _other_columns(section: str, theirs: dict[str, str], ours: dict[str, str]) -> Iterator[str]:
    if added := [name for name in ours if name not in theirs]:
        yield f"{section} columns {', '.join(map(repr, added))} are new"
    if gone := [name for name in theirs if name not in ours]:
        yield f"{section} columns {', '.join(map(repr, gone))} are gone"
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            yield f"{section} column {name!r} is {ours[name]}, it was {theirs[name]}"
    if ours.keys() == theirs.keys() and list(ours) != list(theirs):
        yield f"{section} columns stand in another order"


def _other_content(parent: Parent, feature_set: FeatureSet, now: Encoder) -> Iterator[str]:
    """Vectors and codes that are others than they were, of the items that both feature sets know."""
    old_C, new_C = items_of_both(parent.encoder.items, now.items)
    for name in [one.name for one in feature_set.schema.vectors]:
        both_C, apart = distances(parent.feature_set, feature_set, name, old_C, new_C)
        moved = apart > TOLERANCE
        if len(moved) and moved.mean() > MOST_CHANGED:
            example = now.items.value(int(new_C[both_C[int(np.argmax(moved))]]))
            why = (
                "of another encoder, or transformed by what another window taught. A build with --window keeps what "
                "was learned"
            )
            if name in feature_set.contract.made_of_learned:
                why = "each build learns them anew (`learn`), so that every training must be a full one"
            yield (
                f"vector set {name!r}: {int(moved.sum())} of {len(moved)} items that both know have other "
                f"vectors, e.g. item {example!r}: {why}"
            )
    for field in feature_set.schema.item:
        if field.name in now.item:
            continue  # of the item table, by raw value
        changed_C = parent.feature_set.items[field.name][old_C] != feature_set.items[field.name][new_C]
        if changed_C.any() and changed_C.mean() > MOST_CHANGED:
            yield (
                f"semantic ids {field.name!r}: {int(changed_C.sum())} of {len(changed_C)} items that both know have "
                "other codes. A build with --window keeps them"
            )
