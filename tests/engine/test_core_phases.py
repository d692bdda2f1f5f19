"""A START day as a state machine: what each phase allows, what entering it does, what a halt changes."""

from __future__ import annotations

import pytest

from engine import (
    Accepted,
    Activated,
    AuctionUncrossed,
    Cancelled,
    CancelReason,
    DayLimitsSet,
    DayStarted,
    LimitRow,
    ListInstrument,
    MassCancelled,
    OrderType,
    Phase,
    PhaseChanged,
    Reason,
    ReferencePriceSet,
    Rejected,
    ResumeInstrument,
    SetLimitTable,
    SetPhase,
    SetReferencePrice,
    SetTickTable,
    Side,
    StartDay,
    SuspendInstrument,
    TickRow,
    TimeInForce,
    Traded,
    TradingStateChanged,
)
from tests.market import CALENDAR, CODE, START_DAY, TODAY, Market, every, only, refusal, start, zaraba

GTC = TimeInForce.GTC
CALLS = (Phase.PRE_OPEN, Phase.PRE_OPEN_NCP, Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP)


def reached(phase: Phase) -> Market:
    """A START market in ``phase`` with one open order ``old`` of alpha at 90, wherever that is possible."""
    market = start(Phase.PRE_OPEN, reference_price=100)
    market.buy(10, 90, id="old")
    market.phase(*START_DAY[1 : START_DAY.index(phase) + 1])
    return market


# --- what each phase allows (market-rules 1) -------------------------------------------------------------------------


@pytest.mark.parametrize("phase", START_DAY)
def test_new_orders_are_taken_in_the_calls_only(phase: Phase) -> None:
    events = reached(phase).buy(10, 100)

    if phase in CALLS:
        assert only(events, Accepted).quantity == 10
    else:
        assert refusal(events).reason == Reason.WRONG_PHASE


@pytest.mark.parametrize("phase", START_DAY[:-1])
def test_orders_are_cancelled_outside_the_non_cancel_periods_and_auctions(phase: Phase) -> None:
    market = reached(phase)

    events = market.cancel("old")

    if phase in (Phase.PRE_OPEN, Phase.PRE_CLOSE, Phase.BREAK):
        assert only(events, Cancelled).reason == CancelReason.MEMBER
        assert market.engine.open_orders("alpha") == []
    else:
        assert refusal(events).reason == Reason.WRONG_PHASE
        assert [order.open_quantity for order in market.engine.open_orders("alpha")] == [10]


@pytest.mark.parametrize("phase", START_DAY[:-1])
def test_orders_are_amended_while_a_call_collects_and_may_be_changed(phase: Phase) -> None:
    market = reached(phase)

    events = market.amend("old", price=95)

    if phase in (Phase.PRE_OPEN, Phase.PRE_CLOSE):
        assert market.engine.depth(CODE)[0] == [(95, 10)]
    else:
        assert refusal(events).reason == Reason.WRONG_PHASE
        assert market.engine.depth(CODE)[0] == [(90, 10)]


@pytest.mark.parametrize("phase", START_DAY)
def test_an_indicative_price_is_shown_in_the_four_states_before_an_auction(phase: Phase) -> None:
    market = start(Phase.PRE_OPEN, reference_price=100)
    market.buy(5, 100)
    market.sell(5, 100)
    market.must(SuspendInstrument(CODE))  # so that no auction clears the book on the way
    market.phase(*START_DAY[1 : START_DAY.index(phase) + 1])

    shown = market.engine.indicative(CODE)

    assert (shown.price, shown.volume, shown.surplus) == ((100, 5, 0) if phase in CALLS else (0, 0, 0))


@pytest.mark.parametrize("before", START_DAY)
@pytest.mark.parametrize("after", START_DAY)
def test_only_the_next_phase_of_the_day_may_follow(before: Phase, after: Phase) -> None:
    market = reached(before)

    events = market.run(SetPhase(CODE, after))

    if after == START_DAY[(START_DAY.index(before) + 1) % len(START_DAY)]:
        assert events[0] == PhaseChanged(CODE, after, before)
    else:
        assert refusal(events).reason == Reason.BAD_TRANSITION
        assert market.engine.instrument(CODE).phase == before


def test_break_takes_new_orders_where_the_instrument_says_so() -> None:
    market = start(Phase.BREAK, rules={"break_new": 1})

    assert only(market.buy(10, 100), Accepted)
    assert only(market.buy(10, 100, time_in_force=TimeInForce.ON_CLOSE), Accepted).waiting


