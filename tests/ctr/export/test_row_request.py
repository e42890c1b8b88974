"""A request by rows: padded as a batch by hand, encoded and back, and read from a logged row."""

from __future__ import annotations

import numpy as np

from ctr.export.row_request import RowRequest
from features.store.schema import Field, Schema

SCHEMA = Schema(
    items=10,
    users=5,
    item=(Field(name="item_id", kind="categorical", size=10),),
    user=(Field(name="user_id", kind="categorical", size=5), Field(name="age", kind="numeric")),
    context=(Field(name="hour", kind="categorical", size=26),),
    event=(Field(name="residual", kind="numeric"),),
    candidate=(Field(name="rate", kind="numeric"),),
    history_max_len=4,
)
USERS = {"user_id": np.arange(5), "age": np.arange(5) / 2}


def request() -> RowRequest:
    return RowRequest(
        user=3,
        history_item=np.array([7, 5]),
        candidate_item=np.array([5, 9, 7]),
        context={"hour": np.array([8])},
        history_events={"residual": np.float32([0.5, -1])},
        candidate={"rate": np.float32([0.1, 0.2, 0.3])},
    )


def test_a_batch_has_a_row_for_each_candidate_and_the_history_padded_in_front():
    batch = request().batch(history_max_len=4)
    batch.validate()
    assert batch.items_U.tolist() == [0, 5, 7, 9]
    assert batch.items_U[batch.target_B].tolist() == [5, 9, 7]
    assert batch.items_U[batch.history_BS].tolist() == [[0, 0, 7, 5]] * 3
    assert batch.events["residual"].tolist() == [[0, 0, 0.5, -1]] * 3
    assert batch.context["hour"].tolist() == [8] * 3 and batch.user_B.tolist() == [3] * 3


def test_encoded_it_has_the_columns_of_its_user_and_comes_back_by_its_row():
    encoded = request().encoded(SCHEMA, USERS)
    assert encoded.user["user_id"].tolist() == [3] and encoded.user["age"].tolist() == [1.5]
    assert encoded.user["age"].dtype == np.float32 and encoded.user["user_id"].dtype == np.int64
    back = RowRequest.of_encoded(encoded, user=3)
    assert repr(back) == repr(request())


def test_a_logged_row_asks_with_what_it_knew():
    rows = {
        "user": np.array([2, 3]),
        "history_end": np.array([1, 3]),
        "history_len": np.array([1, 2]),
        "hour": np.array([4, 8], np.int32),
        "rate": np.array([0.4, 0.1]),
    }
    events = {"item": np.array([6, 7, 5, 8], np.int32), "residual": np.array([0.0, 0.5, -1, 2])}
    found = RowRequest.of_row(SCHEMA, rows, events, 1, np.array([5, 9, 7]))
    # The row's own number stands for each candidate.
    expected = RowRequest(**{**vars(request()), "candidate": {"rate": np.float32([0.1, 0.1, 0.1])}})
    assert repr(found) == repr(expected)
