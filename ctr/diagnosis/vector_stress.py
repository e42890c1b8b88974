"""Vector stress: the AUC a trained model loses when item vectors are missing, swapped, noisy, stale or coarse.

Shapes: N rows of the split, I items, W width of a set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from ctr.data.columns import column, row_weights
from ctr.data.feature_tables import FrozenTables, frozen_tables
from ctr.evaluation.bootstrap import Interval, paired_difference
from ctr.evaluation.metrics import auc, log_loss
from ctr.model.click_model import ClickModel
from ctr.training.loop import predict
from features.contract.settings import Settings, load_yaml, merge, validate
from features.progress import Progress
from features.progress import progress as show_progress
from features.store.feature_set import FeatureSet, SplitName
from features.store.schema import FIRST_VALUE

Kind = Literal["remove", "swap", "noise", "stale", "int8"]
ChosenOrder = Literal["random", "popular_first", "rare_first"]
Order = ChosenOrder | Literal["newest"]
Share = Annotated[float, Field(gt=0, le=1)]


class StressConfig(Settings):
    """`conf/stress.yaml`: the levels of each corruption, and when a set counts as ignored."""

    shares: tuple[Share, ...] = Field((0.1, 0.5), description="of items that lose or swap their vector, besides all")
    orders: tuple[ChosenOrder, ...] = Field(("random", "popular_first", "rare_first"), description="which items first")
    noise: tuple[PositiveFloat, ...] = Field((0.5, 1.0), description="norm of the noise over the vector's")
    stale: tuple[Share, ...] = Field((0.1, 0.3), description="of items with rows, the newest, without a vector yet")
    ignored_below: PositiveFloat = Field(
        1e-3, description="change of AUC, and mean change of a probability, below which a set is ignored"
    )
    seed: NonNegativeInt = 1


@dataclass(frozen=True)
class CorruptionResult:
    """How a model scores with corrupted vectors.

    Args:
        sets: the vector set that was corrupted, or `all`.
        kind: of the corruption.
        level: share of items; for noise, its norm over the vector's norm; 1 for int8.
        order: which items are corrupted first; noise and int8 corrupt all of them.
        auc, log_loss: with the corrupted vectors; log loss in nats.
        auc_drop: AUC without corruption minus `auc`, with its 95 % paired interval over users.
        mean_abs_change: mean absolute change of a probability.
    """

    sets: str
    kind: Kind
    level: float
    order: Order
    auc: float
    log_loss: float
    auc_drop: Interval
    mean_abs_change: float

    @property
    def label(self) -> str:
        """The corruption in words, for tables and figures."""
        match self.kind:
            case "remove" | "swap" if self.level < 1:
                return f"{self.kind} {self.level:.0%}, {self.order.replace('_', ' ')}"
            case "remove" | "swap":
                return f"{self.kind} all"
            case "noise":
                return f"noise of {self.level:g} norms"
            case "stale":
                return f"newest {self.level:.0%} without"
            case "int8":
                return "int8"


@dataclass(frozen=True)
class StressResult:
    """All corruptions of a model's vectors.

    Args:
        split: whose rows were scored.
        auc, log_loss: without corruption; log loss in nats.
        stresses: in the order of `plan`, set by set.
        ignored: sets that the model does not use, see `is_ignored`.
    """

    split: SplitName
    auc: float
    log_loss: float
    stresses: list[CorruptionResult]
    ignored: list[str]


def load_stress_config(path: Path, overrides: dict[str, Any] | None = None) -> StressConfig:
    """Read a stress file, `--set` on top.

    Raises:
        ConfigError: missing file, unknown key (nearest valid one named), impossible value.
    """
    return validate(StressConfig, merge(load_yaml(path), overrides or {}), str(path))


def stress_model(
    model: ClickModel,
    feature_set: FeatureSet,
    split: SplitName,
    config: StressConfig,
    progress: Progress = show_progress,
) -> StressResult:
    """Corrupt each vector set alone, then all sets together, and score the split with each corruption.

    The candidate and its history look up the same vectors, so the corruption reaches both.

    Args:
        model: trained; the feature set's own tables are attached again at the end.
        feature_set: whose rows are scored.
        split: which of them.
        config: the levels.
        progress: how to show it.

    Raises:
        DataError: all rows of the split have the same label.
    """
    tables = in_float32(frozen_tables(feature_set))
    labels_N, users_N = column(feature_set, split, "label"), column(feature_set, split, "user")
    weights_N = row_weights(feature_set, split)
    whole_N = predict(model, feature_set, split)
    names = [one.name for one in feature_set.schema.vectors]
    groups = {name: [name] for name in names} | ({"all": names} if len(names) > 1 else {})
    planned = [(sets, *one) for sets in groups for one in plan(config)]
    ranks = item_orders(feature_set, config.seed)
    stresses = []
    try:
        with progress("stresses", total=len(planned), unit="stresses") as bar:
            for sets, kind, level, order in planned:
                model.attach(corrupted(tables, groups[sets], kind, level, ranks[order], config.seed))
                scores_N = predict(model, feature_set, split)
                stresses.append(
                    CorruptionResult(
                        sets=sets,
                        kind=kind,
                        level=level,
                        order=order,
                        auc=auc(labels_N, scores_N, weights_N),
                        log_loss=log_loss(labels_N, scores_N, weights_N),
                        auc_drop=paired_difference(
                            labels_N, whole_N, scores_N, weights_N, clusters=users_N, seed=config.seed
                        ),
                        mean_abs_change=float(np.abs(whole_N - scores_N).mean()),
                    )
                )
                bar.advance(1, note=f"{sets}: {kind} {level:g}")
    finally:
        model.attach(frozen_tables(feature_set))
    ignored = [name for name in names if is_ignored([one for one in stresses if one.sets == name], config)]
    return StressResult(
        split, auc(labels_N, whole_N, weights_N), log_loss(labels_N, whole_N, weights_N), stresses, ignored
    )


def plan(config: StressConfig) -> Iterator[tuple[Kind, float, Order]]:
    """Kind, level and order of each corruption of one set.

    The removal and the swap of all vectors are always among them: `is_ignored` needs them. The order of items makes no
    difference to them, so each comes once.
    """
    kinds: tuple[Kind, ...] = ("remove", "swap")
    for kind in kinds:
        for share in sorted(set(config.shares) - {1.0}):
            for order in config.orders:
                yield kind, share, order
        yield kind, 1.0, "random"
    for level in config.noise:
        yield "noise", level, "random"
    for share in config.stale:
        yield "stale", share, "newest"
    yield "int8", 1.0, "random"


def corrupted(
    tables: FrozenTables,
    sets: list[str],
    kind: Kind,
    level: float,
    order_I: np.ndarray,
    seed: int,
) -> FrozenTables:
    """The tables with corrupted vectors in some sets.

        remove  the first `level` of the items lose their vector
        stale   the same; the newest items come first, whose vector was not computed yet
        swap    the first `level` of the items exchange vectors, and none keeps its own
        noise   v <- |v| (v + e) / |v + e|, e normal with a norm near level |v|
        int8    each vector rounded to 255 steps of its own range

    Args:
        tables: vectors in float32.
        sets: names of the sets to corrupt.
        kind: of the corruption.
        level: share of items, or norm of the noise over the vector's norm.
        order_I: rows of the real items, those that are corrupted first in front.
        seed: of the draw.

    Returns:
        New tables; the given ones are not changed.
    """
    vectors, present = dict(tables.vectors), dict(tables.present)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.from_numpy(order_I[: round(level * len(order_I))].copy())
    for name in sets:
        match kind:
            case "remove" | "stale":
                vectors[name] = vectors[name].index_fill(0, chosen, 0.0)
                present[name] = present[name].index_fill(0, chosen, False)
            case "swap":
                vectors[name] = _swapped(vectors[name], chosen[present[name][chosen]], generator)
            case "noise":
                vectors[name] = _with_noise(vectors[name], level, generator)
            case "int8":
                vectors[name] = _rounded(vectors[name])
    return replace(tables, vectors=vectors, present=present)


def is_ignored(of_set: Sequence[CorruptionResult], config: StressConfig) -> bool:
    """Whether the model does not use a set.

    It does not if the removal and the swap of all vectors each change AUC by less than `ignored_below`, with an
    interval that contains 0, and a probability by less than `ignored_below` on average. AUC alone does not tell: a
    set may be used and harm, or change scores on too few rows to change AUC.

    Args:
        of_set: all corruptions of the set.
        config: holds `ignored_below`.
    """
    return all(
        abs(one.auc_drop.value) < config.ignored_below
        and one.auc_drop.low <= 0 <= one.auc_drop.high
        and one.mean_abs_change < config.ignored_below
        for one in of_set
        if one.kind in ("remove", "swap") and one.level == 1
    )


def in_float32(tables: FrozenTables) -> FrozenTables:
    """The same tables with decoded float32 vectors, so that they can be changed."""
    vectors = {}
    for name, stored in tables.vectors.items():
        decoded = stored.to(torch.float32)
        vectors[name] = decoded * tables.scales[name].unsqueeze(-1) if name in tables.scales else decoded
    return replace(tables, vectors=vectors, scales={})


def item_orders(feature_set: FeatureSet, seed: int) -> dict[str, np.ndarray]:
    """Rows of the real items in four orders, int64 [I] each; ties are in random order.

    random
    popular_first, rare_first   by number of training rows
    newest                      by first row in the log, latest first; items without any row are left out
    """
    items = feature_set.schema.items
    real_I = np.arange(FIRST_VALUE, items)
    shuffled_I = np.random.default_rng(seed).permutation(real_I)
    rows_I = np.bincount(column(feature_set, "train", "item"), minlength=items)[shuffled_I]
    never_seen = np.iinfo(np.int64).max
    first_I = np.full(items, never_seen)
    splits: tuple[SplitName, ...] = ("train", "valid", "test")
    for split in splits:
        np.minimum.at(first_I, column(feature_set, split, "item"), column(feature_set, split, "time"))
    seen_I = shuffled_I[first_I[shuffled_I] < never_seen]
    # A stable sort of shuffled rows leaves ties in random order.
    return {
        "random": shuffled_I,
        "popular_first": shuffled_I[np.argsort(-rows_I, kind="stable")],
        "rare_first": shuffled_I[np.argsort(rows_I, kind="stable")],
        "newest": seen_I[np.argsort(-first_I[seen_I], kind="stable")],
    }


def _swapped(vectors_IW: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Each of these rows gets the vector of the next one in a random ring."""
    ring = rows[torch.randperm(len(rows), generator=generator)]
    return vectors_IW.index_copy(0, ring, vectors_IW[ring.roll(1)])


def _with_noise(vectors_IW: Tensor, level: float, generator: torch.Generator) -> Tensor:
    norm_I1 = vectors_IW.norm(dim=-1, keepdim=True)
    noise_IW = torch.randn(vectors_IW.shape, generator=generator) * norm_I1 * level / vectors_IW.shape[1] ** 0.5
    noisy_IW = vectors_IW + noise_IW
    return noisy_IW * norm_I1 / noisy_IW.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _rounded(vectors_IW: Tensor) -> Tensor:
    step_I1 = vectors_IW.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
    return torch.round(vectors_IW / step_I1) * step_I1
