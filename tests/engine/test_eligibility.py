"""Who may trade and hold a token, and when: at entry, at the freeze, each morning, and what settlement is told."""

from __future__ import annotations

from typing import Any

import pytest

from engine import (
    Accepted,
    Approval,
    ApproveTransfer,
    AuctionUncrossed,
    Cancelled,
    CancelReason,
    Command,
    Deposit,
    EligibilitySet,
    HolderSet,
    ListInstrument,
    MemberPermitted,
    OrderMarked,
    OrderType,
    PermitMember,
    Phase,
    Reason,
    Rejected,
    SetEligibility,
    SetHolder,
    SetPhase,
    SetTokenStatus,
    SetWindow,
    Side,
    StartDay,
    SuspendInstrument,
    TimeInForce,
    TokenStatusSet,
    Traded,
    TransferDecided,
    WindowBegan,
    WindowKind,
    WindowSet,
)
from tests.market import CODE, TODAY, Market, every, only, refusal, start, zaraba

TOMORROW, THEN = TODAY + 1, TODAY + 2
GTC = TimeInForce.GTC
RECORD, FREEZE = WindowKind.RECORD_DATE, WindowKind.FREEZE


def funded(market: Market | None = None, **eligibility: Any) -> Market:
    """A continuous market with pre-funded units; alpha and beta have 100 each."""
    market = market or zaraba(reference_price=100, rules={"funding": "units"})
    market.must(Deposit("a", "alpha", "", 100, CODE), Deposit("b", "beta", "", 100, CODE))
    market.must(SetEligibility(CODE, **eligibility))
    return market


def next_day(market: Market, date: int = TOMORROW, *phases: Phase) -> list[Any]:
    market.phase(Phase.CLOSED)
    events = market.must(StartDay(date))
    market.phase(*phases or (Phase.CONTINUOUS,))
    return events


def reason(events: list[Any]) -> Reason:
    return refusal(events).reason


# --- at entry --------------------------------------------------------------------------------------------------------


def test_a_member_is_barred_or_permitted_by_name():
    market = zaraba(reference_price=100)

    assert market.must(PermitMember("alpha", CODE, False)) == [MemberPermitted("alpha", CODE, False)]
    assert reason(market.buy(1, 100)) == Reason.NOT_PERMITTED
    assert only(market.sell(1, 100), Accepted)
    market.must(
        PermitMember("alpha", CODE), PermitMember("beta", CODE, False), SetEligibility(CODE, members_listed=True)
    )
    assert reason(market.sell(1, 101)) == Reason.NOT_PERMITTED
    assert reason(market.buy(1, 99, member="gamma")) == Reason.NOT_PERMITTED
    assert only(market.buy(1, 99), Accepted)


def test_both_sides_need_an_account_on_the_whitelist():
    market = zaraba(reference_price=100)
    market.must(SetEligibility(CODE, whitelist=True), SetHolder(CODE, "alpha", "fund-7"))

    refused = refusal(market.buy(1, 100, account="fund-8"))
    assert (refused.reason, refused.text) == (
        Reason.NOT_REGISTERED,
        f"Expected an account that is registered to hold {CODE}, got alpha/fund-8 - at `$.account`",
    )
    assert reason(market.sell(1, 100)) == Reason.NOT_REGISTERED
    assert only(market.buy(1, 100, account="fund-7"), Accepted)
    market.must(SetHolder(CODE, "alpha", "fund-7", registered=False))
    assert reason(market.sell(1, 101, member="alpha", account="fund-7")) == Reason.NOT_REGISTERED


