"""What a checkpoint between two evaluations costs a training that goes on meanwhile.

    python -m benchmarks.profiling.checkpoint_cost --feature-set feature_sets/simulated --model conf/model/qin.yaml

Trainings of one epoch, without checkpoints and with one every so many steps, take turns, each in its own process.
It prints medians of the turns: `mib` of a checkpoint, `write_seconds` of the thread that writes it, `seconds` and
`cpu_seconds` that one adds to a training, and `share`: those seconds over the usual time between two checkpoints.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.measured import measure
from ctr.config import CheckpointConfig, load_preset
from ctr.training.allocator import keep_freed_memory
from ctr.training.checkpoint import CheckpointStore
from ctr.training.loop import fit
from features.errors import ConfigError
from features.progress import silent
from features.store.feature_set import FeatureSet
from pipelines.job.fitting import new_model

TRAIN = Path("conf/train.yaml")
USUAL_SECONDS = 60 * CheckpointConfig().minutes


def one_training(feature_set: str, model: str, steps: int) -> dict[str, float]:
    """One epoch with a checkpoint every so many steps (0: none); rows, seconds, processor seconds, checkpoints."""
    keep_freed_memory()
    data, preset = FeatureSet.open(Path(feature_set)), load_preset(Path(model), TRAIN)
    changed = {"epochs": 1, "evaluations_per_epoch": 1, "checkpoint": CheckpointConfig(steps=steps, minutes=0)}
    config = preset.train.model_copy(update=changed)
    network = new_model(preset.model, data, config.seed)
    written, write = [], CheckpointStore.write

    def counted(store: CheckpointStore, snapshot: Any) -> None:
        began = time.monotonic()
        write(store, snapshot)
        size = sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
        written.append((size / 2**20, time.monotonic() - began))

    CheckpointStore.write = counted  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            found = fit(network, data, config, Path(folder) / "run", progress=silent)
            spent = time.process_time() - began
    finally:
        CheckpointStore.write = write  # type: ignore[method-assign]
    rows = data.manifest.windows["train"].rows
    return {
        "seconds": rows / found.rows_per_second,
        "cpu_seconds": spent,
        "checkpoints": len(written) - 1,  # the evaluation's is written in any case
        "mib": median(size for size, _ in written),
        "write_seconds": median(seconds for _, seconds in written),
    }


def checkpoint_cost(feature_set: str, model: str, steps: int, turns: int) -> dict[str, float]:
    """Medians of so many turns.

    Returns:
        `mib` of a checkpoint, `write_seconds` of its thread, `seconds` and `cpu_seconds` that one adds to a training,
        and the `share` of a training's seconds that are lost with the usual schedule.

    Raises:
        ConfigError: a training ended before its first checkpoint.
    """
    turned = []
    for _ in range(turns):
        plain, saved = (
            measure(
                "benchmarks.profiling.checkpoint_cost:one_training", feature_set=feature_set, model=model, steps=every
            ).result
            for every in (0, steps)
        )
        if not saved["checkpoints"]:
            raise ConfigError(f"one epoch of {feature_set} wrote no checkpoint every {steps} steps: give fewer --steps")
        added = {name: (saved[name] - plain[name]) / saved["checkpoints"] for name in ("seconds", "cpu_seconds")}
        turned.append({"mib": saved["mib"], "write_seconds": saved["write_seconds"], **added})
    found = {name: median(turn[name] for turn in turned) for name in turned[0]}
    return {**found, "share": found["seconds"] / USUAL_SECONDS}


def main() -> None:
    """The command: print the cost in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profiling.checkpoint_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--feature-set", required=True, help="folder of a feature set, or one with a CURRENT")
    parser.add_argument("--model", default="conf/model/qin.yaml", help="preset of a network (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps from checkpoint to checkpoint (50)")
    parser.add_argument("--turns", type=int, default=5, help="trainings of each of the two kinds (5)")
    options = parser.parse_args()
    if min(options.steps, options.turns) < 1:
        parser.error("--steps and --turns are 1 or more")
    try:
        cost = checkpoint_cost(options.feature_set, options.model, options.steps, options.turns)
    except ConfigError as error:
        parser.error(str(error))
    print(", ".join(f"{name} {value:.4f}" for name, value in cost.items()))


if __name__ == "__main__":
    main()
