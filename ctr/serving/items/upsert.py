"""A new version of a bundle that knows new and changed items, made without torch and without copying the item table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from ctr.serving.bundle import (
    ITEMS,
    MANIFEST,
    MODEL_CARD,
    RANKER,
    UPSERT,
    Bundle,
    BundleMetadata,
    exported_as,
    open_bundle,
    publish,
    seal,
)
from ctr.serving.items import delta
from ctr.serving.items.delta import ItemDelta
from ctr.serving.items.new_items import NewItems
from ctr.serving.ranker import Ranker, delta_width, open_session
from ctr.serving.verified import link
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError

REWRITTEN = (MANIFEST, MODEL_CARD, delta.ROWS, delta.IDS)
ITEMS_PER_CHUNK = 16_384
HEADING = "\n## Items upserted\n"

Give = Callable[[Encoder], NewItems]


@dataclass(frozen=True)
class Upserted:
    """A new version of a bundle.

    Args:
        path: its folder.
        model_version: `<version that was exported>+items.<number of the upsert>`; where the folder has another name,
            with the digest of the delta behind it, for versions of other folders may have the same number.
        new: items of this upsert that the bundle did not know.
        changed: items of this upsert that it knew.
        rows: of the delta, of this upsert and those before it.
    """

    path: Path
    model_version: str
    new: int
    changed: int
    rows: int


def upsert_items(path: Path, give: Give, out: Path | None = None) -> Upserted:
    """Publish a new version of a bundle in which these items are known, or leave nothing there.

    An item that the bundle knows is replaced whole: its columns and vectors are those given now. Every file that stays
    as it is is the same file under a second name (a copy where the file system allows no such link). The new version
    has replayed the golden requests, with the items as they were exported, before it is published.

    Args:
        path: the bundle, or a pointer to it. A bundle that was itself made so keeps the items it got before.
        give: the items, encoded with the bundle's encoder as it was exported.
        out: a new folder; default beside the bundle, named by the new version.

    Raises:
        ConfigError, NewItemsError, DataError: what is given is wrong, or `out` exists.
        DataError: the bundle is changed, or was made from a feature set that kept too little.
        NumericalError: a row of an item is not finite, or the new version scores a golden request differently.
    """
    bundle = open_bundle(path)
    encoder = Encoder.load(bundle.path)
    width = delta_width(open_session(bundle.path / RANKER))
    before = ItemDelta.load(bundle.path, width) or ItemDelta.empty(encoder, width)
    items = give(encoder)
    rows_MD = item_rows(bundle.path, items.inputs(bundle.path, encoder), width)
    after = before.with_rows(items.ids, rows_MD, encoder.items, items.columns)
    known = before.onto(encoder).items.encode(items.ids)
    while True:
        target, metadata = _named(bundle, after, out)
        try:
            _publish(bundle, metadata, after, target)
        except ConfigError:
            if out is None and target.exists():  # another upsert took the name meanwhile
                continue
            raise
        break
    changed = int((known > 1).sum())
    return Upserted(target, metadata.model_version, len(items.ids) - changed, changed, len(after.rows_KD))


def _publish(bundle: Bundle, metadata: BundleMetadata, after: ItemDelta, out: Path) -> None:
    with publish(out) as folder:
        _link(bundle, folder)
        after.save(folder)
        _write_card(bundle, metadata, after, folder)
        kept = {name: entry for name, entry in bundle.manifest.files.items() if name not in REWRITTEN}
        sealed = seal(folder, metadata, kept)
        Ranker.of(Bundle(folder, sealed))


def item_rows(folder: Path, feed: dict[str, np.ndarray], width: int) -> np.ndarray:
    """Rows of the item table from inputs of `items.onnx`, float32 [M, D], computed in chunks of bounded size.

    Raises:
        DataError: the graph gives none that fit the item table.
    """
    session = open_session(folder / ITEMS)
    names = [node.name for node in session.get_inputs()]
    items = len(next(iter(feed.values())))
    chunks = [slice(start, start + ITEMS_PER_CHUNK) for start in range(0, items, ITEMS_PER_CHUNK)]
    rows_MD = np.concatenate([session.run(["row"], {name: feed[name][rows] for name in names})[0] for rows in chunks])
    if rows_MD.shape != (items, width) or not np.isfinite(rows_MD).all():
        raise DataError(f"{folder / ITEMS}: gives rows that are not finite, or not {width} wide. Export the run again.")
    return np.asarray(rows_MD, np.float32)


def _named(bundle: Bundle, after: ItemDelta, out: Path | None) -> tuple[Path, BundleMetadata]:
    """The folder of the new version, and its metadata: the first number whose folder is free."""
    manifest = bundle.manifest
    number = manifest.upserts + 1
    if out is None:
        folder = exported_as(bundle.path.name)
        beside = ((one, bundle.path.parent / f"{folder}{UPSERT}{one}") for one in count(number))
        number, target = next((one, free) for one, free in beside if not free.exists())
    else:
        target = out
    version = f"{exported_as(manifest.model_version)}{UPSERT}{number}"
    if out is not None or target.name != version:
        version = f"{version}.{after.digest()}"  # versions of other folders may have this number too
    changes = {"model_version": version, "upserts": number}
    return target, BundleMetadata(**{name: getattr(manifest, name) for name in BundleMetadata.model_fields} | changes)


def _link(bundle: Bundle, folder: Path) -> None:
    """Give the files that stay a second name below `folder`."""
    for name, entry in bundle.manifest.files.items():
        if name in REWRITTEN:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            link(bundle.path / name, target, entry.sha256)
        except OSError:
            shutil.copyfile(bundle.path / name, target)


def _write_card(bundle: Bundle, metadata: BundleMetadata, after: ItemDelta, folder: Path) -> None:
    """The model card, which says last what was upserted."""
    card = (bundle.path / MODEL_CARD).read_text(encoding="utf-8").partition(HEADING)[0]
    added = (
        f"{HEADING}\nThis is {metadata.model_version}: since the export, {len(after.new)} items came new and "
        f"{len(after.changed)} of the catalogue changed. The model and its measured numbers are those of the export.\n"
    )
    (folder / MODEL_CARD).write_text(card.rstrip("\n") + "\n" + added, encoding="utf-8")
