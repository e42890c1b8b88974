"""The feature set on disk: its layout, its manifest, and reading it memory-mapped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from features.contract.contract import Contract
from features.contract.settings import Settings
from features.errors import DataError, require_format
from features.store.arrow import to_arrow, to_numpy
from features.store.pointer import follow
from features.store.schema import Schema
from features.store.vector_files import EMBEDDINGS, decoded, read_stored
from features.store.versions import ITEM_VERSIONS, USER_VERSIONS, Versions, columns_as_of

SplitName = Literal["train", "valid", "test"]

SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
MANIFEST = "MANIFEST.json"
FORMAT = 6


class FileEntry(Settings):
    """Size and sha256 of one file of the feature set."""

    bytes: int
    sha256: str


class Window(Settings):
    """Rows of one split: how many, how many positive, and the time they span (µs since 1970)."""

    rows: int
    positives: int
    first_time: int
    last_time: int
    labelled: bool = True


class Sampling(Settings):
    """Negatives that were drawn for a log of positives.

    `rate` is the chance that one possible negative of a positive was drawn (uniform sampling alone). A model trained on
    them predicts p for odds that are too high by 1 / rate: the probability in the whole is p / (p + (1 - p) / rate).
    """

    drawn: int
    per_positive: float
    rate: float | None = None


class ListSizes(Settings):
    """How many candidates the requests of the training rows have: of 1 % and 99 % of the requests at most so many."""

    least: int
    low: int
    high: int
    greatest: int


class Code(Settings):
    """What built it: sha256 of the sources of `features`, and the version and commit that people know them by."""

    sha256: str
    revision: str


class PartEntry(Settings):
    """Files of one part's rows in one split (or of one day), and of the events that their histories lie in."""

    split: SplitName
    rows: str
    events: str
    window: Window | None = None
    day: str | None = None


class Manifest(Settings):
    """Written last: a folder without it is not a feature set.

    `label_mean` is the rate that rate counters give to what has no rows yet; None without counters. `list_sizes` are
    counted where columns are request-relative.
    """

    format: int
    name: str
    version: str
    fingerprint: str
    contract: Contract
    schema_: Schema
    windows: dict[SplitName, Window]
    shards: int
    parts: tuple[PartEntry, ...]
    days: dict[str, str] = {}
    log_files: dict[str, tuple[date, date]] = {}
    sampling: Sampling | None = None
    label_mean: float | None = None
    list_sizes: ListSizes | None = None
    findings: tuple[str, ...] = ()
    files: dict[str, FileEntry]
    code: Code
    versions: dict[str, str]
    seconds: dict[str, float]
    source: str


@dataclass(frozen=True)
class Verified:
    """How many files, and bytes in all, were compared with their sha256."""

    files: int
    bytes: int


