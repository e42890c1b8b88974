"""From drawn values to the settings of a job, and back: what the current settings are in terms of the space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctr.config import Preset
from features.contract.contract import Contract
from features.contract.settings import merge, validate
from features.errors import ConfigError
from pipelines.job_settings import JobSettings
from pipelines.source import Source
from pipelines.tune.search.definition import resolved
from pipelines.tune.search.ranges import Range
from pipelines.tune.search.space import DATA, SearchSpace, by_section


@dataclass(frozen=True)
class Resolved:
    """What one trial trains: `preset` on the rows of `source`."""

    preset: Preset
    source: Source


def with_values(settings: JobSettings, values: Mapping[str, Any]) -> Resolved:
    """The settings of a job with drawn values on top: `{"train.epochs": 2, "data.history.max_len": 50}`.

    Raises:
        ConfigError: a value cannot be used, alone or beside the others.
    """
    sections = by_section(values)
    data = sections.pop(DATA, None)
    preset = settings.changed(sections).preset()
    if data is None:
        return Resolved(preset, settings.source)
    content = merge(settings.source.contract.model_dump(mode="json"), data)
    contract = validate(Contract, content, f"{settings.contract_file} with {_listed(values)}")
    return Resolved(preset, replace(settings.source, contract=contract))


def current_settings(settings: JobSettings) -> dict[str, Any]:
    """Model, training and data as they are without a sweep, nested by section, as JSON has them.

    Raises:
        ConfigError: as `JobSettings.preset`.
    """
    preset = settings.preset().model_dump(mode="json")
    return {**preset, DATA: settings.source.contract.model_dump(mode="json", exclude={"root", "truth"})}


def current_by_name(settings: JobSettings) -> dict[str, Any]:
    """`current_settings` by dotted name."""
    found = current_settings(settings)
    return resolved(found["model"], found["train"], found[DATA])


def reaching_current(search: SearchSpace, settings: JobSettings) -> tuple[SearchSpace, dict[str, Any], list[str]]:
    """The space, widened to hold the current settings; their values in it; a line for each range that was widened.

    A setting whose `when` does not hold now has no value.

    Raises:
        ConfigError: a data key that the contract does not have, or a value that no range reaches; for a grid, one
            between its steps.
    """
    nested, by_name = current_settings(settings), current_by_name(settings)
    space, values, lines = dict(search.space), dict[str, Any](), list[str]()
    for name, found in search.ordered().items():
        if not found.applies({**by_name, **values}):
            continue
        value = _at(nested, name)
        try:
            wider = found.reaching(value)
        except ValueError as error:
            raise ConfigError(
                f"{name}: {error}, and the current settings are the first trial. Change its range, or give it another "
                "value with --set."
            ) from None
        if search.sampler == "grid" and value not in wider.values():
            raise ConfigError(
                f"{name}: it is {value} now, which is none of the grid's values, {found.described()}, and the current "
                "settings are the first trial. Choose other steps, or give it one of these values with --set."
            )
        if wider is not found and found.step and not _usable(settings, name, wider):
            wider = found.ending_at(value)
        if wider is not found:
            lines.append(f"{name} is {value} now: its range, {found.described()}, is widened to {wider.described()}")
        space[name], values[name] = wider, value
    return search.model_copy(update={"space": space}), values, lines


def require_settings(settings: JobSettings, search: SearchSpace) -> None:
    """Read the settings at the ends of each range, and those that its `when` names, before the first trial.

    Raises:
        ConfigError: a value that a setting cannot have, or a `when` that never holds.
    """
    known = current_by_name(settings)
    for name, found in search.space.items():
        for other, wanted in found.when.items():
            if other not in search.space and other not in known:
                raise ConfigError(f"{name}: when: there is no setting {other!r}, so that it would never be searched.")
            allowed = wanted if isinstance(wanted, list) else [wanted]
            range_ = search.space.get(other)
            odd = [] if range_ is None else [one for one in allowed if not range_.holds(range_.stored(one))]
            if range_ is not None and odd:
                raise ConfigError(f"{name}: when: {other} is never {odd[0]!r}, its range is {range_.described()}.")
            if range_ is None and known[other] not in allowed:
                raise ConfigError(
                    f"{name}: when: {other} is never {allowed[0]!r}, it is {known[other]!r} and not searched. Search "
                    f"it too, set it with --set, or leave {name} out."
                )
    for name, found in search.space.items():
        for value in found.ends():
            try:
                with_values(settings, {name: value})
            except ConfigError as error:
                raise ConfigError(f"a value of the search space cannot be used: {name} = {value}: {error}") from None


def _usable(settings: JobSettings, name: str, found: Range) -> bool:
    try:
        for value in found.ends():
            with_values(settings, {name: value})
    except ConfigError:
        return False
    return True


def _at(nested: Mapping[str, Any], name: str) -> Any:
    node: Any = nested
    for key in name.split("."):
        if not isinstance(node, Mapping) or key not in node:
            raise ConfigError(
                f"{name}: the current settings have no value there. Set it in the contract, or search a key above it "
                "by `choices` of whole sections."
            )
        node = node[key]
    return node


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if name.startswith(f"{DATA}."))
