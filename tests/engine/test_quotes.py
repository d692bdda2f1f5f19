"""TSE_HYBRID's quotes and closes, by hand: reference 500, so one width is 10, the day's limits are 400 and 600.

Each test tells the example of a rule in market-rules 6; the invented days of ``test_machine.py`` mix them all.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from librt.vecs import vec
from mypy_extensions import i64

from engine import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    Cancelled,
    CancelOrder,
    CancelReason,
    DayLimitsSet,
    Event,
    LimitRow,
    ListInstrument,
    NewOrder,
    OrderType,
    Phase,
    QuoteChanged,
    QuoteKind,
    Reason,
    RenewQuote,
    ResumeInstrument,
    SetLimitTable,
    SetQuoteTable,
    SetWindow,
    Side,
    StartDay,
    SuspendInstrument,
    TimeInForce,
    Traded,
    WindowKind,
)
from engine.matching.auction import Frozen, Plan, price_frozen
from engine.quotes import MATCH, NOBODY, FrozenClaims, pressing
from engine.tables import TickTable
from tests.market import CODE, TODAY, Market, every, only, refusal, zaraba

SECOND = 1_000_000_000
SPECIAL, SEQUENTIAL, NONE = QuoteKind.SPECIAL, QuoteKind.SEQUENTIAL, QuoteKind.NONE
IOC, ON_OPEN, ON_CLOSE, FUNARI = TimeInForce.IOC, TimeInForce.ON_OPEN, TimeInForce.ON_CLOSE, TimeInForce.FUNARI


class Hybrid(Market):
    """A market with a clock that tests move."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0

    def run(self, command: Any, participant: str = "") -> list[Event]:
        self.now += 1
        events = self.engine.apply(command, participant, self.now)
        self.engine.check()
        return events

    def renew(self, seconds: int) -> list[Event]:
        """Time passes, and the quote is renewed."""
        self.now += seconds * SECOND
        return self.run(RenewQuote(CODE))

    @property
    def quote(self) -> tuple[QuoteKind, Side, int]:
        view = self.engine.instrument(CODE)
        return view.quote, view.quote_side, view.quote_price


def hybrid(until: Phase = Phase.CONTINUOUS, rules: dict[str, int | str] | None = None, **listing: Any) -> Hybrid:
    market = Hybrid()
    given: dict[str, Any] = {"reference_price": 500, "limit_table": "tse", "rules": rules or {}, **listing}
    market.must(ListInstrument(CODE, "TSE_HYBRID", **given), StartDay(TODAY))
    day = (Phase.PRE_OPEN, Phase.OPENING_AUCTION, Phase.CONTINUOUS, Phase.PRE_CLOSE, Phase.CLOSING_AUCTION)
    if until != Phase.CLOSED:
        market.phase(*day[: day.index(until) + 1])
    return market


def fills(events: list[Event]) -> list[tuple[str, str, int, int]]:
    return [(t.buy_client_order_id, t.sell_client_order_id, t.price, t.quantity) for t in every(events, Traded)]


def quotes(events: list[Event]) -> list[tuple[QuoteKind, Side, int]]:
    return [(event.kind, event.side, event.price) for event in every(events, QuoteChanged)]


# --- special quotes --------------------------------------------------------------------------------------------------


def test_a_next_price_within_one_width_trades_and_one_outside_is_quoted_at_the_edge() -> None:
    market = hybrid()
    market.sell(1, 510)
    market.sell(1, 521)

    assert fills(market.buy(1, 510, id="a"))[0][2] == 510
    events = market.buy(1, 521, id="b")

    assert not fills(events)
    shown = only(events, QuoteChanged)
    assert (shown.kind, shown.side, shown.price) == (SPECIAL, Side.BUY, 520)
    assert shown.due_ns == market.now + 180 * SECOND
    assert market.engine.depth(CODE) == ([(521, 1)], [(521, 1)])


def test_a_special_quote_moves_on_by_one_width_until_the_book_matches_by_itayose() -> None:
    market = hybrid()
    market.sell(5, 535, id="s")
    market.buy(5, id="m")
    assert market.quote == (SPECIAL, Side.BUY, 510)

    assert quotes(market.renew(180)) == [(SPECIAL, Side.BUY, 520)]
    assert quotes(market.renew(180)) == [(SPECIAL, Side.BUY, 530)]
    events = market.renew(180)

    assert only(events, AuctionUncrossed).price == 535
    assert fills(events) == [("m", "s", 535, 5)]
    assert quotes(events) == [(NONE, Side.BUY, 0)]
    assert fills(market.sell(1, 530)) == []  # zaraba again


