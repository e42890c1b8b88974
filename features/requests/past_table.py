"""The pasts of many users as one table: their histories at any time, by the rules and functions of a build.

Shapes: E events by user and time, R rows that ask for a history, Q distinct users of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.contract.columns import Gap, Residual
from features.encoding.encoder import Encoder
from features.encoding.number import numbers
from features.encoding.past import ITEM, TIME, Past
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError, DataError, error_prefix
from features.point_in_time.history import gap_seconds, history_spans, without_repeats
from features.requests.raw_columns import Given, RawColumns, RawEvents
from features.sources.keys import canonical
from features.sources.tables import readable, require_columns, scan
from features.sources.times import microseconds

USER = "user"


@dataclass(frozen=True)
class Histories:
    """Where the history of each of R rows lies in arrays of events, `[end - length : end]`, oldest first.

    Args:
        item_E: item rows, int64.
        columns: encoded event columns by name, int64 or float32 [E].
        end_R: int64.
        length_R: int64; at most `history_max_len`.
    """

    item_E: np.ndarray
    columns: dict[str, np.ndarray]
    end_R: np.ndarray
    length_R: np.ndarray


class PastTable:
    """The events of users who have any, encoded and sorted; those that stand in no history are left out.

    Args:
        encoder: of a bundle.
        users: distinct raw ids of users with events.
        user_E: index of the user among them, int64, ascending.
        time_E: µs since 1970, int64, ascending within a user.
        item_E: item rows, int64.
        columns: encoded event columns by name, [E].
    """

    def __init__(
        self,
        encoder: Encoder,
        users: Vocabulary,
        user_E: np.ndarray,
        time_E: np.ndarray,
        item_E: np.ndarray,
        columns: dict[str, np.ndarray],
    ) -> None:
        self.encoder = encoder
        self.users = users
        self._time_E, self._item_E, self._columns = time_E, item_E, columns
        self._first_U = np.searchsorted(user_E, np.arange(users.size + 1))

    @classmethod
    def read(cls, path: Path, encoder: Encoder) -> PastTable:
        """Read events as the log has them: its user, item and time, and the raw columns that the contract reads.

        User, item and time have the names of the log's columns, or `user`, `item` and `time`. What an item's counter
        was (for a residual) may stand in a column of its name; otherwise it is the bundle's.

        Raises:
            ConfigError: a log without events in time, or a bundle that does not say what its columns are.
            DataError: a file that cannot be read, a column that lacks, or values that the log cannot have.
        """
        contract = encoder.contract
        log, rules = contract.interactions, contract.history
        if log.time is None or rules.given is not None:
            raise ConfigError(
                "--events: this log has no events in time. Give each row its history in the column `history`, oldest "
                "first."
            )
        if not encoder.log_columns:
            raise ConfigError(
                "--events: this bundle does not say what the log's columns are: an earlier version made it. Export it "
                "again."
            )
        reading = RawColumns(contract, encoder.log_columns)
        frame = with_names(scan(str(path.absolute())), {USER: log.user, ITEM: log.item, TIME: log.time})
        read = reading.computed_of | reading.events_read
        read |= {one.name for one in reading.columns.values() if isinstance(one, Given)}
        read -= {log.user, log.item, log.time}
        require_columns(frame, str(path), [USER, ITEM, TIME, *sorted(read)])
        residuals = {spec.counter for spec in rules.columns.values() if isinstance(spec, Residual)}
        optional = residuals & set(frame.collect_schema().names())
        when = microseconds(frame, str(path), TIME, log.time_unit, log.time_format).alias(_WHEN)
        chosen = [USER, ITEM, when, *sorted(read | optional)]
        with readable(str(path)):
            wrong = frame.select(TIME, when).filter(pl.col(TIME).is_not_null() & pl.col(_WHEN).is_null()).collect()
            table = frame.select(chosen).drop_nulls([USER, ITEM, _WHEN]).collect()
        with error_prefix(str(path)):
            if len(wrong):
                raise DataError(
                    f"column {TIME!r}: {len(wrong)} of {frame.select(pl.len()).collect().item()} rows are no time, "
                    f"e.g. {wrong[TIME][0]!r}. Write times as the log has them."
                )
            return cls._of(table, encoder, reading)

    @classmethod
    def _of(cls, table: pl.DataFrame, encoder: Encoder, reading: RawColumns) -> PastTable:
        rules, users = encoder.contract.history, Vocabulary(canonical(table[USER]).unique().sort())
        _same_kind(table[USER], encoder.users)
        user_E = users.encode(table[USER]).astype(np.int64)
        time_E = table[_WHEN].to_numpy()
        order = np.lexsort((time_E, user_E))
        table, user_E, time_E = table[order], user_E[order], time_E[order]
        events = TableEvents(reading, table)
        is_event_E = events.is_event()
        if rules.repeats != "keep":
            distinct_E = canonical(table[ITEM]).rank("dense").to_numpy()
            is_event_E = without_repeats(user_E, distinct_E, is_event_E, rules.repeats)
        item_E = encoder.items.encode(table[ITEM]).astype(np.int64)
        columns = {}
        for name, one in encoder.event.items():
            spec = rules.columns[name]
            if isinstance(spec, Gap):
                columns[name] = one.encode_many(gap_seconds(user_E, time_E, is_event_E))
            elif isinstance(spec, Residual):
                given_E = numbers(table[spec.counter]) if spec.counter in table.columns else np.full(len(table), np.nan)
                known_E = np.where(np.isnan(given_E), encoder.snapshot.items[spec.counter][item_E], given_E)
                columns[name] = one.encode_many(events.label - known_E)
            else:
                columns[name] = one.encode(events.column(name))
        kept = {
            name: (values if values.dtype == np.float32 else values.astype(np.int64))[is_event_E]
            for name, values in columns.items()
        }
        return cls(encoder, users, user_E[is_event_E], time_E[is_event_E], item_E[is_event_E], kept)

    def histories(self, user_R: pl.Series, time_R: np.ndarray) -> Histories:
        """The history of each row: its user's events strictly before its time, by the contract's rules.

        Args:
            user_R: raw ids, null for nobody.
            time_R: µs since 1970, int64 [R].

        Raises:
            DataError: ids of another type.
        """
        rules = self.encoder.contract.history
        users_Q, asks_R = np.unique(self.users.encode(user_R), return_inverse=True)
        first_Q, past_Q = self._first_U[users_Q], np.diff(self._first_U)[users_Q]
        before_Q = np.cumsum(past_Q) - past_Q
        place_E = np.arange(past_Q.sum()) + np.repeat(first_Q - before_Q, past_Q)
        user = np.r_[np.repeat(np.arange(len(users_Q)), past_Q), asks_R]
        time = np.r_[self._time_E[place_E], time_R]
        order = np.lexsort((time, user))
        end, length = history_spans(
            user[order],
            time[order],
            order < len(place_E),
            self.encoder.schema.history_max_len,
            rules.within,
            rules.session_gap,
            delay=rules.delay or 0,
        )
        is_row = order >= len(place_E)
        end_R, length_R = np.zeros(len(time_R), np.int64), np.zeros(len(time_R), np.int64)
        end_R[order[is_row] - len(place_E)] = end[is_row]
        length_R[order[is_row] - len(place_E)] = length[is_row]
        # Events of one user follow each other there and here.
        has_R = length_R > 0
        end_R[has_R] = place_E[end_R[has_R] - 1] + 1
        end_R[~has_R] = 0
        return Histories(self._item_E, self._columns, end_R, length_R)


class TableEvents(RawEvents):
    """Raw events of a table, read by column.

    Args:
        reading: of the contract.
        table: `user`, `item`, their time in µs and raw columns.
    """

    def __init__(self, reading: RawColumns, table: pl.DataFrame) -> None:
        super().__init__(reading, Past((), table[_WHEN].to_numpy(), ()), ())
        self._table = table

    def numbers(self, name: str) -> np.ndarray:
        """A raw column of numbers, float64 [E], NaN where null."""
        return numbers(self._raw(name))

    def column(self, name: str) -> pl.Series:
        """A column of the events, as the build has it."""
        reading = self.reading.columns[name]
        if reading is None:
            return pl.Series(name, self.label).fill_nan(None).cast(pl.Int8)
        return self.computed(reading).rename(name)

    def _typed(self, name: str) -> pl.Series:
        if name == self.reading.contract.interactions.time:
            return super()._typed(name)
        raw, dtype = self._raw(name), self.reading.log[name]
        try:
            return raw.cast(dtype)
        except pl.exceptions.PolarsError:
            raise DataError(
                f"column {name!r}: holds {raw.dtype} that is not what the log has there, {dtype}. Write it as the log "
                "has it."
            ) from None

    def _raw(self, name: str) -> pl.Series:
        log = self.reading.contract.interactions
        return self._table[{log.user: USER, log.item: ITEM}.get(name, name)]


_WHEN = "_time_us"


def with_names(frame: pl.LazyFrame, named: dict[str, str]) -> pl.LazyFrame:
    """The table with columns of these names, of which each may have the log's name instead: `{name: log's name}`."""
    names = frame.collect_schema().names()
    renamed = {log: name for name, log in named.items() if name not in names and log in names}
    return frame.rename(renamed)


def _same_kind(raw: pl.Series, users: Vocabulary) -> None:
    """Raise DataError for text where the log's ids are whole numbers, or the other way round."""
    users.encode(raw.head(1))
