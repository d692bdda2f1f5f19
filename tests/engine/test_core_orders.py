"""Zaraba, amends, cancels: who trades with whom, at what price, and what keeps its place."""

from __future__ import annotations

import pytest

from engine import (
    Accepted,
    Amended,
    Cancelled,
    CancelReason,
    MassCancelled,
    Phase,
    Reason,
    Side,
    TimeInForce,
    Traded,
)
from tests.market import CODE, TODAY, Market, every, only, refusal, start, zaraba

IOC, FOK, GTC = TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTC


def fills(events: list) -> list[tuple[int, int, int, int]]:  # type: ignore[type-arg]
    return [(trade.buy_order_id, trade.sell_order_id, trade.price, trade.quantity) for trade in every(events, Traded)]


# --- price, then time ------------------------------------------------------------------------------------------------


def test_the_best_price_trades_first_then_the_earliest_at_the_resting_price() -> None:
    market = zaraba()
    market.sell(5, 102)
    market.sell(5, 101)
    market.sell(5, 101)

    events = market.buy(12, 103)

    assert fills(events) == [(4, 2, 101, 5), (4, 3, 101, 5), (4, 1, 102, 2)]
    assert market.engine.depth(CODE) == ([], [(102, 3)])


def test_an_order_is_accepted_before_it_trades_and_each_trade_says_what_is_still_open() -> None:
    market = zaraba()
    market.sell(5, 101, id="first", account="s-1")
    market.sell(5, 101, id="second")

    events = market.buy(8, 105, id="taker", account="b-1")

    assert [type(event) for event in events] == [Accepted, Traded, Traded]
    assert events[1] == Traded(
        1, CODE, 101, 5, "alpha", "taker", 3, 3, "b-1", "beta", "first", 1, 0, "s-1", Side.SELL, TODAY, 0, 105, 101
    )
    assert (events[2].buy_open, events[2].sell_open) == (0, 2)


def test_a_seller_trades_at_the_price_of_the_resting_buyer() -> None:
    market = zaraba()
    market.buy(5, 105)

    trade = only(market.sell(5, 95), Traded)

    assert (trade.price, trade.maker, trade.buyer, trade.seller) == (105, Side.BUY, "alpha", "beta")


def test_an_order_trades_up_to_its_limit_and_rests_there() -> None:
    market = zaraba()
    market.sell(5, 101)
    market.sell(5, 110)

    market.buy(15, 102)

    assert market.engine.depth(CODE) == ([(102, 10)], [(110, 5)])


def test_trades_and_orders_are_numbered_densely_over_all_instruments() -> None:
    market = start(Phase.CLOSED)
    other = zaraba()
    assert only(other.buy(1, 100), Accepted).order_id == 1
    assert only(other.sell(1, 100), Accepted).order_id == 2
    assert refusal(other.sell(0, 100)).reason == Reason.BAD_QUANTITY  # takes no number
    assert only(other.sell(1, 100), Accepted).order_id == 3
    assert market.engine.trades == 0
    assert other.engine.trades == 1


def test_a_member_may_trade_with_itself_where_nothing_prevents_it() -> None:
    market = zaraba(rules={"self_trade": "none"})
    market.sell(5, 100, "alpha")

    trade = only(market.buy(5, 100, "alpha"), Traded)

    assert trade.buyer == trade.seller == "alpha"


# --- validities ------------------------------------------------------------------------------------------------------


def test_a_market_order_takes_any_price_and_its_rest_is_cancelled() -> None:
    market = zaraba()
    market.sell(5, 101)
    market.sell(5, 900)

    events = market.buy(12)

    assert [price for _, _, price, _ in fills(events)] == [101, 900]
    assert events[-1] == Cancelled("alpha", "id-3", 3, CODE, Side.BUY, 0, 2, CancelReason.REMAINDER)


def test_a_market_order_without_anybody_opposite_is_cancelled_whole() -> None:
    market = zaraba()

    assert [type(event) for event in market.buy(12)] == [Accepted, Cancelled]
    assert market.engine.depth(CODE) == ([], [])


def test_an_immediate_order_trades_what_it_can_and_the_rest_is_cancelled() -> None:
    market = zaraba()
    market.sell(5, 101)
    market.sell(5, 102)

    events = market.buy(8, 101, time_in_force=IOC)

    assert fills(events) == [(3, 1, 101, 5)]
    assert only(events, Cancelled).quantity == 3
    assert market.engine.depth(CODE) == ([], [(102, 5)])


