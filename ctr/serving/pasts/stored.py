"""What sources of packed pasts have in common: how a blob is read, and what is noted of it."""

from __future__ import annotations

from dataclasses import dataclass

from ctr.serving.pasts.packing import BrokenError, ForeignError, header_of, unpack
from ctr.serving.pasts.source import Note, kept_events
from features.contract.contract import Contract
from features.encoding.past import PastEvent


@dataclass(frozen=True)
class Blobs:
    """Reads blobs of one contract.

    Args:
        header: that they begin with.
        keep: events of a user.
        note: is told what came of each reading.
    """

    header: bytes
    keep: int
    note: Note

    @classmethod
    def of(cls, contract: Contract, note: Note) -> Blobs:
        """Those of a contract."""
        return cls(header_of(contract.fingerprint()), kept_events(contract.history), note)

    def events(self, blob: bytes | memoryview | None) -> list[PastEvent]:
        """What a blob holds; nothing where there is none, or one that cannot be read as this contract's."""
        if blob is None:
            self.note("absent")
            return []
        try:
            found = unpack(blob, self.header)
        except ForeignError:
            self.note("foreign")
            return []
        except BrokenError:
            self.note("broken")
            return []
        self.note("found")
        return found
