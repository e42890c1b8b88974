"""What a study is about, kept in its storage: a sweep joins a study only where it asks for the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features.errors import ConfigError
from pipelines.job_settings import OF_NO_WEIGHT
from pipelines.tune.search.space import SearchSpace, flat

MOST_LINES = 12
MISSING = "nothing"


def definition(search: SearchSpace, settings: Mapping[str, Any], feature_set: str) -> dict[str, Any]:
    """All that makes trials comparable, as plain values by dotted name.

    What may change from one start to the next is left out: sampler, seed, the rule that ends the study, the number of
    finalists.

    Args:
        search: with ranges that reach the current settings.
        settings: of model, training and data, by dotted name; those that are searched are left out, unless under a
            condition: trials that it does not hold in have the current value.
        feature_set: version that the current settings give.
    """
    always = {name for name, found in search.space.items() if not found.when}
    fixed = {name: _plain(value) for name, value in settings.items() if name not in always}
    return {
        "metric": search.metric,
        "against": search.against,
        "schedule": search.schedule,
        "share": search.share,
        "feature_set": feature_set,
        **{f"space {name}": found.described() for name, found in sorted(search.space.items())},
        **dict(sorted(fixed.items())),
    }


def require_same(study: str, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to join a study that is about something else.

    Args:
        study: its name.
        recorded: its definition.
        asked: that of this sweep.

    Raises:
        ConfigError: they differ; each difference is a line.
    """
    lines = differences(recorded, asked)
    if not lines:
        return
    shown = lines[:MOST_LINES] + [f"… and {len(lines) - MOST_LINES} more"] * (len(lines) > MOST_LINES)
    raise ConfigError(
        f"study {study!r} is about something else, and its trials could not be compared with new ones:\n  "
        + "\n  ".join(shown)
        + "\nGive this sweep another name with --study; --from-study "
        + f"{study} then tries its best settings first."
    )


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """A line for each value that is not the same in both, of those that a trial's weights depend on."""
    names = [name for name in dict.fromkeys([*recorded, *asked]) if name not in OF_NO_WEIGHT]
    return [
        f"{name}: {recorded.get(name, MISSING)} in the study, {asked.get(name, MISSING)} now"
        for name in names
        if recorded.get(name, MISSING) != asked.get(name, MISSING)
    ]


def resolved(model: Mapping[str, Any], train: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job by dotted name: `model.layers`, `train.epochs`, `data.history.max_len`."""
    return flat({"model": model, "train": train, "data": data})


def _plain(value: Any) -> Any:
    """As JSON gives it back: a tuple is a list there."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