def test_a_renewal_before_its_time_or_of_nothing_is_refused_and_changes_nothing() -> None:
    market = hybrid()
    assert refusal(market.renew(0)).reason == Reason.BAD_TRANSITION
    market.buy(5)
    before = market.engine.instrument(CODE)

    assert refusal(market.renew(179)).reason == Reason.BAD_TRANSITION

    assert market.engine.instrument(CODE) == before
    assert refusal(market.run(RenewQuote("NONE"))).reason == Reason.UNKNOWN_INSTRUMENT
    assert refusal(market.run(RenewQuote(CODE), "alpha")).reason == Reason.NOT_PERMITTED


def test_an_order_that_lets_the_book_match_up_to_the_quote_ends_it_at_once() -> None:
    market = hybrid()
    market.buy(8, id="m")

    assert not fills(market.sell(3, 505, id="few"))
    events = market.sell(5, 508, id="enough")

    assert fills(events) == [("m", "enough", 508, 5), ("m", "few", 508, 3)]
    assert quotes(events) == [(NONE, Side.BUY, 0)]


def test_a_quote_ends_when_the_pressure_is_cancelled() -> None:
    market = hybrid()
    market.buy(8, id="m")

    assert quotes(market.cancel("m")) == [(NONE, Side.BUY, 0)]
    assert market.engine.instrument(CODE).reference_price == 500


def test_a_quote_changes_sides_with_the_pressure() -> None:
    market = hybrid()
    market.buy(8, id="m")

    assert quotes(market.sell(20)) == [(SPECIAL, Side.SELL, 490)]


def test_a_quote_at_the_limit_of_the_day_stands_until_somebody_sells_there() -> None:
    market = hybrid()
    market.buy(8, id="m")
    for _ in range(9):
        market.renew(180)
    assert market.quote == (SPECIAL, Side.BUY, 600)
    assert market.engine.instrument(CODE).quote_due_ns == 0
    assert refusal(market.renew(180)).reason == Reason.BAD_TRANSITION

    assert fills(market.sell(8, 600, id="s")) == [("m", "s", 600, 8)]


def test_an_immediate_order_starts_no_quote_and_waits_under_none() -> None:
    market = hybrid()
    market.sell(5, 535)

    events = market.buy(5, time_in_force=IOC)
    assert only(events, Cancelled).reason == CancelReason.REMAINDER
    assert market.quote[0] == NONE
    market.buy(5)
    assert only(market.sell(5, 500, time_in_force=IOC), Cancelled).reason == CancelReason.REMAINDER


def test_orders_that_meet_on_the_far_side_of_the_range_trade_at_its_edge() -> None:
    market = hybrid()
    market.sell(10, 480, id="s")  # nobody buys there

    assert quotes(market.buy(5, id="m")) == [(SPECIAL, Side.SELL, 490)]
    events = market.buy(5, id="n")

    assert {price for *_, price, _ in fills(events)} == {490}


def test_the_width_is_that_of_the_last_price_or_quote_and_a_table_with_a_date() -> None:
    market = Hybrid()
    market.must(
        SetQuoteTable("mine", 0, [LimitRow(510, 4), LimitRow(0, 30)]),
        ListInstrument(CODE, "TSE_HYBRID", 500, rules={"quote_width_table": "mine"}),
        StartDay(TODAY),
    )
    market.phase(Phase.PRE_OPEN, Phase.OPENING_AUCTION, Phase.CONTINUOUS)
    market.buy(1)

    prices = [quotes(market.renew(180))[0][2] for _ in range(4)]

    assert prices == [508, 512, 542, 572]


def test_unknown_tables_and_contradictory_parameters_are_refused_at_the_listing() -> None:
    for rules in ({"quote_width_table": "nobody"}, {"market_orders_must_all_fill": 0}, {"special_quote_seconds": 0}):
        event = refusal(Market().run(ListInstrument(CODE, "TSE_HYBRID", rules=rules)))
        assert event.reason == Reason.BAD_REFERENCE_DATA
        assert f"$.rules.{next(iter(rules))}" in event.text
    assert refusal(Market().run(SetQuoteTable("none", 0, [LimitRow(0, 1)]))).reason == Reason.BAD_REFERENCE_DATA


def test_a_halt_ends_a_quote_and_a_call_around_its_price_re_opens_the_book() -> None:
    market = hybrid()
    market.buy(5, 515, id="b")
    market.sell(5, 515, id="s")
    assert market.quote == (SPECIAL, Side.BUY, 510)

    assert quotes(market.run(SuspendInstrument(CODE))) == [(NONE, Side.BUY, 0)]
    market.must(ResumeInstrument(CODE))
    assert market.engine.instrument(CODE).phase == Phase.CALL

    assert fills(market.phase(Phase.CALL_AUCTION)) == [("b", "s", 515, 5)]


# --- the opening -----------------------------------------------------------------------------------------------------


