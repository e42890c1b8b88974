"""A workspace with bundles of two days, and good ones made bad in one way each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ctr.config import ModelConfig, TrainConfig
from ctr.data.feature_tables import frozen_tables
from ctr.evaluation.slices import popularity_tiers, training_counts
from ctr.export.export_bundle import export_bundle
from ctr.model.calibrator import Curve
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import GOLDEN, MANIFEST, open_bundle, seal
from features.progress import silent
from features.store.feature_set import FeatureSet, read_arrow, write_arrow
from features.store.pointer import point_at
from features.store.schema import FIRST_VALUE
from pipelines.gate.judge import judge
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Verdict
from pipelines.job.fitting import fit_and_calibrate, new_model
from pipelines.workspace import Workspace


@dataclass
class Shop:
    """Bundles `old` and `good`, of two feature sets of one log.

    Args:
        root: of the workspace.
        old, new: feature sets in it; the second ends later.
        config: of all models.
        train: how they are trained.
    """

    root: Path
    old: FeatureSet
    new: FeatureSet
    config: ModelConfig
    train: TrainConfig
    good_model: ClickModel = field(init=False)

    def __post_init__(self) -> None:
        self.good_model = self.trained(self.new, "good")
        self.export(self.trained(self.old, "old"), self.old, "old")
        self.export(self.good_model, self.new, "good")

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)

    @property
    def bundles(self) -> Path:
        return self.workspace.bundles(self.new.manifest.name)

    def trained(self, feature_set: FeatureSet, name: str) -> ClickModel:
        model = new_model(self.config, feature_set, 1)
        fit_and_calibrate(model, feature_set, self.train, self.root / "runs" / name, progress=silent)
        return model.eval()

    def export(self, model: ClickModel, feature_set: FeatureSet, name: str) -> Path:
        made = export_bundle(
            model,
            feature_set,
            self.bundles / name,
            model_version=name,
            architecture="linear",
            metrics={"test": {}},
            controls={},
            git_revision="none",
        )
        return made.path

    def changed(self, name: str, change: Callable[[ClickModel], None]) -> Path:
        """A bundle of the good model, changed."""
        model = new_model(self.config, self.new, 1)
        model.load_state_dict(self.good_model.state_dict())
        with torch.no_grad():
            change(model)
        return self.export(model.eval(), self.new, name)

    def judged(self, name: str, champion: str | None = "good", **rules: Any) -> Verdict:
        if champion is not None:
            point_at(self.bundles, champion)
        return judge(self.bundles / name, self.workspace, GateRules(**rules), Console(quiet=True))

    def shuffled(self) -> None:
        """Bundle `shuffled`: trained on labels that were dealt out anew, served with the true data."""
        copy = shutil.copytree(self.new.path, self.root / "shuffled")
        draw = np.random.default_rng(3)
        for path in sorted(copy.glob("rows/*/*.arrow")):
            rows = {name: np.array(values) for name, values in read_arrow(path).items()}
            path.unlink()
            write_arrow(path, rows | {"label": draw.permutation(rows["label"])})
        model = self.trained(FeatureSet.open(copy), "shuffled")
        model.attach(frozen_tables(self.new))
        self.export(model, self.new, "shuffled")

    def doubled(self) -> None:
        """Bundle `doubled`: logits times two."""

        def double(model: ClickModel) -> None:
            slope, shift = float(model.calibrator.slope), float(model.calibrator.shift)
            model.calibrator.set(Curve(2 * slope, 2 * shift))

        self.changed("doubled", double)

    def sliced(self) -> None:
        """Bundle `sliced`: weights of items of medium popularity, last to first; all others keep theirs."""

        def scramble(model: ClickModel) -> None:
            _, clicks_I = training_counts(self.new)
            id_I = self.new.items[self.new.schema.item[0].name]
            torso = [int(number) for number in id_I[popularity_tiers(clicks_I) == 1] if number >= FIRST_VALUE]
            for name, weights in model.named_parameters():
                if "tables" in name and len(weights) == self.new.schema.item[0].size:
                    weights[torso] = weights[torso[::-1]].clone()

        self.changed("sliced", scramble)

    def unlike(self, name: str) -> Path:
        """A copy of the good bundle whose golden requests ask for other scores than its graph gives."""
        return with_other_golden_scores(self.bundles / "good", name)


def with_other_golden_scores(bundle: Path, name: str) -> Path:
    """A sealed copy beside a bundle, whose parity is broken: its golden requests ask for half of the first scores."""
    copy = Path(shutil.copytree(bundle, bundle.with_name(name)))
    golden = json.loads((copy / GOLDEN).read_text())
    golden["cases"][0]["scores"] = [0.5 * score for score in golden["cases"][0]["scores"]]
    (copy / GOLDEN).write_text(json.dumps(golden))
    manifest = open_bundle(bundle).manifest.model_copy(update={"model_version": name})
    (copy / MANIFEST).unlink()
    seal(copy, manifest)
    return copy
