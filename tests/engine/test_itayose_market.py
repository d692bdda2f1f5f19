"""The worked books of market-rules 3.4 through a whole market: orders in, one command for the auction, events out."""

from __future__ import annotations

import itertools

import pytest

from engine.commands import (
    CancelOrder,
    LimitRow,
    ListInstrument,
    NewOrder,
    SetLimitTable,
    SetPhase,
    SetReferencePrice,
    StartDay,
    SuspendInstrument,
)
from engine.core import Engine
from engine.events import AuctionUncrossed, Cancelled, Event, PhaseChanged, Traded
from engine.types import CancelReason, OrderType, Phase, Side, TimeInForce
from tests.books import BOOKS, WorkedBook

TOKEN = "BOOK"


class Market:
    """One START token in its opening collection; each member of ``enter`` is named by its caller."""

    def __init__(
        self, *, reference: int = 0, upper: int = 0, lot: int = 1, rules: dict[str, int | str] | None = None
    ) -> None:
        self.engine = Engine()
        self.ids = itertools.count(1)
        if upper:
            self.engine.apply(SetLimitTable("narrow", 0, [LimitRow(0, upper - reference)]))
        listing = ListInstrument(TOKEN, reference_price=reference, lot=lot, rules=rules or {})
        listing.limit_table = "narrow" if upper else "none"
        self.engine.apply(listing)
        self.engine.apply(StartDay(20261102))
        self.engine.apply(SetPhase(TOKEN, Phase.PRE_OPEN))

    def enter(self, member: str, side: Side, price: int, quantity: int) -> int:
        """The order's number. Price 0 is a market order."""
        order_type = OrderType.LIMIT if price else OrderType.MARKET
        order = NewOrder(f"o{next(self.ids)}", TOKEN, side, quantity, price, order_type)
        return self.engine.apply(order, member)[0].order_id  # type: ignore[union-attr]

    def uncross(self) -> list[Event]:
        """The events of the auction, without those of the phase."""
        if self.engine.instrument(TOKEN).phase == Phase.PRE_OPEN:
            self.engine.apply(SetPhase(TOKEN, Phase.PRE_OPEN_NCP))
        events = self.engine.apply(SetPhase(TOKEN, Phase.OPENING_AUCTION))
        assert events[0] == PhaseChanged(TOKEN, Phase.OPENING_AUCTION, Phase.PRE_OPEN_NCP)
        return events[1:]


def market_of(book: WorkedBook, *, backwards: bool = False) -> Market:
    market = Market(
        reference=book.reference, upper=book.upper, rules={"market_orders_must_all_fill": int(book.must_fill)}
    )
    orders = [(Side.BUY, *order) for order in book.buys] + [(Side.SELL, *order) for order in book.sells]
    for i, (side, price, quantity) in enumerate(reversed(orders) if backwards else orders):
        market.enter(f"m{i}", side, price, quantity)
    return market


@pytest.mark.parametrize("backwards", [False, True], ids=["as printed", "entered backwards"])
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_worked_book_uncrosses_as_printed(book: WorkedBook, backwards: bool) -> None:
    market = market_of(book, backwards=backwards)
    seen = market.engine.indicative(TOKEN)
    assert (seen.price, seen.volume, seen.surplus) == (book.price, book.volume, book.surplus)

    events = market.uncross()

    trades = [event for event in events if isinstance(event, Traded)]
    assert events[0] == AuctionUncrossed(
        TOKEN, Phase.OPENING_AUCTION, book.price, book.volume, book.surplus, len(trades)
    )
    assert all(trade.price == book.price and trade.maker == -1 for trade in trades)
    assert sum(trade.quantity for trade in trades) == book.volume

    # Limits stay in the book; what is left of a market order has expired.
    bids, asks = market.engine.depth(TOKEN)
    assert dict(bids) == {price: left for price, left in book.buys_left.items() if price}
    assert dict(asks) == {price: left for price, left in book.sells_left.items() if price}
    expired = [event for event in events if isinstance(event, Cancelled)]
    assert all(event.reason == CancelReason.REMAINDER for event in expired)
    assert [(event.side, event.price, event.quantity) for event in expired] == [
        (side, 0, left[0]) for side, left in ((Side.BUY, book.buys_left), (Side.SELL, book.sells_left)) if 0 in left
    ][:: -1 if backwards else 1]
    market.engine.check()


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_the_reference_is_the_last_auction_price_or_stays(book: WorkedBook) -> None:
    market = market_of(book)
    market.uncross()
    assert market.engine.instrument(TOKEN).reference_price == (book.price or book.reference)
    assert market.engine.indicative(TOKEN).price == 0