def test_an_opening_too_far_away_becomes_a_quote_under_which_its_orders_wait() -> None:
    market = hybrid(Phase.PRE_OPEN)
    market.buy(5, id="m")
    market.buy(2, time_in_force=ON_OPEN, id="o")
    market.sell(7, 512, id="s")

    events = market.phase(Phase.OPENING_AUCTION)
    assert only(events, AuctionUncrossed).price == 0
    assert quotes(events) == [(SPECIAL, Side.BUY, 510)]
    market.phase(Phase.CONTINUOUS)

    events = market.renew(180)
    assert fills(events) == [("m", "s", 512, 5), ("o", "s", 512, 2)]


def test_an_on_open_order_goes_when_its_opening_is_over_and_not_before() -> None:
    market = hybrid(Phase.PRE_OPEN)
    market.buy(5, id="m")
    market.buy(2, 450, time_in_force=ON_OPEN, id="o")
    market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)
    assert len(market.engine.open_orders("alpha")) == 2

    events = market.sell(5, 500)

    assert [(gone.client_order_id, gone.reason) for gone in every(events, Cancelled)] == [("o", CancelReason.EXPIRED)]


def test_only_market_orders_on_both_sides_are_no_price_but_a_quote() -> None:
    market = hybrid(Phase.PRE_OPEN)
    market.buy(7)
    market.sell(4)

    assert quotes(market.phase(Phase.OPENING_AUCTION)) == [(SPECIAL, Side.BUY, 510)]


# --- sequential trade quotes -----------------------------------------------------------------------------------------


def ladder(**rules: int | str) -> Hybrid:
    market = hybrid(rules=rules)
    for price in range(500, 560, 5):
        market.sell(1, price, "gamma")
    return market


def test_one_order_trades_up_to_two_widths_and_a_sequential_quote_stands_a_minute() -> None:
    market = ladder()

    events = market.buy(9, id="b")

    assert [price for *_, price, _ in fills(events)] == [500, 505, 510, 515, 520]
    shown = only(events, QuoteChanged)
    assert (shown.kind, shown.side, shown.price, shown.due_ns) == (SEQUENTIAL, Side.BUY, 520, market.now + 60 * SECOND)


def test_several_orders_within_a_minute_are_one_run_and_later_ones_are_not() -> None:
    market = ladder()
    market.buy(3)
    market.buy(2)
    assert quotes(market.buy(1)) == [(SEQUENTIAL, Side.BUY, 520)]

    market = ladder()
    market.buy(5)
    market.now += 60 * SECOND
    assert fills(market.buy(1))[0][2] == 525


def test_after_the_minute_an_itayose_within_one_width_of_the_quote_decides() -> None:
    market = ladder()
    market.buy(7, id="b")

    events = market.renew(60)

    assert [price for *_, price, _ in fills(events)] == [530, 530]
    assert quotes(events) == [(NONE, Side.BUY, 0)]


def test_what_is_still_outside_becomes_a_special_quote_one_width_on() -> None:
    market = ladder()
    market.buy(9, id="b")

    events = market.renew(60)

    assert not fills(events)
    assert quotes(events) == [(SPECIAL, Side.BUY, 530)]


@pytest.mark.parametrize(("rule", "traded"), [("wait", []), ("at_once", [("b", "s", 520, 3)])])
def test_orders_against_a_sequential_quote_wait_or_trade_at_once_by_a_switch(
    rule: str, traded: list[tuple[str, str, int, int]]
) -> None:
    market = ladder(sequential_opposite=rule)
    market.buy(9, id="b")

    assert fills(market.sell(3, 515, id="s")) == traded
    assert market.quote[0] == SEQUENTIAL
    assert not fills(market.sell(3, 525))


def test_a_sequential_quote_ends_when_all_that_pressed_has_traded_or_gone() -> None:
    market = ladder(sequential_opposite="at_once")
    market.buy(7, id="b")
    assert quotes(market.sell(2, 500)) == [(NONE, Side.BUY, 0)]

    market = ladder()
    market.buy(7, id="b")
    assert quotes(market.cancel("b")) == [(NONE, Side.BUY, 0)]


# --- pre-closing and close -------------------------------------------------------------------------------------------


def test_in_pre_closing_orders_are_taken_but_do_not_trade_and_on_close_orders_join() -> None:
    market = hybrid()
    assert only(market.sell(5, 500, time_in_force=ON_CLOSE, id="c"), Accepted).waiting
    events = market.phase(Phase.PRE_CLOSE)
    assert only(events, Activated).client_order_id == "c"

    assert not fills(market.buy(5, 500, id="b"))
    assert market.engine.indicative(CODE).price == 500
    assert fills(market.phase(Phase.CLOSING_AUCTION)) == [("b", "c", 500, 5)]


