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


class Sessions:
    """Of all members. Times are nanoseconds of machine time."""

    def __init__(self, after_ms: int) -> None:
        self._after_ns: Final = after_ms * 1_000_000
        self._here: Final[dict[str, set[str]]] = {}
        self._gone: Final[dict[str, tuple[int, list[Delivery]]]] = {}  # when it counts, and what said so

    def take(self, delivery: Delivery, presence: Presence, now_ns: int) -> list[Delivery]:
        """Take in what a session says of itself. Returns the messages that are done with."""
        participant = delivery.participant
        here = self._here.setdefault(participant, set())
        if presence.here:
            here.add(presence.session)
            return [delivery, *self._gone.pop(participant, (0, []))[1]]
        here.discard(presence.session)
        if here:
            return [delivery]
        due, deliveries = self._gone.get(participant, (now_ns + self._after_ns, []))
        self._gone[participant] = due, [*deliveries, delivery]
        return []

    def due(self, now_ns: int) -> list[tuple[str, list[Delivery]]]:
        """Members that are gone by now, each once, with the messages that are done with when the market knows it."""
        found = [(participant, deliveries) for participant, (due, deliveries) in self._gone.items() if due <= now_ns]
        for participant, _ in found:
            del self._gone[participant]
        return found
