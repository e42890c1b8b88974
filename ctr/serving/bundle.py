"""The bundle: the folder that a ranking server loads, with a hash of each file, published in one step."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.verified import has_sha256
from features.contract.settings import Settings
from features.errors import ConfigError, DataError, NumericalError
from features.store.atomic import flush, flush_tree
from features.store.feature_set import FileEntry, ListSizes, SplitName, Window, sha256_of
from features.store.pointer import CURRENT, NEWEST, follow

FORMAT = 5
MANIFEST = "MANIFEST.json"
RANKER = "ranker.onnx"
SCORER = "scorer.onnx"
ITEM_TABLE = "item_table.bin"
ITEM_DELTA = "item_delta"  # input of the ranker graph, and name of its files
ITEMS = "items.onnx"
GOLDEN = "golden.json"
MODEL_CARD = "MODEL_CARD.md"
REQUEST = "request.json"
UPSERT = "+items."  # between the version that was exported and the number of its upserts
# Outputs of the ranker graph: the click's probability, and score_<task> of further labels.
SCORE = "score"

# Prefix of folders that are being filled, by which the remains of killed exports are found.
STAGING = ".exporting-"

T = TypeVar("T", bound=Settings)


def exported_as(version: str) -> str:
    """The model version, or the folder, that a bundle was exported as: without what upserts of items added to it."""
    return version.partition(UPSERT)[0]


def run_of(version: str) -> str:
    """The training run of a model version: without the graph's variant, and what upserts of items added to it."""
    return version.partition("+")[0]


class BundleMetadata(Settings):
    """Metadata of a bundle: all of `MANIFEST.json` but the format and the hashes of the files.

    Args:
        name: the data contract's name, which is also the model's.
        model_version: the model's name in answers and logs, e.g. the training run's id.
        architecture: `ModelConfig.architecture`.
        fingerprint: of the data contract (`Contract.fingerprint`).
        feature_set: version of the feature set it was trained on.
        metrics: by split, then by metric, e.g. `{"test": {"auc": 0.71}}`.
        controls: the same metrics of each baseline, by its name.
        windows: rows, positives and time span of each split.
        inputs: shape of each input of `ranker.onnx`; a named axis is text.
        git_revision: of the code that trained it.
        versions: of Python and of the packages that made it.
        created: UTC, ISO 8601.
        upserts: how often items were upserted since its export.
        variant: of the ranker graph (`ctr.export.precision`); `fp32` is the graph whose parity with torch was proven.
        variants: those that were tried at the export, with their AUC, time and size.
        list_sizes: candidates of the requests that it was trained on, where it reads request-relative columns.
        warm_started_from: run id of the model whose weights it went on from; None after a full training.
        generation: how many warm starts lie between the last full training and it, its own included.
    """

    name: str
    model_version: str
    architecture: str
    fingerprint: str
    feature_set: str
    metrics: dict[str, dict[str, Any]]
    controls: dict[str, dict[str, Any]]
    windows: dict[SplitName, Window]
    inputs: dict[str, list[int | str]]
    git_revision: str
    versions: dict[str, str]
    created: str
    upserts: int = 0
    variant: str = "fp32"
    variants: dict[str, dict[str, float]] = {}
    list_sizes: ListSizes | None = None
    warm_started_from: str | None = None
    generation: int = 0


class BundleManifest(BundleMetadata):
    """`MANIFEST.json`, written last: a folder without it is not a bundle.

    Args:
        format: of the bundle.
        files: size and sha256 of every other file, by path.
        checksum: sha256 of all of this but the checksum, as JSON with sorted keys and no spaces.
    """

    format: int
    files: dict[str, FileEntry]
    checksum: str = ""

    def with_checksum(self) -> BundleManifest:
        """The same, with the checksum of its content."""
        return self.model_copy(update={"checksum": _checksum(self.model_dump(mode="json"))})


class GoldenRequest(Settings):
    """One raw request with the scores that the trained torch model gave its candidates.

    Args:
        name: says what is special about the request.
        request: as JSON, see MODEL_CARD.md.
        scores: click probability of each candidate, in the order of the request.
        tasks: probabilities of each further label, likewise.
    """

    name: str
    request: dict[str, Any]
    scores: list[float]
    tasks: dict[str, list[float]] = {}


