"""`quadrank score`: a parquet file of rows to one with their scores, a batch at a time."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from ctr.serving.bundle import open_bundle, refuse_place
from ctr.serving.scoring.batches import score_rows
from ctr.serving.scoring.scorer import Scorer
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError, error_prefix
from features.progress import progress
from features.requests.past_table import USER, PastTable, with_names
from features.requests.request_rows import HISTORY, RowEncoder
from features.requests.whole_lists import whole_lists
from features.sources.tables import readable
from features.store.atomic import replace_file


def score_file(
    bundle: Path,
    source: Path,
    output: Path,
    events: Path | None,
    batch: int,
    threads: int,
    console: Console,
    *,
    pasts: bool = False,
    strict: bool = False,
) -> dict[str, Any]:
    """Score each row of a parquet file; returns what was done, for JSON.

    The output has the rows and columns of the input, in its order, and `score` (`score_<task>` of further labels). It
    appears when it is complete.

    Args:
        bundle: its folder, or a pointer to it.
        source: the rows, as `features.requests.request_rows.RowEncoder` reads them.
        output: the file to write; one that is there is replaced.
        events: what users did, as the log has it.
        batch: rows that are read at once.
        threads: of the model; 0 for one a core.
        console: where messages are printed.
        pasts: histories are those that the bundle brings.
        strict: refuse rows that lack context columns which the model was trained on.

    Raises:
        ConfigError: a bundle without the graph or without pasts, an output that is what is read, a folder, below a file
            or in a bundle, histories given twice, or (strict) missing values.
        DataError: files that are not what the contract says.
        NumericalError: a score that is no number, or golden requests that score differently here.
    """
    started = time.perf_counter()
    if pasts and events is not None:
        raise ConfigError("--pasts and --events both give histories. Leave one out.")
    for name, read in (("input", source), ("--events", events)):
        if read is not None and output.resolve() == read.resolve():
            raise ConfigError(f"--output {output}: is the {name}, which would be replaced. Name another file.")
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder. Name a file in it.")
    refuse_place(output)
    opened = open_bundle(bundle)
    exported, scorer = Encoder.load(opened.path), Scorer.open(opened.path, threads)
    scorer.replay(opened, exported)
    encoder = exported if scorer.later is None else scorer.later.onto(exported)
    with _parquet(source) as file:
        taken = [name for name in scorer.outputs if name in file.schema_arrow.names]
        if taken:
            raise DataError(f"{source}: has a column {taken[0]!r} already. Leave it out: the scores get that name.")
        with readable(str(source)):
            columns = pl.DataFrame(pl.from_arrow(file.schema_arrow.empty_table())).schema
        table = _pasts_of_bundle(opened.path, encoder, source) if pasts else None
        if events is not None:
            table = PastTable.read(events, encoder)
        with error_prefix(str(source)):
            rows = RowEncoder(encoder, columns, table)
        counts: Counter[str] = Counter()
        replace_file(output, lambda fresh: _write(file, fresh, source, rows, scorer, batch, counts, strict))
        total = file.metadata.num_rows
    seconds = time.perf_counter() - started
    missing = {name.partition(" ")[2]: count for name, count in counts.items() if name.startswith("missing ")}
    console.print(
        f"{output}: {total:,} rows in {seconds:.1f} s, {total / seconds:,.0f} rows/s; {counts['unknown']:,} of items "
        "that the model has never seen"
    )
    if missing:
        lacking = ", ".join(f"{name} ({count:,})" for name, count in missing.items())
        console.print(f"rows lack values that the model was trained on: {lacking}")
    return {
        "model_version": opened.manifest.model_version,
        "output": str(output),
        "rows": total,
        "seconds": seconds,
        "rows_per_s": total / seconds,
        "unknown": counts["unknown"],
        "missing": missing,
    }


def _write(
    file: pq.ParquetFile,
    fresh: Path,
    source: Path,
    rows: RowEncoder,
    scorer: Scorer,
    batch: int,
    counts: Counter[str],
    strict: bool,
) -> None:
    """Write the scored rows to `fresh`, and count unknown items and missing values."""
    schema = file.schema_arrow
    for name in scorer.outputs:
        schema = schema.append(pa.field(name, pa.float32()))
    with (
        pq.ParquetWriter(fresh, schema) as writer,
        progress("scoring", file.metadata.num_rows) as bar,
        error_prefix(str(source)),
    ):
        for part in whole_lists(_batches(file, batch), rows):
            encoded = rows.encode(pl.DataFrame(pl.from_arrow(part)))
            if strict and encoded.missing:
                _refuse_missing(encoded.missing)
            scores_RH = score_rows(scorer, encoded)
            columns = [pa.array(np.ascontiguousarray(score_R)) for score_R in scores_RH.T]
            writer.write_batch(pa.RecordBatch.from_arrays([*part.columns, *columns], schema=schema))
            counts["unknown"] += encoded.unknown
            counts.update({f"missing {name}": count for name, count in encoded.missing.items()})
            bar.advance(part.num_rows)


def _batches(file: pq.ParquetFile, rows: int) -> Iterator[pa.RecordBatch]:
    """The file's rows, so many at once. Raises DataError where what it holds is damaged."""
    try:
        yield from file.iter_batches(rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read to its end: {str(error).splitlines()[0]}. Write the file again.") from None


def _refuse_missing(missing: dict[str, int]) -> None:
    lacking = ", ".join(f"{name} ({count:,} rows)" for name, count in missing.items())
    raise ConfigError(
        f"missing: {lacking}. The model was trained on these values: give them as columns, or score without --strict."
    )


def _pasts_of_bundle(bundle: Path, encoder: Encoder, source: Path) -> PastTable:
    """What the bundle knows of the users of the rows."""
    # Unpacking needs a package of the extra `serve`.
    from ctr.serving.scoring.bundle_pasts import write_events

    rows = with_names(pl.scan_parquet(source, glob=False), {USER: encoder.contract.interactions.user})
    names = rows.collect_schema().names()
    if HISTORY in names:
        raise ConfigError(f"{source}: rows have a column `{HISTORY}`, but --pasts gives histories too. Leave one out.")
    with readable(str(source)):
        users = rows.select(USER).unique().collect()[USER] if USER in names else pl.Series(USER, [], pl.Null)
    with tempfile.TemporaryDirectory(prefix="quadrank-pasts-") as scratch:
        with error_prefix(str(source)):
            write_events(bundle, encoder, users, Path(scratch) / "events.parquet")
        return PastTable.read(Path(scratch) / "events.parquet", encoder)


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    if path.is_dir():
        raise DataError(f"{path}: is a folder. Score its files one by one, or write them into one file.")
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. It must be a parquet file of rows to score.") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0].rstrip('.')}.") from None
    with file:
        yield file
