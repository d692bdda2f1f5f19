"""What protects the market: kill switch, pre-trade limits, halts, lost connections, busts, the volatility band."""

from __future__ import annotations

from typing import Any

import pytest

from engine import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    BustTrade,
    CancelFrozen,
    Cancelled,
    CancelReason,
    ConnectionLost,
    Disconnected,
    Engine,
    Event,
    Kill,
    KillSwitched,
    LargeOrderAlerted,
    ListInstrument,
    MassCancelled,
    NewOrder,
    OrderType,
    Phase,
    PhaseChanged,
    PhaseTimed,
    Reason,
    Rejected,
    Restore,
    ResumeInstrument,
    RiskLimitsSet,
    SetPhase,
    SetReferencePrice,
    SetRiskLimits,
    Side,
    StartDay,
    SuspendInstrument,
    TimeInForce,
    TradeBusted,
    Traded,
    TradingStateChanged,
    VolatilityInterrupted,
)
from tests.market import CODE, START_DAY, TODAY, Market, every, only, refusal, start, zaraba

OTHER = "TOKEN-2"
SECOND = 1_000_000_000


def two_books() -> Market:
    """Two books of calls, collecting; in each an order of alpha and one of beta."""
    market = start(Phase.PRE_OPEN)
    market.must(ListInstrument(OTHER))
    market.phase(*START_DAY[1:])
    market.must(StartDay(20261125))
    for code in (CODE, OTHER):
        market.phase(Phase.PRE_OPEN, code=code)
        market.buy(1, 100, id=f"{code}-alpha", code=code)
        market.sell(1, 200, id=f"{code}-beta", code=code)
    return market


def reasons(events: list[Event]) -> dict[str, CancelReason]:
    return {event.client_order_id: event.reason for event in every(events, Cancelled)}


# --- the kill switch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "gone"),
    [
        (("alpha", ""), {f"{CODE}-alpha", f"{OTHER}-alpha"}),
        (("", OTHER), {f"{OTHER}-alpha", f"{OTHER}-beta"}),
        (("beta", CODE), {f"{CODE}-beta"}),
        (("", ""), {f"{CODE}-alpha", f"{CODE}-beta", f"{OTHER}-alpha", f"{OTHER}-beta"}),
        (("gamma", ""), set()),
    ],
)
def test_a_kill_cancels_what_falls_under_it_and_refuses_its_new_orders_until_it_is_taken_back(
    pair: tuple[str, str], gone: set[str]
) -> None:
    market = two_books()

    events = market.must(Kill(*pair))

    assert events[0] == KillSwitched(*pair, True, len(gone))
    assert reasons(events) == dict.fromkeys(gone, CancelReason.KILL)
    for member in ("alpha", "beta", "gamma"):
        for code in (CODE, OTHER):
            answer = market.buy(1, 90, member, code=code)[-1]
            if pair[0] in ("", member) and pair[1] in ("", code):
                assert isinstance(answer, Rejected)
                assert answer.reason == Reason.KILLED
                assert market.engine.is_killed(member, code)
            else:
                assert isinstance(answer, Accepted)
    assert market.must(Restore(*pair)) == [KillSwitched(*pair, False, 0)]
    for member in ("alpha", "beta", "gamma"):
        assert only(market.buy(1, 90, member), Accepted)


def test_a_kill_acts_at_once_in_a_non_cancel_period() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, 100, id="a")
    market.sell(10, 100, id="b")
    market.phase(Phase.PRE_OPEN_NCP)

    assert reasons(market.must(Kill("alpha"))) == {"a": CancelReason.KILL}
    assert only(market.phase(Phase.OPENING_AUCTION), AuctionUncrossed).volume == 0


def test_a_kill_takes_what_waits_outside_the_book_and_what_hides() -> None:
    market = zaraba(reference_price=100)
    market.buy(10, order_type=OrderType.STOP, stop_price=120, id="stop")
    market.sell(50, 130, "alpha", display_quantity=10, id="iceberg")

    events = market.must(Kill("alpha"))

    assert {event.client_order_id: (event.quantity, event.waiting) for event in every(events, Cancelled)} == {
        "stop": (10, True),
        "iceberg": (50, False),
    }
    assert market.engine.depth(CODE) == ([], [])


