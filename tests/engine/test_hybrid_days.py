"""Invented days of TSE_HYBRID and N_CALLS, imbalance-only orders among all others: engine and plain model agree.

The days are lists of deeds, given to the machine of ``test_machine.py`` one after the other: it sends each command to
both, compares what they say, and asks after each what must always hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st

import engine
from engine.commands import (
    AmendOrder,
    CancelOrder,
    LimitRow,
    ListInstrument,
    NewOrder,
    RenewQuote,
    ResumeInstrument,
    SetCalendar,
    SetLimitTable,
    SetPhase,
    SetQuoteTable,
    SetReferencePrice,
    SetTickTable,
    StartDay,
    SuspendInstrument,
    TickRow,
)
from engine.core import FAST, REFERENCE, Engine
from engine.events import QuoteChanged, Traded
from engine.turns import Turns
from engine.types import OrderType, Phase, QuoteKind, SelfTrade, Side, TimeInForce
from tests.engine.test_machine import DAYS, MEMBERS, MarketMachine, steps_to_closed

CODE = "BOOK"
SECOND = 1_000_000_000
DAY, ON_OPEN, ON_CLOSE, FUNARI = TimeInForce.DAY, TimeInForce.ON_OPEN, TimeInForce.ON_CLOSE, TimeInForce.FUNARI
IOC, GTC = TimeInForce.IOC, TimeInForce.GTC


def deeds_of(kinds: list[str]) -> Any:
    """What happens: to whom does not matter, every number picks something that is there."""
    return st.lists(
        st.tuples(
            st.sampled_from(kinds),
            st.sampled_from(MEMBERS),
            st.sampled_from(Side),
            st.integers(1, 5),
            st.sampled_from([88, 92, 95, 97, 98, 99, 100, 100, 100, 101, 102, 103, 105, 108, 112]),
            st.integers(0, 1_000),
        ),
        min_size=20,
        max_size=50,
    )


deeds = deeds_of(
    ["limit"] * 8
    + ["market", "market", "on_open", "on_close", "funari", "ioc", "imbalance", "imbalance"]
    + ["cancel", "amend", "amend", "phase", "phase", "time", "time", "time"]
    + ["halt", "reference", "day", "ladder", "ladder", "sweep", "sweep"]
)
#: Days of few prices and many members at each, so that it matters whose turn it is.
crowded = deeds_of(
    ["crowd"] * 6 + ["hit"] * 9 + ["phase"] * 3 + ["limit", "on_close", "cancel", "amend", "halt", "time"]
)
common = {
    "fill_order": st.sampled_from(["priority", "remainder_first"]),
    "allocation": st.sampled_from(["PRICE_TIME", "SIMULTANEOUS_RR"]),
    "self_trade": st.sampled_from([mode.name.lower() for mode in SelfTrade if mode != SelfTrade.DEFAULT]),
    "self_trade_group": st.sampled_from(["participant", "account"]),
    "imbalance_only": st.just(1),
    "halt_orders": st.sampled_from(["reject", "queue"]),
    "first_price_limits": st.sampled_from(["none", "at_limit", "lapse"]),
    "limit_widening": st.sampled_from([1, 4]),
    "market_orders_must_all_fill": st.just(1),
}
hybrid = st.fixed_dictionaries(
    {"quote_width_table": st.just("narrow")},
    optional={**common, "sequential_opposite": st.sampled_from(["wait", "at_once"])},
)
others = st.one_of(
    st.tuples(st.sampled_from(["START", "CONTINUOUS"]), st.just({"imbalance_only": 1})),
    st.tuples(st.just("N_CALLS"), st.fixed_dictionaries({"imbalance_only": st.just(1), "call_ncp": st.integers(0, 1)})),
)
in_turns = {"allocation": st.just("SIMULTANEOUS_RR"), "quote_width_table": st.sampled_from(["narrow", "none"])}
turns = st.one_of(
    st.tuples(st.just("TSE_HYBRID"), st.fixed_dictionaries(in_turns, optional={"self_trade": common["self_trade"]})),
    st.tuples(st.sampled_from(["CONTINUOUS", "N_CALLS"]), st.just({"allocation": "SIMULTANEOUS_RR"})),
)
listings = st.integers(0, 4).flatmap(lambda which: others if which == 4 else st.tuples(st.just("TSE_HYBRID"), hybrid))


class Days:
    """A market that lives through deeds, with the machine's questions after each."""

    def __init__(self, make_engine: Callable[[], Engine], profile: str, rules: dict[str, Any], lot: int) -> None:
        self.machine = type("Machine", (MarketMachine,), {"make_engine": staticmethod(make_engine)})()
        self.profile = profile
        self.rules = rules
        self.lot = lot
        self.days = 0
        self.seen: set[str] = set()

    def open(self, tick_table: str, limit_table: str, reference: int, steps: int) -> None:
        send = self.machine.send
        send(SetCalendar(20261101, 20261231, [20261103, 20261123]))
        send(SetTickTable("steps", 0, [TickRow(0, 1), TickRow(100, 5)]))
        send(SetLimitTable("near", 0, [LimitRow(100, 9), LimitRow(0, 15)]))
        send(SetQuoteTable("narrow", 0, [LimitRow(100, 2), LimitRow(0, 5)]))
        terms = {"lot": self.lot, "tick_table": tick_table, "limit_table": limit_table, "reference_price": reference}
        send(ListInstrument(CODE, self.profile, **terms, rules=self.rules))
        self.next_day()
        for _ in range(steps):
            send(SetPhase(CODE, self.machine.model.books[CODE].rule.following[0]))

    @property
    def phase(self) -> Phase:
        return self.machine.model.books[CODE].phase

    def next_day(self) -> None:
        if self.days == len(DAYS):
            return
        for phase in steps_to_closed(self.profile, self.phase):
            self.machine.send(SetPhase(CODE, phase))
        if self.phase == Phase.CLOSED:
            self.machine.send(StartDay(DAYS[self.days]))
            self.days += 1
            self.machine.send(SetPhase(CODE, self.machine.model.books[CODE].rule.following[0]))

    def live(self, done: tuple[str, str, Side, int, int, int]) -> None:
        what, member, side, lots, price, pick = done
        machine = self.machine
        name = machine.new_id()
        account = ("", "a")[pick % 2]
        order = NewOrder(name, CODE, side, lots * self.lot, price, account=account)
        validity = {"on_open": ON_OPEN, "on_close": ON_CLOSE, "funari": FUNARI, "ioc": IOC}.get(what)
        if what == "phase":
            following = machine.model.books[CODE].rule.following
            self.send(SetPhase(CODE, following[(0, 0, 0, 1, 2)[pick % 5] % len(following)]))
        elif what == "time":
            machine.skip = (1, 59, 61, 181, 181)[pick % 5] * SECOND
            self.send(RenewQuote(CODE))
        elif what == "halt":
            self.send(SuspendInstrument(CODE) if pick % 2 else ResumeInstrument(CODE))
        elif what == "reference":
            self.send(SetReferencePrice(CODE, price))
        elif what == "day":
            self.next_day()
        elif what == "limit":
            self.send(order, member)
        elif what == "market":
            validity = (DAY, DAY, DAY, ON_CLOSE)[pick % 4]
            terms: dict[str, Any] = {"price": 0, "order_type": OrderType.MARKET, "time_in_force": validity}
            self.send(msgspec.structs.replace(order, **terms), member)
        elif what == "ladder":
            for i in range(6):
                away = i * (2 if price < 100 else 4) * (1 if side == Side.SELL else -1)
                rung = NewOrder(machine.new_id(), CODE, side, self.lot, price + away, account=account)
                self.send(rung, member)
        elif what == "crowd":
            for i in range(4):
                one = MEMBERS[(MEMBERS.index(member) + i) % len(MEMBERS)]
                self.send(NewOrder(machine.new_id(), CODE, side, (lots + i) * self.lot, price, account=account), one)
        elif what == "hit":
            there = machine.model.side(machine.model.books[CODE], side)
            if there:
                terms = {"side": Side(1 - side), "price": there[0].price or price}
                self.send(msgspec.structs.replace(order, **terms), member)
        elif what == "sweep":
            terms = {"price": (0, 130 if side == Side.BUY else 70)[pick % 2], "quantity": 7 * self.lot}
            kind = OrderType.LIMIT if terms["price"] else OrderType.MARKET
            self.send(msgspec.structs.replace(order, **terms, order_type=kind), member)
        elif what == "imbalance":
            validity = (DAY, DAY, ON_OPEN, ON_CLOSE, GTC, IOC)[pick % 6]
            terms = {"order_type": OrderType.IMBALANCE_ONLY, "time_in_force": validity}
            self.send(msgspec.structs.replace(order, **terms), member)
        elif validity is not None:
            priced = pick % 3 or (what == "funari" and pick % 9)
            terms = {} if priced else {"price": 0, "order_type": OrderType.MARKET}
            self.send(msgspec.structs.replace(order, time_in_force=validity, **terms), member)
        else:
            mine = [o for o in machine.model.orders if o.alive]
            if not mine:
                return
            it = mine[pick % len(mine)]
            if what == "cancel":
                self.send(CancelOrder(name, it.id), it.member)
            else:
                total = (0, it.total - it.open // 2 // self.lot * self.lot, it.total + self.lot)[pick % 3]
                self.send(AmendOrder(name, it.id, total, (0, price)[pick % 2]), it.member)

    def send(self, command: Any, member: str = "") -> None:
        for event in self.machine.send(command, member):
            if isinstance(event, QuoteChanged):
                self.seen.add(QuoteKind(event.kind).name)
            elif isinstance(event, Traded):
                self.seen.add("auction" if event.maker < 0 else "zaraba")

    def ask(self) -> None:
        self.machine.books_are_the_same()
        self.machine.open_orders_are_the_same()
        self.machine.every_quantity_is_open_traded_or_cancelled()
        self.machine.the_engine_finds_nothing_wrong_with_itself()
        quote = self.machine.model.books[CODE].quote
        view = self.machine.engine.instrument(CODE)
        shown = (view.quote, view.quote_side, view.quote_price, view.quote_due_ns)
        assert quote is None or shown == (quote.kind, quote.side, quote.price, quote.due)
        assert quote is not None or view.quote == QuoteKind.NONE


def lives(make_engine: Callable[[], Engine], deeds: Any = deeds, listings: Any = listings) -> Callable[..., None]:
    def a_market_lives(
        doings: list[Any],
        listing: tuple[str, Any],
        tick_table: str,
        limit_table: str,
        lot: int,
        reference: int,
        steps: int,
    ) -> None:
        days = Days(make_engine, *listing, lot)
        days.open(tick_table, limit_table, reference, steps)
        for done in doings:
            days.live(done)
            days.ask()

    return given(
        deeds,
        listings,
        st.sampled_from(["one", "steps"]),
        st.sampled_from(["none", "near", "near"]),
        st.sampled_from([1, 1, 10]),
        st.sampled_from([0, 97, 100, 100, 102]),
        st.sampled_from([0, 2, 2]),
    )(a_market_lives)


#: Each is a day of some forty commands.
few = settings(max_examples=max(settings.default.max_examples // 3, 5))
test_engine_and_model_agree_on_hybrid_days = few(lives(lambda: Engine(book=REFERENCE)))
test_engine_with_the_fast_book_and_model_agree_on_hybrid_days = few(lives(lambda: Engine(book=FAST)))
test_engine_and_model_agree_on_whose_turn_it_is = few(lives(Engine, crowded, turns))


def _a_width_wider_than_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Engine._around
    monkeypatch.setattr(Engine, "_around", lambda self, instrument, price, count: honest(self, instrument, price, 2))


def _quotes_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_review_quotes", lambda self, events: None)


def _a_funari_order_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Engine._joining

    def joining(self: Any, instrument: Any, validities: int) -> list[int]:
        return [o for o in honest(self, instrument, validities) if self._orders.validity(o) != FUNARI]

    monkeypatch.setattr(Engine, "_joining", joining)


def _a_group_is_its_first_order(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Engine._first_group
    monkeypatch.setattr(Engine, "_first_group", lambda *arguments: honest(*arguments)[:1])


def _turns_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "resume", lambda self, side, price, period: [])


def _a_whole_price_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_simultaneous", lambda self, instrument, plan, side: None)


@pytest.mark.once
@pytest.mark.skipif(getattr(engine, "BACKEND", "interpreted") == "compiled", reason="compiled code cannot be patched")
@pytest.mark.parametrize(
    ("break_a_rule", "what"),
    [
        (_a_width_wider_than_it_is, (deeds, listings)),
        (_quotes_are_not_looked_at_again, (deeds, listings)),
        (_a_funari_order_keeps_its_limit, (deeds, listings)),
        (_a_group_is_its_first_order, (crowded, turns)),
        (_turns_begin_anew, (crowded, turns)),
        (_a_whole_price_takes_turns, (crowded, turns)),
    ],
)
def test_the_days_notice_a_broken_rule(
    break_a_rule: Callable[[pytest.MonkeyPatch], None], what: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_a_rule(monkeypatch)
    quick = settings(
        max_examples=2_000,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[HypothesisPhase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises((AssertionError, engine.faults.InvariantBroken)):
        quick(lives(lambda: Engine(book=REFERENCE), *what))()
