"""A simulated log in the shape of MM-CTR (MicroLens_1M_MMCTR), and its training rows with the histories copied in.

The challenge's data cannot be had everywhere. What decides a step's cost is its shape, and that is kept: how many
items, tags and levels there are, how wide an item's vector is, how long histories are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import ConfigError
from features.store.feature_set import FeatureSet

TAGS, MOST_TAGS = 11_739, 5  # tags 1..TAGS, with 0 the challenge's vocabulary of 11,740
LEVELS = 10
VECTOR_WIDTH, VECTOR_STD = 128, 0.45  # entries up to about 2.5
POSITIVE_SHARE = 0.25
HELD_OUT = 0.1  # of the rows, for validation and for test each
START = 1_700_000_000  # seconds since 1970 of the first row; each row is a second later than the one before

GROUPS = 16  # of items, told by their vectors; a user prefers one
PREFERRED_SHARE = 0.5  # of a user's rows shows items of that group

ROWS, ITEMS = "rows.parquet", "items.parquet"
CHUNK_ROWS = 100_000


def build(
    out: str, rows: int, users: int, items: int, max_len: int, seed: int = 1, feedback: bool = False
) -> dict[str, Any]:
    """Write the log, build its feature set, and write the training rows with copied histories.

    Ids are whole numbers from 1 on. An item has 1 to 5 tags and a vector of 128 numbers; a row has `likes_level` and
    `views_level`, both 1 to 10. Popularity falls as one over the rank. A quarter of the rows is positive: rather those
    of a group of items that the user prefers, and of better items. Every item occurs in the training rows, so that all
    of them have an embedding of their own.

    Args:
        out: folder; gets `raw/`, `features/`, and for the references `rows.parquet` and `items.parquet`.
        rows: of the log, of which the first 80 % by time are trained on.
        users: drawn alike for each row. With `rows / users` of four times `max_len`, most histories are full.
        items: of the catalogue.
        max_len: most events of a history, and the width of a copied one.
        seed: of all that is drawn.
        feedback: an event says whether it was positive, and against which rate of its item; QIN+ reads that.

    Returns:
        `feature_set` and `raw`, both folders; `rows` of training; `mean_history`, events before a training row.

    Raises:
        ConfigError: fewer training rows than items.
    """
    trained = int(rows * (1 - 2 * HELD_OUT))
    if trained < items:
        raise ConfigError(
            f"{rows:,} rows have {trained:,} to train on, too few to show each of {items:,} items once. "
            f"Make at least {int(np.ceil(items / (1 - 2 * HELD_OUT))) + 1:,} rows."
        )
    raw, draw = Path(out) / "raw", np.random.default_rng(seed)
    raw.mkdir(parents=True)
    by_rank = 1 + draw.permutation(items)
    _write_items(raw, by_rank, draw)
    log = _traffic(rows, users, by_rank, trained, draw)
    pq.write_table(pa.table(log), raw / "interactions.parquet")
    feature_set = build_feature_set(_contract(raw, max_len, feedback), Path(out) / "features").feature_set
    trained = feature_set.manifest.windows["train"].rows
    _copy_histories(Path(out) / ROWS, {name: values[:trained] for name, values in log.items()}, max_len)
    _pad_items(Path(out) / ITEMS, raw)
    return {
        "feature_set": str(feature_set.path),
        "raw": str(raw),
        "rows": trained,
        "mean_history": round(_mean_history(feature_set), 2),
    }


def _write_items(raw: Path, by_rank: np.ndarray, draw: np.random.Generator) -> None:
    """Write tags and vectors of these items, given from the most to the least popular."""
    items = len(by_rank)
    group_I = np.zeros(items + 1, np.int64)
    group_I[by_rank] = np.arange(items) % GROUPS
    count_I = draw.integers(1, MOST_TAGS + 1, size=items)
    # Distinct within an item: steps of at least one on a circle that is wide enough.
    first_I = draw.integers(0, TAGS, size=items)
    steps_IT = np.cumsum(draw.integers(1, TAGS // MOST_TAGS, size=(items, MOST_TAGS)), axis=1)
    tags_IT = (1 + (first_I[:, None] + steps_IT) % TAGS).astype(np.int32)
    tags = pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(count_I)).astype(np.int32)),
        pa.array(tags_IT[np.arange(MOST_TAGS) < count_I[:, None]]),
    )
    centre_GW = draw.standard_normal((GROUPS, VECTOR_WIDTH), dtype=np.float32)
    item_id = np.arange(1, items + 1)
    pq.write_table(pa.table({"item_id": item_id, "item_tags": tags}), raw / "items.parquet")
    vector = pa.list_(pa.float32(), VECTOR_WIDTH)
    schema = pa.schema({"item_id": pa.int64(), "item_emb_d128": vector})
    with pq.ParquetWriter(raw / "vectors.parquet", schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, items, CHUNK_ROWS):
            ids = item_id[start : start + CHUNK_ROWS]
            noise_IW = draw.standard_normal((len(ids), VECTOR_WIDTH), dtype=np.float32)
            vector_IW = VECTOR_STD * (0.6 * centre_GW[group_I[ids]] + 0.8 * noise_IW)
            values = pa.FixedSizeListArray.from_arrays(pa.array(vector_IW.ravel()), VECTOR_WIDTH)
            writer.write_table(pa.table([pa.array(ids), values], schema=schema))


def _traffic(
    rows: int, users: int, by_rank: np.ndarray, trained: int, draw: np.random.Generator
) -> dict[str, np.ndarray]:
    """The columns of the log, by time."""
    items = len(by_rank)
    user = draw.integers(1, users + 1, size=rows)
    taste_B = draw.integers(0, GROUPS, size=users + 1)[user]
    share_I = np.cumsum(1 / np.arange(1, items + 1))
    rank_B = np.searchsorted(share_I, draw.random(rows) * share_I[-1])
    # An item's group is its rank modulo GROUPS: a row takes the user's group and stays as popular as it was.
    preferred_B = draw.random(rows) < PREFERRED_SHARE
    rank_B = np.where(preferred_B, np.minimum(rank_B // GROUPS * GROUPS + taste_B, items - 1), rank_B)
    item = by_rank[rank_B]
    _show_all(item[:trained], items, draw)
    group_B = np.argsort(by_rank)[item - 1] % GROUPS

    quality_I = draw.standard_normal(items + 1)
    likes = np.clip(np.rint(5.5 + 1.5 * quality_I[item] + draw.normal(0, 1.5, rows)), 1, LEVELS)
    views = draw.integers(1, LEVELS + 1, size=rows)
    score_B = 1.5 * (group_B == taste_B) + quality_I[item] + 0.1 * views + draw.logistic(size=rows)
    return {
        "user_id": user,
        "item_id": item,
        "timestamp": START + np.arange(rows),
        "likes_level": likes.astype(np.int64),
        "views_level": views,
        "label": (score_B > np.quantile(score_B, 1 - POSITIVE_SHARE)).astype(np.int64),
    }


def _show_all(item_B: np.ndarray, items: int, draw: np.random.Generator) -> None:
    """Put each item that does not occur in place of one that occurs elsewhere too."""
    _, first = np.unique(item_B, return_index=True)
    missing = np.setdiff1d(np.arange(1, items + 1), item_B)
    spare = np.setdiff1d(np.arange(len(item_B)), first)
    item_B[draw.choice(spare, size=len(missing), replace=False)] = draw.permutation(missing)


def _contract(raw: Path, max_len: int, feedback: bool) -> Contract:
    level = {"type": "categorical"}
    content: dict[str, Any] = {
        "name": "mmctr_shaped",
        "root": str(raw.resolve()),
        "interactions": {
            "path": "interactions.parquet",
            "user": "user_id",
            "item": "item_id",
            "time": "timestamp",
            "label": "label",
            "context": {"likes_level": level, "views_level": level},
            "item_min_count": 1,
        },
        "items": {
            "path": "items.parquet",
            "id": "item_id",
            "columns": {"tags": {"type": "tags", "max_len": MOST_TAGS, "source": "item_tags"}},
        },
        "embeddings": {
            "fused": {"path": "vectors.parquet", "id": "item_id", "vector": "item_emb_d128", "normalize": "l2"}
        },
        "history": {"max_len": max_len},
        "split": {"by": "time", "valid": HELD_OUT, "test": HELD_OUT},
    }
    if feedback:
        residual = {"type": "residual", "counter": "item_rate"}
        content["history"] |= {"events": "all", "columns": {"label": {"type": "categorical"}, "residual": residual}}
        content["counters"] = {"item_rate": {"of": "item", "value": "rate"}}
    return validate(Contract, content, "the contract of benchmarks.inputs.mmctr_shaped")


def _copy_histories(path: Path, log: dict[str, np.ndarray], max_len: int) -> None:
    """Write the rows of a log as the challenge has them: the earlier items of the user in each, zeros in front."""
    by_user = np.argsort(log["user_id"], kind="stable")
    user, item = log["user_id"][by_user], log["item_id"][by_user].astype(np.int32)
    first = np.searchsorted(user, user)
    columns = {name: log[name][by_user] for name in ("user_id", "item_id", "likes_level", "views_level", "label")}
    schema = pa.schema({name: pa.int64() for name in columns} | {"item_seq": pa.list_(pa.int32())})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for rows in _chunks(len(user)):
            event_BS = rows[:, None] + np.arange(-max_len, 0)
            history_BS = np.where(event_BS >= first[rows, None], item[event_BS], np.int32(0))
            arrays = [pa.array(values[rows]) for values in columns.values()]
            writer.write_table(pa.table([*arrays, _lists(history_BS)], schema=schema))


def _pad_items(path: Path, raw: Path) -> None:
    """Write the item table as the challenge has it: row 0 the padding, tags filled up with zeros behind."""
    tags = pq.read_table(raw / "items.parquet")["item_tags"].combine_chunks()
    tags_IT = np.zeros((len(tags) + 1, MOST_TAGS), np.int32)
    tags_IT[1:][np.arange(MOST_TAGS) < np.diff(tags.offsets.to_numpy())[:, None]] = tags.values.to_numpy()
    schema = pa.schema(
        {"item_id": pa.int64(), "item_tags": pa.list_(pa.int32()), "item_emb_d128": pa.list_(pa.float32())}
    )
    vectors = pq.ParquetFile(raw / "vectors.parquet").iter_batches(CHUNK_ROWS, columns=["item_emb_d128"])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        item = 0
        for vector_IW in _with_padding(vectors):
            ids = np.arange(item, item + len(vector_IW))
            writer.write_table(pa.table([pa.array(ids), _lists(tags_IT[ids]), _lists(vector_IW)], schema=schema))
            item += len(ids)


def _with_padding(batches: Iterator[pa.RecordBatch]) -> Iterator[np.ndarray]:
    yield np.zeros((1, VECTOR_WIDTH), np.float32)
    for batch in batches:
        yield batch["item_emb_d128"].flatten().to_numpy().reshape(len(batch), VECTOR_WIDTH)


def _chunks(rows: int) -> Iterator[np.ndarray]:
    for start in range(0, rows, CHUNK_ROWS):
        yield np.arange(start, min(start + CHUNK_ROWS, rows))


def _lists(values_BS: np.ndarray) -> pa.ListArray:
    ends = np.arange(0, values_BS.size + 1, values_BS.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values_BS.ravel()))


def _mean_history(feature_set: FeatureSet) -> float:
    lengths = [part["history_len"] for part in feature_set.rows("train")]
    return float(np.concatenate(lengths).mean())
