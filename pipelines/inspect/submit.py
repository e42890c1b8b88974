"""`submit`: predictions for test rows without labels, in the order and form of the MM-CTR challenge."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from ctr.data.columns import column as column_of
from ctr.training.loop import predict
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError, NumericalError
from features.sources.tables import read
from features.store.atomic import replace_file
from features.store.feature_set import FeatureSet
from pipelines.job.load_run import load_run
from pipelines.workspace import Workspace

# Name of the file in the archive, as in the organisers' baseline.
MEMBER = "prediction.csv"
ID = "ID"


def submit_run(run_id: str, out: Path | None, column: str, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Score the test rows of a run's feature set and write `prediction.csv` in a zip, one row an ID of the test file.

    Args:
        run_id: or `latest`.
        out: the zip; default `submission.zip` in the run.
        column: name of the column of predictions.
        workspace: where the run is.
        console: where messages are printed.

    Raises:
        ConfigError: the test rows have labels, the split is not by files, or `column` is that of the IDs.
        DataError: the test file is gone, has no or repeated IDs, or its rows are not those of the feature set.
        NumericalError: a prediction is not finite.
    """
    if column == ID:
        raise ConfigError(f"--column {ID}: this column holds the IDs. Name the predictions otherwise.")
    run_dir, model, feature_set = load_run(run_id, workspace)
    contract = feature_set.contract
    if feature_set.manifest.windows["test"].labelled or contract.split.by != "files":
        raise ConfigError(
            f"{feature_set.path}: its test rows have labels, or are not a separate file: there is nothing to submit. "
            "`quadrank evaluate --split test` measures them."
        )
    path = contract.resolve(str(contract.split.test))
    log = contract.interactions
    table = read(path, [ID, log.user, log.item], log.format)
    if table[ID].is_duplicated().any() or table[ID].null_count():
        raise DataError(f"{path}: column {ID!r} needs a value of its own in each of its {table.height:,} rows.")
    place = _places_in_file(table, feature_set, path)
    scores = np.empty(table.height)
    scores[place] = predict(model, feature_set, "test")
    if not np.isfinite(scores).all():
        raise NumericalError(f"{run_dir.name}: {int((~np.isfinite(scores)).sum())} predictions are not finite.")
    target = out or run_dir / "submission.zip"
    text = pl.DataFrame({ID: table[ID], column: scores}).write_csv()
    replace_file(target, lambda fresh: _zip(fresh, text))
    console.print(f"{target}: {table.height:,} predictions, mean {scores.mean():.4f}, in the order of {path}")
    return {"status": "done", "exit_code": 0, "run_id": run_dir.name, "submission": str(target), "rows": table.height}


def _places_in_file(table: pl.DataFrame, feature_set: FeatureSet, path: str) -> np.ndarray:
    """Row in the file of each stored row: the k-th row of a user there is the k-th of that user here."""
    log = feature_set.contract.interactions
    encoder = Encoder.load(feature_set.path)
    raw = pl.DataFrame({"user": encoder.users.encode(table[log.user]), "item": encoder.items.encode(table[log.item])})
    kept = pl.DataFrame({name: column_of(feature_set, "test", name) for name in ("user", "item")})
    turn = pl.int_range(pl.len()).over("user").alias("turn")
    numbered = raw.with_row_index("place").with_columns(turn)
    found = (
        kept.cast(pl.Int64)
        .with_columns(turn)
        .join(
            numbered.with_columns(pl.col("user", "item").cast(pl.Int64)),
            on=["user", "turn"],
            how="left",
            maintain_order="left",
        )
    )
    if kept.height != raw.height or found["place"].null_count() or (found["item"] != found["item_right"]).any():
        raise DataError(
            f"{path}: its {raw.height:,} rows are not the {kept.height:,} test rows of {feature_set.path}. "
            "The file changed after the build, or checks removed rows. Build the feature set again."
        )
    return found["place"].to_numpy()


def _zip(path: Path, text: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, text)
