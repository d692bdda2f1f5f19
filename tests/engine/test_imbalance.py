"""Imbalance-only orders: outside the book, outside the price, and only as much as the other side has left over."""

from __future__ import annotations

import pytest

from engine import (
    Accepted,
    Activated,
    AuctionUncrossed,
    Cancelled,
    CancelReason,
    OrderType,
    Phase,
    Reason,
    TimeInForce,
    Traded,
)
from engine.types import Side
from tests.market import CODE, Market, every, only, refusal, start, zaraba

ONLY = {"order_type": OrderType.IMBALANCE_ONLY}


def calls(**rules: int | str) -> Market:
    return start(rules={"imbalance_only": 1, **rules}, reference_price=100)


def uncross(market: Market) -> list[object]:
    return list(market.phase(Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION))


def fills(events: list[object]) -> list[tuple[str, str, int, int]]:
    return [
        (trade.buy_client_order_id, trade.sell_client_order_id, trade.price, trade.quantity)
        for trade in events
        if isinstance(trade, Traded)
    ]


def test_it_fills_the_surplus_at_the_price_that_the_book_has_without_it() -> None:
    market = calls()
    market.buy(10, 105, "alpha", id="b")
    market.sell(4, 100, "beta", id="s")
    accepted = only(market.sell(20, 95, "gamma", id="io", **ONLY), Accepted)

    assert accepted.waiting
    assert market.engine.depth(CODE) == ([(105, 10)], [(100, 4)])
    seen = market.engine.indicative(CODE)
    assert (seen.price, seen.volume, seen.surplus) == (105, 10, 0)  # with 20 more on offer it would be 95

    events = uncross(market)

    assert fills(events) == [("b", "s", 105, 4), ("b", "io", 105, 6)]
    assert only(events, Activated).open_quantity == 6
    assert only(events, AuctionUncrossed).volume == 10
    assert [order.open_quantity for order in market.engine.open_orders("gamma")] == [14]


def test_it_never_makes_a_price_and_never_trades_on_the_side_of_the_surplus() -> None:
    market = calls()
    market.buy(10, 100, "alpha")
    market.sell(10, 100, "gamma", **ONLY)
    assert only(uncross(market), AuctionUncrossed).price == 0

    market = calls()
    market.buy(10, 100, "alpha")
    market.sell(4, 100, "beta")
    market.buy(5, 105, "gamma", id="same", **ONLY)
    assert "same" not in [buy for buy, *_ in fills(uncross(market))]


def test_a_limit_that_the_price_does_not_reach_gets_nothing_and_better_limits_come_first() -> None:
    market = calls()
    market.buy(10, 105, "alpha", id="b")
    market.sell(4, 100, "beta", id="s")
    market.sell(9, 106, "gamma", id="too-dear", **ONLY)
    market.sell(4, 104, "delta", id="dear", **ONLY)
    market.sell(4, 101, "gamma", id="cheap", **ONLY)

    assert [fill[1::2] for fill in fills(uncross(market))] == [("s", 4), ("cheap", 4), ("dear", 2)]


def test_where_self_trades_are_prevented_it_passes_over_a_surplus_of_its_own() -> None:
    market = calls(self_trade="cancel_newest")
    market.buy(10, 105, "alpha", id="b")
    market.sell(4, 100, "beta", id="s")
    market.sell(6, 100, "alpha", id="own", **ONLY)
    market.sell(1, 100, "gamma", id="io", **ONLY)

    events = uncross(market)

    assert [fill[1::2] for fill in fills(events)] == [("s", 4), ("io", 1)]
    assert not every(events, Cancelled)


def test_its_validity_says_in_which_auctions_it_takes_part() -> None:
    market = calls()
    for name, validity in (("open", TimeInForce.ON_OPEN), ("close", TimeInForce.ON_CLOSE), ("day", TimeInForce.DAY)):
        market.sell(2, 100, "gamma", id=name, time_in_force=validity, **ONLY)
    market.buy(4, 100, "alpha")
    market.sell(1, 100, "beta", id="s")

    events = uncross(market)
    assert [fill[1::2] for fill in fills(events)] == [("s", 1), ("open", 2), ("day", 1)]
    market.phase(Phase.BREAK, Phase.PRE_CLOSE)
    market.buy(4, 100, "alpha")
    market.sell(1, 100, "beta", id="t")
    events = market.phase(Phase.PRE_CLOSE_NCP, Phase.CLOSING_AUCTION)
    assert [fill[1::2] for fill in fills(list(events))] == [("t", 1), ("close", 2), ("day", 1)]


def test_it_can_be_changed_and_cancelled_while_it_waits_and_ends_with_the_day() -> None:
    market = calls()
    market.sell(5, 100, "gamma", id="io", **ONLY)
    market.sell(5, 100, "gamma", id="other", **ONLY)
    market.amend("io", 3, 99, "gamma")
    market.cancel("other", "gamma")

    events = uncross(market)
    events += market.phase(Phase.BREAK, Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP, Phase.CLOSING_AUCTION, Phase.CLOSED)

    gone = only([event for event in events if isinstance(event, Cancelled)], Cancelled)
    assert (gone.client_order_id, gone.quantity, gone.reason) == ("io", 3, CancelReason.EXPIRED)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"time_in_force": TimeInForce.IOC}, Reason.NOT_OFFERED),
        ({"display_quantity": 1}, Reason.NOT_OFFERED),
        ({"post_only": True}, Reason.NOT_OFFERED),
    ],
)
def test_what_it_cannot_be(terms: dict[str, object], reason: Reason) -> None:
    market = zaraba(rules={"imbalance_only": 1})

    assert refusal(market.new(Side.SELL, 5, 100, "alpha", **ONLY, **terms)).reason == reason
    assert refusal(market.new(Side.SELL, 5, 0, "alpha", **ONLY)).reason == Reason.BAD_PRICE
    assert only(market.new(Side.SELL, 5, 100, "alpha", **ONLY), Accepted).waiting


def test_without_the_parameter_it_is_not_offered() -> None:
    assert refusal(start().sell(5, 100, **ONLY)).reason == Reason.NOT_OFFERED
