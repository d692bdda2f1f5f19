"""What few orders carry: own orders do not meet, icebergs show their peak, stops wait, and each has its exceptions.

Books, prices and quantities are small and made by hand; the invented days of ``test_machine.py`` mix it all.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from engine import (
    Accepted,
    Activated,
    Amended,
    Cancelled,
    CancelReason,
    DisplayChanged,
    ListInstrument,
    OrderType,
    Phase,
    Reason,
    Rejected,
    SelfTrade,
    SelfTradePrevented,
    SetReferencePrice,
    Side,
    StartDay,
    TimeInForce,
    Traded,
)
from engine.matching.auction import pair_apart
from engine.profiles import (
    ICEBERG,
    MINIMUM,
    NOT_OFFERED,
    POST_ONLY,
    PROFILES,
    QUEUES,
    REFUSED,
    SELF_TRADE,
    TRADES,
    WAITS,
    Rules,
    meaning,
)
from engine.types import OrderType as Type
from tests.market import CODE, START_DAY, TODAY, Market, every, only, refusal, start, zaraba

IOC, FOK, GTC, GTD = TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTC, TimeInForce.GTD


def fills(events: list[object]) -> list[tuple[str, str, int, int]]:
    """(buy, sell, price, quantity) of each trade."""
    trades = [event for event in events if isinstance(event, Traded)]
    return [(t.buy_client_order_id, t.sell_client_order_id, t.price, t.quantity) for t in trades]


def gone(events: list[object]) -> dict[str, CancelReason]:
    return {event.client_order_id: event.reason for event in events if isinstance(event, Cancelled)}


# --- self-trade prevention -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "trades", "cancelled", "bids", "asks"),
    [
        ("none", [("b", "own", 100, 5), ("b", "other", 100, 3)], set(), [], [(100, 2)]),
        ("cancel_newest", [], {"b"}, [], [(100, 10)]),
        ("cancel_oldest", [("b", "other", 100, 5)], {"own"}, [(100, 3)], []),
        ("cancel_both", [], {"b", "own"}, [], [(100, 5)]),
        ("decrement", [("b", "other", 100, 3)], {"own"}, [], [(100, 2)]),
    ],
)
def test_own_orders_give_way_by_the_mode_of_the_instrument(
    mode: str, trades: list[tuple[str, str, int, int]], cancelled: set[str], bids: list[object], asks: list[object]
) -> None:
    market = zaraba(rules={"self_trade": mode})
    market.sell(5, 100, "alpha", id="own")
    market.sell(5, 100, "beta", id="other")

    events = market.buy(8, 100, "alpha", id="b")

    assert fills(events) == trades
    assert gone(events) == dict.fromkeys(cancelled, CancelReason.SELF_TRADE)
    assert market.engine.depth(CODE) == (bids, asks)
    assert len(every(events, SelfTradePrevented)) == (mode != "none")


def test_what_traded_before_the_own_order_was_met_stays_traded() -> None:
    market = zaraba()  # CANCEL_NEWEST
    market.sell(5, 99, "beta", id="other")
    market.sell(5, 100, "alpha", id="own")

    events = market.buy(8, 100, "alpha", id="b")

    assert fills(events) == [("b", "other", 99, 5)]
    prevented = only(events, SelfTradePrevented)
    assert (prevented.price, prevented.quantity, prevented.other_client_order_id) == (100, 3, "own")
    assert only(events, Cancelled).quantity == 3


def test_a_smaller_incoming_order_takes_its_quantity_off_the_resting_one_and_is_gone() -> None:
    market = zaraba(rules={"self_trade": "decrement"})
    market.sell(9, 100, "alpha", id="own")

    events = market.buy(4, 100, "alpha", id="b")

    changed = only(events, Amended)
    assert (changed.client_order_id, changed.open_quantity, changed.kept_priority) == ("own", 5, True)
    assert gone(events) == {"b": CancelReason.SELF_TRADE}
    assert market.engine.depth(CODE) == ([], [(100, 5)])


def test_reject_refuses_before_any_trade_and_only_what_would_reach_the_own_order() -> None:
    market = zaraba(rules={"self_trade": "reject"})
    market.sell(5, 99, "beta")
    market.sell(5, 100, "alpha")

    assert refusal(market.buy(6, 100, "alpha")).reason == Reason.SELF_TRADE
    assert market.engine.depth(CODE) == ([], [(99, 5), (100, 5)])
    assert len(fills(market.buy(5, 100, "alpha"))) == 1


def test_an_order_may_name_its_own_mode() -> None:
    market = zaraba()
    market.sell(5, 100, "alpha")

    assert len(fills(market.buy(5, 100, "alpha", self_trade=SelfTrade.NONE))) == 1


def test_accounts_of_one_firm_may_meet_where_the_group_is_the_account() -> None:
    market = zaraba(rules={"self_trade_group": "account"})
    market.sell(5, 100, "alpha", account="a", id="s")
    market.sell(5, 100, "alpha", id="t")

    assert fills(market.buy(5, 100, "alpha", account="b", id="b")) == [("b", "s", 100, 5)]
    assert fills(market.buy(5, 100, "alpha", id="c")) == [("c", "t", 100, 5)]  # no account, no group


def test_fill_or_kill_does_not_count_its_own_orders() -> None:
    market = zaraba()
    market.sell(5, 100, "beta")
    market.sell(5, 100, "alpha", id="own")

    assert gone(market.buy(6, 100, "alpha", time_in_force=FOK, id="b")) == {"b": CancelReason.REMAINDER}
    assert fills(market.buy(5, 100, "alpha", time_in_force=FOK, id="c"))[0][3] == 5


def uncross(market: Market) -> list[object]:
    return list(market.phase(Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION))


def test_an_auction_pairs_around_self_trades_where_it_can() -> None:
    market = start(rules={"self_trade": "cancel_newest"})
    for name in ("alpha", "beta"):
        market.buy(5, 100, name, id=f"b-{name}")
        market.sell(5, 100, name, id=f"s-{name}")

    assert fills(uncross(market)) == [("b-alpha", "s-beta", 100, 5), ("b-beta", "s-alpha", 100, 5)]


@pytest.mark.parametrize(
    ("mode", "cancelled", "volume"),
    [
        ("cancel_newest", {"s"}, 2),
        ("cancel_oldest", {"b", "s2"}, 2),  # without b beta would meet itself
        ("cancel_both", {"s", "b", "s2", "b2"}, 0),
        ("decrement", {"s"}, 2),  # six off each: b goes on with two
    ],
)
def test_a_group_with_more_fills_than_volume_gives_way_before_the_auction_prices(
    mode: str, cancelled: set[str], volume: int
) -> None:
    market = start(rules={"self_trade": mode})
    market.buy(8, 100, "alpha", id="b")
    market.sell(2, 100, "beta", id="s2")
    market.sell(6, 100, "alpha", id="s")
    market.buy(2, 100, "beta", id="b2")

    events = uncross(market)

    assert gone(events) == dict.fromkeys(cancelled, CancelReason.SELF_TRADE)
    trades = [event for event in events if isinstance(event, Traded)]
    assert sum(trade.quantity for trade in trades) == volume
    assert all(trade.buyer != trade.seller for trade in trades)


def test_fills_can_be_paired_apart_exactly_when_no_group_has_more_than_the_volume() -> None:
    shares = list(itertools.product(range(3), repeat=3))
    for buys, sells in itertools.product(shares, shares):
        if sum(buys) != sum(sells):
            continue
        groups = [0, 1, 2]
        possible = all(buys[group] + sells[group] <= sum(buys) for group in groups)
        if not possible:
            with pytest.raises(ValueError, match="across groups"):
                pair_apart(list(buys), groups, list(sells), groups)
            continue
        pairs = pair_apart(list(buys), groups, list(sells), groups)
        assert all(groups[i] != groups[j] and quantity > 0 for i, j, quantity in pairs)
        for i in groups:
            assert sum(quantity for buy, _, quantity in pairs if buy == i) == buys[i]
            assert sum(quantity for _, sell, quantity in pairs if sell == i) == sells[i]


# --- icebergs --------------------------------------------------------------------------------------------------------


def test_an_iceberg_shows_its_peak_and_a_fresh_one_goes_behind_the_others() -> None:
    market = zaraba()
    market.sell(25, 100, id="ice", display_quantity=10)
    market.sell(5, 100, "gamma", id="plain")
    assert market.engine.depth(CODE) == ([], [(100, 15)])

    events = market.buy(12, 100, id="b")

    assert fills(events) == [("b", "ice", 100, 10), ("b", "plain", 100, 2)]
    assert only(events, DisplayChanged).displayed == 10
    order = market.engine.order(market.engine.order_id("beta", "ice"))
    assert (order.open_quantity, order.displayed) == (15, 10)
    assert market.engine.queue(CODE, Side.SELL) == [2, 1]


@pytest.mark.parametrize(("entry", "shown"), [("fresh_peak", 10), ("rest_of_peak", 6)])
def test_what_an_iceberg_shows_after_trading_on_entry_is_a_rule(entry: str, shown: int) -> None:
    market = zaraba(rules={"iceberg_entry": entry})
    market.sell(14, 100)

    market.buy(50, 100, display_quantity=10)

    assert market.engine.depth(CODE) == ([(100, shown)], [])


def test_a_smaller_total_comes_off_what_an_iceberg_hides_and_keeps_its_place() -> None:
    market = zaraba()
    market.sell(25, 100, id="ice", display_quantity=10)
    market.sell(5, 100, "gamma")

    assert only(market.amend("ice", 12, member="beta"), Amended).kept_priority
    assert market.engine.depth(CODE) == ([], [(100, 15)])
    market.amend("ice", 7, member="beta")
    assert market.engine.depth(CODE) == ([], [(100, 12)])
    assert market.engine.queue(CODE, Side.SELL) == [1, 2]


@pytest.mark.parametrize(("rule", "queue"), [(0, [2, 1]), (1, [1, 2])])
def test_growing_loses_the_place_unless_the_rule_says_otherwise(rule: int, queue: list[int]) -> None:
    market = zaraba(rules={"qty_up_keeps_priority": rule})
    market.sell(25, 100, id="ice", display_quantity=10)
    market.sell(5, 100, "gamma")

    market.amend("ice", 30, member="beta")

    assert market.engine.depth(CODE) == ([], [(100, 15)])
    assert market.engine.queue(CODE, Side.SELL) == queue


@pytest.mark.parametrize(("rule", "sold"), [("whole", {"ice": 20}), ("peak", {"ice": 15, "plain": 5})])
def test_in_an_auction_the_whole_iceberg_or_its_peak_has_time_priority(rule: str, sold: dict[str, int]) -> None:
    market = zaraba(rules={"iceberg_uncross": rule})
    market.sell(30, 100, id="ice", display_quantity=10)
    market.sell(5, 100, "gamma", id="plain")
    market.phase(Phase.CALL)
    market.buy(20, 100)
    assert market.engine.indicative(CODE).volume == 20

    got: dict[str, int] = {}
    for _, seller, _, quantity in fills(list(market.phase(Phase.CALL_AUCTION))):
        got[seller] = got.get(seller, 0) + quantity

    assert got == sold


def test_a_cancelled_iceberg_is_reported_whole() -> None:
    market = zaraba()
    market.sell(25, 100, id="ice", display_quantity=10)

    assert only(market.cancel("ice", "beta"), Cancelled).quantity == 25
    assert market.engine.depth(CODE) == ([], [])


def test_fill_or_kill_counts_what_icebergs_hide() -> None:
    market = zaraba()
    market.sell(25, 100, display_quantity=10)

    assert sum(quantity for *_, quantity in fills(market.buy(25, 100, time_in_force=FOK))) == 25


# --- stops -----------------------------------------------------------------------------------------------------------


def traded_at(*prices: int) -> Market:
    market = zaraba()
    for price in prices:
        market.sell(1, price, "gamma")
        market.buy(1, price, "delta")
    return market


def test_a_stop_waits_outside_the_book_until_a_trade_reaches_its_price() -> None:
    market = traded_at(100)
    accepted = only(market.buy(5, 0, order_type=OrderType.STOP, stop_price=102, id="stop"), Accepted)
    assert accepted.waiting
    assert market.engine.depth(CODE) == ([], [])
    market.sell(1, 102, "gamma")
    market.sell(5, 103, "gamma", id="ask")

    events = market.buy(1, 102, "delta")

    assert only(events, Activated).client_order_id == "stop"
    assert fills(events)[1:] == [("stop", "ask", 103, 5)]


def test_a_stop_whose_price_is_passed_already_enters_at_once() -> None:
    market = traded_at(100)
    market.sell(5, 101, "gamma")

    assert len(fills(market.buy(5, 0, order_type=OrderType.STOP, stop_price=99))) == 1


def test_what_a_stop_trades_triggers_the_next_and_the_first_crossed_goes_first() -> None:
    market = traded_at(100)
    market.buy(1, 0, order_type=OrderType.STOP, stop_price=103, id="second")
    market.buy(1, 0, order_type=OrderType.STOP, stop_price=102, id="first")
    market.buy(1, 105, order_type=OrderType.STOP_LIMIT, stop_price=104, id="third")
    for price in (102, 103, 104, 105):
        market.sell(1, price, "gamma")

    events = market.buy(1, 102, "delta", id="b")

    assert [event.client_order_id for event in every(events, Activated)] == ["first", "second", "third"]
    assert [price for _, _, price, _ in fills(events)] == [102, 103, 104, 105]


def test_a_waiting_stop_can_be_cancelled_and_changed_and_lives_overnight() -> None:
    market = traded_at(100)
    market.sell(5, 95, "beta", order_type=OrderType.STOP_LIMIT, stop_price=96, id="s", time_in_force=GTC)
    market.sell(5, 0, "beta", order_type=OrderType.STOP, stop_price=96, id="t", time_in_force=GTC)

    assert only(market.amend("s", 3, 94, "beta"), Amended).waiting
    market.phase(Phase.CLOSED)
    market.must(StartDay(TODAY + 1))
    market.phase(Phase.CONTINUOUS)
    assert [order.waiting for order in market.engine.open_orders("beta")] == [True, True]
    assert only(market.cancel("t", "beta"), Cancelled).waiting


def test_a_call_triggers_no_stop_and_the_auction_price_does_when_trading_goes_on() -> None:
    market = traded_at(100)
    market.buy(1, 110, order_type=OrderType.STOP_LIMIT, stop_price=105, id="stop")
    market.phase(Phase.CALL)
    market.sell(3, 106, "gamma")
    market.buy(2, 106, "delta")
    assert not every(market.phase(Phase.CALL_AUCTION), Activated)

    assert only(market.phase(Phase.CONTINUOUS), Activated).client_order_id == "stop"


# --- orders without a limit ------------------------------------------------------------------------------------------


def test_market_to_limit_takes_the_best_price_and_rests_there() -> None:
    market = zaraba()
    market.sell(5, 100)
    market.sell(5, 101)

    events = market.buy(8, 0, order_type=OrderType.MARKET_TO_LIMIT)

    assert [price for _, _, price, _ in fills(events)] == [100]
    assert only(events, Amended).price == 100
    assert market.engine.depth(CODE) == ([(100, 3)], [(101, 5)])


def test_market_to_limit_needs_a_limit_on_the_other_side() -> None:
    market = zaraba()

    assert refusal(market.buy(8, 0, order_type=OrderType.MARKET_TO_LIMIT)).reason == Reason.NO_OPPOSITE_LIMIT


def test_a_market_order_rests_where_the_rule_says_so_and_trades_first() -> None:
    market = zaraba(rules={"market_rests": 1}, reference_price=100)
    market.buy(5, 0, id="m")
    assert market.engine.depth(CODE) == ([(0, 5)], [])

    assert fills(market.sell(2, 98, id="s")) == [("m", "s", 100, 2)]  # the last price, not its own
    assert fills(market.sell(2, 103, id="t")) == [("m", "t", 103, 2)]  # nobody is forced below his limit
    assert fills(market.sell(2, 0, id="u")) == [("m", "u", 103, 1)]


def test_market_orders_without_any_price_wait_for_one() -> None:
    market = zaraba(rules={"market_rests": 1})
    market.buy(5, 0, "alpha", id="m")
    market.sell(5, 0, "beta", id="n")

    events = market.sell(2, 100, "gamma", id="s")

    assert fills(events) == [("m", "s", 100, 2), ("m", "n", 100, 3)]


@pytest.mark.parametrize(
    ("mode", "left", "traded"),
    [
        ("none", [], [("p", "n", 100, 1), ("m", "n", 100, 5), ("o", "n", 100, 3)]),
        ("cancel_newest", [5, 3], [("p", "n", 100, 1)]),
        ("cancel_oldest", [], [("p", "n", 100, 1), ("o", "n", 100, 3)]),
        ("cancel_both", [3], [("p", "n", 100, 1)]),
        ("decrement", [], [("p", "n", 100, 1), ("o", "n", 100, 3)]),
    ],
)
def test_market_orders_of_one_firm_that_waited_for_a_price_give_way_by_the_mode_of_the_newer(
    mode: str, left: list[int], traded: list[tuple[str, str, int, int]]
) -> None:
    market = zaraba(rules={"market_rests": 1})
    market.buy(5, 0, "alpha", id="m")
    market.buy(3, 0, "gamma", id="o")
    market.sell(9, 0, "alpha", id="n", self_trade=SelfTrade[mode.upper()])

    events = market.buy(1, 100, "delta", id="p")

    assert fills(events) == traded
    assert [quantity for _, _, quantity in market.engine.shown(CODE, Side.BUY)] == left
    prevented = every(events, SelfTradePrevented)
    assert [(one.price, one.quantity) for one in prevented] == ([] if mode == "none" else [(100, 5)])


def test_a_market_order_that_has_traded_in_part_keeps_its_place_before_later_ones() -> None:
    market = zaraba(rules={"market_rests": 1})
    market.sell(3, 0, "alpha", id="s1")
    market.sell(5, 0, "beta", id="s2")
    market.buy(10, 0, "gamma", id="b1")
    market.buy(10, 0, "delta", id="b2")

    events = market.buy(1, 100, "gamma", id="priced")

    assert fills(events) == [("priced", "s1", 100, 1), ("b1", "s1", 100, 2), ("b1", "s2", 100, 5)]


# --- post-only, minimum quantity, last day ---------------------------------------------------------------------------


def test_post_only_is_refused_where_it_would_trade_on_entry_and_on_amend() -> None:
    market = zaraba()
    market.sell(5, 101)

    assert refusal(market.buy(5, 101, post_only=True)).reason == Reason.WOULD_TRADE
    market.buy(5, 100, post_only=True, id="p")
    assert refusal(market.amend("p", price=101)).reason == Reason.WOULD_TRADE
    assert market.engine.depth(CODE) == ([(100, 5)], [(101, 5)])


def test_a_minimum_quantity_trades_at_least_that_or_nothing() -> None:
    market = zaraba()
    market.sell(5, 100)

    assert not fills(market.buy(9, 100, time_in_force=IOC, minimum_quantity=6))
    assert fills(market.buy(9, 100, time_in_force=IOC, minimum_quantity=5))[0][3] == 5


def test_good_till_date_ends_with_its_last_day() -> None:
    market = zaraba()
    market.buy(5, 100, time_in_force=GTD, expire_date=TODAY + 1, id="d")
    assert not gone(list(market.phase(Phase.CLOSED)))
    market.must(StartDay(TODAY + 1))

    assert gone(list(market.phase(Phase.CONTINUOUS, Phase.CLOSED))) == {"d": CancelReason.EXPIRED}


# --- the table of combinations ---------------------------------------------------------------------------------------

OPTIONS = {"": 0, "iceberg": ICEBERG, "post": POST_ONLY, "minimum": MINIMUM, "own": SELF_TRADE}
WALKS = {
    "START": [*START_DAY[:2], Phase.PRE_CLOSE, Phase.PRE_CLOSE_NCP, Phase.BREAK],
    "N_CALLS": [Phase.CALL, Phase.CALL_NCP, Phase.BREAK],
    "CONTINUOUS": [Phase.CONTINUOUS, Phase.CALL],
    "TSE_HYBRID": [Phase.PRE_OPEN, Phase.CONTINUOUS, Phase.PRE_CLOSE, Phase.CALL, Phase.BREAK],
}


def way_to(profile: str, goal: Phase) -> list[Phase]:
    """The phases from Closed to ``goal``, the shortest way."""
    ways = [[Phase.CLOSED]]
    for way in ways:
        if way[-1] == goal:
            return way[1:]
        ways += [[*way, following] for following in PROFILES[profile].phases[way[-1]].following]
    raise AssertionError(goal)


@pytest.mark.parametrize("imbalance_only", [0, 1])
@pytest.mark.parametrize(("profile", "phase"), [(profile, phase) for profile in WALKS for phase in WALKS[profile]])
def test_every_combination_of_type_validity_and_option_means_what_the_table_says(
    profile: str, phase: Phase, imbalance_only: int
) -> None:
    market = Market()
    given = {"imbalance_only": imbalance_only, **({"call_ncp": 1} if phase == Phase.CALL_NCP else {})}
    market.must(ListInstrument(CODE, profile, 100, rules=given), StartDay(TODAY))
    market.phase(*way_to(profile, phase))
    rules = Rules(PROFILES[profile], given)
    for order_type, validity, option in itertools.product(Type, TimeInForce, OPTIONS):
        if phase == Phase.CONTINUOUS and profile == "CONTINUOUS":
            market.sell(5, 1_000, "maker")  # a market-to-limit order has to find a limit
        terms = {
            "display_quantity": 5 * (option == "iceberg"),
            "post_only": option == "post",
            "minimum_quantity": 5 * (option == "minimum"),
            "self_trade": SelfTrade.CANCEL_OLDEST if option == "own" else SelfTrade.DEFAULT,
            "stop_price": 105 * (order_type in (Type.STOP, Type.STOP_LIMIT)),
            "expire_date": TODAY * (validity == GTD),
        }
        price = 100 if order_type in (Type.LIMIT, Type.STOP_LIMIT, Type.IMBALANCE_ONLY) else 0
        answer = market.buy(10, price, order_type=order_type, time_in_force=validity, **terms)[0]
        says = meaning(rules, phase, order_type, validity, OPTIONS[option])
        if isinstance(answer, Rejected):
            words = {Reason.WRONG_PHASE: REFUSED, Reason.NOT_OFFERED: NOT_OFFERED}
            # A phase that takes no orders, or none of this validity, is asked before what goes with what.
            assert words[answer.reason] == says or (answer.reason == Reason.WRONG_PHASE and says == NOT_OFFERED), answer
        else:
            assert isinstance(answer, Accepted)
            assert says in ((WAITS,) if answer.waiting else (TRADES, QUEUES)), (answer, option)
            market.run(SetReferencePrice(CODE, 100))
        market.mass_cancel("alpha")
        market.mass_cancel("maker")


def table_of(profile: str) -> str:
    """What the page shows: a limit order of each validity in each phase that takes orders."""
    rules = Rules(PROFILES[profile], {"break_new": 1} if "break_new" in PROFILES[profile].parameters else {})
    phases = [phase for phase in Phase if phase in rules.phases and rules.phases[phase].new]
    lines = [f"| {profile} | {' | '.join(phase.label for phase in phases)} |", f"| --- |{' --- |' * len(phases)}"]
    for validity in TimeInForce:
        words = [meaning(rules, phase, Type.LIMIT, validity) for phase in phases]
        if any(word != NOT_OFFERED for word in words):
            lines.append(f"| `{validity.name}` | {' | '.join(words)} |")
    return "\n".join(lines)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_page_shows_the_table_that_is_in_force(profile: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "order-types.md").read_text(encoding="utf-8")

    assert table_of(profile) in page, table_of(profile)
