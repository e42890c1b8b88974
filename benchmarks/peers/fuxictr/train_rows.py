"""Trains a model of FuxiCTR on what `benchmarks.peers.fuxictr_rows` wrote, in its own environment; scores its rows.

    python train_rows.py '{"folder": …, "out": …, "model": "DIN", "seed": 1, …}'

Model, loader, training loop and early stopping are FuxiCTR's, taken as they are.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap  # type: ignore[import-not-found]
from fuxictr.pytorch.torch_utils import seed_everything  # type: ignore[import-not-found]
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2  # type: ignore[import-not-found]
from model_zoo.LongCTR.DIN.DIN import DIN  # type: ignore[import-not-found]
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader  # type: ignore[import-not-found]

DATASET = "rows"


class Whole:
    """Looks up by whole numbers: with a single float column among them, FuxiCTR's loader makes floats of all ids."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def __getitem__(self, index: np.ndarray) -> Any:
        return self.wrapped[index.astype(np.int64)]

    @property
    def iloc(self) -> "Whole":
        return Whole(self.wrapped.iloc)


def main() -> None:
    """Train and score as the JSON in the first argument says."""
    settings = json.loads(sys.argv[1])
    folder, out = Path(settings["folder"]), Path(settings["out"])
    seed_everything(settings["seed"])
    features = FeatureMap(DATASET, str(folder))
    features.load(str(folder / "feature_map.json"), {"embedding_dim": settings["embedding_dim"]})

    def loader(split: str, shuffle: bool) -> LongCTRDataLoader:
        made = LongCTRDataLoader(
            features,
            str(folder / f"{split}.parquet"),
            user_info=str(folder / f"{split}_histories.parquet"),
            item_info=str(folder / "items.parquet"),
            batch_size=settings["batch_size"] if shuffle else 4096,
            shuffle=shuffle,
            num_workers=0,
            max_len=settings["max_len"],
        )
        made.collate_fn.user_info = Whole(made.collate_fn.user_info)
        made.collate_fn.item_info = Whole(made.collate_fn.item_info)
        return made

    train = loader("train", shuffle=True)
    common: dict[str, Any] = {
        "gpu": -1,
        "embedding_dim": settings["embedding_dim"],
        "learning_rate": settings["learning_rate"],
        "embedding_regularizer": settings["l2"],
        "net_dropout": settings["dropout"],
        "batch_norm": True,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "task": "binary_classification",
        "metrics": ["AUC", "logloss"],
        "monitor": "AUC",
        "monitor_mode": "max",
        "early_stop_patience": 2,
        "eval_steps": len(train) // 2,
        "model_root": str(out),
        "verbose": 0,
    }
    if settings["model"] == "DIN":
        model = DIN(features, dnn_hidden_units=[512, 128, 64], **common)
    else:
        model = DCNv2(features, parallel_dnn_hidden_units=[512, 128, 64], num_cross_layers=3, **common)
    Path(model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    model.fit(train, epochs=settings["epochs"], validation_data=loader("valid", shuffle=False))
    seconds = time.perf_counter() - started
    steps = model._epoch_index * len(train) + model._batch_index + 1
    for split in ("valid", "test"):
        scores = model.predict(loader(split, shuffle=False))
        np.save(out / f"{split}.npy", np.asarray(scores, np.float32).ravel(), allow_pickle=False)
    facts = {
        "rows_per_second": steps * settings["batch_size"] / seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
    }
    (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