# --- the two auctions ------------------------------------------------------------------------------------------------


def test_a_day_from_the_first_order_to_the_last_event() -> None:
    market = Market()
    market.must(CALENDAR, ListInstrument(CODE, reference_price=100))
    assert market.must(StartDay(TODAY)) == [DayStarted(TODAY), DayLimitsSet(CODE, 100, 0, 0)]
    assert market.phase(Phase.PRE_OPEN) == [PhaseChanged(CODE, Phase.PRE_OPEN, Phase.CLOSED)]
    market.buy(30, 105, id="b", account="c-7")
    market.sell(20, 95, id="s")
    market.phase(Phase.PRE_OPEN_NCP)

    assert market.phase(Phase.OPENING_AUCTION) == [
        PhaseChanged(CODE, Phase.OPENING_AUCTION, Phase.PRE_OPEN_NCP),
        AuctionUncrossed(CODE, Phase.OPENING_AUCTION, price=105, volume=20, surplus=10, trades=1),
        Traded(
            trade_id=1, instrument=CODE, price=105, quantity=20,
            buyer="alpha", buy_client_order_id="b", buy_order_id=1, buy_open=10, buy_account="c-7",
            seller="beta", sell_client_order_id="s", sell_order_id=2, sell_open=0, sell_account="",
            maker=-1, trade_date=TODAY, settlement_date=20261126, buy_limit=105, sell_limit=95,
        ),
    ]  # fmt: skip
    assert market.engine.instrument(CODE).reference_price == 105
    assert market.engine.indicative(CODE).price == 0

    market.phase(Phase.BREAK, Phase.PRE_CLOSE)
    market.sell(4, 100, id="t")
    market.phase(Phase.PRE_CLOSE_NCP)
    closing = market.phase(Phase.CLOSING_AUCTION)
    assert only(closing, AuctionUncrossed).volume == 4
    assert only(closing, Traded).buy_order_id == 1  # carried from the opening call

    assert market.phase(Phase.CLOSED) == [
        PhaseChanged(CODE, Phase.CLOSED, Phase.CLOSING_AUCTION),
        Cancelled("alpha", "b", 1, CODE, Side.BUY, 105, 6, CancelReason.EXPIRED),
    ]
    assert market.engine.depth(CODE) == ([], [])


def test_an_auction_without_a_price_says_so_and_keeps_the_reference() -> None:
    market = start(Phase.PRE_OPEN_NCP, reference_price=100)
    market.buy(10, 90)

    assert market.phase(Phase.OPENING_AUCTION)[1:] == [AuctionUncrossed(CODE, Phase.OPENING_AUCTION, 0, 0, 0, 0)]
    assert market.engine.instrument(CODE).reference_price == 100


def test_the_rest_of_a_market_order_expires_with_its_auction() -> None:
    market = start(Phase.PRE_OPEN_NCP, reference_price=100)
    market.buy(20, id="market")
    market.sell(5, 100)
    market.sell(5, 101)

    events = market.phase(Phase.OPENING_AUCTION)

    assert only(events, AuctionUncrossed).price == 102  # book 6b: one tick above the highest limit
    assert events[-1] == Cancelled("alpha", "market", 1, CODE, Side.BUY, 0, 10, CancelReason.REMAINDER)


def test_where_all_market_orders_must_fill_there_is_no_price_otherwise() -> None:
    market = start(Phase.PRE_OPEN_NCP, reference_price=100, rules={"market_orders_must_all_fill": 1})
    market.buy(20)
    market.sell(5, 100)

    events = market.phase(Phase.OPENING_AUCTION)

    assert only(events, AuctionUncrossed).price == 0
    assert only(events, Cancelled).quantity == 20
    assert market.engine.depth(CODE) == ([], [(100, 5)])


def test_simultaneous_rounds_share_the_last_price_between_members() -> None:
    market = start(Phase.PRE_OPEN_NCP, lot=100, reference_price=1000, rules={"allocation": "SIMULTANEOUS_RR"})
    for member, quantity in (("a", 1500), ("b", 500), ("c", 300), ("d", 200)):
        market.buy(quantity, 1000, member)
    market.sell(800, 1000)

    events = market.phase(Phase.OPENING_AUCTION)

    bought = {trade.buyer: trade.quantity for trade in every(events, Traded)}
    assert bought == {"a": 200, "b": 200, "c": 200, "d": 200}  # book 8 after its three fills: 300, 300, 200