def test_a_funari_order_has_a_limit_in_zaraba_and_none_at_the_close() -> None:
    market = hybrid()
    market.buy(5, 495, time_in_force=FUNARI, id="f")
    assert fills(market.sell(2, 495, id="s"))[0] == ("f", "s", 495, 2)

    changed = only(market.phase(Phase.PRE_CLOSE), Amended)
    assert (changed.client_order_id, changed.price, changed.price_before, changed.open_quantity) == ("f", 0, 495, 3)
    market.sell(3, 505, id="t")

    assert fills(market.phase(Phase.CLOSING_AUCTION)) == [("f", "t", 505, 3)]


def test_the_morning_closes_by_itayose_without_pre_closing_and_its_orders_do_not_carry() -> None:
    market = hybrid()
    market.buy(5, time_in_force=ON_CLOSE, id="close")
    market.buy(5, 450, id="day")
    market.sell(5, 505, id="s")

    events = market.phase(Phase.CLOSING_AUCTION)
    assert fills(events) == [("close", "s", 505, 5)]
    market.phase(Phase.BREAK, Phase.PRE_OPEN)
    assert [order.client_order_id for order in market.engine.open_orders("alpha")] == ["day"]

    market.sell(2, 505, "beta", time_in_force=ON_OPEN, id="open")
    market.buy(2, 505, id="b")
    assert fills(market.phase(Phase.OPENING_AUCTION)) == [("b", "open", 505, 2)]


def test_what_a_morning_close_leaves_of_market_orders_waits_for_the_afternoon() -> None:
    market = hybrid()
    market.buy(5, id="m")
    market.buy(1, time_in_force=ON_CLOSE, id="c")

    gone = every(market.phase(Phase.CLOSING_AUCTION), Cancelled)

    assert [order.client_order_id for order in gone] == ["c"]
    assert quotes(market.phase(Phase.BREAK, Phase.PRE_OPEN, Phase.OPENING_AUCTION))[-1][0] == SPECIAL


def test_a_funari_order_names_a_limit_and_enters_before_the_pre_closing() -> None:
    market = hybrid()
    assert refusal(market.buy(5, time_in_force=FUNARI)).reason == Reason.NOT_OFFERED
    market.phase(Phase.PRE_CLOSE)
    assert refusal(market.buy(5, 500, time_in_force=FUNARI)).reason == Reason.WRONG_PHASE


def test_the_close_ranges_over_two_widths() -> None:
    market = hybrid(Phase.PRE_CLOSE)
    market.buy(5, id="b")
    market.sell(5, 519, id="s")

    assert fills(market.phase(Phase.CLOSING_AUCTION)) == [("b", "s", 519, 5)]


def test_special_execution_trades_at_the_edge_by_time_market_and_limit_alike() -> None:
    market = hybrid()
    market.buy(2, 505, time_in_force=FUNARI, id="funari")
    market.buy(2, 520, time_in_force=ON_CLOSE, id="close")
    market.phase(Phase.PRE_CLOSE)
    market.buy(2, 520, id="limit")
    market.buy(9, id="market")
    market.sell(5, 500, id="s")

    events = market.phase(Phase.CLOSING_AUCTION)

    result = only(events, AuctionUncrossed)
    assert (result.price, result.volume, result.surplus) == (520, 5, 10)
    assert fills(events) == [("close", "s", 520, 2), ("limit", "s", 520, 1), ("funari", "s", 520, 2)]


def test_without_a_lot_on_each_side_at_the_edge_the_close_has_no_price() -> None:
    market = hybrid(Phase.PRE_CLOSE)
    market.buy(5, id="b")
    market.sell(5, 521)

    events = market.phase(Phase.CLOSING_AUCTION)

    assert only(events, AuctionUncrossed).price == 0
    assert market.engine.instrument(CODE).reference_price == 500
    assert [gone.reason for gone in every(market.phase(Phase.CLOSED), Cancelled)] == [CancelReason.EXPIRED] * 2


def test_a_quote_that_stood_when_zaraba_ended_is_the_base_of_the_close_and_of_the_next_day() -> None:
    market = hybrid()
    market.buy(5)
    market.renew(180)

    market.phase(Phase.PRE_CLOSE, Phase.CLOSING_AUCTION, Phase.CLOSED)
    market.must(StartDay(TODAY + 1))

    assert market.engine.instrument(CODE).base_price == 520


def test_at_the_daily_limit_market_orders_count_as_limits_there_and_members_take_turns() -> None:
    market = hybrid(lot=100)
    market.buy(100)
    for _ in range(9):
        market.renew(180)
    market.phase(Phase.PRE_CLOSE)
    market.buy(300, 600, "beta", id="b")
    market.buy(200, 0, "gamma", id="c")
    market.sell(300, 600, "delta", id="s")

    events = market.phase(Phase.CLOSING_AUCTION)

    assert only(events, AuctionUncrossed).price == 600
    assert sorted((buyer, quantity) for buyer, _, _, quantity in fills(events)) == [
        ("b", 100),
        ("c", 100),
        ("id-1", 100),
    ]


