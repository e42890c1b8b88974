"""The six stages of a job: what each depends on, when its result still stands, and how it goes on after a kill."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ctr.export.export_bundle import Extras
from ctr.serving.bundle import open_bundle
from ctr.training.checkpoint import MODEL, DamagedCheckpointError, saved_state
from features.build.build import HASHES
from features.build.publish import source_files
from features.build.revision import code_hash
from features.checks.newest_day import check_age
from features.contract.contract import Contract
from features.errors import DataError, GateError, StoreAwayError
from features.sources.files import content_hash, looked_at_once
from features.sources.log import newest_day
from features.store.feature_set import FeatureSet, sha256_of
from features.store.pointer import NEWEST, point_at
from pipelines.gate.judge import judge
from pipelines.gate.pointers import champion_changed, registered_name
from pipelines.gate.promote import DRIFT, promote
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Verdict
from pipelines.job.build import build, describe
from pipelines.job.evaluate import require_both_labels
from pipelines.job.export import export_model, free_folder
from pipelines.job.fitting import CALIBRATION
from pipelines.job.train import Job
from pipelines.job_settings import OF_NO_WEIGHT, JobSettings
from pipelines.revision import source_hash
from pipelines.source import Source
from pipelines.stages.basis import Basis, flat
from pipelines.stages.hand import InHand, bundle_of
from pipelines.stages.plan import Planned, Results
from pipelines.workspace import CONFIG, METRICS

Note = Callable[[dict[str, Any]], None]
STARTS_AGAIN = "starts again"


class Stage(Planned, Protocol):
    """One stage of a job."""

    def run(self, hand: InHand, begun: Mapping[str, Any], note: Note) -> dict[str, Any]:
        """Do it.

        Args:
            hand: the job, with the results of the stages before.
            begun: what an unfinished process had begun of the same basis; empty where there was none.
            note: records what is begun, before it is.

        Returns:
            The result, as JSON.
        """


class _Open:
    """Parts that most stages share."""

    def __init__(self, settings: JobSettings, rules: GateRules) -> None:
        self.settings = settings
        self.rules = rules
        self.root = settings.workspace.root

    def stands_at(self, begun: Mapping[str, Any]) -> str:
        """Most stages are short: they start again."""
        return STARTS_AGAIN

    def closed(self, results: Results) -> str | None:
        """Most stages may always run."""
        return None


class Features(_Open):
    """From raw tables to a feature set."""

    name = "features"

    def basis(self, results: Results) -> Basis:
        """Content of every file that a build reads, the contract, the days, and the code of `features`.

        Not `--as-of` itself: a later day that has no rows yet is nothing new.
        """
        source = self._source
        folder = self.settings.workspace.feature_sets / source.contract.name
        with _read_once(folder / HASHES):
            inputs = {_named(file, source.contract): content_hash(file)[:16] for file in source_files(source.contract)}
        contract = source.contract.model_dump(mode="json", exclude={"root", "truth"})
        settings = {**flat(contract, "data"), "newest day": source.as_of, "window": source.window}
        return Basis(inputs, settings, code_hash()[:12])

    def missing(self, result: Mapping[str, Any]) -> str | None:
        """Whether the version is there and opens, and the log is as fresh as its contract wants it."""
        try:
            found = FeatureSet.open(self.root / result["feature_set"])
        except DataError as error:
            return f"its feature set is gone: {error}"
        try:
            self._check_age(found)
        except DataError as error:
            return str(error)
        return None

    def run(self, hand: InHand, begun: Mapping[str, Any], note: Note) -> dict[str, Any]:
        """Build, or find what was built already. Raises DataError for a log that is too old."""
        built = build(self._source, hand.workspace)
        hand.console.print(describe(built))
        self._check_age(built.feature_set)
        hand.feature_set = built.feature_set
        path = hand.workspace.inside(built.feature_set.path)
        return {"feature_set": path, "source": built.feature_set.manifest.source}

    @cached_property
    def _source(self) -> Source:
        """What is read, until the newest day that has rows."""
        source = self.settings.source
        if source.as_of is None:
            return source
        return replace(source, as_of=newest_day(source.contract, source.as_of))

    def _check_age(self, found: FeatureSet) -> None:
        """A log that does not change grows old: its age counts from the end of the day that was asked for."""
        contract = self.settings.source.contract
        newest = max(window.last_time for window in found.manifest.windows.values())
        check_age(contract.interactions.path, newest, contract.checks, self.settings.source.as_of)


class Train(_Open):
    """From a feature set to calibrated weights, in the folder and the MLflow run of one run."""

    name = "train"

    def basis(self, results: Results) -> Basis:
        """The feature set, every setting that weights depend on, and the code."""
        preset = flat(self.settings.preset().model_dump(mode="json"), "")
        settings = {name: value for name, value in preset.items() if name not in OF_NO_WEIGHT}
        settings["warm_start"] = self.settings.warm_start
        return Basis({"feature set": results["features"]["source"][:16]}, settings, source_hash())

    def missing(self, result: Mapping[str, Any]) -> str | None:
        """Whether the weights are those that were trained."""
        run_dir = self.settings.workspace.runs / result["run_id"]
        for name in (CONFIG, MODEL, CALIBRATION):
            if not (run_dir / name).is_file():
                return f"{run_dir / name} is gone"
        if sha256_of(run_dir / MODEL) != result["weights"]:
            return f"{run_dir / MODEL} is not what was trained (sha256 differs)"
        return None

    def stands_at(self, begun: Mapping[str, Any]) -> str:
        """The last checkpoint of the run."""
        run_id = begun.get("run_id")
        state = saved_state(self.settings.workspace.runs / run_id) if run_id else None
        return f"resumes from step {state.step:,} of run {run_id}" if state else STARTS_AGAIN

    def run(self, hand: InHand, begun: Mapping[str, Any], note: Note) -> dict[str, Any]:
        """Train, or go on with the run that an unfinished process began."""
        run_id = begun.get("run_id")
        folder = hand.workspace.runs / str(run_id)
        if run_id and (folder / METRICS).is_file():
            return self._result(folder)  # it was finished meanwhile, with `quadrank train --resume`
        place = (hand.preset, hand.data(), hand.workspace, hand.console)
        require_both_labels(place[1], place[1].judged_by)
        if run_id and (folder / CONFIG).is_file():
            try:
                return self._fit(hand, Job.resume(run_id, *place), note)
            except DamagedCheckpointError as error:
                hand.console.print(f"{error}\nA new run starts in its place.", style="yellow")
                hand.fail(error)
        return self._fit(hand, Job.start(*place, warm_start=self.settings.warm_start), note)

    def _fit(self, hand: InHand, job: Job, note: Note) -> dict[str, Any]:
        note({"run_id": job.run_dir.name})
        tracker = hand.open(job.tracked())
        hand.model = job.fit(tracker).model
        return self._result(job.run_dir)

    def _result(self, run_dir: Path) -> dict[str, Any]:
        return {"run_id": run_dir.name, "weights": sha256_of(run_dir / MODEL)}


class Evaluate(_Open):
    """From weights to metrics beside their controls; `metrics.json` says that the run is finished."""

    name = "evaluate"

    def basis(self, results: Results) -> Basis:
        """The weights, and when the control is trained."""
        train = results["train"]
        controls = self.settings.preset().train.controls
        return Basis({train["run_id"]: train["weights"][:16]}, {"train.controls": controls}, source_hash())

    def missing(self, result: Mapping[str, Any]) -> str | None:
        """Whether the metrics are those that were measured."""
        path = self.settings.workspace.runs / result["run_id"] / METRICS
        if not path.is_file():
            return f"{path} is gone"
        return None if sha256_of(path) == result["metrics"] else f"{path} was changed (sha256 differs)"

    def run(self, hand: InHand, begun: Mapping[str, Any], note: Note) -> dict[str, Any]:
        """Measure, unless a killed process got as far as the metrics and no further."""
        job, tracker = hand.job(), hand.tracker()
        if not (job.run_dir / METRICS).is_file():
            job.evaluate(tracker, hand.trained())
        return {"run_id": job.run_dir.name, "metrics": sha256_of(job.run_dir / METRICS)}


class Export(_Open):
    """From a finished run to a verified bundle, registered in MLflow."""

    name = "export"

    def basis(self, results: Results) -> Basis:
        """The run and its metrics, and whether the bundle brings pasts."""
        evaluated = results["evaluate"]
        return Basis({evaluated["run_id"]: evaluated["metrics"][:16]}, {"pasts": self.settings.pasts}, source_hash())

    def missing(self, result: Mapping[str, Any]) -> str | None:
        """Whether the bundle is there with every file as it was exported."""
        try:
            found = open_bundle(self.root / result["bundle"]).manifest.checksum
        except DataError as error:
            return f"its bundle cannot be used: {error}"
        return None if found == result["checksum"] else f"{result['bundle']} is another bundle than was exported"

    def run(self, hand: InHand, begun: Mapping[str, Any], note: Note) -> dict[str, Any]:
        """Export and register; what a killed process had published is taken as it is."""
        contract, run_dir = self.settings.source.contract, hand.run_dir()
        bundles, tracker = hand.workspace.bundles(contract.name), hand.tracker()
        out = self.root / begun["bundle"] if "bundle" in begun else free_folder(bundles, run_dir.name)
        registry = hand.registry()
        name, known = registered_name(contract.name), None
        if "bundle" in begun and out.is_dir() and self._whole(out):
            with suppress(StoreAwayError):  # it is registered when the store answers again, twice at worst
                known = registry.find_version(name, run_dir.name)
            point_at(bundles, out.name, NEWEST)
        else:
            out = out if not out.exists() else free_folder(bundles, run_dir.name)
            note({"bundle": out.relative_to(self.root).as_posix()})
            extras = Extras(pasts=self.settings.pasts)
            export_model(hand.trained(), hand.data(), run_dir, out, hand.workspace, hand.console, extras)
        version = known or registry.register(out, name, tracker.run_id)
        hand.console.print(f"registered {name} version {version} in {registry.store.shown}")
        return {
            "bundle": out.relative_to(self.root).as_posix(),
            "checksum": open_bundle(out).manifest.checksum,
            "version": version,
        }

    def _whole(self, out: Path) -> bool:
        try:
            open_bundle(out)
        except DataError:
            return False
        return True


class Gate(_Open):
    """Whether the bundle may serve."""

    name = "gate"

    def basis(self, results: Results) -> Basis:
        """The bundle and the gate's rules. Whether it was judged against what serves now, `missing` says."""
        export = results["export"]
        bounds = flat(self.rules.model_dump(mode="json"), "gate")
        return Basis({export["bundle"]: export["checksum"][:16]}, bounds, source_hash())

    def missing(self, result: Mapping[str, Any]) -> str | None:
        """Whether what it was judged against serves still; a bundle that has served is not judged again."""
        if not self.rules.compare:
            return None
        return champion_changed(result["verdict"]["champion"], self.root / result["bundle"])

    def run(self, hand: InHand, begun: Mapping[str, Any], note: Note) -> dict[str, Any]:
        """Judge, and tell the MLflow run; of a bundle that does not come to be promoted, its version too."""
        tracker, registry = hand.tracker(), hand.registry()
        bundle, version = hand.results["export"]["bundle"], hand.results["export"]["version"]
        verdict = judge(self.root / bundle, hand.workspace, self.rules, hand.console)
        for name, value in verdict.tags().items():
            tracker.set_tag(name, value)
        if not verdict.passed:
            name = registered_name(self.settings.source.contract.name)
            if registry.holds(name, version):
                registry.tag_version(name, version, verdict.tags())
            hand.console.print(f"gate refused, champion kept: {verdict.reason}", style="yellow")
        return {"bundle": bundle, "verdict": verdict.as_json(), "reason": verdict.reason, **_ending(verdict)}