def fills(events: list[Event]) -> dict[str, int]:
    """Member to bought quantity."""
    got: dict[str, int] = {}
    for event in events:
        if isinstance(event, Traded):
            got[event.buyer] = got.get(event.buyer, 0) + event.quantity
    return got


@pytest.mark.parametrize(
    ("allocation", "sold", "got"),
    [
        ("SIMULTANEOUS_RR", 300, {"a": 100, "b": 100, "c": 100}),
        ("SIMULTANEOUS_RR", 600, {"a": 200, "b": 200, "c": 100, "d": 100}),
        ("SIMULTANEOUS_RR", 800, {"a": 200, "b": 200, "c": 200, "d": 200}),
        ("PRICE_TIME", 300, {"a": 300}),
        ("PRICE_TIME", 1_600, {"a": 1_500, "b": 100}),
    ],
)
def test_book_8_shares_out_by_the_instrument_s_rule(allocation: str, sold: int, got: dict[str, int]) -> None:
    market = Market(lot=100, reference=1_000, rules={"allocation": allocation})
    for member, quantity in (("a", 1_500), ("b", 500), ("c", 300), ("d", 200)):
        market.enter(member, Side.BUY, 1_000, quantity)
    market.enter("seller", Side.SELL, 1_000, sold)
    assert fills(market.uncross()) == got


def test_fills_are_paired_in_priority_order_with_one_match_number_each() -> None:
    market = Market(reference=100)
    for member, price, quantity in (("late", 101, 4), ("market", 0, 3), ("best", 102, 2)):
        market.enter(member, Side.BUY, price, quantity)
    for member, price, quantity in (("x", 99, 5), ("y", 98, 3), ("z", 100, 1)):
        market.enter(member, Side.SELL, price, quantity)
    trades = [event for event in market.uncross() if isinstance(event, Traded)]
    assert [(t.trade_id, t.buyer, t.seller, t.quantity) for t in trades] == [
        (1, "market", "y", 3),
        (2, "best", "x", 2),
        (3, "late", "x", 3),
        (4, "late", "z", 1),
    ]
    assert [(t.buy_open, t.sell_open) for t in trades] == [(0, 0), (0, 3), (1, 0), (0, 0)]
    assert [(t.buy_limit, t.sell_limit) for t in trades] == [(0, 98), (102, 99), (101, 99), (101, 100)]


def test_a_cancel_before_the_non_cancel_period_is_out_of_price_and_fills_alike() -> None:
    market = Market(reference=100)
    market.enter("a", Side.BUY, 105, 10)
    market.enter("b", Side.BUY, 101, 5)
    market.enter("c", Side.SELL, 100, 5)
    market.engine.apply(CancelOrder("r1", "o1"), "a")
    events = market.uncross()
    assert events[0] == AuctionUncrossed(TOKEN, Phase.OPENING_AUCTION, 100, 5, 0, 1)
    assert fills(events) == {"b": 5}


def test_a_new_reference_moves_the_price_of_a_balanced_book() -> None:
    market = Market(reference=100)
    market.enter("a", Side.BUY, 110, 5)
    market.enter("b", Side.SELL, 100, 5)
    market.engine.apply(SetReferencePrice(TOKEN, 107))
    assert market.uncross()[0] == AuctionUncrossed(TOKEN, Phase.OPENING_AUCTION, 107, 5, 0, 1)


def test_an_on_close_order_has_no_part_in_the_opening_price() -> None:
    market = Market(reference=100)
    market.enter("a", Side.BUY, 101, 5)
    order = NewOrder("close", TOKEN, Side.SELL, 5, 100, time_in_force=TimeInForce.ON_CLOSE)
    market.engine.apply(order, "b")
    assert market.uncross() == [AuctionUncrossed(TOKEN, Phase.OPENING_AUCTION, 0, 0, 0, 0)]


def test_a_suspended_book_holds_no_auction_and_keeps_its_orders() -> None:
    market = market_of(BOOKS[0])
    before = market.engine.depth(TOKEN)
    market.engine.apply(SuspendInstrument(TOKEN))
    assert market.uncross() == []
    assert market.engine.depth(TOKEN) == before


def test_every_limit_better_than_the_price_is_gone_from_the_book_after_the_auction() -> None:
    market = market_of(next(book for book in BOOKS if book.name == "5, reference below"))
    market.uncross()
    bids, asks = market.engine.depth(TOKEN)
    assert bids == [(101, 4)]
    assert asks == [(102, 4)]