# --- in which order fills are told -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("remainder_first", ["cut/at", "high/low", "higher/low", "market/low"]),
        ("priority", ["market/low", "higher/low", "high/low", "cut/at"]),
    ],
)
def test_fills_are_told_from_the_price_with_a_remainder_then_buys_from_low_to_market(
    rule: str, told: list[str]
) -> None:
    market = hybrid(Phase.PRE_OPEN, {} if rule == "remainder_first" else {"fill_order": rule})
    market.buy(4, 500, "m-a", id="cut")
    market.buy(2, 503, "m-b", id="high")
    market.buy(2, 505, "m-c", id="higher")
    market.buy(2, 0, "m-d", id="market")
    market.sell(6, 499, "m-s", id="low")
    market.sell(2, 500, "m-t", id="at")

    trades = every(market.phase(Phase.OPENING_AUCTION), Traded)

    assert [f"{trade.buy_client_order_id}/{trade.sell_client_order_id}" for trade in trades] == told
    assert [trade.trade_id for trade in trades] == [1, 2, 3, 4]
    assert [trade.sell_open for trade in trades] == ([0, 4, 2, 0] if rule == "remainder_first" else [4, 2, 0, 0])


# --- whose turn it is ------------------------------------------------------------------------------------------------


def bought(events: list[Event]) -> dict[str, int]:
    """By client_order_id."""
    got: dict[str, int] = {}
    for trade in every(events, Traded):
        got[trade.buy_client_order_id] = got.get(trade.buy_client_order_id, 0) + trade.quantity
    return got


def example() -> Hybrid:
    """The published example: A bids for 1,500, B for 500, C for 300, D for 200, all before the opening."""
    market = hybrid(Phase.PRE_OPEN, lot=100)
    for member, quantity in (("d", 200), ("c", 300), ("b", 500), ("a", 1_500)):
        market.buy(quantity, 500, f"m-{member}", id=member)
    return market


def test_members_take_turns_from_the_opening_on_through_zaraba_to_the_close() -> None:
    market = example()
    market.sell(300, 500, "seller")

    assert bought(market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)) == {"a": 100, "b": 100, "c": 100}
    market.buy(900, 500, "late", id="late")
    assert bought(market.sell(300, 500, "seller")) == {"d": 100, "a": 100, "b": 100}
    market.phase(Phase.PRE_CLOSE)
    market.sell(200, 500, "seller")
    assert bought(market.phase(Phase.CLOSING_AUCTION)) == {"c": 100, "d": 100}


def test_turns_are_within_a_price_and_the_rest_of_a_group_comes_before_zaraba() -> None:
    market = example()
    market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)
    market.buy(200, 500, "m-d", id="x")
    market.buy(300, 500, "m-c", id="y")

    assert bought(market.sell(600, 500)) == {"a": 200, "b": 200, "c": 100, "d": 100}
    assert bought(market.sell(2_000, 500)) == {"a": 1_300, "b": 300, "c": 200, "d": 100, "x": 100}
    assert bought(market.sell(200, 500)) == {"x": 100, "y": 100}


def test_the_close_fills_the_opening_s_orders_then_zaraba_s_by_time_then_pre_closing_s_in_turns() -> None:
    market = example()
    market.buy(200, 500, "m-e", time_in_force=ON_CLOSE, id="close")
    market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)
    market.buy(300, 500, "m-z", id="z1")
    market.buy(900, 500, "m-y", id="z2")
    market.phase(Phase.PRE_CLOSE)
    market.buy(200, 500, "m-f", id="f")
    market.buy(300, 500, "m-g", id="g")
    market.sell(3_200, 500)

    got = bought(market.phase(Phase.CLOSING_AUCTION))

    assert got == {"a": 1_500, "b": 500, "c": 300, "d": 200, "z1": 300, "z2": 400}

    market = hybrid()
    market.buy(200, 500, "m-e", time_in_force=ON_CLOSE, id="close")
    market.phase(Phase.PRE_CLOSE)
    market.buy(2, 500, "m-f", id="f")
    market.buy(300, 500, "m-g", id="g")
    market.sell(5, 500)
    assert bought(market.phase(Phase.CLOSING_AUCTION)) == {"g": 2, "close": 2, "f": 1}


def test_what_the_morning_leaves_is_simultaneous_with_what_comes_before_the_afternoon_s_opening() -> None:
    market = hybrid()
    market.buy(3, 495, "m-a", id="a")
    market.buy(3, 495, "m-b", id="b")
    market.phase(Phase.CLOSING_AUCTION, Phase.BREAK, Phase.PRE_OPEN)
    market.buy(9, 495, "m-c", id="c")
    market.sell(4, 495, "m-s")

    assert bought(market.phase(Phase.OPENING_AUCTION)) == {"a": 1, "b": 1, "c": 2}