def test_of_two_kills_that_cover_an_order_each_has_to_be_taken_back() -> None:
    market = start(Phase.PRE_OPEN)
    market.must(Kill("alpha"), Kill("", CODE))

    market.must(Restore("alpha"))
    assert refusal(market.buy(1, 100)).reason == Reason.KILLED
    market.must(Restore("", CODE))
    assert only(market.buy(1, 100), Accepted)


def test_a_member_killed_before_it_was_ever_heard_gets_nothing_in() -> None:
    market = start(Phase.PRE_OPEN)
    market.must(Kill("newcomer"))

    assert refusal(market.buy(1, 100, "newcomer")).reason == Reason.KILLED
    assert "newcomer in every instrument" in refusal(market.buy(1, 100, "newcomer")).text


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (Kill("Alpha"), Reason.BAD_IDENTITY),
        (Kill("", "NONE"), Reason.UNKNOWN_INSTRUMENT),
        (Restore("alpha"), Reason.BAD_TRANSITION),
        (Restore("", "NONE"), Reason.UNKNOWN_INSTRUMENT),
    ],
)
def test_a_kill_switch_that_cannot_be_meant_is_refused(command: Any, reason: Reason) -> None:
    assert refusal(start(Phase.PRE_OPEN).run(command)).reason == reason


def test_a_kill_that_is_on_cannot_be_put_on_again() -> None:
    market = start(Phase.PRE_OPEN)
    market.must(Kill("alpha"))

    assert refusal(market.run(Kill("alpha"))).reason == Reason.BAD_TRANSITION


# --- pre-trade limits ------------------------------------------------------------------------------------------------


def limited(**limits: Any) -> Market:
    """A call with 10,000 units outstanding and a last price of 100; alpha has limits there."""
    market = start(Phase.PRE_OPEN, reference_price=100, units_outstanding=10_000)
    market.must(SetRiskLimits("alpha", CODE, **limits))
    return market


def test_an_order_is_refused_above_the_quantity_cap_and_taken_at_it() -> None:
    market = limited(quantity_max=10)

    assert refusal(market.buy(11, 100)).reason == Reason.QUANTITY_CAP
    assert only(market.buy(10, 100), Accepted)
    assert only(market.buy(11, 100, "beta"), Accepted)


def test_an_order_is_refused_above_the_value_cap_and_taken_at_it() -> None:
    market = limited(value_max=1_000)

    assert refusal(market.buy(10, 101)).reason == Reason.VALUE_CAP
    assert only(market.buy(10, 100), Accepted)


def test_a_sell_far_below_the_last_price_is_worth_what_it_would_fetch() -> None:
    """The order that sold 610,000 shares at 1 yen instead of 1 share at 610,000 was cheap by its limit."""
    market = limited(value_max=1_000)

    event = refusal(market.sell(11, 1, "alpha"))

    assert event.reason == Reason.VALUE_CAP
    assert "got 1100 yen" in event.text


def test_a_market_order_is_worth_the_most_that_it_can_cost() -> None:
    market = limited(value_max=1_000)
    assert refusal(market.buy(11)).reason == Reason.VALUE_CAP
    assert only(market.buy(10), Accepted)

    unpriced = start(Phase.PRE_OPEN)
    unpriced.must(SetRiskLimits("alpha", value_max=1_000))
    assert "without a price to value it by" in refusal(unpriced.buy(1)).text


def test_value_is_in_yen_whatever_the_price_unit() -> None:
    market = start(Phase.PRE_OPEN, price_decimals=1, lot=10)
    market.must(SetRiskLimits("alpha", CODE, value_max=1_000))

    assert refusal(market.buy(20, 501)).reason == Reason.VALUE_CAP
    assert only(market.buy(20, 500), Accepted)


def test_more_than_thirty_percent_of_the_units_is_refused_and_more_than_five_has_to_be_confirmed() -> None:
    market = limited(share_alert=500, share_max=3_000)

    assert refusal(market.buy(3_001, 100, confirmed=True)).reason == Reason.SHARE_CAP
    assert only(market.buy(500, 100), Accepted)
    alert, refused = market.buy(501, 100, id="large")
    assert alert == LargeOrderAlerted("alpha", "large", CODE, 501, 10_000, False)
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.NEEDS_CONFIRMATION
    alert, accepted = market.buy(501, 100, id="meant", confirmed=True)
    assert alert == LargeOrderAlerted("alpha", "meant", CODE, 501, 10_000, True)
    assert isinstance(accepted, Accepted)
    assert market.run(NewOrder("meant", CODE, Side.BUY, 501, 100, confirmed=True), "alpha")[0].repeat  # type: ignore[union-attr]
    again = refusal(market.run(NewOrder("meant", CODE, Side.BUY, 501, 100), "alpha"))
    assert again.reason == Reason.DUPLICATE_CLIENT_ORDER_ID


