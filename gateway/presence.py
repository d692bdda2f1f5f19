"""Which members' sessions are here, and who has lost the last one.

A session that wants its member's orders cancelled when it is gone says that it is here, and leaves its last will with
the broker. A broken connection is often back in a moment, so a member counts as gone only after a while. Until then the
broker has not been told that its message was taken: if the exchange dies in between, the message comes again.

Nothing of this is in the log, for it is no part of the market. So after a restart of the exchange a session is unknown
until it says again that it is here, which clients do when the exchange is back; a last will that waited at the broker
counts all the same.
"""

from __future__ import annotations

from typing import Final

from gateway.bus.messages import Presence
from gateway.bus.port import Delivery

#: Sessions of one member that are here at the same time: who invents names must not fill the exchange's memory.
SESSIONS_MAX: Final = 100


class Sessions:
    """Of all members. Times are nanoseconds of machine time."""

    def __init__(self, after_ms: int) -> None:
        self._after_ns: Final = after_ms * 1_000_000
        self._here: Final[dict[str, set[str]]] = {}
        self._gone: Final[dict[str, tuple[int, Delivery]]] = {}  # when it counts, and what said so last

    def is_full(self, participant: str, session: str) -> bool:
        """Whether there is no room for this session beside the member's others."""
        here = self._here.get(participant, ())
        return len(here) >= SESSIONS_MAX and session not in here

    def take(self, delivery: Delivery, presence: Presence, now_ns: int) -> list[Delivery]:
        """Take in what a session says of itself. Returns the messages that are done with."""
        participant = delivery.participant
        here = self._here.setdefault(participant, set())
        if presence.here:
            here.add(presence.session)
            said = self._gone.pop(participant, None)
            return [delivery] if said is None else [delivery, said[1]]
        here.discard(presence.session)
        if here:
            return [delivery]
        said = self._gone.get(participant)
        # One that the broker keeps is enough: who says it 10,000 times must not fill the window of what may wait.
        self._gone[participant] = now_ns + self._after_ns if said is None else said[0], delivery
        return [] if said is None else [said[1]]

    def due(self, now_ns: int) -> list[tuple[str, Delivery]]:
        """Members that are gone by now, each once, with the message that is done with when the market knows it."""
        found = [(participant, delivery) for participant, (due, delivery) in self._gone.items() if due <= now_ns]
        for participant, _ in found:
            del self._gone[participant]
        return found
