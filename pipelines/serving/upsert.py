"""`quadrank items upsert`: files of new and changed items into a new version of a bundle."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from ctr.serving.items.new_items import NewItems, items_of_table
from ctr.serving.items.upsert import upsert_items
from features.contract.contract import Contract, Table
from features.contract.settings import unknown_key
from features.encoding.encoder import Encoder
from features.errors import ConfigError, error_prefix
from features.fitting.catalogue import read_table
from features.sources.tables import scan
from features.store.pointer import follow, move_pointer
from features.vectors.read import read_new_vectors


def upsert_files(
    bundle: Path, items: Path, vectors: Sequence[str], out: Path | None, console: Console
) -> dict[str, Any]:
    """Publish a new version of a bundle that knows the items of these files; returns what was done, for JSON.

    Args:
        bundle: its folder, or a pointer to it, which then names the new version. Where another process moves the
            pointer meanwhile, the items are put into what it names then, too.
        items: table of the contract's item table's form, with new and changed items alone.
        vectors: `NAME=FILE` for each set that is given.
        out: a new folder; default beside the bundle. With it no pointer moves.
        console: where messages are printed.

    Raises:
        ConfigError: a set that the bundle does not have, or a text that is no `NAME=FILE`.
        DataError: files that are not what the contract says.
    """
    started = time.perf_counter()
    while True:
        before = follow(bundle).resolve()
        made = upsert_items(before, lambda encoder: _given(encoder, items, vectors, console), out)
        moved = out is None and move_pointer(bundle, before, made.path)
        after = follow(bundle).resolve()
        if moved or out is not None or after == before:
            break
        # Another upsert or a promotion: what serves now must get the items too.
        console.print(f"{bundle} names {after.name} meanwhile, not {before.name}: the items are put into that one")
    console.print(
        f"bundle {made.path}: {made.new} new and {made.changed} changed items, {made.rows} since the export; "
        + (f"{bundle} names it now" if moved else "no pointer names it")
    )
    return {
        "bundle": str(made.path),
        "model_version": made.model_version,
        "new": made.new,
        "changed": made.changed,
        "upserted": made.rows,
        "pointer_moved": moved,
        "seconds": time.perf_counter() - started,
    }


def _given(encoder: Encoder, items: Path, vectors: Sequence[str], console: Console) -> NewItems:
    contract = encoder.contract
    files = _files_of(vectors, contract)
    table = _read_items(contract, items, console)
    with error_prefix(str(items)):
        given = items_of_table(encoder, table)
    found = {name: read_new_vectors(str(file), contract.embeddings[name], given.ids) for name, file in files.items()}
    if absent := [name for name in contract.embeddings if name not in found]:
        console.print(f"no vectors of {', '.join(absent)}: the items have none there")
    return replace(given, vectors=found)


def _files_of(vectors: Sequence[str], contract: Contract) -> Mapping[str, Path]:
    files = {}
    for text in vectors:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise ConfigError(f"--vectors {text!r}: write it as NAME=FILE, e.g. text=new_text.parquet.")
        if name not in contract.embeddings:
            hint = unknown_key(name, list(contract.embeddings)) if contract.embeddings else "It has none."
            raise ConfigError(f"--vectors {text!r}: the bundle has no vector set {name!r}. {hint}")
        if name in files:
            raise ConfigError(f"--vectors {text!r}: {name!r} is given twice. Give one file a set.")
        files[name] = Path(file)
    return files


def _read_items(contract: Contract, path: Path, console: Console) -> pl.DataFrame:
    declared = contract.items or Table(path="", id=contract.item_field)
    file = str(path.absolute())
    content = read_table(contract, declared.model_copy(update={"path": file}), "item")
    names = scan(file, declared.format).collect_schema().names()
    read = {declared.id, declared.valid_from}
    for name, spec in declared.columns.items():
        source = spec.source or name
        read |= {source} if source in names else set(pl.sql_expr(source).meta.root_names())
    if ignored := [name for name in names if name not in read]:
        console.print(f"{path}: the contract reads no column {', '.join(ignored)}: left out")
    # With `valid_from`, versions stand in the order of time: what holds now is the last.
    return content.unique(declared.id, keep="last", maintain_order=True)