def test_a_call_of_many_may_end_in_a_non_cancel_period_where_its_parameter_says_so() -> None:
    market = Market()
    market.must(ListInstrument(CODE, "N_CALLS", 100, rules={"call_ncp": 1}), StartDay(TODAY))
    market.phase(Phase.CALL)
    market.buy(5, 100, id="b")
    market.phase(Phase.CALL_NCP)

    assert refusal(market.cancel("b")).reason == Reason.WRONG_PHASE
    assert refusal(market.amend("b", 4)).reason == Reason.WRONG_PHASE
    market.mass_cancel("alpha")
    market.sell(3, 100)
    assert market.engine.indicative(CODE).volume == 3
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 3
    assert only(market.phase(Phase.CALL), Cancelled).quantity == 2  # the mass cancel has waited

    market = Market()
    market.must(ListInstrument(CODE, "N_CALLS", 100), StartDay(TODAY))
    market.phase(Phase.CALL)
    assert refusal(market.run(SetPhase(CODE, Phase.CALL_NCP))).reason == Reason.BAD_TRANSITION


# --- validities bound to an auction ----------------------------------------------------------------------------------


def test_an_on_open_order_leaves_after_the_opening_whatever_is_left_of_it() -> None:
    market = start(Phase.PRE_OPEN_NCP, reference_price=100)
    market.buy(10, 100, id="open", time_in_force=TimeInForce.ON_OPEN)
    market.sell(4, 100)

    events = market.phase(Phase.OPENING_AUCTION)

    assert only(events, Traded).quantity == 4
    assert only(events, Cancelled) == Cancelled("alpha", "open", 1, CODE, Side.BUY, 100, 6, CancelReason.EXPIRED)


def test_an_on_open_order_is_refused_after_the_opening() -> None:
    market = start(Phase.PRE_CLOSE)

    assert refusal(market.buy(10, 100, time_in_force=TimeInForce.ON_OPEN)).reason == Reason.WRONG_PHASE


def test_an_on_close_order_waits_outside_the_book_until_the_closing_call() -> None:
    market = start(Phase.PRE_OPEN, reference_price=100)
    assert only(market.buy(10, 100, id="close", time_in_force=TimeInForce.ON_CLOSE), Accepted).waiting
    market.sell(10, 100, id="day")
    assert market.engine.indicative(CODE).price == 0
    assert market.engine.depth(CODE) == ([], [(100, 10)])
    assert [order.waiting for order in market.engine.open_orders("alpha")] == [True]

    opening = market.phase(Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION)
    assert only(opening, AuctionUncrossed).volume == 0
    joined = market.phase(Phase.BREAK, Phase.PRE_CLOSE)
    assert only(joined, Activated) == Activated("alpha", "close", 1, CODE, Side.BUY, 100, 10)
    assert market.engine.indicative(CODE).volume == 10
    closing = market.phase(Phase.PRE_CLOSE_NCP, Phase.CLOSING_AUCTION)
    assert only(closing, Traded).quantity == 10


def test_an_on_close_order_joins_behind_what_rests_and_by_its_own_time() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(1, 100, id="first", time_in_force=TimeInForce.ON_CLOSE)
    market.buy(2, 100, id="second", time_in_force=TimeInForce.ON_CLOSE)
    market.buy(3, 100, id="day")
    market.amend("first", quantity=5)  # a larger quantity loses its place, also while it waits

    market.phase(*START_DAY[1:5])

    assert [market.engine.order(number).client_order_id for number in market.engine.queue(CODE, Side.BUY)] == [
        "day",
        "second",
        "first",
    ]


def test_an_on_close_order_expires_with_the_closing_auction() -> None:
    market = start(Phase.PRE_CLOSE)
    market.buy(10, 100, time_in_force=TimeInForce.ON_CLOSE)
    market.buy(10, 100)

    events = market.phase(Phase.PRE_CLOSE_NCP, Phase.CLOSING_AUCTION)

    assert only(events, Cancelled).order_id == 1
    assert market.engine.depth(CODE)[0] == [(100, 10)]


def test_a_waiting_order_can_be_cancelled_in_the_break() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, 100, id="close", time_in_force=TimeInForce.ON_CLOSE)
    market.phase(*START_DAY[1:4])

    assert only(market.cancel("close"), Cancelled).waiting
    assert not every(market.phase(Phase.PRE_CLOSE), Activated)