def test_tags_bind_the_buyer_and_a_holder_may_always_sell():
    market = zaraba(reference_price=100)
    market.must(
        SetEligibility(CODE, jurisdictions=["JP", "SG"], investor_types=["professional"]),
        SetHolder(CODE, "alpha", "", jurisdiction="JP", investor_type="professional"),
        SetHolder(CODE, "beta", "", jurisdiction="US", investor_type="professional"),
        SetHolder(CODE, "gamma", "", jurisdiction="SG", investor_type="retail"),
    )

    assert only(market.buy(1, 90), Accepted)
    for member, words in (
        ("beta", "of jurisdiction US"),
        ("gamma", "of investor type retail"),
        ("delta", "of jurisdiction unknown"),
    ):
        refused = refusal(market.buy(1, 90, member=member))
        assert (refused.reason, words in refused.text) == (Reason.HOLDER_NOT_ALLOWED, True)
        assert only(market.sell(1, 100, member=member), Accepted)


def test_no_account_comes_to_hold_more_than_its_cap_by_any_of_its_orders():
    market = funded(holding_max=120)
    market.buy(15, 99, id="resting")

    assert reason(market.buy(6, 99)) == Reason.HOLDING_CAP
    assert reason(market.amend("resting", 21)) == Reason.HOLDING_CAP
    assert only(market.buy(5, 98), Accepted)
    market.amend("resting", 10)
    assert only(market.buy(5, 98), Accepted)
    market.sell(10, 99)
    assert market.engine.balance("alpha", "", CODE).total == 110
    assert reason(market.buy(1, 99)) == Reason.HOLDING_CAP
    market.must(SetHolder(CODE, "alpha", "", holding_max=121))
    assert only(market.buy(1, 99), Accepted)


def test_a_token_has_no_more_holders_than_it_may_have_and_who_bids_counts():
    market = funded(holders_max=3)
    market.buy(10, 90, member="gamma", id="bid")

    assert reason(market.buy(10, 90, member="delta")) == Reason.TOO_MANY_HOLDERS
    assert only(market.buy(5, 90, member="gamma"), Accepted)
    assert only(market.buy(5, 90), Accepted)
    market.mass_cancel("gamma")
    assert only(market.buy(10, 90, member="delta"), Accepted)


def test_units_under_a_lock_up_are_not_sold_before_its_last_day_is_over():
    market = funded()
    market.must(SetHolder(CODE, "beta", "", lock_up=60, lock_up_until=TODAY))
    market.sell(30, 101, id="s")

    refused = refusal(market.sell(11, 101))
    assert (refused.reason, refused.text) == (
        Reason.LOCKED_UP,
        "Expected at most the 10 units of beta that no lock-up and no order holds, got 11 - at `$.quantity`",
    )
    assert reason(market.amend("s", 41, member="beta")) == Reason.LOCKED_UP
    market.amend("s", 40, member="beta")
    next_day(market)
    assert only(market.sell(100, 101), Accepted)


def test_caps_and_lock_ups_need_units_that_somebody_counts():
    market = zaraba(rules={"funding": "cash"})

    for command in (
        SetEligibility(CODE, holding_max=1),
        SetEligibility(CODE, holders_max=1),
        SetHolder(CODE, "alpha", "", lock_up=1),
        SetHolder(CODE, "alpha", "", holding_max=1),
    ):
        assert reason(market.run(command)) == Reason.BAD_REFERENCE_DATA


@pytest.mark.parametrize(
    ("status", "words"),
    [({"active": False}, "not active"), ({"transferable": False}, "not transferable"), ({"paused": True}, "paused")],
)
def test_a_token_that_cannot_change_hands_takes_no_orders_but_cancels(status: dict[str, bool], words: str):
    market = zaraba(reference_price=100)
    market.buy(10, 99, id="b")
    market.buy(5, order_type=OrderType.STOP, stop_price=101, id="stop")

    assert only(market.must(SetTokenStatus(CODE, **status)), TokenStatusSet)

    refused = refusal(market.sell(10, 99))
    assert refused.reason == Reason.NOT_TRANSFERABLE
    assert words in refused.text
    assert reason(market.amend("b", 0, 100)) == Reason.NOT_TRANSFERABLE
    assert only(market.amend("b", 4), object).quantity == 4
    assert only(market.cancel("b"), Cancelled)
    market.must(SetTokenStatus(CODE))
    assert only(market.sell(10, 99), Accepted)


