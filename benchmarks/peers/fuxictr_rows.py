"""FuxiCTR's DIN and DCNv2 on any feature set's own rows and split: the public opponents of a study.

They are given what ours are given, in FuxiCTR's own terms: item id, item columns and vectors (first 32 principal
components, since its loader copies an item's numbers to every position of a history) of the target and of up to 50 past
items; user columns, context and counters of the row. History is what was liked, as FuxiCTR reads it, where the events
tell (a residual column); else all of it. Layers are FuxiCTR's defaults (512, 128, 64 units; 64 with Dice in DIN's
attention; three cross layers), dropout 0.3 and batch norm. The embedding L2 is the best by validation AUC on MovieLens
with seed 1: of 1e-2, 1e-3, 1e-4 for DCNv2, of 5e-2, 1e-2, 1e-3, 1e-4 for DIN (0.7348, 0.7340, 0.7347, 0.7358). Training
stops as FuxiCTR's own `fit` does: by validation AUC each half epoch, patience 2; the learning rate falls on a plateau.

What this leaves to the peers, tried with seed 1: an L2 of 1e-1 gives DCNv2 0.7400 on validation rows where 1e-2 gives
0.7368, and 0.7527 on test rows where 1e-2 gives 0.7526. All events as history are worse (DIN 0.7323, DCNv2 0.7352 on
validation rows), and whole vectors are as good as 32 components.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.decomposition import PCA

from benchmarks.peers.fuxictr_peer import HERE, environment
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.feature_set import SPLITS, FeatureSet, SplitName
from features.store.schema import UNKNOWN, Field

SCRIPT = HERE / "train_rows.py"
DATASET = "rows"
DONE = "done.json"  # beside the scores: what they were trained from
MAX_LEN = 50
COMPONENTS = 32
SETTINGS = {"embedding_dim": 16, "batch_size": 512, "epochs": 6, "dropout": 0.3, "learning_rate": 1e-3}
L2 = {"DIN": 1e-4, "DCNv2": 1e-2}


@dataclass(frozen=True)
class PeerScores:
    """What one training gave.

    Args:
        scores: probabilities by split in stored row order, float32 [rows].
        facts: rows_per_second (looks at validation rows included) and parameters.
    """

    scores: dict[str, np.ndarray]
    facts: dict[str, float]


def train_peer(feature_set: Path, model: str, seed: int, folder: Path, **changes: Any) -> PeerScores:
    """Train one of FuxiCTR's models; a training of the same feature set with the same settings is read again.

    Args:
        feature_set: its folder.
        model: `DIN` or `DCNv2`.
        seed: of its weights and its shuffling.
        folder: gets the environment, FuxiCTR's files and the results.
        changes: of `SETTINGS` and of the model's `L2`.

    Raises:
        ConfigError: the environment cannot be made, or training was killed, as a rule for want of memory.
        RuntimeError: training failed.
    """
    opened = FeatureSet.open(feature_set)
    out, data = folder / f"{model}-{seed}", folder / "data" / opened.manifest.version
    arguments = SETTINGS | {"l2": L2[model]} | changes | {"model": model, "seed": seed, "max_len": MAX_LEN}
    asked = arguments | {"feature_set": f"{opened.manifest.name}/{opened.manifest.version}"}
    # Last of all: scores of other rows or settings must never pass for these.
    done = out / DONE
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != asked:
        done.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        python = environment(environment_of(folder))
        if not (data / "feature_map.json").is_file():
            write_data(opened, data)
        _train(python, arguments | {"folder": str(data.resolve()), "out": str(out.resolve())})
        done.write_text(json.dumps(asked, indent=1), encoding="utf-8")
    scores = {split: np.load(out / f"{split}.npy", allow_pickle=False) for split in ("valid", "test")}
    return PeerScores(scores, json.loads((out / "facts.json").read_text(encoding="utf-8")))


def environment_of(folder: Path) -> Path:
    """Where the environment of peers that work in a folder lies."""
    return (folder / "venv").absolute()


def _train(python: Path, arguments: dict[str, Any]) -> None:
    command = [str(python), str(SCRIPT), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=arguments["folder"])
    if done.returncode < 0:
        raise ConfigError(
            f"FuxiCTR's {arguments['model']} was killed by signal {-done.returncode}, as a rule for want of memory. "
            f"Lower the batch size ({arguments['batch_size']:,})."
        )
    if done.returncode:
        raise RuntimeError(f"FuxiCTR's {arguments['model']} failed:\n{done.stderr}")


def write_data(feature_set: FeatureSet, out: Path) -> None:
    """Write the rows of each split, their histories and the items in the form of FuxiCTR's loader.

    `<split>.parquet` names a history of `<split>_histories.parquet` and an item of `items.parquet` a row.

    Raises:
        ConfigError: a column is of a kind that FuxiCTR's loader does not take, or changes with time.
    """
    if feature_set.item_versions is not None or feature_set.user_versions is not None:
        raise ConfigError(
            f"{feature_set.path}: its item or user table has `valid_from`, and FuxiCTR's loader takes one row an item. "
            "Compare on a contract without it, or without peers."
        )
    out.mkdir(parents=True, exist_ok=True)
    schema = feature_set.schema
    items: dict[str, Any] = {"item_index": np.arange(schema.items)}
    features: dict[str, dict[str, Any]] = {name: {"type": "meta"} for name in ("user_index", "seq_len", "item_index")}
    for field in schema.item:
        items[_name("item", field)] = _column(feature_set.items[field.name])
        features[_name("item", field)] = _spec(field, "item")
    for one in schema.vectors:
        vectors = np.asarray(feature_set.vectors(one.name))
        width = min(COMPONENTS, one.width)
        items[f"vector_{one.name}"] = _column(PCA(width, random_state=0).fit_transform(vectors).astype(np.float32))
        features[f"vector_{one.name}"] = {"source": "item", "type": "embedding", "pretrain_dim": width}
    pq.write_table(pa.table(items), out / "items.parquet")
    row_fields = [*(("user", f) for f in schema.user), *(("row", f) for f in (*schema.context, *schema.candidate))]
    for side, field in row_fields:
        if field.kind == "tags":
            raise ConfigError(f"{field.name}: FuxiCTR's loader for histories takes no tags of users or rows.")
        features[_name(side, field)] = _spec(field, "context")
    liked = _liked(feature_set)
    for split in SPLITS:
        _write_split(feature_set, split, row_fields, liked, out)
    described = {"dataset_id": DATASET, "labels": ["label"], "features": [{n: one} for n, one in features.items()]}
    (out / "feature_map.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def _write_split(
    feature_set: FeatureSet, split: SplitName, row_fields: list[tuple[str, Field]], liked: Any, out: Path
) -> None:
    columns: dict[str, list[np.ndarray]] = {}
    histories: list[np.ndarray] = []
    for rows, events in zip(feature_set.rows(split), feature_set.events(split), strict=True):
        chosen_E = liked(events)
        for end, length in zip(rows["history_end"], rows["history_len"], strict=True):
            past = slice(end - length, end)
            found = events["item"][past][chosen_E[past]][-MAX_LEN:]
            # FuxiCTR divides by the number of events: without any, the scores of its DCNv2 are no numbers.
            histories.append(found if len(found) else np.array([UNKNOWN], found.dtype))
        values = {"item_index": rows["item"], "label": rows["label"].astype(np.float64)}
        for side, field in row_fields:
            source = feature_set.users[field.name][rows["user"]] if side == "user" else rows[field.name]
            values[_name(side, field)] = np.nan_to_num(source)
        for name, found in values.items():
            columns.setdefault(name, []).append(found)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    joined["seq_len"] = np.array([len(one) for one in histories])
    joined["user_index"] = np.arange(len(histories))
    pq.write_table(pa.table(joined), out / f"{split}.parquet")
    pq.write_table(pa.table({"full_item_seq": pa.array(histories)}), out / f"{split}_histories.parquet")


def _liked(feature_set: FeatureSet) -> Any:
    """Which events were positives: their label was above the item's rate, which lies between 0 and 1."""
    columns = feature_set.contract.history.columns
    residuals = [name for name, one in columns.items() if one.type == "residual"]
    if not residuals:
        return lambda events: np.ones(len(events["item"]), bool)
    encoder = Encoder.load(feature_set.path).event[residuals[0]]
    # Standardising keeps the order: what a residual of 0 became parts the two.
    zero = encoder.encode_one(0.0)[0]
    return lambda events: events[residuals[0]] > zero


def _spec(field: Field, source: str) -> dict[str, Any]:
    if field.kind == "numeric":
        return {"source": source, "type": "numeric"}
    found: dict[str, Any] = {"source": source, "type": "categorical", "vocab_size": field.size, "padding_idx": 0}
    if field.kind == "tags":
        pooled = {"type": "sequence", "max_len": field.max_len, "feature_encoder": "layers.MaskedAveragePooling()"}
        found |= pooled
    return found


def _name(side: str, field: Field) -> str:
    return f"{side}_{field.name}"


def _column(values: np.ndarray) -> Any:
    if values.ndim == 1:
        return np.nan_to_num(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]).cast(
        pa.list_(pa.from_numpy_dtype(values.dtype))
    )