def test_what_comes_during_a_halt_is_simultaneous_and_behind_what_was_there() -> None:
    market = hybrid(rules={"halt_orders": "queue"})
    market.buy(2, 495, "m-a", id="a")
    market.run(SuspendInstrument(CODE))
    market.buy(5, 495, "m-b", id="b")
    market.must(ResumeInstrument(CODE))
    market.buy(6, 495, "m-c", id="c")
    market.phase(Phase.CALL_AUCTION, Phase.CONTINUOUS)
    market.buy(9, 495, "m-d", id="d")

    assert bought(market.sell(5, 495)) == {"a": 2, "b": 1, "c": 2}
    assert bought(market.sell(1, 495)) == {"b": 1}


def test_under_the_quote_of_an_opening_orders_are_simultaneous_still_and_under_another_quote_they_are_not() -> None:
    market = hybrid(Phase.PRE_OPEN)
    market.sell(1, 530, "m-s")
    market.buy(1, 530, "m-a", id="a")
    market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)
    assert market.quote == (SPECIAL, Side.BUY, 510)
    market.buy(3, 525, "m-b", id="b")
    market.buy(4, 525, "m-c", id="c")
    market.renew(180)
    market.renew(180)
    assert bought(market.sell(2, 525)) == {"c": 1, "b": 1}

    market = hybrid()
    market.sell(1, 530, "m-s")
    market.buy(1, 530, "m-a", id="a")
    market.buy(3, 525, "m-b", id="b")
    market.buy(4, 525, "m-c", id="c")
    market.renew(180)
    market.renew(180)
    assert bought(market.sell(4, 525)) == {"b": 3, "c": 1}


def test_who_amends_to_a_worse_place_has_no_turn_any_more() -> None:
    market = example()
    market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)
    market.amend("a", 1_600, member="m-a")

    assert bought(market.sell(1_100, 500)) == {"b": 500, "c": 300, "d": 200, "a": 100}


@pytest.mark.parametrize(
    ("mode", "sold", "left"),
    [
        ("cancel_newest", {"a": 100}, [500, 300, 200]),
        ("cancel_oldest", {"a": 200, "c": 100, "d": 100}, [200, 100]),
        ("cancel_both", {"a": 100}, [300, 200]),
        ("decrement", {"a": 100}, [200, 300, 200]),
    ],
)
def test_an_order_meets_its_own_firm_when_the_turn_comes_to_it(
    mode: str, sold: dict[str, int], left: list[int]
) -> None:
    market = hybrid(Phase.PRE_OPEN, {"self_trade": mode}, lot=100)
    for member, quantity in (("a", 1_500), ("b", 500), ("c", 300), ("d", 200)):
        market.buy(quantity, 500, f"m-{member}", id=member)
    market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)

    events = market.sell(400, 500, "m-b")

    assert bought(events) == sold
    assert [quantity for order, _, quantity in market.engine.shown(CODE, Side.BUY)][1:] == left


def test_an_order_that_would_meet_its_own_firm_in_turn_is_refused_where_the_rule_says_so() -> None:
    market = hybrid(Phase.PRE_OPEN, {"self_trade": "reject"}, lot=100)
    for member, quantity in (("a", 1_500), ("b", 500), ("c", 300), ("d", 200)):
        market.buy(quantity, 500, f"m-{member}", id=member)
    market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)

    assert refusal(market.sell(300, 500, "m-c")).reason == Reason.SELF_TRADE
    assert bought(market.sell(200, 500, "m-c")) == {"a": 100, "b": 100}


def test_fill_or_kill_trades_with_all_who_have_a_turn_before_its_own_firm() -> None:
    market = zaraba(rules={"allocation": "SIMULTANEOUS_RR"}, lot=100)
    market.phase(Phase.CALL)
    for member, quantity in (("a", 1_500), ("b", 500), ("c", 300), ("d", 200)):
        market.buy(quantity, 500, f"m-{member}", id=member)
    market.phase(Phase.CALL_AUCTION, Phase.CONTINUOUS)

    assert only(market.sell(300, 500, "m-c", time_in_force=TimeInForce.FOK), Cancelled).quantity == 300
    assert bought(market.sell(200, 500, "m-c", time_in_force=TimeInForce.FOK)) == {"a": 100, "b": 100}


def test_whose_turn_it_is_belongs_to_the_state() -> None:
    def digest(*sold: int) -> bytes:
        market = hybrid(Phase.PRE_OPEN)
        for member in ("a", "b"):
            market.buy(9, 500, f"m-{member}", id=member)
        market.phase(Phase.OPENING_AUCTION, Phase.CONTINUOUS)
        turns = market.engine._known(CODE).turns
        assert turns is not None
        if sold:
            turns.keep(Side.BUY, 500, turns.periods[-1], list(sold))
        return market.engine.digest()

    assert len({digest(), digest(0, 1), digest(1, 0)}) == 3