def test_no_share_is_asked_where_nobody_knows_the_units_outstanding() -> None:
    market = start(Phase.PRE_OPEN)
    market.must(SetRiskLimits(share_alert=500, share_max=3_000))

    assert only(market.buy(10**9, 100), Accepted)


def test_a_limit_far_from_the_last_price_is_refused() -> None:
    market = limited(collar=1_000)

    assert refusal(market.buy(1, 111)).reason == Reason.PRICE_COLLAR
    assert refusal(market.sell(1, 89, "alpha")).reason == Reason.PRICE_COLLAR
    assert only(market.buy(1, 110), Accepted)
    assert only(market.buy(1), Accepted)  # it names no price
    market.must(SetReferencePrice(CODE, 120))
    assert only(market.buy(1, 111), Accepted)


def test_open_orders_are_counted_in_the_book_of_the_limit_or_over_all_books() -> None:
    market = two_books()
    market.must(SetRiskLimits("alpha", CODE, open_orders_max=2))
    assert only(market.buy(1, 99, id="second"), Accepted)
    assert refusal(market.buy(1, 98)).reason == Reason.TOO_MANY_ORDERS
    assert only(market.buy(1, 98, code=OTHER), Accepted)
    market.cancel("second")
    assert only(market.buy(1, 98), Accepted)

    market.must(SetRiskLimits("beta", "", open_orders_max=2))
    assert refusal(market.sell(1, 300)).reason == Reason.TOO_MANY_ORDERS


