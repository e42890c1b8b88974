"""Errors as answers: a status, a code, and what a client is told; no path, version or trace of ours."""

from __future__ import annotations

import logging

from ctr.serving.answering.pool import OverloadedError
from ctr.serving.pasts.source import AwayError
from features.errors import ConfigError, NewItemsError, NumericalError

log = logging.getLogger("quadrank.serve")


class TooLargeError(Exception):
    """A body above its limit, in KiB."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class SlowError(Exception):
    """A body that has not come whole within its time, in seconds."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit


class UnauthorizedError(Exception):
    """A route that writes was called without the server's token."""


class NotFoundError(Exception):
    """No such model or version; the message goes into the answer."""


def refusal(error: Exception) -> tuple[int, str, str]:
    """The status of an error, its code and what the client is told; what only we may know is logged."""
    match error:
        case ConfigError() | NewItemsError():
            return 400, "bad_request", str(error)
        case UnauthorizedError():
            return 401, "unauthorized", "Send the server's token as `Authorization: Bearer …`."
        case NotFoundError():
            return 404, "not_found", str(error)
        case SlowError():
            return 408, "slow", f"The body has not come whole within {error.limit:g} s. Send the request again."
        case TooLargeError():
            return 413, "too_large", f"The body is larger than {error.limit} KiB. Send less in one request."
        case OverloadedError():
            return 503, "overloaded", "The server is busy or stopping: try again later."
        case AwayError():
            log.error("events are not taken: %s", error)
            return 503, "pasts_away", "Pasts cannot be kept now: send the same events again later."
        case NumericalError():
            log.error("%s", error)
            return 500, "no_score", "The model gave a score that is no number."
        case _:
            log.error("unexpected error", exc_info=error)
            return 500, "internal", "The server could not answer. Its log says why."