# --- mass cancel in a non-cancel period ------------------------------------------------------------------------------


def test_a_mass_cancel_in_a_non_cancel_period_waits_until_the_auction_is_over() -> None:
    market = start(Phase.PRE_OPEN, reference_price=100)
    market.buy(10, 100, id="old")
    market.phase(Phase.PRE_OPEN_NCP)
    assert only(market.mass_cancel(), MassCancelled).count == 0
    market.buy(7, 100, id="new")
    market.sell(4, 100)

    assert only(market.phase(Phase.OPENING_AUCTION), Traded).quantity == 4
    assert only(market.phase(Phase.BREAK), Cancelled) == Cancelled(
        "alpha", "old", 1, CODE, Side.BUY, 100, 6, CancelReason.MASS_CANCEL, "id-1"
    )
    assert market.engine.depth(CODE)[0] == [(100, 7)]  # entered after the request: not meant


# --- halts -----------------------------------------------------------------------------------------------------------


def test_a_suspended_book_refuses_new_and_amend_but_not_cancel() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, 100, id="old")
    assert market.must(SuspendInstrument(CODE)) == [TradingStateChanged(CODE, True)]

    assert refusal(market.buy(10, 100)).reason == Reason.SUSPENDED
    assert refusal(market.amend("old", price=99)).reason == Reason.SUSPENDED
    assert only(market.cancel("old"), Cancelled)
    assert market.must(ResumeInstrument(CODE)) == [TradingStateChanged(CODE, False)]
    assert only(market.buy(10, 100), Accepted)


def test_a_halt_may_gather_orders_where_the_instrument_says_so() -> None:
    market = start(Phase.PRE_OPEN, rules={"halt_orders": "queue"})
    market.must(SuspendInstrument(CODE))

    assert only(market.buy(10, 100), Accepted)


def test_a_halt_drops_the_auction_and_a_call_reopens_the_book() -> None:
    market = start(Phase.PRE_OPEN, reference_price=100)
    market.buy(10, 100)
    market.buy(3, id="market")
    market.sell(13, 100)
    market.must(SetPhase(CODE, Phase.PRE_OPEN_NCP), SuspendInstrument(CODE))

    assert market.phase(Phase.OPENING_AUCTION) == [PhaseChanged(CODE, Phase.OPENING_AUCTION, Phase.PRE_OPEN_NCP)]
    assert market.engine.depth(CODE) == ([(0, 3), (100, 10)], [(100, 13)])
    market.must(SetPhase(CODE, Phase.CALL), ResumeInstrument(CODE))
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 13
    assert market.phase(Phase.BREAK, Phase.PRE_CLOSE)


@pytest.mark.parametrize(("command", "done"), [(SuspendInstrument, False), (ResumeInstrument, True)])
def test_a_halt_or_its_end_is_refused_where_it_changes_nothing(command: type, done: bool) -> None:
    market = start(Phase.PRE_OPEN)
    if not done:
        market.must(SuspendInstrument(CODE))

    assert refusal(market.run(command(CODE))).reason == Reason.BAD_TRANSITION


def test_zaraba_does_not_resume_over_a_crossed_book() -> None:
    market = zaraba(rules={"halt_orders": "queue"})
    market.must(SuspendInstrument(CODE))
    market.buy(10, 100)
    market.sell(10, 99)

    assert refusal(market.run(ResumeInstrument(CODE))).reason == Reason.BAD_TRANSITION
    market.must(SetPhase(CODE, Phase.CALL), ResumeInstrument(CODE))
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 10
    market.phase(Phase.CONTINUOUS)


def test_a_halted_zaraba_takes_nothing_that_must_trade_at_once() -> None:
    market = zaraba(rules={"halt_orders": "queue"})
    market.must(SuspendInstrument(CODE))

    assert refusal(market.buy(10, 100, time_in_force=TimeInForce.IOC)).reason == Reason.WRONG_PHASE


# --- the continuous profile ------------------------------------------------------------------------------------------


def test_a_call_collects_crossing_orders_and_its_auction_goes_back_to_zaraba() -> None:
    market = zaraba(reference_price=100)
    market.phase(Phase.CALL)
    market.buy(10, 105)
    assert not every(market.sell(4, 95), Traded)
    assert market.engine.indicative(CODE).volume == 4

    assert only(market.phase(Phase.CALL_AUCTION), Traded).quantity == 4
    market.phase(Phase.CONTINUOUS)
    assert only(market.sell(1, 100), Traded).price == 105


