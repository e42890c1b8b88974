"""Trains models of FuxiCTR on what `benchmarks.peers.fuxictr_data` wrote, in its own environment; scores its rows.

    python train_rows.py '[{"folder": …, "out": …, "model": "DIN", "seed": 1, …}, …]'

Model, loader, training loop and early stopping are FuxiCTR's, taken as they are.
"""

import json
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from fuxictr.features import FeatureMap  # type: ignore[import-not-found]
from fuxictr.pytorch.torch_utils import seed_everything  # type: ignore[import-not-found]
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2  # type: ignore[import-not-found]
from model_zoo.LongCTR.DIN.DIN import DIN  # type: ignore[import-not-found]
from model_zoo.LongCTR.FinalMLP.FinalMLP import FinalMLP  # type: ignore[import-not-found]
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader  # type: ignore[import-not-found]

DATASET = "rows"
SCORED_TOGETHER = 2048  # rows


class Whole:
    """Looks up by whole numbers: with a single float column among them, FuxiCTR's loader makes floats of all ids."""

    def __init__(self, wrapped: np.ndarray) -> None:
        self.wrapped = wrapped

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.wrapped[index.astype(np.int64)]

    def to_list(self) -> np.ndarray:
        """The values, as the loader asks a column of a data frame for them; it makes an array of them."""
        return self.wrapped


class Items:
    """The loader's table of items as arrays: rows of a data frame with lists in it take longer than the network."""

    def __init__(self, columns: dict[str, Whole]) -> None:
        self.columns = columns

    @property
    def iloc(self) -> "Items":
        return self

    def __getitem__(self, asked: Any) -> Any:
        if isinstance(asked, str):
            return self.columns[asked]
        return Items({name: Whole(values[asked]) for name, values in self.columns.items()})


@cache
def items_of(folder: Path) -> Items:
    """The items of a folder, read once for all trainings."""
    table = pd.read_parquet(folder / "items.parquet").set_index("item_index")
    return Items({name: Whole(np.array(table[name].to_list())) for name in table.columns})


@cache
def loader_of(folder: Path, split: str, batch_size: int, shuffle: bool, max_len: int) -> LongCTRDataLoader:
    """FuxiCTR's loader of a split."""
    made = LongCTRDataLoader(
        features_of(folder, 1),
        str(folder / f"{split}.parquet"),
        user_info=str(folder / f"{split}_histories.parquet"),
        item_info=str(folder / "items.parquet"),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=0,
        max_len=max_len,
    )
    made.collate_fn.user_info = Whole(made.collate_fn.user_info)
    made.collate_fn.item_info = items_of(folder)
    return made


def features_of(folder: Path, embedding_dim: int) -> FeatureMap:
    """FuxiCTR's description of the columns."""
    features = FeatureMap(DATASET, str(folder))
    features.load(str(folder / "feature_map.json"), {"embedding_dim": embedding_dim})
    return features


def model_of(settings: dict[str, Any], features: FeatureMap, eval_steps: int) -> Any:
    """FuxiCTR's model, untrained."""
    common: dict[str, Any] = {
        "gpu": -1,
        "embedding_dim": settings["embedding_dim"],
        "learning_rate": settings["learning_rate"],
        "embedding_regularizer": settings["l2"],
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "task": "binary_classification",
        "metrics": ["AUC", "logloss"],
        "monitor": "AUC",
        "monitor_mode": "max",
        "early_stop_patience": 2,
        "eval_steps": eval_steps,
        "model_root": settings["out"],
        "verbose": 0,
    }
    units, dropout = [512, 128, 64], settings["dropout"]
    if settings["model"] == "DIN":
        return DIN(features, dnn_hidden_units=units, net_dropout=dropout, batch_norm=True, **common)
    if settings["model"] == "DCNv2":
        crossed = {"parallel_dnn_hidden_units": units, "num_cross_layers": 3}
        return DCNv2(features, net_dropout=dropout, batch_norm=True, **crossed, **common)
    towers = {
        f"{tower}_{name}": value
        for tower in ("mlp1", "mlp2")
        for name, value in (("hidden_units", units), ("dropout", dropout), ("batch_norm", True))
    }
    # Its forward pass for histories leaves the gates out: made, they would only be counted as parameters.
    return FinalMLP(features, use_fs=False, **towers, **common)


def train(settings: dict[str, Any]) -> None:
    """Train one model, score its rows and write what it was trained from last."""
    folder, out, max_len = Path(settings["folder"]), Path(settings["out"]), settings["max_len"]
    seed_everything(settings["seed"])
    rows = loader_of(folder, "train", settings["batch_size"], True, max_len)
    to_score = {split: loader_of(folder, split, SCORED_TOGETHER, False, max_len) for split in ("valid", "test")}
    model = model_of(settings, features_of(folder, settings["embedding_dim"]), max(1, len(rows) // settings["looks"]))
    Path(model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    model.fit(rows, epochs=settings["epochs"], validation_data=to_score["valid"])
    seconds = time.perf_counter() - started
    steps = model._epoch_index * len(rows) + model._batch_index + 1
    for split, loader in to_score.items():
        scores = np.asarray(model.predict(loader), np.float32).ravel()
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"scores of {split} rows are no numbers")
        np.save(out / f"{split}.npy", scores, allow_pickle=False)
    facts = {
        "seconds": seconds,
        "steps": steps,
        "rows_per_second": steps * settings["batch_size"] / seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
    }
    (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    (out / "done.json").write_text(json.dumps(settings["asked"], indent=1), encoding="utf-8")


def main() -> None:
    """Train and score as the JSON in the first argument says, one after the other."""
    for settings in json.loads(sys.argv[1]):
        try:
            train(settings)
        except Exception:
            # Of this training alone; whoever asked for it reads why.
            (Path(settings["out"]) / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")


if __name__ == "__main__":
    main()
