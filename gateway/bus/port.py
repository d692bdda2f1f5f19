"""What the gateway asks of a bus, whichever it is.

Nothing behind this port knows MQTT: tests and the simulator bring ``memory.MemoryBus``, a FIX or ITCH door would be
one more class. All methods that carry data are plain calls, not coroutines: one message costs no task and no
suspension, and the order of calls is the order on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Delivery:
    """One message that arrived. It stays the bus's to redeliver until it is acknowledged."""

    __slots__ = ("participant", "payload", "retained", "ticket")

    def __init__(self, participant: str, payload: bytes, retained: bool = False, ticket: object = None) -> None:
        #: Who sent it, by the bus's own knowledge (a topic level tied to the login): a member, or what ``topics`` calls
        #: the address of somebody else, which no member's name can be.
        self.participant = participant
        self.payload = payload
        self.retained = retained  #: the broker kept it for later subscribers: age unknown, must not be executed
        self.ticket = ticket  #: what the bus needs to acknowledge it; opaque to everybody else


class Door(Protocol):
    """The gateway, as a bus sees it."""

    def receive(self, delivery: Delivery) -> None:
        """Take in one message. Must not block; an exception from here stops the exchange."""

    def connected(self) -> None:
        """The way out is open (again); whatever was sent while it was closed is gone."""

    def alarm(self, text: str) -> None:
        """Something that a person must look at before messages are lost."""


class Bus(Protocol):
    async def run(self, door: Door) -> None:
        """Serve until ``close``; find the broker again whenever it is lost. Raises only what ``door`` raised."""

    def send(self, address: str, payload: bytes) -> None:
        """To one member (or operator, or reader of a copy: ``topics``), and no other.

        Dropped while disconnected: whoever misses it asks again (``resend_from``).
        """

    def publish(self, instrument: str, kind: str, payload: bytes, *, retain: bool = False) -> None:
        """To everybody. ``retain`` keeps it for subscribers yet to come."""

    def announce(self, payload: bytes) -> None:
        """Publish the status of the exchange, kept for subscribers yet to come."""

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Done with these, for good: their effect is durable, or they were refused and answered."""

    async def close(self) -> None:
        """Send what is queued and leave. ``run`` returns."""