def test_messages_over_the_rate_are_refused_until_the_next_interval_and_cancels_are_free() -> None:
    market = start(Phase.PRE_OPEN)
    market.must(SetRiskLimits("", "", messages_max=2, interval_ms=500))

    def send(at: int, name: str, member: str = "alpha") -> Event:
        return market.engine.apply(NewOrder(name, CODE, Side.BUY, 1, 100), member, at)[-1]

    assert isinstance(send(10 * SECOND, "1"), Accepted)
    assert isinstance(send(10 * SECOND + 1, "2"), Accepted)
    refused = send(10 * SECOND + SECOND // 2 - 1, "3")
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.TOO_MANY_MESSAGES
    assert isinstance(send(10 * SECOND + 2, "1", "beta"), Accepted)  # each member by itself
    assert only(market.cancel("1"), Cancelled)
    assert isinstance(send(10 * SECOND + SECOND // 2, "4"), Accepted)


def test_a_refused_order_is_no_message_of_the_interval() -> None:
    market = limited(messages_max=1, interval_ms=10**6, quantity_max=10)

    assert refusal(market.buy(11, 100)).reason == Reason.QUANTITY_CAP
    assert refusal(market.buy(7, 100, time_in_force=TimeInForce.IOC)).reason == Reason.NOT_OFFERED
    assert only(market.buy(1, 100), Accepted)
    before = market.engine._protection_key(100)
    assert refusal(market.buy(1, 100)).reason == Reason.TOO_MANY_MESSAGES
    assert market.engine._protection_key(100) == before
    market.engine.apply(NewOrder("later", CODE, Side.BUY, 11, 100), "alpha", 10**15)
    assert market.engine._protection_key(100) == before


def test_an_amend_passes_the_limits_unless_it_only_reduces() -> None:
    market = limited(quantity_max=10, value_max=2_000, collar=1_000, messages_max=3, interval_ms=10**6)
    market.buy(10, 100, id="a")

    assert refusal(market.amend("a", quantity=11)).reason == Reason.QUANTITY_CAP
    assert refusal(market.amend("a", price=111)).reason == Reason.PRICE_COLLAR
    assert only(market.amend("a", price=101), Amended)
    assert only(market.amend("a", price=102), Amended)
    assert refusal(market.amend("a", price=103)).reason == Reason.TOO_MANY_MESSAGES
    assert only(market.amend("a", quantity=9), Amended)


def test_an_amend_refused_by_a_limit_leaves_the_order_even_where_invalid_details_would_end_it() -> None:
    market = start(Phase.PRE_OPEN, rules={"invalid_replace": "cancel_live"})
    market.must(SetRiskLimits("", CODE, quantity_max=10))
    market.buy(10, 100, id="a")

    assert refusal(market.amend("a", quantity=11)).reason == Reason.QUANTITY_CAP
    assert market.engine.order(1).open_quantity == 10


def test_the_limits_of_the_member_and_of_the_book_both_hold() -> None:
    market = limited(quantity_max=100)
    market.must(SetRiskLimits("", CODE, quantity_max=50), SetRiskLimits("", "", value_max=4_000))

    assert refusal(market.buy(51, 10)).reason == Reason.QUANTITY_CAP
    assert refusal(market.buy(50, 100)).reason == Reason.VALUE_CAP
    assert refusal(market.buy(51, 10, "beta")).reason == Reason.QUANTITY_CAP
    assert only(market.buy(50, 80), Accepted)


@pytest.mark.parametrize(
    ("pair", "whose"),
    [
        (("alpha", CODE), f" for alpha in {CODE}, got 2"),
        (("alpha", ""), " for alpha, got 2"),
        (("", CODE), f" for {CODE}, got 2"),
        (("", ""), "at most 1, got 2"),
    ],
)
def test_a_refusal_says_whose_limit_it_is(pair: tuple[str, str], whose: str) -> None:
    market = start(Phase.PRE_OPEN)
    market.must(SetRiskLimits(*pair, quantity_max=1))

    assert whose in refusal(market.buy(2, 100)).text


def test_limits_of_nothing_are_taken_back() -> None:
    market = limited(quantity_max=1)

    assert market.must(SetRiskLimits("alpha", CODE)) == [
        RiskLimitsSet("alpha", CODE, 0, 0, 0, 0, 0, 0, 0, 1000, None),
    ]
    assert only(market.buy(2, 100), Accepted)


CHECKS: list[tuple[dict[str, Any], dict[str, Any], Reason]] = [
    ({"value_max": 1}, {}, Reason.VALUE_CAP),
    ({"quantity_max": 1}, {}, Reason.QUANTITY_CAP),
    ({"share_max": 1}, {}, Reason.SHARE_CAP),
    ({"share_alert": 1}, {}, Reason.NEEDS_CONFIRMATION),
    ({"collar": 1}, {"confirmed": True}, Reason.PRICE_COLLAR),
    ({"open_orders_max": 1}, {"confirmed": True, "price": 100}, Reason.TOO_MANY_ORDERS),
    ({"messages_max": 1}, {"confirmed": True, "price": 100}, Reason.TOO_MANY_MESSAGES),
]


@pytest.mark.parametrize("first", range(len(CHECKS)))
def test_the_first_check_that_fails_names_the_refusal(first: int) -> None:
    market = start(Phase.PRE_OPEN, reference_price=100, units_outstanding=10_000)
    market.must(SetRiskLimits("alpha", "", messages_max=1, interval_ms=10**6))
    assert only(market.buy(2, 100), Accepted)
    everything: dict[str, Any] = {}
    for limits, _, _ in CHECKS[first:]:
        everything |= limits
    market.must(SetRiskLimits("alpha", CODE, **everything))
    if first == len(CHECKS) - 1:
        market.must(SetRiskLimits("alpha", CODE))

    order = {"price": 200, **CHECKS[first][1]}
    assert every(market.buy(2, **order), Rejected)[0].reason == CHECKS[first][2]
    assert refusal(market.buy(2, 100, time_in_force=TimeInForce.IOC)).reason == Reason.NOT_OFFERED
    market.must(Kill("alpha"))
    assert refusal(market.buy(2, **order)).reason == Reason.KILLED


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (SetRiskLimits(quantity_max=-1), "$.quantity_max"),
        (SetRiskLimits(value_max=2**60), "$.value_max"),
        (SetRiskLimits(messages_max=5, interval_ms=0), "$.interval_ms"),
    ],
)
def test_limits_that_cannot_be_are_refused_with_their_place(command: SetRiskLimits, place: str) -> None:
    event = refusal(start(Phase.PRE_OPEN).run(command))

    assert event.reason == Reason.BAD_REFERENCE_DATA
    assert place in event.text


# --- cancels that have to wait ---------------------------------------------------------------------------------------


def test_a_refused_cancel_says_from_which_phase_on_and_not_before_when() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, 100, id="a")
    assert market.must(SetPhase(CODE, Phase.PRE_OPEN_NCP, until_ns=77)) == [
        PhaseChanged(CODE, Phase.PRE_OPEN_NCP, Phase.PRE_OPEN),
        PhaseTimed(CODE, Phase.PRE_OPEN_NCP, 77),
    ]

    refused, frozen = market.cancel("a")

    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.WRONG_PHASE
    assert "from Break on they are taken again" in refused.text
    assert frozen == CancelFrozen("alpha", refused.client_order_id, "a", CODE, Phase.BREAK, 77)


