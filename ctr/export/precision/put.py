"""Put a variant into a bundle that was exported in single precision, and record what it loses and gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctr.export.precision.choose import AUTO, FP32, ROWS, VARIANTS, Variant, fastest, install, refuse_loss, try_variants
from ctr.export.precision.tables import Block
from ctr.serving.agreement import TOLERANCE
from ctr.serving.bundle import GOLDEN, RANKER, Bundle, BundleManifest, BundleMetadata, write_json
from ctr.serving.ranker import Ranker, open_session
from features.encoding.encoder import Encoder
from features.encoding.request import Limits
from features.store.feature_set import FeatureSet

MAX_AUC_LOSS = 0.0005
# Rounding to whole numbers may fall on either side on another processor: how much farther from the recorded scores
# than here a golden request may be.
MARGIN = 2.0
ANY = 1e6  # a tolerance that no difference exceeds


@dataclass(frozen=True)
class VariantChoice:
    """Which variant a bundle gets.

    Args:
        name: of the variant; `auto` for the fastest of all that loses at most `max_auc_loss`.
        max_auc_loss: on validation rows, compared with single precision. A named variant that loses more is refused.
        rows: of the validation window that are scored, drawn where there are more.
    """

    name: Variant | Literal["auto"] = FP32
    max_auc_loss: float = MAX_AUC_LOSS
    rows: int = ROWS


FP32_ALONE = VariantChoice()


def put_variant(
    folder: Path, manifest: BundleManifest, blocks: Sequence[Block], feature_set: FeatureSet, choice: VariantChoice
) -> BundleMetadata:
    """Replace graph and item table of a bundle by those of the variant; the caller seals the folder again.

    The golden requests keep the scores of the trained model. Their tolerance becomes twice the largest difference that
    the variant shows from them here.

    Args:
        folder: of the bundle, in single precision, not yet published.
        manifest: of this bundle.
        blocks: of its item table.
        feature_set: that the model was trained on.
        choice: which variant.

    Returns:
        The bundle's metadata with the variant, every trial, and `<version>+<variant>` as its version.

    Raises:
        DataError: the validation rows that are scored have one label.
        NumericalError: a named variant loses more than is allowed.
    """
    names = VARIANTS if choice.name == AUTO else (choice.name,)
    trials = try_variants(folder, manifest, blocks, feature_set, names, choice.rows)
    if choice.name == AUTO:
        chosen = fastest(trials, choice.max_auc_loss)
    else:
        chosen = choice.name
        refuse_loss(chosen, trials[chosen], choice.max_auc_loss)
    install(folder, chosen, trials)
    changes: dict[str, Any] = {name: getattr(manifest, name) for name in BundleMetadata.model_fields}
    changes |= {"variant": chosen, "variants": {name: trial.as_json() for name, trial in trials.items()}}
    if chosen != FP32:
        _widen_tolerance(Bundle(folder, manifest))
        changes["model_version"] = f"{manifest.model_version}+{chosen}"  # other scores are another version
    return BundleMetadata(**changes)


def _widen_tolerance(bundle: Bundle) -> None:
    golden = bundle.golden()
    path = bundle.path / GOLDEN
    write_json(path, golden.model_copy(update={"tolerance": ANY}))
    ranker = Ranker(bundle, Encoder.load(bundle.path), open_session(bundle.path / RANKER), Limits())
    tolerance = max(TOLERANCE, MARGIN * ranker.replay())
    write_json(path, golden.model_copy(update={"tolerance": tolerance}))
