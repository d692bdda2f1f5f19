"""A market for a test in one line: an engine with instruments listed, a day started, a phase reached.

Every command goes through ``Engine.apply`` and is followed by ``Engine.check``, so no test can leave a broken state
behind unnoticed.
"""

from __future__ import annotations

from typing import Any

from engine import (
    AmendOrder,
    CancelOrder,
    Command,
    Engine,
    Event,
    ListInstrument,
    MassCancel,
    NewOrder,
    OrderType,
    Phase,
    Rejected,
    SetCalendar,
    SetPhase,
    Side,
    StartDay,
)

CODE = "KDX-2107"
TODAY = 20261124  # a Tuesday between holidays: Monday the 23rd is one
#: A START day in order; entering the auction phases holds the auctions.
START_DAY = (
    Phase.PRE_OPEN,
    Phase.PRE_OPEN_NCP,
    Phase.OPENING_AUCTION,
    Phase.BREAK,
    Phase.PRE_CLOSE,
    Phase.PRE_CLOSE_NCP,
    Phase.CLOSING_AUCTION,
    Phase.CLOSED,
)
CALENDAR = SetCalendar(20260101, 20271231, [20261103, 20261123])


class Market:
    """An engine and the ids that a test does not care about."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.count = 0

    def run(self, command: Command, participant: str = "") -> list[Event]:
        events = self.engine.apply(command, participant, 1_000 + self.engine.sequence)
        self.engine.check()
        return events

    def must(self, *commands: Command) -> list[Event]:
        """Commands of the exchange, none of which may be refused."""
        events: list[Event] = []
        for command in commands:
            events.extend(self.run(command))
        refused = [event.text for event in events if isinstance(event, Rejected)]
        assert not refused, refused
        return events

    def phase(self, *phases: Phase, code: str = CODE) -> list[Event]:
        """Walk through ``phases``."""
        return self.must(*(SetPhase(code, phase) for phase in phases))

    def id(self) -> str:
        self.count += 1
        return f"id-{self.count}"

    def buy(self, quantity: int, price: int = 0, member: str = "alpha", **terms: Any) -> list[Event]:
        return self.new(Side.BUY, quantity, price, member, **terms)

    def sell(self, quantity: int, price: int = 0, member: str = "beta", **terms: Any) -> list[Event]:
        return self.new(Side.SELL, quantity, price, member, **terms)

    def new(self, side: Side, quantity: int, price: int, member: str, **terms: Any) -> list[Event]:
        """An order; without a price it is a market order. ``id`` names it, ``code`` another instrument."""
        name = terms.pop("id", "") or self.id()
        code = terms.pop("code", CODE)
        terms.setdefault("order_type", OrderType.LIMIT if price else OrderType.MARKET)
        return self.run(NewOrder(name, code, side, quantity, price, **terms), member)

    def cancel(self, name: str, member: str = "alpha") -> list[Event]:
        return self.run(CancelOrder(self.id(), name), member)

    def amend(self, name: str, quantity: int = 0, price: int = 0, member: str = "alpha") -> list[Event]:
        return self.run(AmendOrder(self.id(), name, quantity, price), member)

    def mass_cancel(self, member: str = "alpha", **conditions: Any) -> list[Event]:
        return self.run(MassCancel(self.id(), **conditions), member)


def start(until: Phase = Phase.PRE_OPEN, **listing: Any) -> Market:
    """A START market on ``TODAY``, walked through its phases up to ``until`` (CLOSED: the day has begun, no more)."""
    market = Market()
    market.must(ListInstrument(CODE, **listing), StartDay(TODAY))
    if until != Phase.CLOSED:
        market.phase(*START_DAY[: START_DAY.index(until) + 1])
    return market


def zaraba(**listing: Any) -> Market:
    """A continuous market, trading."""
    market = Market()
    market.must(ListInstrument(CODE, "CONTINUOUS", **listing), StartDay(TODAY))
    market.phase(Phase.CONTINUOUS)
    return market


def only(events: list[Event], kind: type[Any]) -> Any:
    """The one event of a kind."""
    found = [event for event in events if isinstance(event, kind)]
    assert len(found) == 1, events
    return found[0]


def every(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def refusal(events: list[Event]) -> Rejected:
    """The only event, which has to be a refusal."""
    assert len(events) == 1, events
    assert isinstance(events[0], Rejected), events
    return events[0]
