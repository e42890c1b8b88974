"""What a server may use and what it does: `conf/serve.yaml`, typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from features.contract.columns import Duration
from features.contract.settings import Settings, load_yaml, merge, validate
from features.encoding.request import Limits


class QueueSettings(Settings):
    """How many requests may wait, and how long."""

    size: PositiveInt = Field(64, description="requests that wait in one process; more are answered 503 at once")
    deadline_ms: PositiveFloat = Field(500.0, description="a request that would be answered later gets 503 at once")
    retry_after_s: PositiveInt = Field(1, description="`Retry-After` of a 503")


class LogSettings(Settings):
    """The log of what was served, in parquet parts."""

    folder: Path | None = Field(None, description="where the parts go; none: nothing is logged")
    rows_per_part: PositiveInt = 10_000
    # Half of the time after which a hidden file counts as left by a killed process (`ctr.serving.served.part`).
    seconds_per_part: float = Field(60.0, gt=0, le=1800)
    waiting: PositiveInt = Field(10_000, description="answers that wait to be written; more are dropped and counted")
    waiting_mib: PositiveInt = Field(128, description="memory of those that wait; what exceeds it is dropped likewise")
    users: Literal["raw", "hashed"] = Field("raw", description="hashed: keyed by the secret in QUADRANK_LOG_KEY")


class PastsSettings(Settings):
    """Where the past of a user is asked for that a request does not bring."""

    kind: Literal["request", "snapshot", "lmdb", "redis"] = Field(
        "request", description="request: nowhere; snapshot: in the bundle; lmdb: on this host; redis: for several hosts"
    )
    folder: Path | None = Field(None, description="lmdb: of the database")
    size_mib: PositiveInt = Field(4096, description="lmdb: the database grows no further")
    url: str = Field("redis://127.0.0.1:6379/0", description="redis: its password is in QUADRANK_REDIS_PASSWORD")
    timeout_ms: PositiveFloat = Field(20.0, description="redis: a ranking waits no longer")
    pause_ms: PositiveFloat = Field(1000.0, description="redis: not asked for so long after it did not answer")
    ttl: Duration = Field("30d", validate_default=True, description="redis: users without events are forgotten")

    @model_validator(mode="after")
    def _lmdb_has_a_folder(self) -> PastsSettings:
        if self.kind == "lmdb" and self.folder is None:
            raise ValueError("pasts.folder: lmdb needs one, e.g. pasts.folder=served/pasts")
        return self


class EventSettings(Settings):
    """Events that `POST /v1/events` takes in."""

    most: PositiveInt = Field(1000, description="events of one request; more are refused")
    seconds: PositiveFloat = Field(1.0, description="counters take new events in this often")
    remembered: PositiveInt = Field(
        100_000, description="newest events that a second sending of is recognised, and that the next bundle gets too"
    )


class ItemSettings(Settings):
    """New items over HTTP, `POST /v1/items`."""

    max_items: PositiveInt = Field(1000, description="of one request")
    max_body_kib: PositiveInt = Field(16_384, description="a larger body is answered 413")
    waiting: PositiveInt = Field(4, description="requests that wait while one makes its version; more are answered 503")


class ChallengerSettings(Settings):
    """A second version beside the one that answers: for some users (A/B), or unseen (shadow)."""

    bundle: Path | None = Field(None, description="folder, or pointer that is followed; none: there is no challenger")
    mode: Literal["shadow", "ab"] = Field(
        "shadow", description="shadow: it scores after the answer has left; ab: it answers its users"
    )
    share: float = Field(0.1, ge=0, le=1, description="of users; of requests where they name no user")
    salt: str = Field("", description="another one draws other users")
    waiting: PositiveInt = Field(64, description="shadow: requests that wait for it; more are dropped and counted")
    waiting_mib: PositiveInt = Field(16, description="shadow: memory of those; what exceeds it is dropped likewise")


class ServeConfig(Settings):
    """One serving process: threads, limits, queue, pasts, log."""

    threads: PositiveInt = Field(1, description="of one request, inside ONNX Runtime")
    concurrency: PositiveInt = Field(1, description="requests that a process ranks at the same time")
    limits: Limits = Limits()
    strict: bool = Field(False, description="refuse a request that lacks what the model was trained on")
    fallback: bool = Field(False, description="rank by popularity what the model cannot rank, or not in time")
    max_body_kib: PositiveInt = Field(1024, description="a larger body is answered 413")
    receive_seconds: PositiveFloat = Field(
        10.0,
        description="what a head may take to come, or an answer to be taken, before the connection is ended; a body is "
        "answered 408",
    )
    max_connections: PositiveInt = Field(
        1000, description="open at the same time in one process; a request over a further one is answered 503"
    )
    queue: QueueSettings = QueueSettings()
    poll_seconds: PositiveFloat = Field(2.0, description="how often the pointer or alias is read")
    leave_s: float = Field(
        0.0, ge=0, description="after SIGTERM, health says not ready for so long before the server stops to listen"
    )
    warm_up: int = Field(32, ge=0, description="recent requests that a new version ranks before it answers")
    pasts: PastsSettings = PastsSettings()
    events: EventSettings = EventSettings()
    log: LogSettings = LogSettings()
    items: ItemSettings = ItemSettings()
    challenger: ChallengerSettings = ChallengerSettings()


def load_serve_config(path: Path, overrides: dict[str, Any] | None = None) -> ServeConfig:
    """Read a serving file, `--set` on top.

    Raises:
        ConfigError: missing file, unknown key (nearest valid one named), impossible value.
    """
    return validate(ServeConfig, merge(load_yaml(path), overrides or {}), str(path))
