"""Events that come as bytes say what they say as objects, to the digest and to every room of the gateway."""

from __future__ import annotations

from typing import Any

import pytest

from engine import Engine
from engine.events import Accepted, Cancelled, Event
from engine.log.digest import DigestChain
from engine.profiles import PROFILES
from engine.wire import EventWriter, WrittenEvent, plain
from gateway.marketdata import MarketDataBook
from gateway.orderfeed import OrderFeed
from gateway.reports import ReportBook
from tests.engine.invent import life
from tests.gateway.market import ManualClock

START_NS = 1_795_478_400_000_000_000


class Rooms:
    """An engine and all that hears of it."""

    def __init__(self, written: bool) -> None:
        self.engine = Engine()
        if written:  # also where it does not pay
            self.engine._keeping = EventWriter(keeps=True)
        self.written = written
        self.digest = DigestChain()
        self.others: list[Any] = []
        self.reports = ReportBook(others=lambda *what: self.others.append(what))
        clock = ManualClock()
        self.market_data = MarketDataBook(self.engine, clock, snapshot_ms=1, digest_every=1)
        self.order_feed = OrderFeed(self.engine, clock, PROFILES, snapshot_ms=1, digest_every=1)

    def take(self, command: Any, participant: str, time_ns: int) -> list[Event | WrittenEvent]:
        sequence = self.engine.sequence + 1
        if self.written:
            events = self.engine.carry_out(command, participant, time_ns)
            self.digest.update_encoded(self.engine.told())
        else:
            events = [*self.engine.apply(command, participant, time_ns)]
            self.digest.update_all([(sequence, time_ns, plain(events))])
        self.reports.fold(sequence, time_ns, participant, events)
        self.market_data.fold(sequence, time_ns, participant, events)
        self.order_feed.fold(time_ns, events)
        return events

    def said(self) -> list[Any]:
        """What they say of it, and what members could ask for again."""
        again = [self.reports.again(name, 1, 10**6) for name in self.reports.members()]
        found = [list(self.reports.flush()), list(self.market_data.flush()), list(self.order_feed.flush())]
        return [*found, again, self.others, self.digest.value(), self.market_data.moved]


@pytest.mark.parametrize("seed", range(4))
def test_every_room_says_the_same_of_events_that_come_as_bytes(seed: int) -> None:
    plainly, written = Rooms(False), Rooms(True)
    kinds: dict[type[Event], int] = {}
    for number, (command, participant) in enumerate(life(seed, 1_000)):
        time_ns = START_NS + 1_000_000 * number
        right = plainly.take(command, participant, time_ns)
        found = written.take(command, participant, time_ns)

        assert plain(found) == right
        for event in found:
            if isinstance(event, WrittenEvent):
                kinds[type(event.event)] = kinds.get(type(event.event), 0) + 1
                assert participant  # of the exchange's own commands all are objects
        if number % 50 == 0:
            assert written.said() == plainly.said()

    assert written.said() == plainly.said()
    assert written.engine.digest() == plainly.engine.digest()
    assert kinds.keys() == {Accepted, Cancelled}
    assert sum(kinds.values()) > 100
