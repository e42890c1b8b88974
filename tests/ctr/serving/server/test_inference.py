"""The Open Inference Protocol: what its headers say."""

from __future__ import annotations

import pytest

from ctr.serving.server.inference import whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("9" * 9, 999_999_999), ("9" * 10, None), ("9" * 5000, None)]
    + [(text, None) for text in ("", "-1", "+1", " 1", "1.5", "1_0", "x", "²", "٣")],
)
def test_a_number_is_up_to_nine_digits(text, number):
    assert whole_number(text) == number