# --- limits that move ------------------------------------------------------------------------------------------------


def next_day(market: Hybrid, day: int) -> None:
    market.phase(Phase.PRE_CLOSE, Phase.CLOSING_AUCTION, Phase.CLOSED)
    market.must(StartDay(TODAY + day))
    market.phase(Phase.PRE_OPEN, Phase.OPENING_AUCTION, Phase.CONTINUOUS)


def limits(market: Market) -> tuple[int, int]:
    view = market.engine.instrument(CODE)
    return view.lower_limit, view.upper_limit


def test_two_days_stuck_at_a_limit_widen_that_limit_on_the_third_and_a_trade_ends_it() -> None:
    market = hybrid()
    for day in (1, 2):
        market.buy(100, market.engine.instrument(CODE).upper_limit)
        assert limits(market)[1] - market.engine.instrument(CODE).base_price == 100
        next_day(market, day)
    assert limits(market) == (400, 900)

    market.buy(100, 900)
    next_day(market, 3)
    assert limits(market) == (400, 900)
    market.sell(1, 505)
    market.buy(1, 505)
    next_day(market, 6)
    assert limits(market) == (405, 605)


def test_a_day_on_which_only_the_limit_was_allocated_counts_as_stuck() -> None:
    market = hybrid()
    for day in (1, 2):
        market.buy(100)
        while market.engine.instrument(CODE).quote_due_ns:
            market.renew(180)
        market.phase(Phase.PRE_CLOSE)
        market.sell(10, market.engine.instrument(CODE).upper_limit)
        events = market.phase(Phase.CLOSING_AUCTION, Phase.CLOSED)
        assert only(events, AuctionUncrossed).volume == 10
        market.must(StartDay(TODAY + day))
        market.phase(Phase.PRE_OPEN, Phase.OPENING_AUCTION, Phase.CONTINUOUS)

    assert limits(market) == (550, 1300)  # around 700: 150 down, four times 150 up


@pytest.mark.parametrize("rule", ["at_limit", "lapse"])
def test_a_new_listing_has_limits_from_its_first_price_on(rule: str) -> None:
    market = hybrid(Phase.PRE_OPEN, {"first_price_limits": rule}, reference_price=0)
    assert limits(market) == (0, 0)
    market.buy(5, 700, id="b")
    market.sell(5, 500, id="s")
    market.sell(5, 1500, id="far")
    market.buy(5, 5, id="low")

    events = market.phase(Phase.OPENING_AUCTION)

    assert fills(events) == [("b", "s", 500, 5)] or fills(events) == [("b", "s", 600, 5)]
    price = fills(events)[0][2]
    assert only(events, DayLimitsSet).base_price == price
    assert limits(market)[0] < price < limits(market)[1]
    gone = [event.client_order_id for event in every(events, Cancelled)]
    assert gone == ([] if rule == "at_limit" else ["far", "low"])


def test_an_order_that_bids_beyond_the_first_limits_counts_as_at_the_limit() -> None:
    market = hybrid(reference_price=0)
    market.buy(5, 900, "alpha", id="high")
    market.buy(1, 1000, "beta")
    market.sell(1, 300, "gamma")  # takes beta's: the first price is 1000

    market = hybrid(reference_price=0)
    market.sell(1, 300, "gamma", id="first")
    market.sell(9, 950, "gamma", time_in_force=ON_CLOSE)
    market.buy(9, 950, "alpha", time_in_force=ON_CLOSE, id="high")

    events = market.buy(1, 300, "beta")

    assert limits(market) == (220, 380)
    assert only(events, Amended).price == 380
    assert only(events, Amended).client_order_id == "high"
    assert only(events, Amended).waiting


