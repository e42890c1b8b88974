"""The fixed column names of the log and of its encoded chunks, and the units of their times."""

from __future__ import annotations

from typing import Any

USER, ITEM, TIME, LABEL, EVENT, SPLIT = "_user", "_item", "_time", "_label", "_event", "_split"
WEIGHT, REQUEST, GIVEN = "_weight", "_request", "_given"
RAW_TIME = "_raw_time"  # of an event of another table
INSTANT = "_instant"  # as of when a row knows the past
CONTEXT, HISTORY, LABELS = "_context.", "_history.", "_labels."
# The years 1 and 9999, which calendars stop at, in µs since 1970.
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_800_000_000
DAY = 86_400_000_000
# Of this build: it trains, validates or tests. Of the log: it was recorded, so counters count it and its label is one.
ROW, LOGGED = "_row", "_logged"
COUNTER = "_counter."  # raw value of an item counter at a row
CARRIED = "_carried"  # an event that an earlier build had made

Column = Any  # a numpy array [rows]; lists of different lengths as a pa.LargeListArray (64-bit offsets)
Arrays = dict[str, Column]