class Golden(Settings):
    """`golden.json`: requests that every load replays, so that a server whose scores differ does not start.

    Args:
        tolerance: largest `ctr.serving.agreement.logit_difference` from the recorded scores that the replay allows.
        cases: raw requests with their scores.
    """

    tolerance: float = TOLERANCE
    cases: list[GoldenRequest]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder.

    Layout:

        ranker.onnx item_table.bin      scores the candidates of one request; the item table that it reads
        scorer.onnx                     the same for many requests at once, for offline scoring; reads the same table;
                                        only where it was exported (`export --scorer`)
        item_delta.bin item_delta.arrow rows of items that came later, which the graph reads behind the table, and
                                        their ids; only where items were upserted
        items.onnx                      turns encoded item columns and vectors into rows of the item table
        transforms/* semantic_ids/*     turn raw vectors of items into those that items.onnx reads
        encoder.json vocabularies/*     turn raw ids and values into inputs of the graphs
        users.arrow counters/*.arrow    user columns, and counters at the end of the log, for requests that give none
        item_numbers.arrow              item columns that request-relative ones compare; only where there are such
        golden.json request.json        requests with their scores; the first of them alone, as an example
        sbom.json                       packages that serve it, with versions and licences (CycloneDX)
        MODEL_CARD.md MANIFEST.json

    Args:
        path: the folder, no pointer.
        manifest: its `MANIFEST.json`.
    """

    path: Path
    manifest: BundleManifest

    def golden(self) -> Golden:
        """The golden requests. Raises DataError if the file is malformed."""
        return _read(self.path / GOLDEN, Golden)

    def replay(self, tasks: Sequence[str], score: Callable[[Sequence[GoldenRequest]], Iterable[np.ndarray]]) -> float:
        """Compare scores of the golden requests with the recorded ones; the largest `logit_difference` of them.

        Args:
            tasks: further labels in the order of the scores' columns.
            score: the requests to their scores [N, 1 + tasks], in the same order.

        Raises:
            NumericalError: it exceeds the tolerance that `golden.json` states.
        """
        worst, golden = 0.0, self.golden()
        for case, scores_NH in zip(golden.cases, score(golden.cases), strict=True):
            wanted_NH = np.stack([case.scores, *(case.tasks[name] for name in tasks)], axis=-1)
            difference = logit_difference(scores_NH, wanted_NH)
            # Written so that NaN fails too.
            if not difference <= golden.tolerance:
                raise NumericalError(
                    f"{self.path}: golden request {case.name!r} scores {difference:.2e} in logits away from "
                    f"what the trained model gave (at most {golden.tolerance} is allowed). Compare the package "
                    "versions in MANIFEST.json with the ones installed here."
                )
            worst = max(worst, difference)
        return worst


def folder_of(path: Path) -> Path:
    """The folder that a path means, as `open_bundle` takes it; nothing in it is read.

    Raises:
        DataError: there is no such folder, or a pointer to nothing.
    """
    path = follow(path).resolve()
    if path.name == CURRENT and not path.exists():
        raise DataError(
            f"{path}: no bundle of this name has passed the gate yet. {NEWEST} beside it names the newest one "
            f"exported; `quadrank promote` checks it and moves {CURRENT}."
        )
    if not path.is_dir():
        raise DataError(f"{path}: no such folder: not a bundle. Make one with `quadrank export`.")
    return path


def open_bundle(path: Path) -> Bundle:
    """Open a bundle after comparing every file with its sha256, large ones once a host (`ctr.serving.verified`).

    Nothing else notices a damaged file: ONNX Runtime loads an item table with a flipped bit without an error.

    Args:
        path: the bundle, a pointer to it (`bundles/<name>/CURRENT`), or the folder of that pointer.

    Raises:
        DataError: not a bundle, another format, a file that is missing, changed or not in the manifest, or a
            pointer to nothing.
    """
    # The pointer may move while the files are read: stay with the folder that it names now.
    path = folder_of(path)
    manifest = _read_manifest(path)
    present = _files_below(path)
    for name, entry in manifest.files.items():
        file = path / name
        if name not in present:
            raise DataError(f"{file}: missing from the bundle. Copy the whole folder again, or export it again.")
        if file.stat().st_size != entry.bytes or not has_sha256(file, entry.sha256):
            raise DataError(
                f"{file}: changed since it was exported (sha256 is not {entry.sha256[:12]}…). "
                "Copy the whole folder again, or export it again."
            )
    extra = sorted(present - set(manifest.files))
    if extra:
        raise DataError(
            f"{path / extra[0]}: not in {MANIFEST} ({len(extra)} such file{'s' * (len(extra) > 1)}). "
            "A bundle holds what was exported and nothing else: move it out of the folder."
        )
    return Bundle(path, manifest)


@contextmanager
def publish(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` and move it to `out` when the block ends without an error.

    Fill it, `seal` it and check it inside the block; an error there removes the folder. A bundle is always a new
    folder: an existing one is never replaced, so no reader finds a mixture of two bundles.

    Args:
        out: folder of the bundle; its parents are made.

    Raises:
        ConfigError: `out` exists and is not an empty folder, or lies below a file or in a bundle.
        DataError: the block ended without `seal`.
    """
    out = out.parent.resolve() / out.name
    refuse_taken(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _staged(out) as staging:
        yield staging
        _read_manifest(staging)
        flush_tree(staging)
        refuse_taken(out)
        try:
            staging.rename(out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            refuse_taken(out)  # another export took it between the check and the rename
            raise
        flush(out.parent)


def refuse_taken(out: Path) -> None:
    """Raise ConfigError where a path exists and is not an empty folder, or cannot be one."""
    refuse_place(out)
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConfigError(
            f"{out}: exists, and an existing folder is never overwritten. Name a new folder with --out, or remove this "
            "one yourself."
        )


def refuse_place(path: Path) -> None:
    """Raise ConfigError where a file lies above a path, or a bundle or feature set, which would have one file more."""
    here = path.parent.resolve()
    for above in (here, *here.parents):
        if above.exists() and not above.is_dir():
            raise ConfigError(f"{path}: {above} is no folder, so nothing can lie below it. Name another path.")
        if (above / MANIFEST).is_file():
            raise ConfigError(
                f"{path}: lies in {above}, which holds what its {MANIFEST} names and nothing else. Name another path."
            )


def seal(
    folder: Path, metadata: BundleMetadata, known: Mapping[str, FileEntry] = MappingProxyType({})
) -> BundleManifest:
    """Hash every file below `folder`, write `MANIFEST.json` there and return it; `known` files are not read again."""
    files = {
        name: known.get(name) or FileEntry(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in sorted(_files_below(folder))
    }
    known_fields = {name: getattr(metadata, name) for name in BundleMetadata.model_fields}
    manifest = BundleManifest(format=FORMAT, files=files, **known_fields).with_checksum()
    write_json(folder / MANIFEST, manifest)
    return manifest


def write_json(path: Path, content: Settings) -> None:
    """Write a settings object as indented JSON, text as it is (no escapes)."""
    text = json.dumps(content.model_dump(mode="json"), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _read_manifest(path: Path) -> BundleManifest:
    manifest = _read(path / MANIFEST, BundleManifest)
    if manifest.format != FORMAT:
        raise DataError(
            f"{path / MANIFEST}: bundle format {manifest.format}, this version reads format {FORMAT}. "
            "Export the run again with `quadrank export`."
        )
    # Of what the file says: an earlier version's manifest lacks what was added to manifests since.
    if manifest.checksum != _checksum(json.loads((path / MANIFEST).read_bytes())):
        raise DataError(
            f"{path / MANIFEST}: changed since it was exported (its checksum is another). Copy the whole folder again, "
            "or export it again."
        )
    return manifest


def _checksum(record: Mapping[str, Any]) -> str:
    """sha256 of a manifest's record, all of it but the checksum."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read(path: Path, model: type[T]) -> T:
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DataError(f"{path}: no such file: not a bundle. Make one with `quadrank export`.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{path}: not a {path.name} of format {FORMAT}: {where}: {first['msg']}. Export the bundle again."
        ) from None


def _files_below(folder: Path) -> set[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in paths if path.as_posix() != MANIFEST}


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, locked while it is filled; those that killed exports left there are removed."""
    for stale in out.parent.glob(f"{STAGING}*"):
        with _locked(stale) as dead:
            if dead:
                shutil.rmtree(stale, ignore_errors=True)
    while True:
        staging = out.parent / f"{STAGING}{out.name}-{secrets.token_hex(4)}"
        staging.mkdir()
        with _locked(staging) as ours:
            if not ours or not staging.exists():
                continue  # another export took it for a dead one before it was locked
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder around the block, and say whether we do; the kernel frees it with its process."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