@pytest.mark.parametrize(
    ("quantity", "limit", "trades"), [(10, 102, 2), (11, 102, 0), (6, 101, 0), (11, 0, 0), (10, 0, 2)]
)
def test_a_fill_or_kill_order_trades_whole_or_not_at_all(quantity: int, limit: int, trades: int) -> None:
    market = zaraba()
    market.sell(5, 101)
    market.sell(5, 102)

    events = market.buy(quantity, limit, time_in_force=FOK)

    assert len(every(events, Traded)) == trades
    assert [event.quantity for event in every(events, Cancelled)] == ([] if trades else [quantity])
    assert market.engine.depth(CODE)[1] == ([] if trades else [(101, 5), (102, 5)])


def test_a_selling_fill_or_kill_order_counts_the_bids_at_its_limit_or_better() -> None:
    market = zaraba()
    market.buy(5, 101)
    market.buy(5, 100)

    assert not every(market.sell(6, 101, time_in_force=FOK), Traded)
    assert len(every(market.sell(6, 100, time_in_force=FOK), Traded)) == 2


# --- amend -----------------------------------------------------------------------------------------------------------


def queue(market: Market) -> list[str]:
    return [market.engine.order(number).client_order_id for number in market.engine.queue(CODE, Side.BUY)]


def two_bids() -> Market:
    market = zaraba()
    market.buy(10, 100, id="a")
    market.buy(10, 100, id="b")
    return market


def test_a_smaller_quantity_keeps_its_place() -> None:
    market = two_bids()

    assert market.amend("a", 4) == [
        Amended("alpha", "a", 1, CODE, Side.BUY, 4, 100, 4, 10, 100, True, "id-1"),
    ]
    assert queue(market) == ["a", "b"]
    assert market.engine.depth(CODE)[0] == [(100, 14)]


@pytest.mark.parametrize(("quantity", "price"), [(11, 0), (0, 101), (4, 101), (11, 101)])
def test_a_larger_quantity_or_a_new_price_loses_its_place(quantity: int, price: int) -> None:
    market = two_bids()
    market.amend("b", 0, price) if price else None  # so that both stand at one price again

    assert not only(market.amend("a", quantity, price), Amended).kept_priority

    assert queue(market) == ["b", "a"]


def test_the_quantity_of_an_amend_is_the_total_with_what_was_filled() -> None:
    market = two_bids()
    market.sell(4, 100)

    event = only(market.amend("a", 12), Amended)

    assert (event.quantity, event.open_quantity, event.open_before) == (12, 8, 6)
    assert queue(market) == ["b", "a"]


def test_an_amended_price_that_crosses_trades_at_once_as_the_incoming_order() -> None:
    market = two_bids()
    market.sell(5, 105)

    events = market.amend("a", price=106)

    assert [type(event) for event in events] == [Amended, Traded]
    assert (events[1].price, events[1].maker, events[1].buy_open) == (105, Side.SELL, 5)
    assert market.engine.depth(CODE) == ([(106, 5), (100, 10)], [])


def test_an_amend_to_what_is_filled_ends_the_order() -> None:
    market = two_bids()
    market.sell(4, 100)

    assert market.amend("a", 4) == [Cancelled("alpha", "a", 1, CODE, Side.BUY, 100, 6, CancelReason.REPLACED, "id-2")]
    assert queue(market) == ["b"]


@pytest.mark.parametrize(
    ("mode", "below", "off_tick"),
    [("keep", "refused", "refused"), ("cancel_filled", "ended", "refused"), ("cancel_live", "ended", "ended")],
)
def test_an_invalid_replace_is_refused_or_ends_the_order_as_the_instrument_says(
    mode: str, below: str, off_tick: str
) -> None:
    for invalid, wanted in (({"quantity": 3}, below), ({"price": 2**48 + 1}, off_tick)):
        market = zaraba(rules={"invalid_replace": mode})
        market.buy(10, 100, id="a")
        market.sell(4, 100)

        event = market.amend("a", **invalid)[0]

        assert (event.reason in (Reason.BAD_QUANTITY, Reason.BAD_PRICE)) == (wanted == "refused")
        assert [order.open_quantity for order in market.engine.open_orders("alpha")] == (
            [6] if wanted == "refused" else []
        )


