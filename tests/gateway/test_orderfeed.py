"""What the public is told order by order is the book that the engine has, and never more than the book shows."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Engine
from engine.commands import (
    AmendOrder,
    CancelOrder,
    Command,
    ListInstrument,
    MassCancel,
    NewOrder,
    ResumeInstrument,
    SetPhase,
    StartDay,
    SuspendInstrument,
)
from engine.events import Rejected
from engine.profiles import PROFILES
from engine.types import OrderType, Phase, SelfTrade, Side, TimeInForce
from gateway.bus.messages import (
    OrderAdded,
    OrderChange,
    OrderChanges,
    OrderData,
    OrderDeleted,
    OrderExecuted,
    OrderReplaced,
    OrderResized,
    OrdersSnapshot,
)
from gateway.marketdata import LONG_AGO
from gateway.orderbook import OrderBook
from gateway.orderfeed import OrderFeed
from tests.engine.invent import life
from tests.gateway.market import DAY, ManualClock, buy, sell

_decode = msgspec.msgpack.Decoder(OrderData).decode
SIDES = (Side.BUY, Side.SELL)


class Readers:
    """An engine, its feed, and for each instrument a book made of nothing but what was published."""

    def __init__(self, digest_every: int = 3) -> None:
        self.engine = Engine()
        self.feed = OrderFeed(self.engine, ManualClock(), PROFILES, snapshot_ms=1, digest_every=digest_every)
        self.books: dict[str, OrderBook] = {}
        self.numbers: dict[str, int] = {}
        self.told: list[Any] = []  #: changes of the last command
        self.proofs = 0

    def run(self, command: Command, participant: str = "") -> None:
        events = self.engine.apply(command, participant, self.engine.sequence + 1)
        self.feed.fold(self.engine.time_ns, events)
        self.told = []
        for code, kind, payload, retain in self.feed.flush():
            message = _decode(payload)
            assert retain == isinstance(message, OrdersSnapshot)
            assert kind == ("by_order/orders/0" if retain else "by_order/changes")
            if isinstance(message, OrderChanges):
                self.numbers[code] = self.numbers.get(code, 0) + 1
                assert message.n == self.numbers[code]
                for change in message.changes:
                    self.books.setdefault(code, OrderBook()).apply(change)
                self.told += message.changes
                if message.digest is not None:
                    assert message.digest == self.books[code].digest()
                    self.proofs += 1
            else:
                assert message.digest == OrderBook(message.orders).digest()

    def agree(self) -> None:
        for code in self.engine.instruments():
            book = self.books.get(code, OrderBook())
            for side in SIDES:
                told = [(order.order_id, order.price, order.quantity) for order in book.queue(side)]
                assert told == self.engine.shown(code, side), (code, side)


@pytest.fixture(autouse=True)
def _nothing_had_to_be_corrected(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


def test_every_step_of_an_invented_life_leaves_readers_with_the_engine_s_book():
    for seed in (1, 2):
        readers = Readers()
        for command, participant in life(seed, 800):
            readers.run(command, participant)
            readers.agree()
        assert readers.proofs > 50


RULES: list[dict[str, int | str]] = [
    {},
    {"market_rests": 1},
    {"market_rests": 1, "self_trade": "decrement"},
    {"iceberg_entry": "rest_of_peak", "iceberg_uncross": "peak"},
    {"self_trade": "cancel_oldest", "qty_up_keeps_priority": 1},
    {"invalid_replace": "cancel_live", "mtl_needs_limit": 0, "self_trade": "cancel_both"},
    {"market_rests": 1, "iceberg_uncross": "peak", "volatility_band": 200, "volatility_call_seconds": 1},
]
PHASES = {
    "START": [Phase.PRE_OPEN, Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION, Phase.BREAK, Phase.PRE_CLOSE],
    "CONTINUOUS": [Phase.CALL, Phase.CALL_AUCTION, Phase.CONTINUOUS],
}


def deeds(draw: random.Random, profile: str, count: int) -> Iterator[tuple[Command, str]]:
    """What members and the exchange send; most of it is about orders that are there and meet one another."""
    phases = itertools.cycle(PHASES.get(profile, PHASES["CONTINUOUS"]))
    sent: list[tuple[str, str]] = []
    for number in range(count):
        name, member = f"o-{number}", draw.choice(["alfa", "bravo", "charlie", "delta"])
        what = draw.random()
        if what < 0.6:
            kind = draw.choice([*[OrderType.LIMIT] * 5, *OrderType])
            validity = draw.choice([*[TimeInForce.DAY] * 20, *TimeInForce])
            price = draw.choice([98, 99, 100, 100, 101, 102])
            stop = price if kind in (OrderType.STOP, OrderType.STOP_LIMIT) else 0
            limit = price if kind in (OrderType.LIMIT, OrderType.STOP_LIMIT) else 0
            peak = draw.choice([0, 0, 2, 3]) if limit else 0
            prevention = draw.choice([*[SelfTrade.DEFAULT] * 6, *SelfTrade])
            sent.append((name, member))
            yield NewOrder(
                name, "A", draw.choice(SIDES), draw.randint(1, 12), limit, kind, validity, "", peak, stop, 0, False,
                prevention, DAY if validity == TimeInForce.GTD else 0,
            ), member  # fmt: skip
        elif what < 0.9 and sent:
            target, member = draw.choice(sent[-12:])
            if draw.random() < 0.3:
                yield CancelOrder(name, target), member
            else:
                yield AmendOrder(name, target, draw.choice([0, 4, 9]), draw.choice([0, 99, 100, 101])), member
        elif what < 0.97:
            yield SetPhase("A", next(phases)), ""
        elif what < 0.98:
            yield MassCancel(name), member
        else:
            yield SuspendInstrument("A"), ""
            yield ResumeInstrument("A"), ""


@settings(max_examples=60)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    rules=st.sampled_from(RULES),
    seed=st.integers(0, 2**32),
    count=st.integers(60, 160),
)
def test_whatever_happens_readers_have_the_engine_s_book_and_no_iceberg_shows_more_than_its_peak(
    profile: str, rules: dict[str, int | str], seed: int, count: int
):
    readers = Readers()
    engine = readers.engine
    readers.run(ListInstrument("A", profile, 100, rules=rules))
    if "A" not in engine.instruments():  # not every profile has every rule
        readers.run(ListInstrument("A", profile, 100))
    readers.run(StartDay(DAY))
    readers.run(SetPhase("A", Phase.CONTINUOUS if profile == "CONTINUOUS" else Phase.PRE_OPEN))
    for command, member in deeds(random.Random(seed), profile, count):
        readers.run(command, member)
        readers.agree()
        for change in readers.told:
            peak = engine._options[change.order_id].display if change.order_id in engine._options else 0
            if peak and not isinstance(change, OrderExecuted):
                assert getattr(change, "quantity", 0) <= peak
    engine.check()


def zaraba() -> Readers:
    readers = Readers()
    for command in (ListInstrument("CONT", "CONTINUOUS", 100), StartDay(DAY), SetPhase("CONT", Phase.CONTINUOUS)):
        readers.run(command)
    return readers


def test_an_iceberg_that_is_traded_through_is_told_peak_by_peak_and_cancelled_without_its_whole():
    readers = zaraba()
    readers.run(sell("s-1", 100, 50, display_quantity=10), "alfa")
    assert [msgspec.to_builtins(change) for change in readers.told] == [["added", 1, 1, 100, 10]]
    readers.run(sell("s-2", 100, 5), "bravo")
    readers.run(buy("b-1", 100, 17), "charlie")
    assert [msgspec.to_builtins(change) for change in readers.told] == [
        ["executed", 1, 10, 100, 1],
        ["replenished", 1, 1, 100, 10],
        ["executed", 2, 5, 100, 2],
        ["executed", 1, 2, 100, 3],
    ]
    readers.run(CancelOrder("c-1", "s-1"), "alfa")
    assert [msgspec.to_builtins(change) for change in readers.told] == [["deleted", 1]]


def test_what_comes_in_and_trades_is_told_with_what_is_left_of_it():
    readers = zaraba()
    readers.run(sell("s-1", 100, 5), "alfa")
    readers.run(buy("b-1", 101, 8), "bravo")
    assert [msgspec.to_builtins(change) for change in readers.told] == [
        ["executed", 1, 5, 100, 1],
        ["added", 2, 0, 101, 3],
    ]
    readers.run(AmendOrder("a-1", "b-1", 6), "bravo")
    assert [msgspec.to_builtins(change) for change in readers.told] == [["resized", 2, 1]]
    readers.run(AmendOrder("a-2", "b-1", 0, 99), "bravo")
    assert [msgspec.to_builtins(change) for change in readers.told] == [["replaced", 2, 99, 1]]


def test_nobody_s_name_and_no_client_s_reference_is_ever_told():
    readers = zaraba()
    said = b""
    for command, who in ((sell("s-secret", 100, 9, account="acc-secret"), "m-secret"), (buy("b-x", 100, 3), "bravo")):
        events = readers.engine.apply(command, who, 50)
        assert not isinstance(events[0], Rejected)
        readers.feed.fold(50, events)
        said += b"".join(message.payload for message in (*readers.feed.flush(), *readers.feed.snapshots()))
    assert b"executed" in said
    for name in (b"secret", b"bravo", b"b-x"):
        assert name not in said


def test_a_profile_that_is_not_named_costs_and_tells_nothing():
    engine = Engine()
    feed = OrderFeed(engine, ManualClock(), ["START"])
    for command in (ListInstrument("CONT", "CONTINUOUS", 100), StartDay(DAY), SetPhase("CONT", Phase.CONTINUOUS)):
        feed.fold(1, engine.apply(command))
    assert not feed.books
    assert list(feed.flush()) == list(feed.snapshots()) == list(feed.overdue()) == []


def test_a_large_book_s_snapshot_comes_in_parts_and_a_reader_puts_them_together():
    readers = zaraba()
    for number in range(6_000):
        readers.engine.apply(buy(f"b-{number}", 90 + number % 5, 1), "alfa", 10)
    readers.feed.start(100)
    parts = [_decode(message.payload) for message in readers.feed.snapshots()]
    assert [(part.n, part.part, part.parts, len(part.orders)) for part in parts] == [
        (100, 0, 2, 5_000), (100, 1, 2, 1_000),
    ]  # fmt: skip
    book = OrderBook(order for part in parts for order in part.orders)
    assert book.digest() == parts[0].digest == parts[1].digest
    assert [each.order_id for each in book.queue(Side.BUY)] == readers.engine.queue("CONT", Side.BUY)


@pytest.mark.parametrize("fault", [OrderDeleted(1), OrderResized(1, 4), OrderAdded(9, Side.BUY, 50, 1)])
def test_a_fault_of_the_feed_is_told_and_corrected_and_does_not_stop_the_market(
    fault: OrderChange, caplog: pytest.LogCaptureFixture
):
    readers = zaraba()
    readers.run(sell("s-1", 100, 5), "alfa")
    readers.run(sell("s-2", 100, 5), "alfa")
    feed = readers.feed.books["CONT"]
    feed.say(fault)
    feed.snapshot_at = LONG_AGO
    readers.run(sell("s-3", 100, 5), "bravo")

    readers.agree()
    assert "corrected" in caplog.text
    caplog.clear()


def test_orders_without_a_limit_that_rested_for_want_of_a_price_keep_the_engine_s_order():
    readers = Readers()
    rules: dict[str, int | str] = {"market_rests": 1, "self_trade": "none"}
    for command in (
        ListInstrument("CONT", "CONTINUOUS", rules=rules),
        StartDay(DAY),
        SetPhase("CONT", Phase.CONTINUOUS),
    ):
        readers.run(command)
    readers.run(buy("b-1", 0, 2, order_type=OrderType.MARKET), "alfa")
    readers.run(sell("s-1", 0, 3, order_type=OrderType.MARKET), "bravo")
    readers.run(sell("s-2", 0, 5, order_type=OrderType.MARKET), "charlie")
    readers.agree()
    readers.run(sell("s-3", 100, 1), "delta")  # gives the price
    assert sum(isinstance(change, OrderExecuted) for change in readers.told) == 3
    readers.agree()


@pytest.mark.parametrize("uncross", ["whole", "peak"])
@pytest.mark.parametrize("wanted", [1, 2, 3, 6, 10, 12, 15])
def test_an_iceberg_in_an_auction_is_afterwards_where_the_engine_has_it(uncross: str, wanted: int):
    readers = Readers()
    rules: dict[str, int | str] = {"iceberg_uncross": uncross, "self_trade": "none"}
    listing = ListInstrument("CONT", "CONTINUOUS", 100, rules=rules)
    for command in (listing, StartDay(DAY), SetPhase("CONT", Phase.CONTINUOUS), SetPhase("CONT", Phase.CALL)):
        readers.run(command)
    readers.run(sell("s-1", 100, 10, display_quantity=2), "alfa")
    readers.run(sell("s-2", 100, 5), "bravo")
    readers.run(buy("b-1", 100, wanted), "charlie")
    readers.run(SetPhase("CONT", Phase.CALL_AUCTION))
    readers.agree()
    assert sum(change.quantity for change in readers.told if isinstance(change, OrderExecuted)) >= wanted
    assert all(change.quantity <= 5 for change in readers.told if isinstance(change, OrderAdded | OrderReplaced))


def test_stops_that_come_in_one_after_the_other_stand_as_the_engine_has_them():
    readers = zaraba()
    stop: dict[str, Any] = {"order_type": OrderType.STOP_LIMIT, "stop_price": 99}
    readers.run(sell("s-1", 99, 9, display_quantity=2, **stop), "alfa")
    readers.run(sell("s-2", 99, 5, **stop), "bravo")
    readers.run(buy("b-1", 0, 3, order_type=OrderType.STOP, stop_price=101), "charlie")
    readers.run(buy("b-2", 0, 3, order_type=OrderType.STOP, stop_price=102), "delta")
    assert readers.told == []  # they wait outside the book
    readers.run(buy("b-3", 99, 1), "delta")
    readers.run(sell("s-4", 99, 1), "echo")  # triggers the sells
    readers.agree()
    assert [order.order_id for order in readers.books["CONT"].queue(Side.SELL)] == [1, 2]
    readers.run(sell("s-5", 101, 1), "echo")
    readers.run(buy("b-4", 101, 8), "delta")  # through both, and on
    readers.agree()


def test_an_iceberg_that_has_only_just_come_in_and_shows_a_fresh_peak_stands_behind_what_came_after_it():
    readers = Readers()
    listing = ListInstrument("CONT", "CONTINUOUS", 100, rules={"self_trade": "none"})
    for command in (listing, StartDay(DAY), SetPhase("CONT", Phase.CONTINUOUS), SetPhase("CONT", Phase.CALL)):
        readers.run(command)
    stop: dict[str, Any] = {"order_type": OrderType.STOP_LIMIT, "stop_price": 100}
    readers.run(buy("b-1", 100, 6, display_quantity=2, **stop), "alfa")
    readers.run(buy("b-2", 100, 5, **stop), "bravo")
    readers.run(sell("s-1", 0, 3, order_type=OrderType.STOP, stop_price=100), "charlie")
    assert readers.told == []
    readers.run(SetPhase("CONT", Phase.CALL_AUCTION))
    readers.run(SetPhase("CONT", Phase.CONTINUOUS))  # all three are triggered, one after the other

    readers.agree()
    assert [(order.order_id, order.quantity) for order in readers.books["CONT"].queue(Side.BUY)] == [(2, 4), (1, 2)]
    assert readers.told == [OrderAdded(2, Side.BUY, 100, 4), OrderAdded(1, Side.BUY, 100, 2)]


def test_an_iceberg_that_was_there_and_shows_a_fresh_peak_stands_behind_what_has_just_come_in():
    readers = Readers()
    listing = ListInstrument("CONT", "CONTINUOUS", 100, rules={"self_trade": "none"})
    for command in (listing, StartDay(DAY), SetPhase("CONT", Phase.CONTINUOUS), SetPhase("CONT", Phase.CALL)):
        readers.run(command)
    readers.run(buy("b-1", 100, 6, display_quantity=2), "alfa")
    readers.run(buy("b-2", 100, 5, order_type=OrderType.STOP_LIMIT, stop_price=100), "bravo")
    readers.run(sell("s-1", 0, 3, order_type=OrderType.STOP, stop_price=100), "charlie")
    readers.run(SetPhase("CONT", Phase.CALL_AUCTION))
    readers.run(SetPhase("CONT", Phase.CONTINUOUS))

    readers.agree()
    assert [(order.order_id, order.quantity) for order in readers.books["CONT"].queue(Side.BUY)] == [(2, 4), (1, 2)]


@pytest.mark.parametrize("wanted", [1, 2, 3, 4, 5, 9])
def test_an_iceberg_that_gives_way_to_its_own_firm_and_then_trades_shows_what_the_engine_shows(wanted: int):
    readers = Readers()
    listing = ListInstrument("CONT", "CONTINUOUS", 99, rules={"self_trade": "none"})
    for command in (listing, StartDay(DAY), SetPhase("CONT", Phase.CONTINUOUS)):
        readers.run(command)
    readers.run(sell("s-1", 100, 1), "bravo")
    readers.run(sell("s-2", 100, 6, display_quantity=2), "alfa")
    readers.run(buy("b-1", 0, wanted, order_type=OrderType.STOP, stop_price=100), "charlie")
    readers.run(buy("b-2", 100, 2, self_trade=SelfTrade.DECREMENT), "alfa")  # triggers the stop, then meets its own

    assert any(isinstance(change, OrderExecuted) and change.order_id == 2 for change in readers.told)
    readers.agree()


def test_a_market_to_limit_order_that_an_auction_gives_its_limit_stands_where_the_engine_has_it():
    readers = Readers()
    rules: dict[str, int | str] = {"self_trade": "none", "mtl_needs_limit": 0}
    listing = ListInstrument("CONT", "CONTINUOUS", 100, rules=rules)
    for command in (listing, StartDay(DAY), SetPhase("CONT", Phase.CONTINUOUS), SetPhase("CONT", Phase.CALL)):
        readers.run(command)
    readers.run(buy("b-1", 100, 4), "alfa")
    readers.run(buy("b-2", 0, 9, order_type=OrderType.MARKET_TO_LIMIT), "bravo")
    readers.run(sell("s-1", 100, 3), "charlie")
    readers.run(SetPhase("CONT", Phase.CALL_AUCTION))

    readers.agree()
    assert readers.books["CONT"].place(2)[1] > 0
