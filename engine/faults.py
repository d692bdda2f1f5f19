"""What the engine raises when it can no longer vouch for its state.

A command that the market declines is answered by a ``Rejected`` event and is no fault. A fault stops the exchange, or
keeps it from starting, until a person has looked: going on would put the record and the book at odds.
"""

from __future__ import annotations


class EngineFault(Exception):
    """The engine can no longer vouch for its state.

    Never caught inside ``engine``, but for an ``InvariantBroken`` that a plan meets before anything has changed: that
    sets one instrument aside (``engine/rebuild.py``) and the others trade on.

    * EngineFault
      + LogDamaged          bytes that had been made durable do not check out
      + LogFailed           the disk refused a write or a sync: nothing more may be acknowledged
      + DigestMismatch      replay and record disagree
      + InvariantBroken     the book says one thing, its index another
    """


class LogDamaged(EngineFault):
    """The log cannot be read past ``offset``, and what lies there is no torn write: it had been made durable.

    ``offset`` counts bytes from the start of ``market.log``; ``sequence`` is the last command that still checks out.
    """

    def __init__(self, what: str, *, offset: int, sequence: int = 0, advice: str = "") -> None:
        self.what = what
        self.offset = offset
        self.sequence = sequence
        self.advice = advice or (
            f"Nothing was changed. Keep this file as evidence and put a good copy of the log in its place; "
            f"commands up to sequence {sequence} can still be read (`dojima replay LOG --until {sequence}`)."
        )
        super().__init__(f"The log is damaged at byte {offset}: {what}. {self.advice}")


class LogFailed(EngineFault):
    """Writing or syncing the log failed. What was written since the last good sync may or may not be on disk.

    The log takes nothing more: after a failed sync the kernel may have dropped the pages, so a second try that
    succeeds proves nothing. The process has to stop; the start that follows reads what the disk really holds.
    """


class DigestMismatch(EngineFault):
    """Replaying the log does not give what the log says it gave. ``sequence`` is that of the digest mark."""

    def __init__(self, what: str, *, sequence: int, offset: int, recorded: bytes, replayed: bytes) -> None:
        self.what = what
        self.sequence = sequence
        self.offset = offset
        self.recorded = recorded
        self.replayed = replayed
        self.advice = (
            "The commands were changed after the fact, or this build decides differently from the one that wrote them: "
            "replay with that build before trusting either."
        )
        super().__init__(
            f"Expected {what} {recorded.hex()} at sequence {sequence}, got {replayed.hex()} "
            f"(digest mark at byte {offset}). {self.advice}"
        )


class InvariantBroken(EngineFault):
    """Two parts of the state contradict each other. The message names both."""