class FeatureSet:
    """A published feature set, opened for reading. Columns are numpy views on memory-mapped files.

    Layout (`part` runs over shards of users; a part's history ends count into the same part's events):

        rows/{train,valid,test}/part-00000.arrow   user item time label [weight] [request] [_instant] context…
                                                   history_end history_len
        events/part-00000.arrow                    item time event columns…, by user and time
        items.arrow users.arrow                    encoded columns; row i is item (user) row i, its latest version
        {item,user}_versions.arrow                 all versions, by row and the instant they begin (with `valid_from`)
        embeddings/<set>.npy <set>.present.npy     float32, float16 or int8 [items, width]; bool [items]
        embeddings/<set>.scale.npy                 float32 [items], of an int8 set
        learned/<set>.parquet                      vectors that were learned from histories, as a file of vectors
        semantic_ids/<column>/                     a `SemanticCoder`
        transforms/                                what was learned from vectors
        counters/                                  what the counters said at the end of the log, and their states
        item_numbers.arrow                         encoded item columns that request-relative ones compare
        vocabularies/*.arrow  encoder.json  profile.json  MANIFEST.json
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> FeatureSet:
        """Open a version folder, or a name folder through its `CURRENT` pointer.

        Raises:
            DataError: no manifest there, or one of another format.
        """
        path = follow(path)
        try:
            content = (path / MANIFEST).read_bytes()
            require_format(path / MANIFEST, content, FORMAT)
            manifest = Manifest.model_validate_json(content)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DataError(f"{path}: no {MANIFEST}: not a feature set. Build one with `quadrank features`.") from None
        except ValidationError as error:
            raise DataError(
                f"{path / MANIFEST}: not a manifest of format {FORMAT} ({error.error_count()} problems). "
                "Build the feature set again with `quadrank features`."
            ) from None
        return cls(path, manifest)

    @property
    def schema(self) -> Schema:
        """The fields a model sees."""
        return self.manifest.schema_

    @property
    def contract(self) -> Contract:
        """The contract it was built from."""
        return self.manifest.contract

    @property
    def judged_by(self) -> SplitName:
        """The split that a finished model is measured on: test, or valid where the test rows have no labels."""
        return "test" if self.manifest.windows["test"].labelled else "valid"

    def verify(self) -> Verified:
        """Compare every file with its recorded sha256. Raises DataError naming the first that differs."""
        files = self.manifest.files
        broken = [self.path / name for name, entry in files.items() if not _is_as_recorded(self.path / name, entry)]
        if broken:
            raise DataError(
                f"{broken[0]}: missing or changed since it was built ({len(broken)} of {len(files)} files are). Delete "
                f"{self.path} and build it again."
            )
        return Verified(len(files), sum(entry.bytes for entry in files.values()))

    def is_whole(self) -> bool:
        """Whether every file is there in its recorded size: what a deletion or a full disk breaks, seen at no cost."""
        return all(_has_size(self.path / name, entry) for name, entry in self.manifest.files.items())

    def is_as_built(self, but: tuple[str, ...]) -> bool:
        """Whether every file has its recorded sha256, but for those in the folders `but`, which are not read."""
        files = self.manifest.files.items()
        return all(_is_as_recorded(self.path / name, entry) for name, entry in files if Path(name).parts[0] not in but)

    def rows(self, split: SplitName) -> list[dict[str, np.ndarray]]:
        """The row columns of a split, one dict a part."""
        return [self._table(part.rows) for part in self.manifest.parts if part.split == split]

    def events(self, split: SplitName) -> list[dict[str, np.ndarray]]:
        """The event columns that the rows of a split point into, one dict a part."""
        return [self._table(part.events) for part in self.manifest.parts if part.split == split]

    @cached_property
    def items(self) -> dict[str, np.ndarray]:
        """Encoded item columns, int32 [items], int32 [items, max_len] for tags, or float32 [items]."""
        return self._table("items.arrow")

    @cached_property
    def users(self) -> dict[str, np.ndarray]:
        """Encoded user columns, as `items`."""
        return self._table("users.arrow")

    @cached_property
    def item_versions(self) -> Versions | None:
        """Which version of an item a row reads; None where the item table has one row an id."""
        return self._versions(ITEM_VERSIONS, self.items)

    @cached_property
    def user_versions(self) -> Versions | None:
        """Which version of a user a row reads; None where the user table has one row an id."""
        return self._versions(USER_VERSIONS, self.users)

    def items_as_of(self, rows: np.ndarray, time: np.ndarray) -> dict[str, np.ndarray]:
        """Item columns of these item rows, as they were at these times (µs, `instants_of` its rows)."""
        return columns_as_of(self.items, self.item_versions, rows, time)

    def users_as_of(self, rows: np.ndarray, time: np.ndarray) -> dict[str, np.ndarray]:
        """User columns of these user rows, as they were at these times (µs, `instants_of` its rows)."""
        return columns_as_of(self.users, self.user_versions, rows, time)

    def vectors(self, name: str) -> np.ndarray:
        """One vector set, float32 [items, width], zeros where missing and not filled.

        Memory-mapped if it is stored so; otherwise decoded anew by each call. Raises DataError as `stored_vectors`.
        """
        return decoded(*self.stored_vectors(name))

    def stored_vectors(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """One vector set as stored, [items, width], memory-mapped; and the scales of an int8 set, float32 [items].

        Raises:
            DataError: no such set, or a part that was fused without `keep_parts`.
        """
        kept = [vectors.name for vectors in self.schema.vectors]
        if name not in kept:
            raise DataError(
                f"{self.path}: no vector set {name!r}; it holds {', '.join(kept) or 'none'}. A part of a fused set is "
                "kept with `keep_parts: true`."
            )
        return read_stored(self.path / EMBEDDINGS, name)

    def present(self, name: str) -> np.ndarray:
        """Which items have a vector of their own in the set (a filled one is not), bool [items]."""
        return np.load(self.path / EMBEDDINGS / f"{name}.present.npy", mmap_mode="r")

    def _table(self, name: str) -> dict[str, np.ndarray]:
        return read_arrow(self.path / name)

    def _versions(self, name: str, latest: dict[str, np.ndarray]) -> Versions | None:
        return Versions(latest, self._table(name)) if (self.path / name).is_file() else None


def part_file(number: int) -> str:
    """Name of the file of a shard of users, in any folder of the feature set."""
    return f"part-{number:05d}.arrow"


def _is_as_recorded(path: Path, entry: FileEntry) -> bool:
    return _has_size(path, entry) and sha256_of(path) == entry.sha256


def _has_size(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes


def read_arrow(path: Path) -> dict[str, np.ndarray]:
    """Columns of an Arrow IPC file of one record batch as zero-copy numpy arrays; fixed lists are 2-D.

    Raises:
        FileNotFoundError: no such file.
        DataError: one that was cut short, or whose content is another.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
    except (pa.ArrowException, OSError) as error:
        # A number is the system's, which says what it is: no such file, no permission.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: cannot be read: {error}. It was damaged: build or export again.") from None
    columns = {name: table[name] for name in table.column_names}
    # A column without rows has no chunk at all.
    chunks = {name: column.chunks or [pa.nulls(0, column.type)] for name, column in columns.items()}
    return {name: to_numpy(chunk) for name, (chunk,) in chunks.items()}


def write_arrow(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write numpy columns (1-D, or 2-D as fixed-size lists) as an Arrow IPC file of one record batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: to_arrow(values) for name, values in columns.items()}
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