def test_zaraba_does_not_begin_over_a_crossed_book() -> None:
    market = zaraba()
    market.phase(Phase.CALL)
    market.buy(10, 105, time_in_force=GTC)
    market.sell(10, 95, time_in_force=GTC)
    market.phase(Phase.CLOSED)

    assert refusal(market.run(SetPhase(CODE, Phase.CONTINUOUS))).reason == Reason.BAD_TRANSITION
    market.phase(Phase.CALL, Phase.CALL_AUCTION, Phase.CONTINUOUS)


def test_immediate_orders_are_refused_in_a_call() -> None:
    market = zaraba()
    market.phase(Phase.CALL)

    assert refusal(market.buy(10, 100, time_in_force=TimeInForce.IOC)).reason == Reason.WRONG_PHASE


def test_at_closed_everything_leaves_but_what_is_good_till_cancelled() -> None:
    market = zaraba()
    market.buy(1, 99)
    market.buy(2, 98, time_in_force=GTC)
    market.phase(Phase.CALL)
    market.buy(3, time_in_force=GTC)  # no limit: never overnight

    events = market.phase(Phase.CLOSED)

    assert [event.order_id for event in every(events, Cancelled)] == [1, 3]
    assert market.engine.depth(CODE) == ([(98, 2)], [])


# --- the day ---------------------------------------------------------------------------------------------------------


def test_nothing_trades_before_a_day_has_been_started() -> None:
    market = Market()
    market.must(ListInstrument(CODE))

    assert refusal(market.buy(10, 100)).reason == Reason.NO_DAY
    assert refusal(market.run(SetPhase(CODE, Phase.PRE_OPEN))).reason == Reason.NO_DAY


def test_an_instrument_listed_during_the_day_trades_from_the_next() -> None:
    market = start(Phase.PRE_OPEN)
    market.must(ListInstrument("LATE"))

    assert refusal(market.run(SetPhase("LATE", Phase.PRE_OPEN))).reason == Reason.NO_DAY
    market.phase(*START_DAY[1:])
    market.must(StartDay(20261125), SetPhase("LATE", Phase.PRE_OPEN))


@pytest.mark.parametrize(
    ("date", "reason"),
    [
        (TODAY, Reason.BAD_TRANSITION),
        (20261120, Reason.BAD_TRANSITION),
        (20261128, Reason.DATE_OUTSIDE_CALENDAR),  # a Saturday
        (20271231, Reason.DATE_OUTSIDE_CALENDAR),
        (20280105, Reason.DATE_OUTSIDE_CALENDAR),
        (20261131, Reason.DATE_OUTSIDE_CALENDAR),
        (0, Reason.DATE_OUTSIDE_CALENDAR),
    ],
)
def test_a_day_that_cannot_be_is_refused_and_changes_nothing(date: int, reason: Reason) -> None:
    market = Market()
    market.must(CALENDAR, ListInstrument(CODE), StartDay(TODAY))
    before = market.engine.instrument(CODE)

    assert refusal(market.run(StartDay(date))).reason == reason
    assert market.engine.date == TODAY
    assert market.engine.instrument(CODE) == before


def test_a_day_is_refused_when_its_settlement_lies_beyond_the_calendar() -> None:
    market = Market()
    market.must(CALENDAR, ListInstrument(CODE, settlement_days=2))

    assert refusal(market.run(StartDay(20271230))).reason == Reason.DATE_OUTSIDE_CALENDAR


def test_a_day_is_refused_while_a_book_is_open() -> None:
    market = start(Phase.PRE_OPEN)

    assert refusal(market.run(StartDay(20261125))).reason == Reason.BAD_TRANSITION


def test_base_price_and_limits_come_from_the_day_s_tables_rounded_inwards() -> None:
    market = Market()
    market.must(
        SetTickTable("coarse", 20261125, [TickRow(0, 7)]),
        SetTickTable("coarse", 0, [TickRow(0, 1)]),
        SetLimitTable("narrow", 0, [LimitRow(100, 30), LimitRow(0, 50)]),
        ListInstrument(CODE, reference_price=101, tick_table="coarse", limit_table="narrow"),
    )
    assert only(market.must(StartDay(TODAY)), DayLimitsSet) == DayLimitsSet(CODE, 101, 51, 151)
    market.phase(*START_DAY)
    # 101 lies between 98 and 105: 98 is nearer. Its width is 30, since 98 is below 100: 68 to 128, inwards 70 to 126.
    assert only(market.must(StartDay(20261125)), DayLimitsSet) == DayLimitsSet(CODE, 98, 70, 126)
    market.phase(Phase.PRE_OPEN)
    assert refusal(market.buy(1, 63)).reason == Reason.BELOW_LIMIT
    assert refusal(market.buy(1, 133)).reason == Reason.ABOVE_LIMIT
    assert refusal(market.buy(1, 71)).reason == Reason.OFF_TICK


