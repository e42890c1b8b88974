"""How the behaviour log is declared: its files, columns, labels, negatives, histories, counters and checks."""

from __future__ import annotations

import codecs
from datetime import date
from typing import Literal

from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from features.calendar import DAY, HOUR
from features.contract.columns import Duration, EventColumn, Numeric, Relative, ScalarColumn
from features.contract.settings import Settings

Policy = Literal["error", "quarantine", "warn"]
CapPolicy = Literal["error", "quarantine", "cap", "warn"]  # of rows that are too many: cap puts aside those beyond
Strict = Literal["error", "quarantine"]  # of rows that nothing can be learned from


class Format(Settings):
    """What a file's suffix does not say."""

    kind: Literal["parquet", "arrow", "csv", "tsv"] | None = Field(None, description="default: by suffix")
    columns: tuple[str, ...] | None = Field(None, description="names for a text file without a header")
    separator: str | None = Field(None, min_length=1, description="of a text file, e.g. `|` or `::`")
    encoding: str = Field("utf-8", description="of a text file, e.g. latin-1")
    quote: bool = Field(True, description="whether a double quote in a text file quotes")

    @field_validator("encoding")
    @classmethod
    def _python_knows_it(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError(f"unknown encoding {value!r}; write e.g. utf-8, latin-1 or cp1252") from None
        return value


class Candidates(Settings):
    """One row an impression, with all that was shown in it: exploded to one row a candidate.

    The exploded id goes by the name in `interactions.item`; the label is whether it was clicked.
    """

    column: str = Field(description="list of ids, or text such as `N1-0 N2-1`")
    clicked: str | None = Field(None, description="list column of the ids that were clicked (EB-NeRD)")
    flag: str | None = Field(None, min_length=1, description="text before the 0/1 flag of each candidate (MIND: `-`)")
    separator: str = Field(" ", min_length=1, description="between candidates of a text column")

    @model_validator(mode="after")
    def _one_source_of_clicks(self) -> Candidates:
        if (self.clicked is None) == (self.flag is None):
            raise ValueError("candidates: name either `clicked` (a list column) or `flag` (text before 0/1)")
        return self


class Served(Settings):
    """The log is one that the server wrote: a row an answer, exploded to one row for each item that was shown.

    Its user, item, time and request get the names that `interactions` gives them, beside `position` and `version`; the
    label is whether an outcome of the request and item came in time.
    """

    outcomes: str = Field(description="table of what users did: file, glob or fsspec URL; one row an outcome")
    format: Format = Format()
    request: str = "request"
    item: str = "item"
    time: str = "time"
    time_unit: Literal["s", "ms", "us"] = Field("s", description="unit of an integer time column")
    time_format: str | None = Field(None, description="of a text time column, e.g. `%Y-%m-%d %H:%M:%S`")
    label: str | None = Field(None, description="which outcomes are positive: a 0/1 column or SQL; default: each is")
    wait: Duration = Field("30m", validate_default=True, description="an outcome later than that does not count")
    shown: PositiveInt | None = Field(None, description="how many of the ranked were shown; default: all")


class Negatives(Settings):
    """For a log of positives only: items that were there but not taken, drawn as of each positive's time."""

    per_positive: PositiveInt = 4
    how: Literal["uniform", "popularity", "in_window"] = "uniform"
    window: Duration = Field("1d", validate_default=True, description="in_window: how far back items were taken")
    exclude: Literal["seen", "none"] = Field("seen", description="never draw what the user has taken up to that time")
    seed: int = 1


class Interactions(Settings):
    """The behaviour log: one row an impression (or rating, or click)."""

    path: str = Field(description="file, glob, {a,b} alternatives, hive folder or fsspec URL")
    format: Format = Format()
    user: str
    item: str
    time: str | None = Field(description="null only with a given history and a split by files")
    label: str | None = Field(
        None, description="a 0/1 column or a polars SQL expression such as `rating >= 4`; none: every row is a positive"
    )
    labels: dict[str, str] = Field(
        {}, description="further targets by name, 0/1 or null where unknown; `model.tasks` learns them"
    )
    allow_label_features: tuple[str, ...] = Field(
        (), description="columns that a label is made of and that a feature may read all the same"
    )
    time_unit: Literal["s", "ms", "us"] = Field("s", description="unit of an integer time column")
    time_format: str | None = Field(None, description="of a text time column, e.g. `%m/%d/%Y %I:%M:%S %p`")
    weight: str | None = None
    request: str | None = Field(
        None,
        description="id of an impression or ranked list: its rows know the same past, and have metrics of their own",
    )
    candidates: Candidates | None = None
    served: Served | None = None
    negatives: Negatives | None = None
    context: dict[str, ScalarColumn] = {}
    user_min_count: PositiveInt = Field(2, description="training rows below which a user id is unknown")
    item_min_count: PositiveInt = Field(2, description="training rows below which an item id is unknown")
    user_max_idle: Duration | None = Field(None, description="a user id without a training row for so long is idle")
    item_max_idle: Duration | None = Field(
        None, description="an item id without a training row for so long, e.g. 30d, is idle: a new id takes its index"
    )

    @model_validator(mode="after")
    def _idle_is_told_by_times(self) -> Interactions:
        for name, limit in (("user_max_idle", self.user_max_idle), ("item_max_idle", self.item_max_idle)):
            if limit is not None and self.time is None:
                raise ValueError(f"{name}: needs times of the rows; name interactions.time, or remove it")
        return self

    @model_validator(mode="after")
    def _labels_come_from_somewhere(self) -> Interactions:
        if self.served is not None:
            others = ("label", "candidates", "negatives")
            if both := [name for name in others if getattr(self, name) is not None]:
                raise ValueError(f"interactions.{both[0]}: a served log has its label from its outcomes; remove it")
            if self.time is None:
                raise ValueError("interactions.time: may not be null with `served`; name the column, e.g. time")
            return self
        if self.label is None and self.candidates is None and self.negatives is None:
            raise ValueError("interactions.label: missing. A log of positives alone needs `negatives`")
        if self.candidates is not None and self.negatives is not None:
            raise ValueError("interactions: `candidates` have their own negatives; remove `negatives`")
        if self.label is not None and self.negatives is not None:
            raise ValueError(
                "interactions.negatives: are drawn for a log of positives alone, in which no row has a label. Remove "
                "`negatives`; or remove `label`, and the rows of label 0 from the log"
            )
        return self

    @property
    def tells_clicks(self) -> bool:
        """Whether a row's label is that its candidate was clicked, `clicked` in expressions."""
        return self.candidates is not None or self.served is not None


class HistoryTable(Settings):
    """Earlier events from another table: one row an event, or one row a user with lists of equal length."""

    path: str
    format: Format = Format()
    user: str
    item: str
    time: str
    time_unit: Literal["s", "ms", "us"] = "s"
    columns: dict[str, str] = Field({}, description="event column -> this table's column or expression")


class PrecomputedHistory(Settings):
    """Histories that the log itself carries, as a list column of item ids, oldest first."""

    column: str
    separator: str | None = Field(None, min_length=1, description="of a text column")
    padding: int | str | None = Field(None, description="id that fills short lists up, e.g. 0 (MM-CTR)")


class History(Settings):
    """What a row sees of the past: the newest `max_len` events strictly before its own time."""

    max_len: PositiveInt = 50
    events: str = Field("all", description="`all`, or a polars SQL expression such as `label == 1`")
    columns: dict[str, EventColumn] = Field({}, description="event columns carried along, e.g. label")
    given: PrecomputedHistory | None = None
    tables: tuple[HistoryTable, ...] = ()
    within: Duration | None = Field(None, description="oldest event kept, e.g. 30d")
    session_gap: Duration | None = Field(None, description="only events of the running session: gaps below, e.g. 30m")
    delay: Duration | None = Field(None, description="until an event is known to a row, e.g. 5m; default: at once")
    repeats: Literal["keep", "consecutive", "first"] = Field(
        "keep", description="of one item: keep all, drop immediate repeats, or keep the first alone"
    )

    @model_validator(mode="after")
    def _given_stands_alone(self) -> History:
        limits = ("events", "columns", "tables", "within", "session_gap", "delay", "repeats")
        others = [name for name in limits if getattr(self, name) != type(self).model_fields[name].default]
        if self.given is not None and others:
            raise ValueError(f"history.given: a precomputed history is taken as it is; remove history.{min(others)}")
        return self

    @model_validator(mode="after")
    def _delay_leaves_events(self) -> History:
        for name, limit in (("within", self.within), ("session_gap", self.session_gap)):
            if self.delay is not None and limit is not None and self.delay >= limit:
                raise ValueError(f"history.delay: must be shorter than history.{name}, else every history is empty")
        return self


class Counter(Settings):
    """What was counted of a key in rows strictly before, as serving will know it.

    A key is the item, the user, a column, or several of these together; `number` and `label` name what is added up.
    """

    of: str | tuple[str, ...] = Field(description="`item`, `user`, a column, or a list of them: [user, category]")
    value: Literal["count", "rate", "sum", "mean", "age", "since"] = Field(
        description="rows; share of positives; sum or mean of `number`; hours since the key's first or newest row"
    )
    number: str | None = Field(None, description="sum and mean: column of the log, or SQL; missing ones do not count")
    label: str | None = Field(None, description="rate: one of `interactions.labels`; default: the label")
    as_of: Literal["event", "hour", "day"] = Field(
        "event", description="how fresh: each event, or each full hour/day UTC"
    )
    half_life: Duration | None = Field(
        None, description="an event counts half after it, e.g. 7d; default: for ever. A list makes a counter of each"
    )
    prior: PositiveFloat = Field(10.0, description="rate: rows of average rate that everyone starts with")
    relative: Relative = Field((), description="of items: how it stands among the candidates of its request")

    @field_validator("of")
    @classmethod
    def _each_column_once(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return value
        if not value or len(set(value)) < len(value):
            raise ValueError(f"{list(value)}: name each column once, e.g. [user, category]")
        return value[0] if len(value) == 1 else value

    @model_validator(mode="after")
    def _value_has_what_it_reads(self) -> Counter:
        if (self.number is not None) != (self.value in ("sum", "mean")):
            raise ValueError("number: `sum` and `mean` need it, e.g. `number: read_time`, and nothing else takes it")
        if self.label is not None and self.value != "rate":
            raise ValueError("label: only a rate has one; for how many were positive write {value: sum, number: …}")
        if self.half_life is not None and self.value in ("age", "since"):
            raise ValueError(f"half_life: hours do not fade; remove it from the counter of value: {self.value}")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """What makes a key, in order."""
        return (self.of,) if isinstance(self.of, str) else self.of

    @property
    def period(self) -> int:
        """How long a value stands before a fresher one is known, µs."""
        return {"event": 1, "hour": HOUR, "day": DAY}[self.as_of]

    @property
    def grows(self) -> bool:
        """Whether the value grows with time alone."""
        return self.value in ("age", "since")

    @property
    def column(self) -> Numeric:
        """The column that it becomes."""
        return Numeric(type="numeric", transform="log1p" if self.value in ("count", "age", "since") else "none")


class Split(Settings):
    """How rows become train, valid and test. By time: the last shares of the log, ties on one side.

    `by: days` counts whole UTC days at the end; `by: files` reads further tables of the log's layout.
    """

    by: Literal["time", "user", "days", "files"] = "time"
    valid: FiniteFloat | str = Field(0.1, description="share, days, or path")
    test: FiniteFloat | str = Field(0.1, description="share, days, or path")

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> Split:
        for name, value in (("valid", self.valid), ("test", self.test)):
            if self.by == "files":
                if not isinstance(value, str):
                    raise ValueError(f"{name}: by files, name the file, got {value}")
            elif isinstance(value, str) or value <= 0:
                raise ValueError(f"{name}: must be a number above 0, got {value!r}")
            elif self.by == "days" and value != int(value):
                raise ValueError(f"{name}: a whole number of days, got {value}")
            elif self.by in ("time", "user") and value >= 1:
                raise ValueError(f"{name}: a share below 1, got {value}")
        if self.by in ("time", "user") and float(self.valid) + float(self.test) >= 1:
            raise ValueError(f"valid + test must stay below 1, got {self.valid} + {self.test}")
        return self


class Checks(Settings):
    """What is done with rows that break a rule. `quarantine` writes them to a parquet with the reason."""

    null: Strict = Field("error", description="user, item, time or label is missing")
    label: Strict = Field("error", description="a label that is neither 0 nor 1")
    weight: Strict = Field("error", description="negative or not finite")
    negative_id: Policy = Field("error", description="a whole-number id below 0, which no request can name")
    time_range: Policy = Field("error", description="before `earliest` or after `latest`")
    duplicate: Policy = Field("warn", description="the same user, item and time more than once")
    unknown_item: Policy = Field("warn", description="an item of the log that is not in the item table")
    unknown_user: Policy = Field("warn", description="a user of the log that is not in the user table")
    bot: CapPolicy = Field("warn", description="users with more than `max_rows_per_user` rows on one UTC day")
    flooded_item: CapPolicy = Field("warn", description="items with more than `max_rows_per_item` rows on one UTC day")
    range: Policy = Field("warn", description="a number outside its `ranges`, or infinite")
    earliest: date = Field(date(1990, 1, 1), description="first day (UTC); an earlier time is a mistake of the unit")
    latest: date | None = Field(None, description="last day (UTC); default: a day from now")
    max_rows_per_user: PositiveInt = 5_000
    max_rows_per_item: PositiveInt | None = Field(None, description="default: no limit")
    newest_day: Literal["error", "warn", "off"] = Field(
        "off", description="rows or label rate of the newest day far from the median of the seven days before it"
    )
    day_rows: tuple[NonNegativeFloat, NonNegativeFloat] = Field(
        (0.5, 3.0), description="least and greatest rows of the newest day, over the median"
    )
    day_label_rate: tuple[NonNegativeFloat, NonNegativeFloat] = Field(
        (0.5, 2.0), description="least and greatest label rate of the newest day, over the median"
    )
    stale: Literal["error", "warn"] = Field("error", description="the newest row is older than `max_age`")
    max_age: Duration | None = Field(None, description="of the newest row at the build, e.g. 36h; default: no limit")
    ranges: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(
        {}, description="column of the log -> least and greatest"
    )
    max_quarantine: NonNegativeFloat = Field(
        0.01, le=1, description="share of the log; beyond it the build stops. Rows beyond a cap do not count"
    )

    @property
    def quarantines(self) -> bool:
        """Whether rows may be put aside."""
        return any(policy in ("quarantine", "cap") for policy in self.model_dump().values())