def test_flags_are_shown_and_refuse_nothing_until_the_last_day_is_over():
    market = zaraba(reference_price=100)
    market.must(SetTokenStatus(CODE, supervision=True, termination=True, last_day=TODAY))
    view = market.engine.instrument(CODE)
    assert (view.supervision, view.termination) == (True, True)
    market.buy(10, 99, time_in_force=GTC)

    gone = only(next_day(market), Cancelled)

    assert gone.reason == CancelReason.INELIGIBLE
    assert reason(market.buy(10, 99)) == Reason.TERMINATED


@pytest.mark.parametrize("approval", Approval)
def test_what_needs_approval_is_taken_refused_or_marked(approval: Approval):
    market = zaraba(reference_price=100)
    market.must(SetEligibility(CODE, approval=approval))

    events = market.buy(10, 99, id="b")

    if approval == Approval.REFUSE:
        assert reason(events) == Reason.APPROVAL_REQUIRED
    elif approval == Approval.MARK:
        assert events[1] == OrderMarked("alpha", "b", 1, CODE)
    else:
        assert [type(event) for event in events] == [Accepted]
    assert market.engine.check_settlement(CODE, "beta", "", "alpha", "") == ("", approval != Approval.NONE)


# --- at the freeze and where there is none ---------------------------------------------------------------------------


def test_orders_of_a_barred_member_leave_before_the_auction_is_priced():
    market = start(reference_price=100)
    market.buy(10, 105, id="barred", display_quantity=0)
    market.buy(10, 101, member="gamma")
    market.sell(15, 99)
    market.must(PermitMember("alpha", CODE, False))
    market.phase(Phase.PRE_OPEN_NCP)
    _, gone, uncrossed, trade = market.phase(Phase.OPENING_AUCTION)

    assert (gone.client_order_id, gone.reason) == ("barred", CancelReason.INELIGIBLE)
    assert isinstance(uncrossed, AuctionUncrossed)
    assert (uncrossed.price, uncrossed.volume, uncrossed.surplus) == (99, 10, -5)
    assert isinstance(trade, Traded)
    assert trade.buyer == "gamma"


def test_an_auction_of_a_paused_token_has_nobody_in_it():
    market = start(reference_price=100)
    market.buy(10, 101)
    market.sell(10, 99)
    market.must(SetTokenStatus(CODE, paused=True))
    market.phase(Phase.PRE_OPEN_NCP)

    events = market.phase(Phase.OPENING_AUCTION)

    assert [event.reason for event in every(events, Cancelled)] == [CancelReason.INELIGIBLE] * 2
    assert only(events, AuctionUncrossed).volume == 0


def test_an_iceberg_that_may_not_take_part_leaves_whole():
    market = zaraba(reference_price=100, rules={"self_trade": "none"})
    market.phase(Phase.CALL)
    market.buy(10, 101, display_quantity=2, id="ice")
    market.buy(3, 101, member="gamma", display_quantity=1)
    market.sell(5, 100)
    market.must(PermitMember("alpha", CODE, False))

    events = market.phase(Phase.CALL_AUCTION)

    assert only(events, Cancelled).quantity == 10
    assert sum(trade.quantity for trade in every(events, Traded)) == 3


def test_in_zaraba_the_orders_of_a_member_leave_with_its_permission():
    market = zaraba(reference_price=100)
    market.buy(10, 99)
    market.buy(5, order_type=OrderType.STOP, stop_price=101)
    market.sell(10, 101)

    events = market.must(PermitMember("alpha", CODE, False))

    assert [event.reason for event in every(events, Cancelled)] == [CancelReason.INELIGIBLE] * 2
    assert market.engine.open_orders("alpha") == []
    market.must(SetEligibility(CODE, members_listed=True))
    assert market.engine.open_orders("beta") == []


