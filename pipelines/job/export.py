"""Stage 5: from the best weights of a run to a verified ONNX bundle."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ctr.export.export_bundle import FULL_TRAINING, GRAPHS_ALONE, ExportResult, Extras, Lineage, export_bundle
from ctr.export.precision.choose import AUTO, VARIANTS
from ctr.export.precision.put import VariantChoice
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import refuse_taken
from features.contract.contract import Contract
from features.errors import ConfigError
from features.point_in_time.newest_events import require_events_in_time
from features.store.feature_set import FeatureSet
from features.store.pointer import NEWEST, point_at
from pipelines.job.load_run import WARM_START, load_run
from pipelines.workspace import Workspace, config_of, metrics_of


def export_model(
    model: ClickModel,
    feature_set: FeatureSet,
    run_dir: Path,
    out: Path | None,
    workspace: Workspace,
    console: Console,
    extras: Extras = GRAPHS_ALONE,
) -> ExportResult:
    """Export a run's model, check that the graphs give the model's scores, and publish the bundle.

    Args:
        model: with the run's weights.
        feature_set: it was trained on.
        run_dir: of an evaluated run.
        out: a new folder; default `bundles/<name>/<run id>` of the workspace, or `<run id>-2` and so on if that is
            taken. The `NEWEST` pointer there then names the new bundle.
        workspace: where bundles are.
        console: where messages are printed.
        extras: what the bundle gets beside the graphs in single precision.

    Raises:
        ConfigError: `out` exists and is not empty, or pasts of a log without events in time.
    """
    record = metrics_of(run_dir)
    config = config_of(run_dir)
    of_tasks = {
        f"{split}: {name}": values for split, tasks in record["tasks"].items() for name, values in tasks.items()
    }
    begun = config.get(WARM_START)
    bundles = workspace.bundles(feature_set.contract.name)
    result = export_bundle(
        model,
        feature_set,
        out or free_folder(bundles, run_dir.name),
        model_version=run_dir.name,
        architecture=config["preset"]["model"]["architecture"],
        metrics=record["metrics"] | of_tasks,
        controls=record["controls"],
        git_revision=config["git_revision"],
        extras=extras,
        lineage=Lineage(begun["run_id"], begun["generation"]) if begun else FULL_TRAINING,
    )
    if result.path.parent.resolve() == bundles.resolve():
        point_at(bundles, result.path.name, NEWEST)
    console.print(
        f"bundle {result.path}: {result.bytes / 2**20:.1f} MiB, largest |ONNX - torch| "
        f"{result.max_abs_difference:.1e}, {result.max_logit_difference:.1e} in logits"
    )
    if result.variants:
        console.print(_variants_table(result))
    return result


def check_pasts(contract: Contract) -> None:
    """Raise what an export with pasts would raise hours later, after the training.

    Raises:
        ConfigError: a log without events in time.
        ModuleNotFoundError: the package that packs pasts is not installed.
    """
    from ctr.export import past_snapshot  # noqa: F401

    require_events_in_time(contract)


def variant_choice(name: str, max_auc_loss: float) -> VariantChoice:
    """The choice of `--variant`.

    Raises:
        ConfigError: no such variant.
    """
    for known in (*VARIANTS, AUTO):
        if name == known:
            return VariantChoice(known, max_auc_loss)
    raise ConfigError(f"--variant {name}: choose one of {', '.join((*VARIANTS, AUTO))}.")


def export_run(
    run_id: str,
    out: Path | None,
    workspace: Workspace,
    console: Console,
    extras: Extras = GRAPHS_ALONE,
) -> dict[str, Any]:
    """Export a finished run from its folder; `extras` as `export_model` has them.

    Raises:
        ConfigError: no such run, its feature set is gone, or `out` exists and is not empty.
    """
    if out is not None:
        refuse_taken(out)
    run_dir, model, feature_set = load_run(run_id, workspace)
    result = export_model(model, feature_set, run_dir, out, workspace, console, extras)
    return {
        "run_id": run_dir.name,
        "bundle": str(result.path),
        "bytes": result.bytes,
        "max_abs_difference": result.max_abs_difference,
        "max_logit_difference": result.max_logit_difference,
        "seconds": result.seconds,
        "variant": result.variant,
        "variants": result.variants,
    }


def _variants_table(result: ExportResult) -> Table:
    first = result.variants["fp32"]
    title = f"variants on {int(first['rows']):,} validation rows, a request of 500 candidates on one thread"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("variant")
    for name in ("AUC", "AUC lost", "largest in logits", "time, fp32 = 1", "MiB"):
        table.add_column(name, justify="right")
    for name, trial in result.variants.items():
        table.add_row(
            f"{name} (exported)" if name == result.variant else name,
            f"{trial['auc']:.4f}",
            f"{trial['auc_loss']:+.5f}",
            f"{trial['logit_difference']:.1e}",
            f"{trial['milliseconds'] / first['milliseconds']:.2f}",
            f"{trial['mib']:.1f}",
        )
    return table


def free_folder(folder: Path, name: str) -> Path:
    """`folder/name`; if that exists, with the first number appended that is free, from 2."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(folder / free for free in names if not (folder / free).exists())
