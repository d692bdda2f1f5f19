"""Pre-funded instruments: what is not there cannot be ordered, and no path leaves a lock behind.

``Market.run`` asks ``Engine.check`` after every command: it holds each lock to its order and each yen to its deposit.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import engine as package
from engine import (
    BalanceChanged,
    BustTrade,
    Cancelled,
    CancelReason,
    Deposit,
    Disconnected,
    Kill,
    LimitRow,
    ListInstrument,
    OrderType,
    Phase,
    Reason,
    RebuildInstrument,
    Rejected,
    SelfTrade,
    SetLimitTable,
    SetPhase,
    StartDay,
    TimeInForce,
    Traded,
    Withdraw,
)
from engine.faults import InvariantBroken
from engine.matching import continuous
from tests.engine.test_quotes import hybrid
from tests.market import CODE, TODAY, Market, every, only, refusal, start, zaraba

YEN = 1_000_000
UNITS = 100
PARAMETERS = {"funding": "both"}


def fund(market: Market) -> Market:
    """alpha, beta and gamma have a million yen and a hundred units each."""
    for member in ("alpha", "beta", "gamma"):
        market.must(Deposit(f"y-{member}", member, "", YEN), Deposit(f"u-{member}", member, "", UNITS, CODE))
    return market


def trading(**listing: object) -> Market:
    rules = {**PARAMETERS, **listing.pop("rules", {})}  # type: ignore[dict-item]
    return fund(zaraba(reference_price=100, rules=rules, **listing))


def limited(rules: dict[str, int | str] | None = None) -> Market:
    """The same with daily limits of 50 and 150."""
    market = Market()
    market.must(
        SetLimitTable("fifty", 0, [LimitRow(0, 50)]),
        ListInstrument(
            CODE, "CONTINUOUS", reference_price=100, limit_table="fifty", rules={**PARAMETERS, **(rules or {})}
        ),
        StartDay(TODAY),
        SetPhase(CODE, Phase.CONTINUOUS),
    )
    return fund(market)


def yen(market: Market, member: str = "alpha") -> tuple[int, int]:
    """What a member has, and what of it is locked."""
    balance = market.engine.balance(member)
    return balance.total, balance.locked


def units(market: Market, member: str = "alpha") -> tuple[int, int]:
    balance = market.engine.balance(member, "", CODE)
    return balance.total, balance.locked


# --- entry -----------------------------------------------------------------------------------------------------------


def test_a_sell_locks_units_and_a_buy_locks_yen_at_its_limit():
    market = trading()

    market.sell(30, 101)
    market.buy(10, 99)

    assert units(market, "beta") == (100, 30)
    assert yen(market, "beta") == (YEN, 0)
    assert yen(market) == (YEN, 990)
    assert units(market) == (100, 0)


def test_what_is_not_there_cannot_be_ordered():
    market = trading()
    market.sell(60, 101)
    market.buy(5_000, 100)

    sell = refusal(market.sell(41, 101))
    buy = refusal(market.buy(5_051, 99))

    assert sell.reason == Reason.INSUFFICIENT_UNITS
    assert sell.text == f"Expected at most the 40 units of {CODE} that the account has free, got 41 - at `$.quantity`"
    assert buy.reason == Reason.INSUFFICIENT_CASH
    assert buy.text == (
        "Expected a buy worth at most the 500000 yen that the account has free, got 5051 at up to 99 - at `$.quantity`"
    )
    assert not isinstance(market.sell(40, 101)[0], Rejected)
    assert not isinstance(market.buy(5_050, 99)[0], Rejected)


def test_accounts_of_a_member_do_not_share():
    market = trading()

    assert refusal(market.buy(1, 99, account="fund-7")).reason == Reason.INSUFFICIENT_CASH
    market.must(Deposit("d", "alpha", "fund-7", 99))
    assert market.buy(1, 99, account="fund-7")
    assert market.engine.balance("alpha", "fund-7") == (99, 99)


@pytest.mark.parametrize(
    ("funding", "sells", "buys"), [("cash", True, False), ("units", False, True), ("off", True, True)]
)
def test_the_parameter_says_what_has_to_be_there(funding: str, sells: bool, buys: bool):
    market = zaraba(reference_price=100, rules={"funding": funding})

    assert isinstance(market.sell(10, 101)[0], Rejected) is not sells
    assert isinstance(market.buy(10, 99)[0], Rejected) is not buys


def test_a_market_buy_locks_the_upper_limit_and_is_refused_where_there_is_none():
    market = limited()
    market.phase(Phase.CALL)
    market.buy(10, id="market")
    assert yen(market) == (YEN, 1_500)
    market.cancel("market")
    assert refusal(market.buy(6_667)).reason == Reason.INSUFFICIENT_CASH
    assert yen(market) == (YEN, 0)

    unlimited = refusal(trading().buy(1))

    assert unlimited.reason == Reason.NO_PRICE_BOUND
    assert unlimited.text.startswith("Expected a limit for a pre-funded buy")


def test_a_funari_buy_locks_the_upper_limit_because_it_gives_up_its_own():
    market = hybrid(rules=PARAMETERS)
    market.must(Deposit("y", "alpha", "", YEN), Deposit("u", "beta", "", UNITS, CODE))
    assert refusal(market.buy(1_667, 495, time_in_force=TimeInForce.FUNARI)).reason == Reason.INSUFFICIENT_CASH

    market.buy(10, 495, time_in_force=TimeInForce.FUNARI, id="f")
    assert yen(market) == (YEN, 6_000)
    assert refusal(market.amend("f", 1_667)).reason == Reason.INSUFFICIENT_CASH
    market.sell(4, 505)
    market.phase(Phase.PRE_CLOSE)
    assert only(market.phase(Phase.CLOSING_AUCTION), Traded).price == 520

    assert yen(market) == (YEN - 4 * 520, 0)


def test_market_orders_that_rest_do_not_go_with_pre_funded_cash():
    market = Market()

    listing = ListInstrument(CODE, "CONTINUOUS", rules={"market_rests": 1, "funding": "cash"})

    assert refusal(market.run(listing)).reason == Reason.BAD_REFERENCE_DATA
    market.must(ListInstrument(CODE, "CONTINUOUS", rules={"market_rests": 1, "funding": "units"}))


def test_money_is_whole_yen_where_prices_have_decimals():
    market = zaraba(reference_price=10_000, lot=100, price_decimals=2, rules=PARAMETERS)
    fund(market)

    market.buy(100, 9_901)

    assert yen(market) == (YEN, 9_901)


# --- paths that end a lock -------------------------------------------------------------------------------------------


def cancel(market: Market) -> None:
    market.cancel("b")
    market.cancel("s", member="beta")


def mass_cancel(market: Market) -> None:
    market.mass_cancel("alpha")
    market.mass_cancel("beta")


def expire(market: Market) -> None:
    market.phase(Phase.CLOSED)


def kill(market: Market) -> None:
    market.must(Kill("", CODE))


def disconnect(market: Market) -> None:
    for member in ("alpha", "beta"):
        market.must(Disconnected(member))


def amend_to_what_is_filled(market: Market) -> None:
    market.sell(4, 99, member="gamma")
    market.buy(4, 101, member="gamma")
    market.amend("b", 4)
    market.amend("s", 4, member="beta")


def fill(market: Market) -> None:
    market.sell(10, 99, member="gamma")
    market.buy(10, 101, member="gamma")


@pytest.mark.parametrize("end", [cancel, mass_cancel, expire, kill, disconnect, amend_to_what_is_filled, fill])
def test_whatever_ends_an_order_ends_its_lock(end: Callable[[Market], None]):
    market = trading(rules={"cancel_on_disconnect": 1})
    market.buy(10, 99, id="b", display_quantity=3)
    market.sell(10, 101, id="s", display_quantity=3)
    assert (yen(market)[1], units(market, "beta")[1]) == (990, 10)

    end(market)

    for member in ("alpha", "beta", "gamma"):
        assert (yen(market, member)[1], units(market, member)[1]) == (0, 0)


@pytest.mark.parametrize("mode", [mode for mode in SelfTrade if mode > SelfTrade.NONE])
def test_self_trade_prevention_leaves_locked_what_stays_open(mode: SelfTrade):
    market = trading()
    market.sell(10, 100, member="alpha", display_quantity=4)

    market.buy(6, 100, self_trade=mode)

    resting = {order.side: order.open_quantity for order in market.engine.open_orders("alpha")}
    assert units(market)[1] == resting.get(package.Side.SELL, 0)
    assert yen(market)[1] == 100 * resting.get(package.Side.BUY, 0)
    assert (yen(market)[0], units(market)[0]) == (YEN, UNITS)


@pytest.mark.parametrize(
    "terms",
    [
        {"time_in_force": TimeInForce.IOC},
        {"time_in_force": TimeInForce.FOK},
        {"time_in_force": TimeInForce.IOC, "minimum_quantity": 6},
    ],
)
def test_what_cannot_trade_at_once_locks_nothing_afterwards(terms: dict[str, int]):
    market = trading()
    market.sell(5, 100)

    market.buy(8, 101, **terms)

    assert yen(market)[1] == 0


def test_a_better_price_gives_back_the_difference():
    market = trading()
    market.sell(10, 97)
    market.buy(15, 100)

    assert yen(market) == (YEN - 970, 500)
    assert yen(market, "beta") == (YEN + 970, 0)
    assert units(market) == (110, 0)
    assert units(market, "beta") == (90, 0)


def test_an_auction_moves_at_its_price_and_frees_the_remainder():
    market = fund(start(reference_price=100, rules=PARAMETERS))
    market.buy(10, 104)
    market.sell(6, 98)
    market.sell(2, member="gamma")
    market.phase(Phase.PRE_OPEN_NCP)

    (trade, other) = every(market.phase(Phase.OPENING_AUCTION), Traded)

    cost = trade.price * 8
    assert yen(market) == (YEN - cost, 2 * 104)
    assert (units(market, "beta"), units(market, "gamma")) == ((94, 0), (98, 0))
    assert other.price == trade.price


def test_an_amend_locks_more_or_less_and_never_more_than_there_is():
    market = trading()
    market.buy(1_000, 100, id="b")
    market.sell(50, 101, id="s")

    market.amend("b", 500)
    assert yen(market)[1] == 50_000
    market.amend("b", 0, 90)
    assert yen(market)[1] == 45_000
    assert refusal(market.amend("b", 10_001, 100)).reason == Reason.INSUFFICIENT_CASH
    assert refusal(market.amend("s", 101, member="beta")).reason == Reason.INSUFFICIENT_UNITS
    market.amend("b", 10_000, 100)
    market.amend("s", 100, member="beta")

    assert yen(market) == (YEN, YEN)
    assert units(market, "beta") == (100, 100)


def test_a_stop_that_new_limits_make_too_dear_leaves():
    market = limited()
    terms = {"order_type": OrderType.STOP, "stop_price": 120, "time_in_force": TimeInForce.GTC}
    market.buy(3_000, id="first", **terms)
    market.buy(3_000, id="second", **terms)
    assert yen(market)[1] == 900_000
    market.phase(Phase.CLOSED)

    events = market.must(SetLimitTable("fifty", 0, [LimitRow(0, 90)]), StartDay(20261125))

    gone = only(events, Cancelled)
    assert (gone.client_order_id, gone.reason) == ("second", CancelReason.UNFUNDED)
    assert yen(market) == (YEN, 570_000)


@pytest.mark.skipif(package.BACKEND == "compiled", reason="compiled code cannot be patched")
def test_an_order_that_sets_its_instrument_aside_locks_nothing(monkeypatch: pytest.MonkeyPatch):
    market = trading()
    market.sell(10, 100)

    def broken(*_: object) -> int:
        raise InvariantBroken("The match does not add up")

    with monkeypatch.context() as patched:
        patched.setattr(continuous, "take", broken)
        market.buy(10, 100)
    assert yen(market) == (YEN, 0)
    assert units(market, "beta") == (100, 10)

    market.must(RebuildInstrument(CODE))

    assert units(market, "beta") == (100, 10)


# --- busts, deposits, withdrawals ------------------------------------------------------------------------------------


def test_a_bust_moves_a_trade_back_even_from_who_has_used_it():
    market = trading()
    market.sell(10, 100)
    trade = only(market.buy(10, 100), Traded)
    market.must(Withdraw("w", "beta", "", YEN + 1_000))

    market.must(BustTrade(trade.trade_id))

    assert (yen(market), units(market)) == ((YEN, 0), (100, 0))
    assert (yen(market, "beta"), units(market, "beta")) == ((-1_000, 0), (100, 0))
    assert refusal(market.buy(1, 1, member="beta")).reason == Reason.INSUFFICIENT_CASH


def test_a_deposit_and_a_withdrawal_say_what_they_leave():
    market = trading()
    market.buy(10, 99)

    assert market.must(Deposit("d-1", "alpha", "", 500)) == [
        BalanceChanged("alpha", "", "", 500, YEN + 500, 990, "d-1")
    ]
    assert market.must(Withdraw("w-1", "alpha", "", 7, CODE)) == [BalanceChanged("alpha", "", CODE, -7, 93, 0, "w-1")]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (Withdraw("w", "alpha", "", YEN - 989), Reason.INSUFFICIENT_CASH),
        (Withdraw("w", "alpha", "", UNITS + 1, CODE), Reason.INSUFFICIENT_UNITS),
        (Deposit("y-alpha", "alpha", "", 1), Reason.ALREADY_BOOKED),
        (Withdraw("y-alpha", "beta", "", 1), Reason.ALREADY_BOOKED),
        (Deposit("", "alpha", "", 1), Reason.BAD_IDENTITY),
        (Deposit("d", "Alpha", "", 1), Reason.BAD_IDENTITY),
        (Deposit("d", "alpha", "two words", 1), Reason.BAD_IDENTITY),
        (Deposit("d", "alpha", "", 0), Reason.BAD_QUANTITY),
        (Deposit("d", "alpha", "", 2**53 + 1), Reason.BAD_QUANTITY),
        (Deposit("d", "alpha", "", 1, "NONE"), Reason.UNKNOWN_INSTRUMENT),
        (Deposit("d", "alpha", "", 1, "OTHER"), Reason.NOT_OFFERED),
    ],
)
def test_what_cannot_be_booked_changes_nothing(command: Deposit | Withdraw, reason: Reason):
    market = trading()
    market.must(ListInstrument("OTHER", rules={"funding": "cash"}))
    market.buy(10, 99)
    before = market.engine.digest()

    refused = refusal(market.run(command))

    assert refused.reason == reason
    assert "Expected" in refused.text
    market.engine.sequence -= 1
    market.engine.time_ns -= 1
    assert market.engine.digest() == before


def test_balances_are_part_of_the_state():
    one, other = trading(), trading()
    other.must(Withdraw("w", "alpha", "", 1))
    one.must(Withdraw("w", "beta", "", 1))

    assert one.engine.digest() != other.engine.digest()