def test_a_mass_cancel_that_waits_says_until_when() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, 100, id="a")
    market.must(SetPhase(CODE, Phase.PRE_OPEN_NCP, until_ns=77))

    frozen, done = market.mass_cancel()

    assert frozen == CancelFrozen("alpha", done.request_id, "", CODE, Phase.BREAK, 77)  # type: ignore[union-attr]
    assert isinstance(done, MassCancelled)


def test_in_every_phase_of_every_profile_a_cancel_is_taken_or_has_a_phase_that_takes_it() -> None:
    from engine.checks import cancels_from
    from engine.market import Instrument
    from engine.profiles import PROFILES, Rules
    from engine.tables import TickTable

    for profile in PROFILES.values():
        rules = Rules(profile, {})
        for phase, phase_rules in rules.phases.items():
            instrument = Instrument(
                0,
                CODE,
                rules,
                Engine()._make_book(),
                TickTable([(0, 1)]),
                reference=0,
                lot=1,
                price_decimals=0,
                tick_table="one",
                limit_table="none",
                settlement_days=2,
                ledger="embedded",
                units_outstanding=0,
            )
            instrument.enter(phase)
            if not phase_rules.cancel:
                overnight = cancels_from(instrument, True)
                assert rules.phases[overnight].cancel, (profile.name, phase)
                day = cancels_from(instrument, False)
                assert rules.phases[day].cancel or day == Phase.CLOSED, (profile.name, phase)


# --- halts -----------------------------------------------------------------------------------------------------------


def test_a_halt_may_void_the_orders_that_are_there() -> None:
    market = zaraba(reference_price=100, rules={"halt_resting": "purge", "halt_orders": "queue"})
    market.buy(10, 99, id="a")
    market.sell(10, order_type=OrderType.STOP, stop_price=90, id="stop")

    events = market.must(SuspendInstrument(CODE))

    assert events[0] == TradingStateChanged(CODE, True)
    assert reasons(events) == {"a": CancelReason.HALT, "stop": CancelReason.HALT}
    assert only(market.buy(10, 98), Accepted)


def test_a_call_reopens_a_halted_book_where_its_rule_says_so() -> None:
    market = zaraba(reference_price=100, rules={"halt_orders": "queue", "reopen_call_seconds": 300})
    market.must(SuspendInstrument(CODE))
    market.buy(10, 101)
    market.sell(10, 99)

    resumed, changed, timed = market.engine.apply(ResumeInstrument(CODE), "", 5 * SECOND)

    assert resumed == TradingStateChanged(CODE, False)
    assert changed == PhaseChanged(CODE, Phase.CALL, Phase.CONTINUOUS)
    assert timed == PhaseTimed(CODE, Phase.CALL, 305 * SECOND)
    assert market.engine.instrument(CODE).until_ns == 305 * SECOND
    assert not every(market.buy(5, 99), Traded)  # it collects
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 10
    market.phase(Phase.CONTINUOUS)


def test_a_halt_in_a_call_gives_it_its_whole_time_again() -> None:
    market = zaraba(rules={"reopen_call_seconds": 300})
    market.phase(Phase.CALL)
    market.must(SuspendInstrument(CODE))

    events = market.engine.apply(ResumeInstrument(CODE), "", 5 * SECOND)

    assert events == [TradingStateChanged(CODE, False), PhaseTimed(CODE, Phase.CALL, 305 * SECOND)]


def test_a_halt_does_not_cut_a_long_call_short() -> None:
    market = start(Phase.CLOSED, profile="N_CALLS", rules={"reopen_call_seconds": 300})
    market.must(SetPhase(CODE, Phase.CALL, until_ns=9_000 * SECOND), SuspendInstrument(CODE))

    events = market.engine.apply(ResumeInstrument(CODE), "", 5 * SECOND)

    assert events[-1] == PhaseTimed(CODE, Phase.CALL, 9_000 * SECOND)