# --- the question behind it all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["TSE_HYBRID", "CONTINUOUS"])
@pytest.mark.parametrize("side", list(Side))
def test_no_market_order_trades_beyond_the_limits_that_a_first_price_brings(profile: str, side: Side) -> None:
    """Who asks for more than the upper limit keeps his own limit, and has nobody to trade with."""
    market = Hybrid()
    market.must(SetLimitTable("near", 0, [LimitRow(0, 8)]), SetQuoteTable("wide", 0, [LimitRow(0, 40)]))
    rules: dict[str, int | str] = {"first_price_limits": "at_limit"}
    if profile == "TSE_HYBRID":
        rules["quote_width_table"] = "wide"
    market.must(ListInstrument(CODE, profile, limit_table="near", rules=rules), StartDay(TODAY))
    if profile == "TSE_HYBRID":
        market.phase(Phase.PRE_OPEN, Phase.OPENING_AUCTION)
    market.phase(Phase.CONTINUOUS)
    ask, take = (market.buy, market.sell) if side == Side.SELL else (market.sell, market.buy)
    ask(5, 80 if side == Side.SELL else 120, "alpha", id="far")
    ask(5, 100, "alpha", id="near")
    assert fills(take(5, 100, "beta"))
    assert limits(market) == (92, 108)

    for number, (kind, terms) in enumerate(
        [
            (OrderType.MARKET, {}),
            (OrderType.MARKET, {"time_in_force": TimeInForce.IOC}),
            *([(OrderType.MARKET_TO_LIMIT, {})] if profile == "CONTINUOUS" else []),
            *([(OrderType.MARKET, {"time_in_force": TimeInForce.FOK})] if profile == "CONTINUOUS" else []),
        ]
    ):
        events = take(5, 0, "beta", order_type=kind, id=f"m-{number}", **terms)
        assert not fills(events)
    edge = 108 if side == Side.BUY else 92
    if profile == "TSE_HYBRID":  # the first of them waits for somebody at the limit
        assert market.quote == (SPECIAL, side, edge)
    else:  # market-to-limit rests there
        assert market.engine.depth(CODE)[side] == [(edge, 5)]


def test_a_quote_stands_for_another_turn_while_a_window_keeps_everybody_from_trading() -> None:
    market = hybrid()
    market.sell(5, 517)
    market.buy(5, 517)
    market.must(SetWindow(CODE, WindowKind.FREEZE, TODAY, TODAY, purge=False))
    assert market.quote == (SPECIAL, Side.BUY, 510)

    shown = only(market.renew(180), QuoteChanged)

    assert (shown.price, shown.due_ns) == (510, market.now + 180 * SECOND)
    market.must(SetWindow(CODE, WindowKind.FREEZE, TODAY, 0))
    assert fills(market.renew(180))[0][2] == 517


def frozen(side: Side, orders: list[tuple[int, int]]) -> Frozen:
    """One side of a book, from (price, quantity) of its orders; price 0: no limit."""
    levels = {0: 0}
    for price, quantity in orders:
        levels[price] = levels.get(price, 0) + quantity
    made = Frozen()
    for price in sorted(levels, key=lambda price: (price > 0, price if side == Side.SELL else -price)):
        made.prices.append(price)
        made.queues.append(vec[i64]([price + 1]))
        made.amounts.append(vec[i64]([levels[price]]))
    return made


orders = st.lists(st.tuples(st.sampled_from([0, *range(1, 13)]), st.integers(1, 6)), max_size=6)


@given(orders, orders, st.integers(1, 12), st.integers(0, 6), st.integers(1, 12))
def test_where_nobody_presses_and_orders_meet_some_price_inside_meets_the_three_conditions(
    buys: list[tuple[int, int]], sells: list[tuple[int, int]], low: int, width: int, reference: int
) -> None:
    high = low + width
    plan = Plan(frozen(Side.BUY, buys), frozen(Side.SELL, sells), 1, False)
    claims = FrozenClaims(plan)

    def fits(price: int) -> bool:
        """All market orders fill, all better limits fill, and one side fills whole at the price itself."""
        demand, supply = claims.reaching(0, price), claims.reaching(1, price)
        return (
            min(demand, supply) > 0
            and claims.reaching(0, price + 1) <= supply
            and claims.reaching(1, price - 1) <= demand
        )

    answer = pressing(claims, low, high)

    fitting = [price for price in range(low, high + 1) if fits(price)]
    assert (answer == MATCH) == bool(fitting) or (answer in (0, 1) and not fitting) or answer == NOBODY
    if answer == NOBODY:
        assert not any(fits(price) for price in range(1, 20))
    if answer != MATCH:
        return
    found = price_frozen(plan.bids, plan.asks, TickTable([(0, 1)]), low, high, reference, "jpx_ose", True)
    if found.price:
        assert fits(found.price)
    else:  # candidates end one tick beyond the limits, and all of these are away from the range
        assert fits(low) or fits(high)


def test_a_quote_goes_the_same_way_where_events_are_written_instead_of_made() -> None:
    market, told = hybrid(), hybrid()
    commands = [
        NewOrder("s", CODE, Side.SELL, 5, 535),
        NewOrder("m", CODE, Side.BUY, 5, 540),
        NewOrder("t", CODE, Side.SELL, 2, 509),
        NewOrder("u", CODE, Side.SELL, 2, 508),
        CancelOrder("c", "m"),
        NewOrder("n", CODE, Side.SELL, 1, 505),
        NewOrder("o", CODE, Side.BUY, 1, 505),
    ]

    seen: list[Event] = []
    for command in commands:
        events = market.run(command, "alpha")
        seen += events
        written = told.engine.tell([command], "alpha", market.now)
        assert written == msgspec.msgpack.encode([market.engine.sequence, market.now, events])

    assert told.engine.digest() == market.engine.digest()
    assert len(quotes(seen)) > 1
