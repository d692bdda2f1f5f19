"""A book that contradicts itself is set aside, and nothing else stops.

The tests spoil rows and queues with their own hands, or let the plan of a match fail where a defect would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from librt.vecs import extend

import engine as package
from engine import (
    Accepted,
    AuctionUncrossed,
    Cancelled,
    CancelReason,
    Engine,
    Event,
    InstrumentRebuilt,
    InstrumentSetAside,
    ListInstrument,
    OrderType,
    Phase,
    PhaseChanged,
    Reason,
    RebuildInstrument,
    Rejected,
    ResumeInstrument,
    SelfTrade,
    SetPhase,
    Side,
    StartDay,
    SuspendInstrument,
    TimeInForce,
    Traded,
    TradingStateChanged,
)
from engine.core import BOOKS
from engine.faults import InvariantBroken
from engine.log import Log, MemoryStorage, encode_commands
from engine.log.digest import DigestChain
from engine.log.explain import OrderLife
from engine.log.replay import replay
from engine.matching import auction, continuous
from engine.matching.auction import PAIR, Plan
from engine.matching.itayose import Equilibrium
from engine.tables import TickTable
from tests.log.day import HEADER
from tests.market import CODE, TODAY, Market, only, refusal, start

OTHER = "ICHIGO-1"
#: Compiled code cannot be patched.
patches = pytest.mark.skipif(package.BACKEND == "compiled", reason="compiled code cannot be patched")


def two_calls(book: str = "") -> Market:
    """Two START instruments in their opening call, three orders on each side of the first, two that trade in each."""
    market = Market()
    market.engine = Engine(book)
    for code in (CODE, OTHER):
        market.must(ListInstrument(code, reference_price=100))
    market.must(StartDay(TODAY))
    for code in (CODE, OTHER):
        market.phase(Phase.PRE_OPEN, code=code)
        for i, price in enumerate((99, 100, 101)):
            market.buy(10, price, code=code, id=f"{code}-b{i}")
            market.sell(10, price, code=code, id=f"{code}-s{i}")
    return market


def two_zarabas(book: str = "") -> Market:
    market = Market()
    market.engine = Engine(book)
    for code in (CODE, OTHER):
        market.must(ListInstrument(code, "CONTINUOUS", reference_price=100))
    market.must(StartDay(TODAY))
    for code in (CODE, OTHER):
        market.phase(Phase.CONTINUOUS, code=code)
    return market


def number(market: Market, name: str) -> int:
    return market.engine.order_id("alpha", name) or market.engine.order_id("beta", name)


def spoil_row(market: Market, name: str) -> None:
    """One order has more open than its level knows."""
    market.engine._orders.open[number(market, name)] -= 1


def spoil_queue(market: Market, name: str) -> None:
    """One order does not name who is before it."""
    market.engine._orders.previous[number(market, name)] = number(market, name)


def rows(market: Market) -> list[Any]:
    """Everything the order table says, and every queue."""
    table = market.engine._orders
    queues = [market.engine.queue(code, side) for code in market.engine.instruments() for side in Side]
    return [table.columns(1, table.count + 1), queues]


def hold_the_auction(market: Market, code: str = CODE, spoil: Callable[[], None] | None = None) -> list[Event]:
    """Go on to the opening auction; ``spoil`` does so at the last moment."""
    market.phase(Phase.PRE_OPEN_NCP, code=code)
    if spoil is not None:
        spoil()
    return market.run(SetPhase(code, Phase.OPENING_AUCTION))


# --- auctions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("book", BOOKS)
@pytest.mark.parametrize("spoil", [spoil_row, spoil_queue])
def test_an_auction_of_a_spoilt_book_changes_nothing_and_the_others_are_held(
    book: str, spoil: Callable[[Market, str], None]
):
    market = two_calls(book)
    table = market.engine._orders
    market.phase(Phase.PRE_OPEN_NCP)
    spoil(market, f"{CODE}-b1")
    before = table.columns(1, table.count + 1)

    events = market.run(SetPhase(CODE, Phase.OPENING_AUCTION))

    halted, aside, refused = events
    assert halted == TradingStateChanged(CODE, True)
    assert isinstance(aside, InstrumentSetAside)
    assert (aside.instrument, aside.frozen) == (CODE, True)
    assert "side 0, price 100" in aside.text
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.SET_ASIDE
    assert table.columns(1, table.count + 1) == before
    view = market.engine.instrument(CODE)
    assert (view.phase, view.set_aside, view.frozen) == (Phase.PRE_OPEN_NCP, True, True)
    assert only(hold_the_auction(market, OTHER), AuctionUncrossed).volume == 20


def test_a_set_aside_instrument_takes_nothing_and_says_so():
    market = two_calls()
    hold_the_auction(market, spoil=lambda: spoil_queue(market, f"{CODE}-s0"))

    refused = [
        refusal(market.buy(10, 100, member="gamma")),
        refusal(market.amend(f"{CODE}-b0", 5)),
        refusal(market.run(SetPhase(CODE, Phase.OPENING_AUCTION))),
        refusal(market.run(ResumeInstrument(CODE))),
        refusal(market.run(SuspendInstrument(CODE))),
    ]

    assert {each.reason for each in refused} == {Reason.SET_ASIDE}
    assert all("set aside" in each.text for each in refused)
    assert market.engine.indicative(CODE) == Equilibrium(0, 0, 0)
    assert isinstance(market.buy(10, 100, code=OTHER, member="gamma")[0], Accepted)


def test_cancels_of_a_frozen_book_are_refused_and_a_mass_cancel_waits_for_it():
    market = two_zarabas()
    market.buy(10, 99, id="here")
    market.buy(10, 99, id="there", code=OTHER)
    market.phase(Phase.CALL)
    spoil_queue(market, "here")
    market.run(SetPhase(CODE, Phase.CALL_AUCTION))

    assert refusal(market.cancel("here")).reason == Reason.SET_ASIDE
    assert only(market.mass_cancel("alpha"), Cancelled).client_order_id == "there"
    assert [order.client_order_id for order in market.engine.open_orders("alpha")] == ["here"]
    assert only(market.must(RebuildInstrument(CODE)), Cancelled).client_order_id == "here"


@patches
def test_a_book_whose_queues_check_out_still_takes_cancels(monkeypatch: pytest.MonkeyPatch):
    market = two_zarabas()
    market.sell(10, 101, id="rests")
    fail_when(monkeypatch, lambda order: True)

    events = market.buy(10, 101)

    assert not only(events, InstrumentSetAside).frozen
    assert only(market.cancel("rests", member="beta"), Cancelled).quantity == 10


# --- zaraba ----------------------------------------------------------------------------------------------------------


def fail_when(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    """Let the plan of a match contradict itself for the orders that ``when`` names, before anything has changed."""
    honest = continuous.take

    def take(table: Any, book: Any, order: int, *rest: Any) -> int:
        if when(order):
            raise InvariantBroken(f"The match of order {order} does not add up")
        return honest(table, book, order, *rest)

    monkeypatch.setattr(continuous, "take", take)


@patches
@pytest.mark.parametrize("book", BOOKS)
def test_an_order_whose_match_does_not_add_up_never_was(book: str, monkeypatch: pytest.MonkeyPatch):
    market = two_zarabas(book)
    market.sell(10, 101)
    before = rows(market)
    with monkeypatch.context() as patched:
        fail_when(patched, lambda order: True)
        events = market.buy(10, 101, id="mine", display_quantity=5)

    refused, halted, aside = events
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.SET_ASIDE
    assert halted == TradingStateChanged(CODE, True)
    assert aside == InstrumentSetAside(CODE, "The match of order 2 does not add up", False)
    assert rows(market) == before
    assert market.engine.open_orders("alpha") == []
    assert market.buy(10, 101, id="mine", display_quantity=5) == [msgspec.structs.replace(refused, repeat=True)]
    assert only(market.buy(1, 1, code=OTHER), Accepted).order_id == 2


@patches
@pytest.mark.parametrize("book", BOOKS)
def test_an_amend_whose_match_does_not_add_up_leaves_the_order_in_its_place(book: str, monkeypatch: pytest.MonkeyPatch):
    market = two_zarabas(book)
    market.sell(10, 105)
    for name in ("first", "mine", "third", "fourth"):
        market.buy(10, 100, id=name, display_quantity=4 if name == "mine" else 0)
    before = rows(market)
    with monkeypatch.context() as patched:
        fail_when(patched, lambda order: True)
        events = market.amend("mine", 0, 105)

    assert [type(event) for event in events] == [Rejected, TradingStateChanged, InstrumentSetAside]
    assert rows(market) == before
    assert refusal(market.amend("mine", 0, 105)).reason == Reason.SET_ASIDE


@patches
def test_what_a_stop_has_set_off_stays_and_only_the_stop_goes(monkeypatch: pytest.MonkeyPatch):
    market = two_zarabas()
    market.sell(10, 101)
    market.sell(10, 102)
    market.buy(5, member="gamma", order_type=OrderType.STOP, stop_price=101, id="stop")
    market.buy(5, member="gamma", order_type=OrderType.STOP, stop_price=101, id="later")
    stop = market.engine.order_id("gamma", "stop")
    fail_when(monkeypatch, lambda order: order == stop)

    events = market.buy(10, 101)

    assert only(events, Traded).quantity == 10
    gone = only(events, Cancelled)
    assert (gone.client_order_id, gone.reason, gone.quantity) == ("stop", CancelReason.SET_ASIDE, 5)
    assert isinstance(events[-1], InstrumentSetAside)
    assert [order.client_order_id for order in market.engine.open_orders("gamma")] == ["later"]


@patches
def test_an_order_that_has_traded_keeps_its_trades_and_loses_its_rest(monkeypatch: pytest.MonkeyPatch):
    market = two_zarabas()
    market.sell(10, 101, display_quantity=5)
    calls: list[int] = []
    fail_when(monkeypatch, lambda order: calls.append(order) or len(calls) == 2)

    events = market.buy(8, 101)

    assert only(events, Traded).quantity == 5
    gone = only(events, Cancelled)
    assert (gone.reason, gone.quantity) == (CancelReason.SET_ASIDE, 3)
    assert isinstance(events[-1], InstrumentSetAside)


@pytest.mark.parametrize("book", BOOKS)
def test_an_order_that_meets_a_spoilt_row_never_was_and_the_others_trade_on(book: str):
    market = two_zarabas(book)
    market.sell(10, 101, id="a")
    market.sell(10, 101, id="b")
    market.sell(10, 101, code=OTHER)
    market.engine._orders.open[number(market, "b")] = 11
    before = market.engine._orders.columns(1, 3)

    events = market.engine.apply(package.NewOrder("mine", CODE, Side.BUY, 15, 101), "alpha")

    assert [type(event) for event in events] == [Rejected, TradingStateChanged, InstrumentSetAside]
    assert market.engine._orders.columns(1, 3) == before
    assert market.engine.open_orders("alpha") == []
    assert only(market.buy(10, 101, code=OTHER), Traded).quantity == 10


@pytest.mark.parametrize("book", BOOKS)
@pytest.mark.parametrize("terms", [{"time_in_force": TimeInForce.FOK}, {"self_trade": SelfTrade.REJECT}])
def test_an_order_that_looks_along_a_queue_which_runs_in_a_circle_does_not_hang(book: str, terms: dict[str, Any]):
    market = two_zarabas(book)
    for name in ("a", "b", "c"):
        market.sell(10, 101, id=name)
    market.engine._orders.next[number(market, "c")] = number(market, "b")
    quantity = 30 if "time_in_force" in terms else 40

    events = market.engine.apply(package.NewOrder("mine", CODE, Side.BUY, quantity, 101, **terms), "alpha")

    assert [type(event) for event in events] == [Rejected, TradingStateChanged, InstrumentSetAside]
    assert market.engine.instrument(CODE).frozen
    assert market.engine.open_orders("alpha") == []


# --- coming back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("book", BOOKS)
def test_a_rebuilt_book_has_the_orders_of_the_table_and_trades_after_a_call(book: str):
    market = two_calls(book)
    hold_the_auction(market, spoil=lambda: spoil_queue(market, f"{CODE}-b1"))

    (rebuilt,) = market.must(RebuildInstrument(CODE))

    assert rebuilt == InstrumentRebuilt(CODE, 6)
    assert market.engine.instrument(CODE).suspended
    assert market.engine.depth(CODE) == ([(101, 10), (100, 10), (99, 10)], [(99, 10), (100, 10), (101, 10)])
    market.phase(Phase.OPENING_AUCTION, Phase.CALL)
    market.must(ResumeInstrument(CODE))
    assert only(market.phase(Phase.CALL_AUCTION), AuctionUncrossed).volume == 20


@patches
def test_a_rebuilt_book_keeps_queues_that_check_out_and_its_stops(monkeypatch: pytest.MonkeyPatch):
    market = two_zarabas()
    market.sell(10, 101, id="a")
    market.sell(10, 101, id="b", display_quantity=2)
    market.sell(10, 101, id="c")
    market.buy(5, member="gamma", order_type=OrderType.STOP, stop_price=101)
    market.buy(12, 101)  # the iceberg has shown a fresh peak, behind the others
    market.sell(10, 103, id="d")
    before = rows(market)
    with monkeypatch.context() as patched:
        fail_when(patched, lambda order: True)
        market.buy(1, 101)

    market.must(RebuildInstrument(CODE), ResumeInstrument(CODE))

    assert rows(market)[1] == before[1]
    assert only(market.buy(1, 101), Accepted)


def test_an_order_whose_row_cannot_be_believed_keeps_its_instrument_aside():
    market = two_calls()

    def spoil() -> None:
        market.engine._orders.open[number(market, f"{CODE}-b1")] = 11

    hold_the_auction(market, spoil=spoil)

    refused = refusal(market.run(RebuildInstrument(CODE)))

    assert refused.reason == Reason.SET_ASIDE
    assert f"order {number(market, f'{CODE}-b1')} with 11 open of 10" in refused.text
    assert refusal(market.run(RebuildInstrument(OTHER))).reason == Reason.BAD_TRANSITION
    assert refusal(market.run(RebuildInstrument("NONE"))).reason == Reason.UNKNOWN_INSTRUMENT


def test_the_next_day_begins_without_it_and_it_comes_back_closed():
    market = two_zarabas()
    market.buy(10, 99, id="day")
    market.buy(10, 98, id="gtc", time_in_force=TimeInForce.GTC)
    market.phase(Phase.CALL)
    spoil_queue(market, "day")
    assert only(market.run(SetPhase(CODE, Phase.CALL_AUCTION)), InstrumentSetAside).frozen
    assert refusal(market.cancel("gtc")).reason == Reason.SET_ASIDE
    market.mass_cancel("alpha", instrument=CODE, price_to=98)
    market.phase(Phase.CLOSED, code=OTHER)

    market.must(StartDay(20261125))
    rebuilt, closed, expired = market.must(RebuildInstrument(CODE))

    assert rebuilt == InstrumentRebuilt(CODE, 2)
    assert closed == PhaseChanged(CODE, Phase.CLOSED, Phase.CALL)
    assert (expired.client_order_id, expired.reason) == ("day", CancelReason.EXPIRED)
    assert refusal(market.buy(10, 99)).reason == Reason.NO_DAY
    market.must(StartDay(20261126), ResumeInstrument(CODE))
    events = market.phase(Phase.CALL)
    assert only(events, Cancelled).client_order_id == "gtc"  # the mass cancel that had to wait


# --- the log ---------------------------------------------------------------------------------------------------------


@patches
def test_a_defect_sets_the_instrument_aside_again_in_the_replay(monkeypatch: pytest.MonkeyPatch):
    fail_when(monkeypatch, lambda order: order == 3)
    commands = [
        (ListInstrument(CODE, "CONTINUOUS", reference_price=100), ""),
        (StartDay(TODAY), ""),
        (SetPhase(CODE, Phase.CONTINUOUS), ""),
        (package.NewOrder("a", CODE, Side.SELL, 10, 101), "alpha"),
        (package.NewOrder("b", CODE, Side.SELL, 10, 102), "alpha"),
        (package.NewOrder("c", CODE, Side.BUY, 10, 101), "beta"),
        (RebuildInstrument(CODE), ""),
    ]
    engine, chain, storage = Engine(), DigestChain(), MemoryStorage()
    log = Log.open(storage, HEADER)
    for stamp, (command, participant) in enumerate(commands, 1):
        log.write([(stamp, participant, encode_commands([command]))])
        chain.update(stamp, stamp, engine.apply(command, participant, stamp))
    log.write_mark(engine.sequence, chain.mark(), engine.mark_digest())
    log.sync()
    life = OrderLife("alpha", "a")

    result = replay(storage, on_events=life.fold)

    assert result.marks == 1
    assert [step.what for step in life.steps][-2:] == ["set aside", "rebuilt"]


# --- what a plan must be ---------------------------------------------------------------------------------------------


def plan_of(market: Market) -> Plan:
    instrument = market.engine._instruments[0]
    return market.engine._plan_auction(instrument, instrument.rules.phases[Phase.OPENING_AUCTION])


def check(plan: Plan, market: Market, groups: dict[int, int] | None = None, must_fill: bool = False) -> None:
    auction.verify(plan, market.engine._orders, TickTable([(0, 1)]), 90, 110, must_fill, groups)


def without_volume(plan: Plan) -> None:
    plan.result = Equilibrium(plan.result.price, 10, plan.result.surplus)


def without_a_trade(plan: Plan) -> None:
    plan.matches = plan.matches[:-PAIR]


def beyond_the_limits(plan: Plan) -> None:
    plan.result = Equilibrium(111, plan.result.volume, plan.result.surplus)


def at_a_worse_price(plan: Plan) -> None:
    plan.result = Equilibrium(101, plan.result.volume, plan.result.surplus)


def with_another_surplus(plan: Plan) -> None:
    plan.result = Equilibrium(plan.result.price, plan.result.volume, 1)


def with_more_than_there_is(plan: Plan) -> None:
    plan.matches[2] = 15
    plan.matches[PAIR + 2] = 5


def with_an_order_passed_over(plan: Plan) -> None:
    plan.matches[0] = plan.bids.queues[-1][0]
    plan.matches[2] = plan.matches[PAIR + 2]


def with_nothing_to_trade(plan: Plan) -> None:
    plan.matches = extend(plan.matches, [plan.matches[0], plan.matches[1], 0])


def without_a_price(plan: Plan) -> None:
    plan.result = Equilibrium(0, 0, 0)


@pytest.mark.parametrize(
    "spoil",
    [
        without_volume,
        without_a_trade,
        beyond_the_limits,
        at_a_worse_price,
        with_another_surplus,
        with_more_than_there_is,
        with_an_order_passed_over,
        with_nothing_to_trade,
        without_a_price,
    ],
)
def test_a_plan_that_is_wrong_is_not_carried_out(spoil: Callable[[Plan], None]):
    market = two_calls()
    plan = plan_of(market)
    assert (plan.result, len(plan.matches)) == (Equilibrium(100, 20, 0), 2 * PAIR)
    check(plan, market)

    spoil(plan)

    with pytest.raises(InvariantBroken):
        check(plan, market)


def test_a_plan_that_passes_over_a_better_claim_is_not_carried_out():
    market = start(reference_price=100)
    market.buy(10, 101)
    market.buy(10, 100)
    market.sell(10, 100)
    plan = plan_of(market)
    assert len(plan.matches) == PAIR
    plan.result = Equilibrium(100, 10, 10)
    check(plan, market)

    plan.matches[0] = plan.bids.queues[2][0]

    with pytest.raises(InvariantBroken, match="better claim"):
        check(plan, market)


def test_a_plan_that_pairs_a_group_with_itself_is_not_carried_out():
    market = two_calls()
    plan = plan_of(market)
    buy, sell, *_ = plan.matches

    with pytest.raises(InvariantBroken, match="of one group"):
        check(plan, market, {buy: 0, sell: 0})


def test_a_plan_that_leaves_a_market_order_where_all_must_fill_is_not_carried_out():
    market = start(reference_price=100)
    market.buy(20, 0)
    market.sell(10, 100)
    plan = plan_of(market)
    check(plan, market)

    with pytest.raises(InvariantBroken, match="Market orders are left"):
        check(plan, market, must_fill=True)