@pytest.mark.parametrize("seconds", [0, 300])
def test_a_halt_in_a_non_cancel_period_drops_the_auction_even_if_it_ends_before(seconds: int) -> None:
    market = start(Phase.PRE_OPEN, rules={"reopen_call_seconds": seconds})
    market.buy(10, 100, id="a")
    market.sell(10, 100)
    market.phase(Phase.PRE_OPEN_NCP)
    market.must(SuspendInstrument(CODE))
    assert market.engine.instrument(CODE).dropped
    market.must(ResumeInstrument(CODE))

    if not seconds:
        assert not every(market.phase(Phase.OPENING_AUCTION), AuctionUncrossed)
        market.phase(Phase.CALL)
    assert market.engine.instrument(CODE).phase == Phase.CALL
    assert not market.engine.instrument(CODE).dropped
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 10
    market.phase(Phase.BREAK)


def test_a_call_that_reopens_out_of_a_non_cancel_period_takes_the_cancels_that_waited() -> None:
    market = start(Phase.PRE_OPEN, rules={"reopen_call_seconds": 300})
    market.buy(10, 100, id="a")
    market.phase(Phase.PRE_OPEN_NCP)
    market.mass_cancel()
    market.must(SuspendInstrument(CODE))

    assert reasons(market.must(ResumeInstrument(CODE))) == {"a": CancelReason.MASS_CANCEL}


def test_a_book_that_was_collecting_goes_on_where_it_was() -> None:
    market = start(Phase.PRE_OPEN, rules={"reopen_call_seconds": 300})
    market.must(SuspendInstrument(CODE))

    assert market.must(ResumeInstrument(CODE)) == [TradingStateChanged(CODE, False)]


# --- lost connections ------------------------------------------------------------------------------------------------


def test_a_lost_connection_takes_the_orders_of_its_member_where_the_instrument_says_so() -> None:
    market = two_books()
    market.must(SetRiskLimits("", OTHER, cancel_on_disconnect=False))

    events = market.must(Disconnected("alpha"))

    assert events[0] == ConnectionLost("alpha", 1, 0)
    assert reasons(events) == {f"{CODE}-alpha": CancelReason.DISCONNECT}


def test_what_is_said_of_the_member_goes_before_what_is_said_of_the_book() -> None:
    market = zaraba()
    market.buy(10, 100, id="a")
    assert market.must(Disconnected("alpha")) == [ConnectionLost("alpha", 0, 0)]

    market.must(SetRiskLimits("alpha", "", cancel_on_disconnect=True))
    market.must(SetRiskLimits("", CODE, cancel_on_disconnect=False))
    assert reasons(market.must(Disconnected("alpha"))) == {"a": CancelReason.DISCONNECT}


def test_in_a_non_cancel_period_it_waits_until_the_auction_is_over() -> None:
    market = start(Phase.PRE_OPEN)
    market.buy(10, 100, id="first")
    market.phase(Phase.PRE_OPEN_NCP)
    assert market.must(Disconnected("alpha")) == [ConnectionLost("alpha", 0, 1)]
    market.buy(10, 99, id="second")
    assert market.must(Disconnected("alpha")) == [ConnectionLost("alpha", 0, 1)]
    market.sell(4, 100)
    market.buy(10, 98, id="third")  # entered after the connection was back

    assert only(market.phase(Phase.OPENING_AUCTION), AuctionUncrossed).volume == 4
    assert reasons(market.phase(Phase.BREAK)) == {
        "first": CancelReason.DISCONNECT,
        "second": CancelReason.DISCONNECT,
    }


def test_what_waits_of_others_and_by_request_waits_on() -> None:
    market = start(Phase.PRE_OPEN)
    for member in ("alpha", "beta"):
        market.buy(10, 100, member, id=f"{member}-100")
        market.buy(10, 99, member, id=f"{member}-99")
    market.phase(Phase.PRE_OPEN_NCP)
    market.mass_cancel(price_from=100)
    market.must(Disconnected("beta"), Disconnected("alpha"), Disconnected("alpha"))

    assert reasons(market.phase(Phase.OPENING_AUCTION, Phase.BREAK)) == {
        "alpha-100": CancelReason.MASS_CANCEL,
        "alpha-99": CancelReason.DISCONNECT,
        "beta-100": CancelReason.DISCONNECT,
        "beta-99": CancelReason.DISCONNECT,
    }


