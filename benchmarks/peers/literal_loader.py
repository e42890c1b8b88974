"""Rows of a pandas frame to batches, one row at a time: how training code reads rows that hold their histories.

Shapes: B rows, S history positions (newest last, zeros in front), T tags of an item, W vector width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.inputs.mmctr_shaped import ITEMS, ROWS

Row = dict[str, Tensor]


class RowDataset(Dataset[Row]):
    """The training rows that `benchmarks.inputs.mmctr_shaped` wrote.

    Args:
        folder: `out` of `mmctr_shaped.build`.
    """

    def __init__(self, folder: Path) -> None:
        self.frame = pd.read_parquet(folder / ROWS)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> Row:
        """`item_seq` int64 [S]; `item_id`, `likes_level`, `views_level` int64 and `label` float32, scalars."""
        row = self.frame.iloc[index]
        return {
            "item_seq": torch.from_numpy(row["item_seq"].astype(np.int64)),
            "item_id": torch.tensor(row["item_id"]),
            "likes_level": torch.tensor(row["likes_level"]),
            "views_level": torch.tensor(row["views_level"]),
            "label": torch.tensor(row["label"], dtype=torch.float32),
        }


def collate(rows: list[Row]) -> Row:
    """Rows to a batch: `item_seq` [B, S], all else [B]."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def row_loader(folder: Path, batch_size: int, seed: int = 1) -> DataLoader[Row]:
    """Shuffled batches of all training rows; a last one that is smaller is left out."""
    draw = torch.Generator().manual_seed(seed)
    dataset = RowDataset(folder)
    return DataLoader(dataset, batch_size, shuffle=True, collate_fn=collate, drop_last=True, generator=draw)


def item_tables(folder: Path) -> tuple[Tensor, Tensor]:
    """Tags, int64 [items, T], and vectors of length 1, float32 [items, W], of all items; row 0 is padding."""
    frame = pd.read_parquet(folder / ITEMS)
    vector_IW = torch.from_numpy(np.stack(frame["item_emb_d128"].to_list()))
    tags_IT = torch.from_numpy(np.stack(frame["item_tags"].to_list()).astype(np.int64))
    return tags_IT, torch.nn.functional.normalize(vector_IW, dim=-1)