def test_a_base_price_half_way_between_two_ticks_goes_up() -> None:
    market = Market()
    market.must(SetTickTable("ten", 0, [TickRow(0, 10)]), ListInstrument(CODE, reference_price=105, tick_table="ten"))

    assert only(market.must(StartDay(TODAY)), DayLimitsSet).base_price == 110


def test_a_table_that_arrives_during_the_day_holds_from_the_next() -> None:
    market = start(Phase.PRE_OPEN)
    market.must(SetTickTable("one", 20260101, [TickRow(0, 5)]))
    assert only(market.buy(1, 101), Accepted)
    market.phase(*START_DAY[1:])
    market.must(StartDay(20261125), SetPhase(CODE, Phase.PRE_OPEN))
    assert refusal(market.buy(1, 101)).reason == Reason.OFF_TICK


def test_a_day_is_refused_while_a_table_it_needs_does_not_hold_yet() -> None:
    market = Market()
    market.must(SetTickTable("later", 20270104, [TickRow(0, 5)]), ListInstrument(CODE, tick_table="later"))

    assert refusal(market.run(StartDay(TODAY))).reason == Reason.BAD_REFERENCE_DATA
    market.must(StartDay(20270104))


def test_orders_that_rest_overnight_are_validated_in_the_morning() -> None:
    market = zaraba(reference_price=100, limit_table="none")
    for price in (100, 101, 105):
        market.buy(1, price, time_in_force=GTC)
    market.phase(Phase.CLOSED)
    market.must(SetTickTable("one", 0, [TickRow(0, 5)]))

    events = market.must(StartDay(20261125))

    assert [(event.price, event.reason) for event in every(events, Cancelled)] == [(101, CancelReason.LIMITS)]
    assert market.engine.depth(CODE)[0] == [(105, 1), (100, 1)]


def test_limits_of_a_new_day_void_the_orders_beyond_them() -> None:
    market = Market()
    market.must(
        SetLimitTable("narrow", 0, [LimitRow(0, 10)]),
        ListInstrument(CODE, "CONTINUOUS", reference_price=100, limit_table="narrow"),
        StartDay(TODAY),
        SetPhase(CODE, Phase.CONTINUOUS),
    )
    market.buy(1, 91, time_in_force=GTC)
    market.sell(1, 110, time_in_force=GTC)
    market.buy(1, 110)
    market.buy(1, 95, time_in_force=GTC)
    market.phase(Phase.CLOSED)

    events = market.must(StartDay(20261125))

    assert only(events, DayLimitsSet) == DayLimitsSet(CODE, 110, 100, 120)
    assert [event.price for event in every(events, Cancelled)] == [91, 95]


def test_the_operator_sets_a_reference_price_on_the_grid() -> None:
    market = start(Phase.PRE_OPEN, tick_table="tse", reference_price=100_000)

    assert market.must(SetReferencePrice(CODE, 100_100)) == [ReferencePriceSet(CODE, 100_100)]
    assert market.engine.instrument(CODE).reference_price == 100_100
    assert refusal(market.run(SetReferencePrice(CODE, 100_150))).reason == Reason.OFF_TICK
    assert refusal(market.run(SetReferencePrice(CODE, 0))).reason == Reason.BAD_PRICE


def test_a_member_cannot_move_the_market_s_phases() -> None:
    market = start(Phase.PRE_OPEN)

    event = refusal(market.run(SetPhase(CODE, Phase.PRE_OPEN_NCP), "alpha"))

    assert event == Rejected("alpha", "", Reason.NOT_PERMITTED, event.text, CODE)
    assert market.engine.instrument(CODE).phase == Phase.PRE_OPEN


def test_market_orders_queue_before_all_prices_in_a_call() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(5, 100)
    market.buy(7, order_type=OrderType.MARKET)

    assert market.engine.depth(CODE) == ([(0, 7), (100, 5)], [])
    assert market.engine.queue(CODE, Side.BUY) == [2, 1]