def test_a_closed_book_keeps_the_orders_of_a_member_that_goes_home() -> None:
    market = zaraba(rules={"cancel_on_disconnect": 1})
    market.buy(10, 100, time_in_force=TimeInForce.GTC, id="a")
    market.phase(Phase.CLOSED)

    assert market.must(Disconnected("alpha")) == [ConnectionLost("alpha", 0, 0)]
    market.must(StartDay(20261125))
    assert not every(market.phase(Phase.CONTINUOUS), Cancelled)
    assert market.engine.order(1).open_quantity == 10


def test_a_member_nobody_knows_has_nothing_to_lose() -> None:
    market = start(Phase.PRE_OPEN)

    assert market.must(Disconnected("stranger")) == [ConnectionLost("stranger", 0, 0)]
    assert market.engine.participants() == []
    assert refusal(market.run(Disconnected("Not A Member"))).reason == Reason.BAD_IDENTITY


# --- trade busts -----------------------------------------------------------------------------------------------------


def test_a_busted_trade_is_told_whole_and_changes_neither_orders_nor_prices() -> None:
    market = zaraba(units_outstanding=1_000)
    market.sell(10, 100, id="s", account="fund")
    trade = only(market.buy(4, 100, id="b"), Traded)
    market.phase(Phase.CLOSED)
    market.must(StartDay(20261125))
    before = market.engine.instrument(CODE)

    assert market.must(BustTrade(trade.trade_id)) == [
        TradeBusted(1, CODE, 100, 4, "alpha", "b", 2, "", "beta", "s", 1, "fund", TODAY, 1_000)
    ]
    assert market.engine.instrument(CODE) == before
    assert market.engine.order(2).open_quantity == 0


def test_only_a_trade_that_stands_can_be_busted() -> None:
    market = zaraba()
    market.sell(10, 100)
    market.buy(4, 100)
    market.must(BustTrade(1))

    assert refusal(market.run(BustTrade(1))).reason == Reason.TRADE_BUSTED
    assert refusal(market.run(BustTrade(2))).reason == Reason.UNKNOWN_TRADE
    assert refusal(market.run(BustTrade(0))).reason == Reason.UNKNOWN_TRADE


def test_every_trade_of_a_long_life_can_still_be_busted() -> None:
    """More trades than the tape keeps in one block, over two days."""
    engine = Engine()
    day = 20261124
    engine.apply(ListInstrument(CODE, "CONTINUOUS"))
    made: list[Traded] = []
    for date in (day, day + 1):
        engine.apply(StartDay(date))
        engine.apply(SetPhase(CODE, Phase.CONTINUOUS))
        engine.apply(NewOrder(f"s-{date}", CODE, Side.SELL, 3_000, 100), "beta")
        for i in range(3_000):
            made.extend(every(engine.apply(NewOrder(f"b-{date}-{i}", CODE, Side.BUY, 1, 100), "alpha"), Traded))
        engine.apply(SetPhase(CODE, Phase.CLOSED))
    assert len(made) == 6_000

    for trade in (made[0], made[2_999], made[3_000], made[4_095], made[4_096], made[-1]):
        busted = only(engine.apply(BustTrade(trade.trade_id)), TradeBusted)
        assert (busted.trade_id, busted.buy_client_order_id, busted.trade_date) == (
            trade.trade_id,
            trade.buy_client_order_id,
            trade.trade_date,
        )
    engine.check()


# --- the volatility band ---------------------------------------------------------------------------------------------


def banded(**rules: Any) -> Market:
    """Zaraba around 100 with a band of 10 %."""
    return zaraba(reference_price=100, rules={"volatility_band": 1_000, "self_trade": "none", **rules})


def test_a_trade_outside_the_band_is_not_made_and_a_call_opens() -> None:
    market = banded()
    market.sell(10, 105, id="near")
    market.sell(10, 111, id="far")

    accepted, traded, interrupted, changed, timed = market.buy(25, 120, id="b")

    assert isinstance(accepted, Accepted)
    assert isinstance(traded, Traded)
    assert (traded.price, traded.quantity) == (105, 10)
    assert interrupted == VolatilityInterrupted(CODE, 111, 100, 90, 110)
    assert changed == PhaseChanged(CODE, Phase.CALL, Phase.CONTINUOUS)
    assert timed == PhaseTimed(CODE, Phase.CALL, market.engine.time_ns + 300 * SECOND)
    assert market.engine.depth(CODE) == ([(120, 15)], [(111, 10)])
    result = only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed)
    assert result.volume == 10
    market.phase(Phase.CONTINUOUS)


