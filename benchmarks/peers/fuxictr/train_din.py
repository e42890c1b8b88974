"""Trains FuxiCTR's DIN on what `benchmarks.peers.fuxictr_peer` wrote, in its own environment; prints one JSON line.

    python train_din.py '{"folder": …, "batch_size": …, "steps": …, "warmup": …, "max_len": …, …}'

Model, loader and training loop are FuxiCTR's, taken as they are; this script only stops the clock.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap  # type: ignore[import-not-found]
from model_zoo.LongCTR.DIN.DIN import DIN  # type: ignore[import-not-found]
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader  # type: ignore[import-not-found]

DATASET = "mmctr_shaped"
NEVER = sys.maxsize


class Timed:
    """The loader's batches, epoch after epoch, for so many steps; notes what loading and what training took."""

    def __init__(self, loader: LongCTRDataLoader, steps: int) -> None:
        self.loader = loader
        self.steps = steps
        self.load_seconds: list[float] = []
        self.step_seconds: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        batches = self._endless()
        for _ in range(self.steps):
            started = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            self.load_seconds.append(loaded - started)
            yield batch
            self.step_seconds.append(time.perf_counter() - loaded)

    def _endless(self) -> Iterator[Any]:
        whole = len(self.loader.dataset) // self.loader.batch_size
        while True:
            for number, batch in enumerate(self.loader):
                if number < whole:
                    yield batch


def memory_mib(entry: str) -> float:
    """`VmRSS` (now) or `VmHWM` (the most so far) of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(entry + ":"):
            return round(int(line.split()[1]) / 1024, 1)
    raise SystemExit(f"/proc/self/status has no {entry}")


def main() -> None:
    """Train as the JSON in the first argument says."""
    settings = json.loads(sys.argv[1])
    folder, width = Path(settings["folder"]), settings["embedding_dim"]
    features = FeatureMap(DATASET, str(folder))
    features.load(str(folder / "feature_map.json"), {"embedding_dim": width})
    loader = LongCTRDataLoader(
        features,
        str(folder / "train.parquet"),
        user_info=str(folder / "user_info.parquet"),
        item_info=str(folder / "item_info.parquet"),
        batch_size=settings["batch_size"],
        shuffle=True,
        num_workers=0,
        max_len=settings["max_len"],
    )
    model = DIN(
        features,
        embedding_dim=width,
        learning_rate=settings["learning_rate"],
        embedding_regularizer=settings["embedding_l2"],
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        model_root=str(folder),
        eval_steps=NEVER,
        verbose=0,
    )
    # `fit` ends by loading the best weights of its looks at validation rows, which it is not given.
    Path(model.checkpoint).parent.mkdir(exist_ok=True)
    model.save_weights(model.checkpoint)
    timed = Timed(loader, settings["warmup"] + settings["steps"])
    before = memory_mib("VmRSS")
    model.fit(timed, epochs=1, max_gradient_norm=settings["clip_norm"])
    load_seconds = timed.load_seconds[settings["warmup"] :]
    step_seconds = timed.step_seconds[settings["warmup"] :]
    rows = settings["steps"] * settings["batch_size"]
    result = {
        "rows_per_s": rows / (sum(load_seconds) + sum(step_seconds)),
        "step_seconds": step_seconds,
        "load_seconds": load_seconds,
        "before_mib": before,
        "peak_mib": memory_mib("VmHWM"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