def _ending(verdict: Verdict) -> dict[str, Any]:
    """Status and exit code of a job with this verdict."""
    if not verdict.passed:
        return {"status": "gate refused", "exit_code": GateError.exit_code}
    return {"status": "drift", "exit_code": DRIFT} if verdict.drifted else {"status": "done", "exit_code": 0}


class Promote(_Open):
    """A bundle that passed becomes `CURRENT` and the champion."""

    name = "promote"

    def closed(self, results: Results) -> str | None:
        """A refused bundle is not promoted."""
        gate = results["gate"]
        return None if gate["verdict"]["passed"] else f"the gate refused the bundle: {gate['reason']}"

    def basis(self, results: Results) -> Basis:
        """The bundle. One that was rolled back since is not promoted again."""
        export = results["export"]
        return Basis({export["bundle"]: export["checksum"][:16]}, {}, source_hash())

    def missing(self, result: Mapping[str, Any]) -> str | None:
        """A promotion is done once; others may have moved the pointers since."""
        return None

    def run(self, hand: InHand, begun: Mapping[str, Any], note: Note) -> dict[str, Any]:
        """Move the pointer, then the alias."""
        verdict = Verdict.from_json(hand.results["gate"]["verdict"])
        bundle, version = bundle_of(self.root, hand.results), hand.results["export"]["version"]
        made = promote(verdict, bundle, hand.workspace, self.rules, hand.console, hand.registry(), version)
        return {"version": made}


def stages_of(settings: JobSettings, rules: GateRules) -> tuple[Stage, ...]:
    """The stages in their order."""
    return tuple(kind(settings, rules) for kind in (Features, Train, Evaluate, Export, Gate, Promote))


@contextmanager
def _read_once(notes: Path) -> Iterator[None]:
    """Hashes of files that were hashed before are taken from the notes, which stay as they are."""
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / notes.name
        if notes.is_file():
            shutil.copyfile(notes, copied)
        with looked_at_once(copied):
            yield


def _named(file: str, contract: Contract) -> str:
    """A file's path below the contract's root."""
    path, root = Path(file), Path(contract.root)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file
