"""Gradient boosting as a control: trees on the same point-in-time information, without embeddings.

Shapes: R rows, S history positions, K similarity spaces, F features, V numbers of an event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from ctr.data.columns import column, row_weights
from ctr.data.feature_tables import TableBuffers, frozen_tables
from ctr.data.loader import ItemVersions, newest_before
from ctr.history.item_similarity import SimilaritySpaces, tag_cosine
from features.errors import ConfigError
from features.store.feature_set import FeatureSet, SplitName
from features.store.schema import FIRST_VALUE, Field
from features.store.versions import instants_of

MOST_TREES, LEARNING_RATE, LEAVES, L2 = 500, 0.05, 15, 1.0
PATIENCE = 30  # trees without improvement
ROWS_PER_CHUNK = 512
NEWEST, NEAREST = 10, 5
SHARPNESS = 4.0  # the weight of an event is exp(4 cos)
MOST_VALUES = 32  # of a column that becomes one feature a value


def counters_control(feature_set: FeatureSet, splits: Sequence[SplitName], seeds: int) -> dict[SplitName, np.ndarray]:
    """Boosting on the point-in-time counters of items and users alone. Arguments and result as `tabular_control`.

    Raises:
        ConfigError: the data contract declares no counters.
    """
    made = {one: _counters(feature_set, one) for one in _needed(splits)}
    return _boosted(made, feature_set, splits, seeds)


def tabular_control(feature_set: FeatureSet, splits: Sequence[SplitName], seeds: int) -> dict[SplitName, np.ndarray]:
    """Boosting on every tabular feature that a network could read.

    These are counters, context, user and item columns without ids (a feature for each value of a small vocabulary),
    history length; for each similarity space the highest, the mean and the mean of the five highest cosines between
    target and history; for each number of the events (a small category is a number for each value) its mean, its mean
    over the newest 10, and its means weighted by exp(4 cos) in each space; and the difference between the item's
    numbers and their mean over the history.

    Args:
        feature_set: what to train on.
        splits: to score.
        seeds: number of trainings, with seeds 1 to this number. Up to 200,000 training rows, scikit-learn bins all of
            them and draws nothing at random, so all trainings are equal.

    Returns:
        Probabilities by split, float64 [seeds, rows].
    """
    made = {one: np.concatenate(list(_features(feature_set, one))) for one in _needed(splits)}
    return _boosted(made, feature_set, splits, seeds)


def _boosted(
    made: dict[SplitName, np.ndarray], feature_set: FeatureSet, splits: Sequence[SplitName], seeds: int
) -> dict[SplitName, np.ndarray]:
    """Scores of trees trained on train, their number chosen by the weighted log loss on valid; [seeds, rows] each."""
    found: dict[SplitName, list[np.ndarray]] = {one: [] for one in splits}
    for seed in range(1, seeds + 1):
        model = HistGradientBoostingClassifier(
            learning_rate=LEARNING_RATE,
            max_leaf_nodes=LEAVES,
            l2_regularization=L2,
            max_iter=MOST_TREES,
            early_stopping=True,
            n_iter_no_change=PATIENCE,
            random_state=seed,
        )
        model.fit(
            made["train"],
            column(feature_set, "train", "label"),
            sample_weight=row_weights(feature_set, "train"),
            X_val=made["valid"],
            y_val=column(feature_set, "valid", "label"),
            sample_weight_val=row_weights(feature_set, "valid"),
        )
        # The model keeps the trees of its patience too. Validation scores are negative losses, the first without trees.
        trees = max(1, int(np.argmax(model.validation_score_)))
        for one in splits:
            staged = islice(model.staged_predict_proba(made[one]), trees - 1, trees)
            found[one].append(np.asarray(next(staged)[:, 1], np.float64))
    return {one: np.stack(scores) for one, scores in found.items()}


def _needed(judged: Sequence[SplitName]) -> set[SplitName]:
    return {"train", "valid", *judged}


def _counters(feature_set: FeatureSet, split: SplitName) -> np.ndarray:
    schema, counted = feature_set.schema, feature_set.contract.counters
    names = [one.name for one in (*schema.candidate, *schema.context) if one.name in counted]
    if not names:
        raise ConfigError("counters control: the data contract declares no `counters`; leave it out of the study.")
    return np.concatenate([np.stack([part[name] for name in names], axis=1) for part in feature_set.rows(split)])


def _features(feature_set: FeatureSet, split: SplitName) -> Iterator[np.ndarray]:
    """[rows of a chunk, F], in stored order."""
    tables = frozen_tables(feature_set)
    schema = feature_set.schema
    versions = None if feature_set.item_versions is None else ItemVersions(feature_set.item_versions)
    # Row i of all below is item i; or, of items that change, pair i of item and version.
    items, columns_at = torch.arange(schema.items), None
    if versions is not None:
        items, columns_at = (torch.from_numpy(rows) for rows in versions.pairs(np.arange(versions.count)))
    buffers = TableBuffers(tables, schema, schema.user, like=torch.zeros(()))
    columns = buffers.item_columns(items, columns_at)
    known = {one.name: values.numpy() for one, values in zip(schema.item, columns, strict=True)}
    spaces = SimilaritySpaces(schema)
    units, codes = ([one.numpy() for one in of] for of in spaces(columns, buffers.vectors(items)))
    item_table = _table(schema.item[1:], known)
    numbers = [known[one.name] for one in schema.item if one.kind == "numeric"]
    for rows, events in zip(feature_set.rows(split), feature_set.events(split), strict=True):
        said = _said(schema.event, events)
        for start in range(0, len(rows["item"]), ROWS_PER_CHUNK):
            chunk = {name: values[start : start + ROWS_PER_CHUNK] for name, values in rows.items()}
            own = _table((*schema.context, *schema.candidate), chunk)
            user = _table(schema.user[1:], feature_set.users_as_of(chunk["user"], instants_of(chunk)))
            if versions is not None:
                chunk["item"] = versions.number(chunk["item"], instants_of(chunk))
            past = _past(chunk, events["item"], said, units, codes, numbers, schema.history_max_len, versions)
            yield np.concatenate([own, item_table[chunk["item"]], user, past], axis=1)


def _past(
    rows: dict[str, np.ndarray],
    item_E: np.ndarray,
    said_EV: np.ndarray,
    units: list[np.ndarray],
    codes: list[np.ndarray],
    numbers: list[np.ndarray],
    max_len: int,
    versions: ItemVersions | None = None,
) -> np.ndarray:
    end_R, length_R = rows["history_end"], rows["history_len"]
    item_RS = np.zeros((len(end_R), max_len), item_E.dtype)
    newest_before(item_E, end_R, item_RS)
    mask_RS = np.arange(max_len) >= max_len - length_R[:, None]
    place_RS = np.where(mask_RS, end_R[:, None] + np.arange(-max_len, 0), 0)
    item_RS = np.where(mask_RS, item_RS, 0)
    if versions is not None:
        item_RS = versions.number(item_RS, instants_of(rows)[:, None])
    said_RSV = said_EV[place_RS] if len(said_EV) else np.zeros((*item_RS.shape, said_EV.shape[1]), np.float32)
    weights: list[np.ndarray] = [
        mask_RS.astype(np.float32),
        (mask_RS & (np.arange(max_len) >= max_len - NEWEST)).astype(np.float32),
    ]
    blocks = [np.log1p(length_R)[:, None]]
    for cosine_RS in _similarities(units, codes, rows["item"], item_RS):
        weights.append(mask_RS * np.exp(SHARPNESS * cosine_RS))
        cosine_RS = np.where(mask_RS, cosine_RS, 0)
        nearest_RS = -np.partition(-cosine_RS, min(NEAREST, max_len) - 1, axis=1)[:, :NEAREST]
        total_R = cosine_RS.sum(axis=1) / np.maximum(length_R, 1)
        blocks += [nearest_RS.max(axis=1)[:, None], nearest_RS.mean(axis=1)[:, None], total_R[:, None]]
    known_RSV = np.nan_to_num(said_RSV)
    for weight_RS in weights:
        mass_R1 = weight_RS.sum(axis=1, keepdims=True)
        blocks.append(np.matmul(weight_RS[:, None, :], known_RSV)[:, 0] / np.maximum(mass_R1, 1e-9))
    for number_I in numbers:
        past_RS = np.where(mask_RS, np.nan_to_num(number_I[item_RS]), 0)
        blocks.append((number_I[rows["item"]] - past_RS.sum(axis=1) / np.maximum(length_R, 1))[:, None])
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _similarities(
    units: list[np.ndarray], codes: list[np.ndarray], target_R: np.ndarray, item_RS: np.ndarray
) -> Iterator[np.ndarray]:
    """Cosine of target and each event, [R, S], in each similarity space."""
    for unit_IW in units:
        yield np.matmul(unit_IW[item_RS], unit_IW[target_R][:, :, None])[:, :, 0]
    for code_IT in codes:
        yield tag_cosine(torch.from_numpy(code_IT[target_R]), torch.from_numpy(code_IT[item_RS])).numpy()


def _said(fields: tuple[Field, ...], events: dict[str, np.ndarray]) -> np.ndarray:
    """The numbers of each event, [events, V]; columns of large vocabularies give none."""
    small = tuple(one for one in fields if one.kind == "numeric" or one.size - FIRST_VALUE <= MOST_VALUES)
    return _table(small, events) if small else np.zeros((len(events["item"]), 0), np.float32)


def _table(fields: tuple[Field, ...], columns: dict[str, np.ndarray]) -> np.ndarray:
    """Columns as features, [rows, features]: numbers, 0/1 for each value of a small vocabulary, else an index."""
    blocks = []
    for one in fields:
        values = columns[one.name]
        if one.kind == "numeric":
            blocks.append(values[:, None].astype(np.float32))
            continue
        if one.size - FIRST_VALUE <= MOST_VALUES:
            named = np.arange(FIRST_VALUE, one.size)
            wide = values if values.ndim == 2 else values[:, None]
            blocks.append((wide[:, :, None] == named).any(axis=1).astype(np.float32))
        elif one.kind == "categorical":
            blocks.append(values[:, None].astype(np.float32))
    rows = len(next(iter(columns.values())))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((rows, 0), np.float32)