def test_a_stop_of_a_barred_member_leaves_at_the_freeze_too():
    market = zaraba(reference_price=100)
    market.phase(Phase.CALL)
    market.buy(10, 99, id="b", order_type=OrderType.STOP_LIMIT, stop_price=100)
    market.must(PermitMember("alpha", CODE, False))
    assert len(market.engine.open_orders("alpha")) == 1

    assert only(market.phase(Phase.CALL_AUCTION), Cancelled).reason == CancelReason.INELIGIBLE


def test_a_halt_that_drops_the_freeze_lets_nobody_through_into_zaraba():
    market = zaraba(reference_price=100)
    market.phase(Phase.CALL)
    market.buy(10, 99)
    market.must(PermitMember("alpha", CODE, False), SuspendInstrument(CODE))
    assert not every(market.phase(Phase.CALL_AUCTION), Cancelled)

    assert only(market.phase(Phase.CONTINUOUS), Cancelled).reason == CancelReason.INELIGIBLE


def test_what_rested_overnight_has_to_pass_again():
    market = zaraba(reference_price=100)
    for member in ("alpha", "beta", "gamma"):
        market.buy(10, 99, member=member, time_in_force=GTC)
    market.must(SetHolder(CODE, "alpha", ""), SetHolder(CODE, "gamma", ""))
    market.phase(Phase.CLOSED)
    market.must(SetEligibility(CODE, whitelist=True), PermitMember("gamma", CODE, False))

    events = market.must(StartDay(TOMORROW))

    assert {event.participant: event.reason for event in every(events, Cancelled)} == {
        "beta": CancelReason.INELIGIBLE,
        "gamma": CancelReason.INELIGIBLE,
    }


# --- windows ---------------------------------------------------------------------------------------------------------


def test_a_window_empties_the_book_when_it_begins_and_takes_orders_when_it_is_over():
    market = zaraba(reference_price=100)
    market.buy(10, 99, time_in_force=GTC)
    assert market.must(SetWindow(CODE, RECORD, TOMORROW, TOMORROW)) == [
        WindowSet(CODE, RECORD, TOMORROW, TOMORROW, True)
    ]
    assert only(market.buy(10, 98, time_in_force=GTC), Accepted)

    events = next_day(market)

    assert only(events, WindowBegan) == WindowBegan(CODE, RECORD, TOMORROW, True)
    assert [event.reason for event in every(events, Cancelled)] == [CancelReason.WINDOW] * 2
    refused = refusal(market.buy(1, 99))
    assert refused.reason == Reason.IN_WINDOW
    assert f"a record date up to {TOMORROW}" in refused.text
    assert market.engine.instrument(CODE).in_window
    assert not every(next_day(market, THEN), WindowBegan)
    assert only(market.buy(1, 99), Accepted)


def test_a_window_that_freezes_keeps_the_orders_and_nothing_trades():
    market = zaraba(reference_price=100)
    market.must(SetWindow(CODE, FREEZE, TOMORROW, TOMORROW, purge=False))
    market.buy(10, 99, id="kept", time_in_force=GTC)
    market.buy(5, id="stop", order_type=OrderType.STOP, stop_price=100, time_in_force=GTC)
    market.phase(Phase.CALL)
    market.buy(10, 101, time_in_force=GTC, member="gamma", id="crosses")
    market.sell(10, 100, time_in_force=GTC)
    next_day(market, TOMORROW, Phase.CALL)

    assert reason(market.buy(1, 100)) == Reason.IN_WINDOW
    assert reason(market.amend("kept", 0, 100)) == Reason.IN_WINDOW
    assert only(market.amend("kept", 5), object).quantity == 5
    assert not every(market.phase(Phase.CALL_AUCTION), AuctionUncrossed)
    market.phase(Phase.CALL)
    assert only(market.cancel("crosses", member="gamma"), Cancelled)
    market.phase(Phase.CALL_AUCTION, Phase.CONTINUOUS)
    assert len(market.engine.open_orders("alpha")) == 1  # the stop's price is reached, and it still waits

    next_day(market, THEN, Phase.CALL)
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 0


