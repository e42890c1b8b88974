"""Which users meet the challenger: the same ones in every process and after every restart."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

CHAMPION, CHALLENGER = "champion", "challenger"
BYTES = 8  # of the hash


def meets_challenger(user: Any, request_id: str, share: float, salt: str) -> bool:
    """Whether a request is one of the challenger's share.

    Args:
        user: raw id; None for an anonymous one, of whom each request is drawn for itself.
        request_id: of the request.
        share: of users, 0 to 1.
        salt: key of the hash; another one draws other users.
    """
    drawn = f"request {request_id}" if user is None else f"user {user}"
    # A lone surrogate is legal in JSON text, and no UTF-8.
    digest = hmac.digest(salt.encode(), drawn.encode(errors="surrogatepass"), hashlib.sha256)
    return int.from_bytes(digest[:BYTES], "big") < share * 2 ** (8 * BYTES)
