"""Stress: what a trained model loses when item vectors go missing, are swapped, noisy, stale or coarse.

Shapes: N rows of the split, I items, W width of a set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat
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
    """`conf/stress.yaml`: how hard each stress is, and when a set counts as ignored."""

    shares: tuple[Share, ...] = Field((0.1, 0.5), description="of items that lose or swap their vector, besides all")
    orders: tuple[ChosenOrder, ...] = Field(("random", "popular_first", "rare_first"), description="which items first")
    noise: tuple[PositiveFloat, ...] = Field((0.5, 1.0), description="norm of the noise over the vector's")
    stale: tuple[Share, ...] = Field((0.1, 0.3), description="of items with rows, the newest, without a vector yet")
    ignored_below: PositiveFloat = Field(
        1e-3, description="change of AUC, and mean change of a probability, below which a set is ignored"
    )
    seed: int = 1


@dataclass(frozen=True)
class Stressed:
    """One stress.

    Args:
        sets: the vector set it struck, or `all`.
        kind: what was done.
        level: share of items, or norm of the noise; 1 for int8.
        order: which items came first; noise and int8 strike all.
        auc, log_loss: under it.
        loss: AUC without stress minus AUC under it, with its 95 % paired interval.
        moved: mean |change| of a probability.
    """

    sets: str
    kind: Kind
    level: float
    order: Order
    auc: float
    log_loss: float
    loss: Interval
    moved: float

    @property
    def label(self) -> str:
        """What was done, in words."""
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
    """All stresses of a model.

    Args:
        split: whose rows were scored.
        auc, log_loss: without stress.
        stresses: as `plan` ordered them.
        ignored: sets whose full removal and full swap change nothing: AUC by less than `ignored_below` and by nothing
            that these rows resolve, and a probability by less than that on average.
    """

    split: SplitName
    auc: float
    log_loss: float
    stresses: list[Stressed]
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
    """Strike each vector set alone, and all together, and score the split under every stress.

    Both the candidate and its history are struck: they look up the same vectors.

    Args:
        model: trained; the feature set's own tables are attached at the end.
        feature_set: whose rows are scored.
        split: which of them.
        config: levels.
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
                model.attach(stressed(tables, groups[sets], kind, level, ranks[order], config.seed))
                scores_N = predict(model, feature_set, split)
                stresses.append(
                    Stressed(
                        sets=sets,
                        kind=kind,
                        level=level,
                        order=order,
                        auc=auc(labels_N, scores_N, weights_N),
                        log_loss=log_loss(labels_N, scores_N, weights_N),
                        loss=paired_difference(
                            labels_N, whole_N, scores_N, weights_N, clusters=users_N, seed=config.seed
                        ),
                        moved=float(np.abs(whole_N - scores_N).mean()),
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
    """The stresses of one set.

    A full removal and a full swap are always among them, since they tell an ignored set. Whom they strike first makes
    no difference: each comes once.
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


def stressed(
    tables: FrozenTables,
    sets: list[str],
    kind: Kind,
    level: float,
    order_I: np.ndarray,
    seed: int,
) -> FrozenTables:
    """The tables with these sets struck.

        remove  the first `level` of the items have no vector any more
        stale   the same, with the newest first: they have none yet
        swap    the first `level` exchange theirs among each other, and nobody keeps their own
        noise   v <- |v| (v + e) / |v + e|, e normal with a norm near level |v|
        int8    each vector rounded to 255 steps of its own

    Args:
        tables: vectors in float32.
        sets: which.
        kind, level: what, how hard.
        order_I: item rows, those struck first in front; real items alone.
        seed: of the draw.
    """
    vectors, present = dict(tables.vectors), dict(tables.present)
    generator = torch.Generator().manual_seed(seed)
    struck = torch.from_numpy(order_I[: round(level * len(order_I))].copy())
    for name in sets:
        match kind:
            case "remove" | "stale":
                vectors[name] = vectors[name].index_fill(0, struck, 0.0)
                present[name] = present[name].index_fill(0, struck, False)
            case "swap":
                vectors[name] = _swapped(vectors[name], struck[present[name][struck]], generator)
            case "noise":
                vectors[name] = _with_noise(vectors[name], level, generator)
            case "int8":
                vectors[name] = _rounded(vectors[name])
    return replace(tables, vectors=vectors, present=present)


def is_ignored(of_set: Sequence[Stressed], config: StressConfig) -> bool:
    """Whether the model's scores do without a set, from all stresses of it.

    A change of AUC alone does not tell: a gain, or a loss that few rows cannot resolve, comes from a set that is read.
    """
    return all(
        abs(one.loss.value) < config.ignored_below
        and one.loss.low <= 0 <= one.loss.high
        and one.moved < config.ignored_below
        for one in of_set
        if one.kind in ("remove", "swap") and one.level == 1
    )


def in_float32(tables: FrozenTables) -> FrozenTables:
    """The same tables with vectors as numbers that can be changed, whatever they are stored as."""
    vectors = {}
    for name, stored in tables.vectors.items():
        decoded = stored.to(torch.float32)
        vectors[name] = decoded * tables.scales[name].unsqueeze(-1) if name in tables.scales else decoded
    return replace(tables, vectors=vectors, scales={})


def item_orders(feature_set: FeatureSet, seed: int) -> dict[str, np.ndarray]:
    """Real item rows at random, by training rows (most or fewest first), and by first row in the log, newest first.

    Items without any row never came: they are not among the newest.
    """
    items = feature_set.schema.items
    real_I = np.arange(FIRST_VALUE, items)
    shuffled_I = np.random.default_rng(seed).permutation(real_I)
    rows_I = np.bincount(column(feature_set, "train", "item"), minlength=items)[shuffled_I]
    never = np.iinfo(np.int64).max
    first_I = np.full(items, never)
    splits: tuple[SplitName, ...] = ("train", "valid", "test")
    for split in splits:
        np.minimum.at(first_I, column(feature_set, split, "item"), column(feature_set, split, "time"))
    came_I = shuffled_I[first_I[shuffled_I] < never]
    # Ties stand in random order: a stable sort of what is shuffled.
    return {
        "random": shuffled_I,
        "popular_first": shuffled_I[np.argsort(-rows_I, kind="stable")],
        "rare_first": shuffled_I[np.argsort(rows_I, kind="stable")],
        "newest": came_I[np.argsort(-first_I[came_I], kind="stable")],
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