def test_a_window_that_includes_today_begins_at_once_and_one_taken_back_is_over():
    market = zaraba(reference_price=100)
    market.buy(10, 99)

    events = market.must(SetWindow(CODE, RECORD, TODAY - 3, TODAY))

    assert [type(event) for event in events] == [WindowSet, WindowBegan, Cancelled]
    assert reason(market.buy(10, 99)) == Reason.IN_WINDOW
    market.must(SetWindow(CODE, RECORD, TODAY - 3))
    assert only(market.buy(10, 99), Accepted)


def test_a_window_that_changes_does_not_begin_again():
    market = zaraba(reference_price=100)
    market.must(SetWindow(CODE, RECORD, TODAY, TODAY))

    assert [type(event) for event in market.must(SetWindow(CODE, RECORD, TODAY, THEN))] == [WindowSet]
    assert reason(market.buy(10, 99)) == Reason.IN_WINDOW


# --- settlement ------------------------------------------------------------------------------------------------------


def test_settlement_is_told_what_stands_in_its_way():
    market = funded(whitelist=True, jurisdictions=["JP"], holding_max=100)

    def words() -> str:
        return market.engine.check_settlement(CODE, "beta", "", "alpha", "")[0]

    assert words() == f"beta is not registered to hold {CODE}"
    market.must(SetHolder(CODE, "beta", ""))
    assert words() == f"alpha is not registered to hold {CODE}"
    market.must(SetHolder(CODE, "alpha", "", jurisdiction="US"))
    assert words() == f"alpha may not hold {CODE}, of jurisdiction US"
    market.must(SetHolder(CODE, "alpha", "", jurisdiction="JP", holding_max=99))
    assert words() == f"alpha would hold 100 units of {CODE}, more than the 99 it may"
    market.must(SetHolder(CODE, "alpha", "", jurisdiction="JP"))
    assert words() == ""
    left = market.engine.balance("beta", "", CODE).total
    market.must(SetHolder(CODE, "beta", "", lock_up=left + 1, lock_up_until=TODAY))
    assert words() == f"beta would be left with {left} units of {CODE}, and {left + 1} are locked up"
    market.must(SetHolder(CODE, "beta", "", lock_up=left, lock_up_until=TODAY))
    assert words() == ""
    market.must(SetHolder(CODE, "beta", "", lock_up=left + 1, lock_up_until=TODAY - 1))
    assert words() == ""
    market.must(SetTokenStatus(CODE, paused=True))
    assert words() == f"{CODE} is paused"
    market.must(SetTokenStatus(CODE), SetWindow(CODE, WindowKind.DISTRIBUTION, TODAY, THEN))
    assert words() == f"{CODE} has a distribution up to {THEN}"
    with pytest.raises(KeyError):
        market.engine.check_settlement("NONE", "beta", "", "alpha", "")


@pytest.mark.parametrize("approved", [True, False])
def test_the_issuer_decides_about_a_transfer_once(approved: bool):
    market = zaraba(reference_price=100)
    market.must(SetEligibility(CODE, approval=Approval.ACCEPT))
    market.sell(10, 100)
    market.buy(10, 100)
    before = market.engine.digest()
    asked = (CODE, "beta", "", "alpha", "", 1)
    assert market.engine.check_settlement(*asked) == ("", True)

    decided = market.must(ApproveTransfer(1, "letter-17", approved))

    assert decided == [TransferDecided(1, CODE, approved, "letter-17")]
    words = "" if approved else "the issuer has refused the transfer of trade 1"
    assert market.engine.check_settlement(*asked) == (words, False)
    assert reason(market.run(ApproveTransfer(1, "letter-18"))) == Reason.ALREADY_BOOKED
    market.engine.sequence -= 2
    market.engine.time_ns -= 2
    assert market.engine.digest() != before