def test_an_amend_that_changes_nothing_is_refused_and_keeps_the_order() -> None:
    market = two_bids()

    assert refusal(market.amend("a", 10, 100)).reason == Reason.NO_CHANGE
    assert refusal(market.amend("a")).reason == Reason.NO_CHANGE
    assert queue(market) == ["a", "b"]


def test_an_order_without_a_limit_cannot_get_one() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, id="market")

    assert refusal(market.amend("market", price=100)).reason == Reason.BAD_PRICE
    assert only(market.amend("market", 20), Amended).open_quantity == 20
    assert market.engine.depth(CODE)[0] == [(0, 20)]


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_cancel_takes_the_open_rest_off_the_book() -> None:
    market = two_bids()
    market.sell(4, 100)

    assert market.cancel("a") == [Cancelled("alpha", "a", 1, CODE, Side.BUY, 100, 6, CancelReason.MEMBER, "id-2")]
    assert market.engine.depth(CODE)[0] == [(100, 10)]


def test_a_cancel_that_comes_too_late_learns_whether_the_order_was_filled_or_had_gone() -> None:
    market = two_bids()
    market.sell(10, 100)
    market.cancel("b")

    assert refusal(market.cancel("a")).reason == Reason.ORDER_FILLED
    assert refusal(market.cancel("b")).reason == Reason.ORDER_GONE
    assert refusal(market.amend("a", 20)).reason == Reason.ORDER_FILLED


def test_a_cancel_sequenced_after_the_auction_finds_the_order_filled() -> None:
    market = start(Phase.PRE_OPEN_NCP)
    market.buy(300, 100, id="a")
    market.sell(300, 100)
    market.phase(Phase.OPENING_AUCTION)

    assert refusal(market.cancel("a")).reason == Reason.ORDER_FILLED


def test_nobody_can_touch_the_order_of_another_member() -> None:
    market = two_bids()

    assert refusal(market.cancel("a", "beta")).reason == Reason.UNKNOWN_ORDER
    assert refusal(market.amend("a", 5, member="beta")).reason == Reason.UNKNOWN_ORDER


# --- mass cancel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "gone"),
    [
        ({}, [1, 2, 3, 4]),
        ({"instrument": CODE}, [1, 2, 3, 4]),
        ({"side": Side.SELL}, [4]),
        ({"price_from": 99}, [2, 3, 4]),
        ({"price_to": 99}, [1, 2]),
        ({"price_from": 99, "price_to": 99}, [2]),
        ({"side": Side.BUY, "price_from": 100}, [3]),
        ({"account": "x"}, [2]),
        ({"account": "y"}, []),
    ],
)
def test_a_mass_cancel_takes_the_member_s_orders_that_meet_every_condition(
    conditions: dict[str, object], gone: list[int]
) -> None:
    market = zaraba()
    market.buy(1, 98)
    market.buy(1, 99, account="x")
    market.buy(1, 100)
    market.sell(1, 105, "alpha")
    market.buy(1, 99, "beta")

    events = market.mass_cancel(**conditions)

    assert [(event.order_id, event.reason) for event in every(events, Cancelled)] == [
        (order, CancelReason.MASS_CANCEL) for order in gone
    ]
    assert events[-1] == MassCancelled("alpha", "id-6", len(gone))
    assert len(market.engine.open_orders("alpha")) == 4 - len(gone)
    assert len(market.engine.open_orders("beta")) == 1


def test_a_price_range_leaves_orders_without_a_limit_alone() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(1)
    market.buy(1, 100)

    assert [event.order_id for event in every(market.mass_cancel(price_to=100), Cancelled)] == [2]


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"instrument": "NONE"}, Reason.UNKNOWN_INSTRUMENT),
        ({"price_from": 5, "price_to": 4}, Reason.BAD_PRICE),
        ({"price_from": -1}, Reason.BAD_PRICE),
        ({"price_to": 2**80}, Reason.BAD_PRICE),
        ({"account": "a b"}, Reason.BAD_IDENTITY),
    ],
)
def test_a_mass_cancel_with_impossible_conditions_is_refused(conditions: dict[str, object], reason: Reason) -> None:
    market = two_bids()

    assert refusal(market.mass_cancel(**conditions)).reason == reason
    assert queue(market) == ["a", "b"]