def test_the_edge_of_the_band_trades() -> None:
    market = banded()
    market.sell(10, 110)

    assert only(market.buy(10, 110), Traded)
    assert market.engine.instrument(CODE).phase == Phase.CONTINUOUS


def test_a_resting_price_outside_the_band_interrupts_on_either_side() -> None:
    market = banded()
    market.sell(10, 89, id="far")  # nobody buys, so it rests far below the band

    events = market.buy(10, 100)

    assert only(events, VolatilityInterrupted).price == 89
    assert not every(events, Traded)


def test_what_must_trade_at_once_goes_and_what_has_no_limit_waits_for_the_auction() -> None:
    market = banded()
    market.sell(10, 111)
    events = market.buy(10, 120, time_in_force=TimeInForce.IOC, id="ioc")
    assert only(events, VolatilityInterrupted)
    assert reasons(events) == {"ioc": CancelReason.REMAINDER}

    market = banded()
    market.sell(10, 111)
    assert not every(market.buy(4, id="market"), Cancelled)
    assert market.engine.depth(CODE) == ([(0, 4)], [(111, 10)])
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 4


def test_an_order_that_trades_whole_or_not_at_all_looks_no_further_than_the_band() -> None:
    market = banded()
    market.sell(10, 105)
    market.sell(10, 111)

    events = market.buy(20, 120, time_in_force=TimeInForce.FOK, id="fok")

    assert reasons(events) == {"fok": CancelReason.REMAINDER}
    assert not every(events, VolatilityInterrupted)


def test_stops_that_the_last_trade_triggered_join_the_call() -> None:
    market = banded()
    market.sell(10, 105)
    market.sell(10, 130)
    for name in ("one", "two"):
        market.buy(5, order_type=OrderType.STOP, stop_price=105, id=name, member="gamma")
    market.buy(5, 0, order_type=OrderType.STOP, stop_price=105, id="ioc", time_in_force=TimeInForce.IOC)

    events = market.buy(10, 105)

    assert [event.client_order_id for event in every(events, Activated)] == ["one", "two", "ioc"]
    assert only(events, VolatilityInterrupted).price == 130
    assert reasons(events) == {"ioc": CancelReason.REMAINDER}
    assert market.engine.depth(CODE) == ([(0, 10)], [(130, 10)])


def test_without_a_last_price_there_is_no_band() -> None:
    market = zaraba(rules={"volatility_band": 1, "self_trade": "none"})
    market.sell(10, 1_000_000)

    assert only(market.buy(10), Traded).price == 1_000_000


def test_a_market_to_limit_order_takes_the_price_that_it_could_not_trade_at() -> None:
    market = banded()
    market.sell(10, 111)

    events = market.buy(5, order_type=OrderType.MARKET_TO_LIMIT)

    assert only(events, VolatilityInterrupted)
    assert market.engine.depth(CODE) == ([(111, 5)], [(111, 10)])


# --- all of it is state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        Kill("alpha"),
        Kill("", CODE),
        SetRiskLimits("alpha", quantity_max=5),
        BustTrade(1),
        SuspendInstrument(CODE),
        SetPhase(CODE, Phase.CALL, until_ns=5),
    ],
)
def test_what_protects_is_part_of_the_state(command: Any) -> None:
    market = zaraba()
    market.sell(1, 100, "gamma")
    market.buy(1, 100, "delta")
    before = market.engine.digest()

    market.must(command)

    market.engine.sequence -= 1
    market.engine.time_ns = 1_000 + market.engine.sequence - 1
    assert market.engine.digest() != before


def test_a_message_that_was_let_through_is_part_of_the_state() -> None:
    def digest(limit: SetRiskLimits) -> bytes:
        market = start(Phase.PRE_OPEN)
        market.must(limit)
        market.buy(1, 100)
        market.must(SetRiskLimits("", "", open_orders_max=9))
        return market.engine.digest()

    assert digest(SetRiskLimits("alpha", "", messages_max=5)) == digest(SetRiskLimits("alpha", "", messages_max=5))
    assert digest(SetRiskLimits("alpha", "", messages_max=5)) != digest(SetRiskLimits("alpha", "", messages_max=6))