# --- the commands themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (ApproveTransfer(1, "letter-17"), Reason.UNKNOWN_TRADE),
        (SetEligibility("NONE"), Reason.UNKNOWN_INSTRUMENT),
        (SetTokenStatus("NONE"), Reason.UNKNOWN_INSTRUMENT),
        (PermitMember("alpha", "NONE"), Reason.UNKNOWN_INSTRUMENT),
        (SetHolder("NONE", "alpha"), Reason.UNKNOWN_INSTRUMENT),
        (SetWindow("NONE", RECORD, TODAY), Reason.UNKNOWN_INSTRUMENT),
        (SetEligibility(CODE, jurisdictions=[""]), Reason.BAD_REFERENCE_DATA),
        (SetEligibility(CODE, investor_types=["x" * 17]), Reason.BAD_REFERENCE_DATA),
        (SetEligibility(CODE, holding_max=-1), Reason.BAD_REFERENCE_DATA),
        (SetEligibility(CODE, approval=4), Reason.BAD_REFERENCE_DATA),  # type: ignore[arg-type]
        (SetTokenStatus(CODE, last_day=TODAY - 1), Reason.BAD_REFERENCE_DATA),
        (PermitMember("Alpha", CODE), Reason.BAD_IDENTITY),
        (SetHolder(CODE, "alpha", "two words"), Reason.BAD_IDENTITY),
        (SetHolder(CODE, "alpha", "", jurisdiction="two words"), Reason.BAD_REFERENCE_DATA),
        (SetHolder(CODE, "alpha", "", lock_up_until=20261301), Reason.BAD_REFERENCE_DATA),
        (SetWindow(CODE, 3, TODAY), Reason.BAD_REFERENCE_DATA),  # type: ignore[arg-type]
        (SetWindow(CODE, RECORD, 20261301), Reason.BAD_REFERENCE_DATA),
        (SetWindow(CODE, RECORD, THEN, TODAY), Reason.BAD_REFERENCE_DATA),
        (SetWindow(CODE, RECORD, TODAY - 3, TODAY - 2), Reason.BAD_REFERENCE_DATA),
        (SetWindow(CODE, RECORD, TODAY), Reason.BAD_REFERENCE_DATA),
    ],
)
def test_what_cannot_be_said_changes_nothing(command: Command, why: Reason):
    market = funded()
    before = market.engine.digest()

    refused = refusal(market.run(command))

    assert refused.reason == why
    assert "Expected" in refused.text
    market.engine.sequence -= 1
    market.engine.time_ns -= 1
    assert market.engine.digest() == before


def test_events_repeat_what_was_said_and_the_state_covers_it():
    digests = set()
    for command, event in (
        (SetEligibility(CODE, jurisdictions=["JP"]), EligibilitySet),
        (SetTokenStatus(CODE, paused=True), TokenStatusSet),
        (PermitMember("alpha", CODE, False), MemberPermitted),
        (SetHolder(CODE, "alpha", "", jurisdiction="JP"), HolderSet),
        (SetWindow(CODE, RECORD, TODAY, TODAY), WindowSet),
    ):
        market = zaraba()
        said = market.must(command)[0]
        assert isinstance(said, event)
        for field in command.__struct_fields__:
            assert getattr(said, field) == getattr(command, field)
        digests.add(market.engine.digest())
    assert len(digests) == 5


def test_an_instrument_of_which_nothing_was_said_is_open_to_all():
    market = zaraba(reference_price=100)
    market.must(ListInstrument("OTHER"), SetEligibility("OTHER", whitelist=True, members_listed=True))

    assert only(market.buy(1, 100), Accepted)
    assert market.engine.check_settlement(CODE, "beta", "", "alpha", "") == ("", False)
    assert market.engine.order(1).side == Side.BUY
    assert not isinstance(market.run(SetPhase(CODE, Phase.CALL))[0], Rejected)
