"""FuxiCTR, the public peer: its DIN trained on the same rows, in an environment of its own.

DIN is given what QIN is: item id, tags (mean) and the projected vector, of the target and of each past item, and both
levels of the row; embeddings as wide; the same L2, clipping and learning rate. Network and attention are as FuxiCTR's
defaults have them (512, 128, 64 units; 64 units with Dice). FuxiCTR's loader for long histories makes the batches,
in the process that trains.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness.measured import ROOT
from benchmarks.inputs.mmctr_shaped import ITEMS, LEVELS, MOST_TAGS, ROWS, TAGS, VECTOR_WIDTH
from benchmarks.inputs.presets import DEFAULTS, PAPER
from ctr.config import load_preset
from ctr.training.allocator import KEEPING
from features.errors import ConfigError

HERE = ROOT / "benchmarks" / "peers" / "fuxictr"
REQUIREMENTS, SCRIPT = HERE / "requirements.txt", HERE / "train_din.py"
READY = ".ready"  # in the environment: the requirements that it was made from
DATASET = "mmctr_shaped"
LEVEL_COLUMNS = ("likes_level", "views_level")
LAST_LINES = 5  # of what pip says


def train(
    folder: str, venv: str, batch_size: int, steps: int, warmup: int, preset: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train DIN, batches loaded as a user would load them.

    Args:
        folder: `out` of `mmctr_shaped.build`; what FuxiCTR reads is written into `fuxictr/` there, once.
        venv: folder of its environment; made there if it is not there yet.
        batch_size: rows a step.
        steps: steps that are timed.
        warmup: steps before them.
        preset: settings that lie over those of QIN's paper, `{"model": {...}, "train": {...}}`.

    Returns:
        As `benchmarks.jobs.literal.train`, without the loss.

    Raises:
        ConfigError: the environment cannot be made, or training was killed, as a rule for want of memory.
        RuntimeError: training failed.
    """
    python = environment(Path(venv).absolute())
    settings = load_preset(PAPER, DEFAULTS, preset)
    width = settings.model.embedding_dim
    data = Path(folder) / "fuxictr"
    max_len = write_data(Path(folder), data)
    (data / "feature_map.json").write_text(json.dumps(feature_map(data, width), indent=1), encoding="utf-8")
    arguments = {
        "folder": str(data.resolve()),
        "batch_size": batch_size,
        "steps": steps,
        "warmup": warmup,
        "max_len": max_len,
        "embedding_dim": width,
        "learning_rate": settings.train.learning_rate,
        "embedding_l2": settings.train.embedding_l2,
        "clip_norm": settings.train.clip_norm,
    }
    command = [str(python), str(SCRIPT), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=data, env=os.environ | KEEPING)
    if done.returncode < 0:
        raise ConfigError(
            f"FuxiCTR's DIN was killed by signal {-done.returncode}, as a rule for want of memory. Lower the batch "
            f"size ({batch_size:,})."
        )
    if done.returncode:
        raise RuntimeError(f"FuxiCTR's DIN failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def environment(venv: Path) -> Path:
    """The interpreter of FuxiCTR's environment, which is made if it is not there or was made from other requirements.

    Raises:
        ConfigError: it cannot be made; says why.
    """
    wanted, marker = REQUIREMENTS.read_text(encoding="utf-8"), venv / READY
    python = venv / "bin" / "python"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return python
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(venv)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).splitlines()[-LAST_LINES:])
            raise ConfigError(
                f"{venv}: no environment for FuxiCTR: it cannot be installed from {REQUIREMENTS.relative_to(ROOT)}. "
                f"Go on without this peer, or make a package index reachable that has these versions:\n{said}"
            )
    marker.write_text(wanted, encoding="utf-8")
    return python


def write_data(folder: Path, out: Path) -> int:
    """Write the training rows as FuxiCTR's loader for long histories wants them, unless they are there.

    A user's items stand once in `user_info.parquet`; a row of `train.parquet` says how many of them came before it.

    Args:
        folder: `out` of `mmctr_shaped.build`.
        out: gets `train.parquet`, `user_info.parquet` and `item_info.parquet`.

    Returns:
        Most events of a history.
    """
    rows = pq.ParquetFile(folder / ROWS)
    max_len = len(next(rows.iter_batches(1, columns=["item_seq"]))["item_seq"][0])
    if (out / "train.parquet").is_file():
        return max_len
    out.mkdir(exist_ok=True)
    # `rows.parquet` holds a user's rows together and by time: a user's items are one slice of them.
    table = rows.read(columns=["user_id", "item_id", *LEVEL_COLUMNS, "label"]).combine_chunks()
    user, item = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    first = np.searchsorted(user, user)
    ends = np.searchsorted(user, np.arange(user.max() + 2), side="left").astype(np.int32)
    sequences = pa.ListArray.from_arrays(pa.array(ends), pa.array(item))
    pq.write_table(pa.table({"full_item_seq": sequences}), out / "user_info.parquet")
    items = pq.read_table(folder / ITEMS)
    items = items.set_column(items.column_names.index("item_emb_d128"), "item_emb_d128", _unit_vectors(items))
    pq.write_table(items.append_column("item_index", items["item_id"]), out / "item_info.parquet")
    columns = {name: table[name] for name in (*LEVEL_COLUMNS, "label")}
    ids = {"user_index": user, "seq_len": np.arange(len(user)) - first, "item_index": item}
    unfinished = out / "train.parquet.part"
    pq.write_table(pa.table({**ids, **columns}), unfinished)
    unfinished.rename(out / "train.parquet")
    return max_len


def feature_map(data: Path, width: int) -> dict[str, Any]:
    """FuxiCTR's description of the columns that `write_data` wrote; item 0 and tag 0 are padding."""
    items = pq.ParquetFile(data / "item_info.parquet").metadata.num_rows
    category = {"type": "categorical", "padding_idx": 0}
    features: dict[str, dict[str, Any]] = {
        "user_index": {"type": "meta"},
        "seq_len": {"type": "meta"},
        "item_index": {"type": "meta"},
        **{name: {"source": "context", "vocab_size": LEVELS + 1, **category} for name in LEVEL_COLUMNS},
        "item_id": {"source": "item", "vocab_size": items, **category},
        "item_tags": {
            "source": "item",
            "type": "sequence",
            "vocab_size": TAGS + 1,
            "padding_idx": 0,
            "max_len": MOST_TAGS,
            "feature_encoder": "layers.MaskedAveragePooling()",
        },
        "item_emb_d128": {
            "source": "item",
            "type": "embedding",
            "pretrain_dim": VECTOR_WIDTH,
            "embedding_dim": width,
        },
    }
    return {"dataset_id": DATASET, "labels": ["label"], "features": [{name: spec} for name, spec in features.items()]}


def _unit_vectors(items: pa.Table) -> pa.ListArray:
    column = items["item_emb_d128"].combine_chunks()
    vector_IW = column.values.to_numpy().reshape(len(column), VECTOR_WIDTH)
    length_I1 = np.maximum(np.linalg.norm(vector_IW, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return pa.ListArray.from_arrays(column.offsets, pa.array((vector_IW / length_I1).ravel()))
