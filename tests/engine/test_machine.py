"""Invented trading days: the same commands to the engine and to the plain model, compared after every step.

Hypothesis draws the days. After each command both must have said the same (events as values; a refusal's text is the
engine's own, but there must be one); after each step they must hold the same books in the same order and show the same
to whoever asks. Apart from the model, quantities, cash, units and locks are counted from the events alone, command by
command (``conserved.py``).

Two books live side by side: one of calls (START or N_CALLS), and one that trades in between (CONTINUOUS or TSE_HYBRID).
``test_reach.py`` says which orders, in which phases, the machine comes to.

A faster book runs through the same machine by one more line below. ``DOJIMA_PROFILE=nightly`` draws many more days.
"""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import engine
from engine.commands import (
    AmendOrder,
    BustTrade,
    CancelOrder,
    Command,
    Deposit,
    Disconnected,
    Kill,
    LimitRow,
    ListInstrument,
    MassCancel,
    NewOrder,
    PermitMember,
    RenewQuote,
    Restore,
    ResumeInstrument,
    SetCalendar,
    SetEligibility,
    SetHolder,
    SetLimitTable,
    SetPhase,
    SetQuoteTable,
    SetReferencePrice,
    SetRiskLimits,
    SetTickTable,
    SetTokenStatus,
    SetWindow,
    StartDay,
    SuspendInstrument,
    TickRow,
    Withdraw,
)
from engine.core import FAST, REFERENCE, Engine
from engine.events import Accepted, Activated, Amended, Cancelled, DisplayChanged, Event, Rejected, Traded
from engine.funding import Funding
from engine.matching import auction
from engine.matching.book import ReferenceBook
from engine.names import Name
from engine.profiles import PROFILES
from engine.ticket import OrderTicket
from engine.types import PRICE_MAX, OrderType, Phase, SelfTrade, Side, TimeInForce, WindowKind
from tests.engine.conserved import Conserved
from tests.engine.kinds import KINDS, Kind, terms
from tests.model import AUCTIONS, PHASES, Model

CALLS, ZARABA = "CALLS", "ZARABA"
SECOND = 1_000_000_000
#: Profiles of the two.
PAIRS = [
    *[("START", "CONTINUOUS")] * 2,
    ("N_CALLS", "CONTINUOUS"),
    ("START", "TSE_HYBRID"),
    ("N_CALLS", "TSE_HYBRID"),
]
#: What the machine always adds to a profile's rules, so that all it can offer is there to be drawn.
NEEDED: dict[str, dict[str, int | str]] = {
    "TSE_HYBRID": {"quote_width_table": "narrow", "market_orders_must_all_fill": 1},
}
MEMBERS = ("ichi", "ni", "san")
#: Few prices around 100, so that orders meet; 100 is where the tick changes in the table ``steps``.
PRICES = [96, 97, 98, 99, 99, 100, 100, 100, 101, 102, 105, 105]
#: A week with a holiday on the Tuesday, and the days after it.
DAYS = [20261102, 20261104, 20261105, 20261106, 20261109, 20261110, 20261111, 20261112, 20261113, 20261116]
VALIDITIES = {
    "START": [TimeInForce.DAY] * 6 + [TimeInForce.ON_OPEN, TimeInForce.ON_CLOSE],
    "N_CALLS": [TimeInForce.DAY],
    "CONTINUOUS": [TimeInForce.DAY] * 4 + [TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK],
    "TSE_HYBRID": [TimeInForce.DAY] * 6 + [TimeInForce.ON_CLOSE, TimeInForce.FUNARI],
}

#: What makes an order odd: most of these are refused, each for its own reason.
ODD = [
    {"instrument": "UNKNOWN"},
    {"quantity": 0},
    {"quantity": 7},
    {"quantity": 2**40},
    {"quantity": 2**40 + 10},
    {"price": 0},
    {"price": 1},
    {"price": 104},
    {"price": 119},
    {"price": 2**48, "quantity": 2**20},
    {"order_type": OrderType.MARKET},
    {"order_type": OrderType.STOP, "stop_price": 100},
    {"time_in_force": TimeInForce.GTD},
    {"time_in_force": TimeInForce.FUNARI},
    {"time_in_force": TimeInForce.ON_CLOSE},
    {"time_in_force": TimeInForce.IOC},
    {"order_type": OrderType.STOP, "stop_price": 0, "price": 0},
    {"order_type": OrderType.STOP, "stop_price": 104, "price": 0},
    {"stop_price": 100},
    {"display_quantity": 7},
    {"display_quantity": 10, "quantity": 20_000},
    {"minimum_quantity": 10},
    {"minimum_quantity": 100, "time_in_force": TimeInForce.IOC},
    {"post_only": True, "time_in_force": TimeInForce.IOC},
    {"self_trade": SelfTrade.CANCEL_NEWEST},
    {"expire_date": 20261130},
    {"expire_date": 20261101, "time_in_force": TimeInForce.GTD},
    {"order_type": OrderType.MARKET_TO_LIMIT},
]


#: Limits that bite where quantities are a few lots and prices near 100.
LIMITS: list[dict[str, Any]] = [
    {"quantity_max": 3},
    {"value_max": 300},
    {"share_alert": 300},
    {"share_alert": 100, "share_max": 400},
    {"collar": 200},
    {"open_orders_max": 3},
    {"messages_max": 2, "interval_ms": 1},
    {"messages_max": 4, "interval_ms": 2, "quantity_max": 4},
    {"cancel_on_disconnect": True},
    {"cancel_on_disconnect": False},
]
RARE = ("iceberg", "stop", "stop_limit", "to_limit", "post", "minimum", "own", "until")


class Deed(NamedTuple):
    """One thing a member does. ``what`` says which of the others count, so that one draw serves every kind of deed."""

    what: str
    member: str
    side: Side
    lots: int
    price: int
    pick: int  #: an order, a validity, an oddity


deeds = st.builds(
    Deed,
    st.sampled_from(
        ["limit"] * 16
        + ["kind"] * 4
        + ["market", "market", "amend", "amend", "reduce", "cancel", "foreign", "odd", "again"]
        + ["iceberg", "iceberg", "stop", "stop", "stop_limit", "to_limit", "post", "minimum", "own", "until"]
    ),
    st.sampled_from(MEMBERS),
    st.sampled_from(Side),
    st.integers(1, 5),
    st.sampled_from(PRICES),
    st.integers(0, 1_000),
)
codes = st.sampled_from([CALLS, CALLS, ZARABA])
deviations = st.fixed_dictionaries(
    {},
    optional={
        "allocation": st.sampled_from(["PRICE_TIME", "SIMULTANEOUS_RR"]),
        "market_orders_must_all_fill": st.sampled_from([0, 1]),
        "restriction_of_market_order": st.sampled_from([0, 0, 0, 1]),
        "halt_orders": st.sampled_from(["reject", "queue"]),
        "invalid_replace": st.sampled_from(["keep", "cancel_filled", "cancel_live"]),
        "self_trade": st.sampled_from([mode.name.lower() for mode in SelfTrade if mode != SelfTrade.DEFAULT]),
        "self_trade_group": st.sampled_from(["participant", "account"]),
        "qty_up_keeps_priority": st.sampled_from([0, 1]),
        "funding": st.sampled_from(["off", "off", "cash", "units", "both"]),
        "halt_resting": st.sampled_from(["keep", "keep", "purge"]),
        "reopen_call_seconds": st.sampled_from([0, 300]),
        "cancel_on_disconnect": st.sampled_from([0, 1]),
        "imbalance_only": st.sampled_from([0, 1]),
        "break_new": st.sampled_from([0, 1]),
        "call_ncp": st.sampled_from([0, 1]),
        "first_price_limits": st.sampled_from(["none", "none", "at_limit", "lapse"]),
        "limit_widening": st.sampled_from([1, 4]),
    },
)
variants = st.fixed_dictionaries(
    {},
    optional={
        "market_rests": st.sampled_from([0, 1]),
        "mtl_needs_limit": st.sampled_from([0, 1]),
        "iceberg_entry": st.sampled_from(["fresh_peak", "rest_of_peak"]),
        "iceberg_uncross": st.sampled_from(["whole", "peak"]),
        "volatility_band": st.sampled_from([0, 100, 300, 400]),
        "sequential_opposite": st.sampled_from(["wait", "at_once"]),
    },
)


def steps_to_closed(profile: str, phase: Phase) -> list[Phase]:
    """The shortest way to the end of the day."""
    ways: list[list[Phase]] = [[phase]]
    for way in ways:
        if way[-1] == Phase.CLOSED:
            return way[1:]
        ways += [[*way, following] for following in PHASES[profile][way[-1]].following if following not in way]
    raise AssertionError(f"no way from {phase.label} to Closed")


class MarketMachine(RuleBasedStateMachine):
    """Engine and model side by side. ``make_engine`` is what a subclass for another book replaces."""

    make_engine: Callable[[], Engine] = staticmethod(lambda: Engine(book=REFERENCE))
    #: Profiles of which a market's two books are drawn.
    pairs: ClassVar[list[tuple[str, str]]] = PAIRS
    #: Parameters that are not drawn.
    always: ClassVar[dict[str, int | str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.engine = type(self).make_engine()
        self.model = Model()
        self.sent: list[tuple[Command, str]] = []
        self.ids = 0
        self.days = 0
        self.conserved = Conserved()
        self.levels: dict[tuple[str, Side, int], int] = {}
        self.skip = 0  #: nanoseconds that pass before the next command

    def send(self, command: Command, member: str = "") -> list[Event]:
        now = self.engine.time_ns + 1 + self.skip
        self.skip = 0
        got = self.engine.apply(command, member, now)
        want = self.model.apply(command, member, now)
        for event in got:
            assert not isinstance(event, Rejected) or event.text
        assert [msgspec.structs.replace(e, text="") if isinstance(e, Rejected) else e for e in got] == want
        self.conserved.tell(command, got)
        self.conserved.hold(self.engine)
        for event in got:
            if not getattr(event, "repeat", False) and not getattr(event, "waiting", False):
                self.fold(event)
        if member:
            self.sent.append((command, member))
        return got

    def fold(self, event: Event) -> None:
        """What the public book shows, from the events alone."""
        changes: list[tuple[str, Side, int, int]] = []
        if isinstance(event, Accepted):
            changes = [(event.instrument, event.side, event.price, event.quantity)]
        elif isinstance(event, Activated):
            changes = [(event.instrument, event.side, event.price, event.open_quantity)]
        elif isinstance(event, Cancelled):
            changes = [(event.instrument, event.side, event.price, -event.quantity)]
        elif isinstance(event, Amended):
            changes = [
                (event.instrument, event.side, event.price_before, -event.open_before),
                (event.instrument, event.side, event.price, event.open_quantity),
            ]
        elif isinstance(event, DisplayChanged):
            changes = [(event.instrument, event.side, event.price, event.displayed - event.displayed_before)]
        elif isinstance(event, Traded):
            changes = [
                (event.instrument, Side.BUY, event.buy_limit, -event.quantity),
                (event.instrument, Side.SELL, event.sell_limit, -event.quantity),
            ]
        for code, side, price, quantity in changes:
            self.levels[code, side, price] = self.levels.get((code, side, price), 0) + quantity
            assert self.levels[code, side, price] >= 0

    def new_id(self) -> str:
        self.ids += 1
        return f"o-{self.ids}"

    # --- the exchange ------------------------------------------------------------------------------------------------

    @initialize(
        calls=deviations,
        zaraba=deviations,
        variant=variants,
        pair=st.integers(0, 59),
        tick_table=st.sampled_from(["one", "steps"]),
        limit_table=st.sampled_from(["none", "near"]),
        lot=st.sampled_from([1, 1, 10]),
        reference=st.sampled_from([0, 97, 100, 102]),
    )
    def open_the_market(
        self,
        calls: dict[str, int | str],
        zaraba: dict[str, int | str],
        variant: dict[str, int | str],
        pair: int,
        tick_table: str,
        limit_table: str,
        lot: int,
        reference: int,
    ) -> None:
        self.send(SetCalendar(20261101, 20261231, [20261103, 20261123]))
        self.send(SetTickTable("steps", 0, [TickRow(0, 1), TickRow(100, 5)]))
        self.send(SetLimitTable("near", 0, [LimitRow(100, 4), LimitRow(0, 8)]))
        self.send(SetQuoteTable("narrow", 0, [LimitRow(100, 2), LimitRow(0, 5)]))
        shared = {"lot": lot, "tick_table": tick_table, "limit_table": limit_table, "reference_price": reference}
        in_calls, in_zaraba = self.pairs[pair % len(self.pairs)]
        calls = self.rules_of(in_calls, {**calls, **self.always})
        zaraba = self.rules_of(in_zaraba, {**zaraba, **variant, **self.always})
        if zaraba.get("market_rests") and zaraba.get("funding") in ("cash", "both"):
            zaraba = {**zaraba, "funding": "units"}
        shared["units_outstanding"] = 100 * lot
        self.send(ListInstrument(CALLS, in_calls, **shared, rules=calls))
        self.send(ListInstrument(ZARABA, in_zaraba, **shared, settlement_days=0, rules=zaraba))
        self.lot = lot
        for member in MEMBERS:
            for account, share in (("", 4), ("a", 12)):
                self.send(Deposit(self.new_id(), member, account, share * 400 * lot))
                for code, rules in ((CALLS, calls), (ZARABA, zaraba)):
                    if rules.get("funding") in ("units", "both"):
                        self.send(Deposit(self.new_id(), member, account, share * lot, code))
        self.start_next_day()

    def rules_of(self, profile: str, drawn: dict[str, int | str]) -> dict[str, int | str]:
        """What of it a profile has a parameter for."""
        known = PROFILES[profile].parameters
        return {**{name: drawn[name] for name in drawn if name in known}, **NEEDED.get(profile, {})}

    def profile(self, code: str) -> str:
        return self.model.books[code].listed.profile

    def start_next_day(self) -> None:
        self.send(StartDay(DAYS[self.days]))
        self.days += 1
        for code in (CALLS, ZARABA):
            self.send(SetPhase(code, self.model.books[code].rule.following[0]))

    def end_the_day_and_start_the_next(self) -> None:
        if self.days == len(DAYS):
            return
        for book in self.model.books.values():
            for phase in steps_to_closed(book.listed.profile, book.phase):
                self.send(SetPhase(book.code, phase))
        self.start_next_day()

    def go_on_until(self, code: str, done: Callable[[Phase], bool]) -> None:
        """The usual way through the day, into the next day if need be."""
        while not done(self.model.books[code].phase):
            phase = self.model.books[code].rule.following[0]
            before = self.engine.sequence
            self.send(SetPhase(code, phase))
            if self.model.books[code].phase != phase or self.engine.sequence > before + 20:
                return  # a crossed book keeps zaraba from beginning

    @rule(code=codes, which=st.sampled_from([0, 0, 0, 1, 2]))
    def go_on(self, code: str, which: int) -> None:
        following = self.model.books[code].rule.following
        until_ns = self.ids % 2 * 77
        self.send(SetPhase(code, following[min(which, len(following) - 1)], until_ns))

    @rule(
        what=st.sampled_from(
            ["suspend", "resume", "reference", "tables", "day", "day", "impossible", "funds", "policy"] + ["renew"] * 3
        ),
        deed=deeds,
    )
    def the_exchange_acts(self, what: str, deed: Deed) -> None:
        code = (CALLS, ZARABA)[deed.pick % 2]
        if what == "suspend":
            self.send(SuspendInstrument(code))
        elif what == "resume":
            self.send(ResumeInstrument(code))
        elif what == "reference":
            self.send(SetReferencePrice(code, deed.price))
        elif what == "renew":
            self.skip = (1, 59, 61, 181, 181)[deed.pick % 5] * SECOND
            self.send(RenewQuote(ZARABA))
        elif what == "funds":
            kind = (Deposit, Withdraw, Withdraw)[deed.pick % 3]
            where = ("", code)[deed.pick // 3 % 2]
            quantity = deed.lots * (self.lot if where else 300 * self.lot) - deed.pick % 7 // 6
            name = self.new_id() if deed.lots < 5 else "o-1"
            self.send(kind(name, deed.member, ("", "a")[deed.pick // 6 % 2], quantity, where))
        elif what == "policy":
            self.send(self.policy(code, deed))
        elif what == "day":
            self.end_the_day_and_start_the_next()
        elif what == "tables":
            rows = ([TickRow(0, 1)], [TickRow(0, 5)], [TickRow(0, 1), TickRow(100, 5)])[deed.lots % 3]
            self.send(SetTickTable("steps", 0, rows))
            self.send(SetLimitTable("near", 0, [LimitRow(0, 2 + deed.lots)]))
            self.end_the_day_and_start_the_next()
        else:
            phase = Phase(deed.pick % len(Phase))
            self.send(SetPhase((CALLS, ZARABA, "UNKNOWN")[deed.lots % 3], phase))
            self.send(SetPhase(code, phase), deed.member)
            self.send(StartDay((20261101, 20261103, 20261107, 20261102, 20270104)[deed.pick % 5]))
            self.send(ResumeInstrument("UNKNOWN"))
            self.send(ListInstrument(code))

    def policy(self, code: str, deed: Deed) -> Command:
        """Who may trade and hold, and when."""
        lots = (deed.lots - 1) * 5 * self.lot
        flag, account = deed.pick % 3 == 0, ("", "a")[deed.pick // 6 % 2]
        first = DAYS[min(self.days - deed.pick // 6 % 2, len(DAYS) - 1)]
        last = (0, first, DAYS[-1])[deed.pick // 12 % 3]
        return (
            PermitMember(deed.member, code, not flag),
            SetTokenStatus(code, paused=flag, last_day=last if deed.lots == 5 else 0),
            SetHolder(code, deed.member, account, not flag, "JP", lock_up=lots if deed.lots % 2 else 0),
            SetWindow(code, WindowKind(deed.pick // 6 % 3), first, last, flag),
            SetEligibility(code, deed.lots == 1, deed.lots == 2, ["JP"] if deed.lots == 3 else []),
            SetEligibility(code, holding_max=lots if flag else 0, holders_max=0 if flag else deed.lots + 3),
        )[deed.price % 6]

    # --- the members -------------------------------------------------------------------------------------------------

    @rule(doings=st.lists(deeds, min_size=1, max_size=8))
    def members_trade_in_the_calls(self, doings: list[Deed]) -> None:
        for deed in doings:
            self.do(CALLS, deed)

    @rule(doings=st.lists(deeds, min_size=1, max_size=8), open_it=st.booleans())
    def members_trade_in_zaraba(self, doings: list[Deed], open_it: bool) -> None:
        if open_it:
            self.go_on_until(ZARABA, lambda phase: phase == Phase.CONTINUOUS)
        for deed in doings:
            self.do(ZARABA, deed)

    @rule(
        doings=st.lists(deeds, min_size=3, max_size=12),
        late=st.lists(deeds, max_size=4),
        code=st.sampled_from([CALLS, CALLS, CALLS, ZARABA]),
    )
    def a_call_collects_and_uncrosses(self, doings: list[Deed], late: list[Deed], code: str) -> None:
        if self.model.books[code].suspended and len(late) < 4:
            self.send(ResumeInstrument(code))
        if code == ZARABA and Phase.CALL in self.model.books[code].rule.following:
            self.send(SetPhase(code, Phase.CALL))
        self.go_on_until(code, lambda phase: phase in (Phase.PRE_OPEN, Phase.PRE_CLOSE, Phase.CALL))
        for deed in doings:
            self.do(code, deed)
        self.go_on(code, 0)
        for deed in late:
            self.do(code, deed)
        self.go_on_until(code, lambda phase: phase in (*AUCTIONS, Phase.CONTINUOUS))

    def do(self, code: str, deed: Deed) -> None:
        name = self.new_id()
        profile = self.profile(code)
        validity = VALIDITIES[profile][deed.pick % len(VALIDITIES[profile])]
        quantity = deed.lots * self.lot
        account = ("", "a")[deed.pick % 2]
        order = NewOrder(
            name,
            code,
            deed.side,
            quantity,
            deed.price,
            time_in_force=validity,
            account=account,
            confirmed=deed.pick % 5 == 4,
        )
        if deed.what == "limit":
            self.send(order, deed.member)
        elif deed.what == "kind":
            kinds = KINDS[profile]
            self.send(msgspec.structs.replace(order, **self.terms(kinds[deed.pick % len(kinds)], deed)), deed.member)
        elif deed.what == "market":
            self.send(msgspec.structs.replace(order, price=0, order_type=OrderType.MARKET), deed.member)
        elif deed.what in RARE:
            self.send(msgspec.structs.replace(order, **self.rare(deed)), deed.member)
        elif deed.what == "odd":
            odd = {"time_in_force": TimeInForce.DAY, **ODD[deed.pick % len(ODD)]}
            self.send(msgspec.structs.replace(order, **odd), deed.member)
        elif deed.what == "again":
            self.ask_again(code, deed)
        else:
            mine = [o for o in self.model.orders if o.alive and o.book.code == code] or self.model.orders
            if not mine:
                return
            it = mine[deed.pick % len(mine)] if deed.lots < 5 else self.model.orders[deed.pick % len(self.model.orders)]
            if deed.what == "cancel":
                self.send(CancelOrder(name, it.id), it.member)
            elif deed.what == "foreign":
                self.send(CancelOrder(name, it.id), deed.member)
            elif deed.what == "reduce":
                total = it.total - it.open // 2 // self.lot * self.lot - deed.pick % 4 // 3
                self.send(AmendOrder(name, it.id, total), it.member)
            else:
                total = (0, 0, quantity, it.total - it.open + quantity, 2**41)[deed.pick % 5]
                price = (0, deed.price, deed.price)[deed.pick % 3]
                self.send(AmendOrder(name, it.id, total, price), it.member)

    def terms(self, kind: Kind, deed: Deed) -> dict[str, Any]:
        """What makes an order one of ``kind``."""
        stop_price = PRICES[deed.pick // 7 % len(PRICES)]
        last_day = DAYS[min(self.days, len(DAYS) - 1)]
        mode = SelfTrade(1 + deed.pick % 6)
        return terms(kind, stop_price, last_day, (1 + deed.lots % 2) * self.lot, min(2, deed.lots) * self.lot, mode)

    def rare(self, deed: Deed) -> dict[str, Any]:
        """What makes an order one of a rare kind."""
        stop_price = PRICES[deed.pick // 7 % len(PRICES)]
        return {
            "iceberg": {"quantity": (1 + deed.pick % 6) * self.lot, "display_quantity": (1 + deed.lots % 2) * self.lot},
            "stop": {"order_type": OrderType.STOP, "price": 0, "stop_price": stop_price},
            "stop_limit": {"order_type": OrderType.STOP_LIMIT, "stop_price": stop_price},
            "to_limit": {"order_type": OrderType.MARKET_TO_LIMIT, "price": 0},
            "post": {"post_only": True},
            "minimum": {"time_in_force": TimeInForce.IOC, "minimum_quantity": min(2, deed.lots) * self.lot},
            "own": {"self_trade": SelfTrade(1 + deed.pick % 6)},
            "until": {"time_in_force": TimeInForce.GTD, "expire_date": DAYS[min(self.days, len(DAYS) - 1)]},
        }[deed.what]

    def ask_again(self, code: str, deed: Deed) -> None:
        """The same command again, or its id for another one."""
        self.skip = 0
        if not self.sent:
            return
        command, member = self.sent[-1 - deed.pick % min(len(self.sent), 20)]
        name = getattr(command, "client_order_id", "")
        name = getattr(command, "request_id", name)
        if deed.lots < 4:
            before = self.engine.digest() if deed.lots == 1 else b""
            self.engine.sequence -= 1  # the one thing that a repeat does change
            self.model.sequence -= 1
            events = self.send(command, member)
            assert len(events) == 1
            if before:
                self.engine.time_ns -= 1
                assert self.engine.digest() == before
        elif isinstance(command, NewOrder | CancelOrder):
            self.send(NewOrder(name, code, deed.side, 6 * self.lot, deed.price), member)
            self.send(CancelOrder(name, "nothing"), member)

    @rule(
        member=st.sampled_from([*MEMBERS, *MEMBERS, "", "ICHI", "a" * 17]),
        code=st.sampled_from(["", CALLS, CALLS, ZARABA, "UNKNOWN"]),
        side=st.sampled_from([None, *Side]),
        low=st.sampled_from([0, 0, 98, 100]),
        high=st.sampled_from([0, 0, 99, 102]),
        account=st.sampled_from(["", "", "a", "b"]),
    )
    def mass_cancel(self, member: str, code: str, side: Side | None, low: int, high: int, account: str) -> None:
        self.send(MassCancel(self.new_id(), code, side, low, high, account), member)

    # --- the operator ------------------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["kill", "limits", "limits", "limits", "bust", "disconnect", "disconnect"]),
        member=st.sampled_from([*MEMBERS, *MEMBERS, "", "ICHI", "shi"]),
        code=st.sampled_from(["", CALLS, ZARABA, CALLS, ZARABA, "UNKNOWN"]),
        doings=st.lists(deeds, min_size=1, max_size=6),
        lasts=st.booleans(),
    )
    def the_operator_protects(self, what: str, member: str, code: str, doings: list[Deed], lasts: bool) -> None:
        """Something is stopped or limited; members go on; mostly it is taken back."""
        deed = doings[0]
        self.skip = deed.lots // 4 * 1_000_000
        if what == "kill":
            self.send(Kill(member, code))
        elif what == "limits":
            limits = dict(LIMITS[deed.pick % len(LIMITS)])
            for name in ("quantity_max", "value_max"):
                if name in limits:
                    limits[name] *= self.lot
            self.send(SetRiskLimits(member, code, **limits))
        elif what == "bust":
            self.send(BustTrade(1 + deed.pick % (self.model.trades + 2)))
        else:
            self.send(Disconnected(member))
        for doing in doings:
            self.do(code if code in (CALLS, ZARABA) else (CALLS, ZARABA)[doing.pick % 2], doing)
        if what == "disconnect":
            self.send(Disconnected(member))
        elif what == "kill" and (not lasts or "" in (member, code)):
            self.send(Restore(member, code))
        elif what == "limits" and not lasts:
            self.send(SetRiskLimits(member, code))

    # --- what must be the same, and what must always hold ------------------------------------------------------------

    @invariant()
    def books_are_the_same(self) -> None:
        for code, book in self.model.books.items():
            assert self.engine.depth(code) == self.model.depth(code)
            for side, ladder in zip(Side, self.engine.depth(code), strict=True):
                told = {key[2]: levels for key, levels in self.levels.items() if key[:2] == (code, side) and levels}
                assert told == dict(ladder)
            for side in Side:
                assert self.engine.queue(code, side) == self.model.queue(code, side)
            view = self.engine.instrument(code)
            assert (view.phase, view.suspended, view.reference_price) == (book.phase, book.suspended, book.reference)
            assert (view.base_price, view.lower_limit, view.upper_limit) == (book.base, book.lower, book.upper)
            assert (view.last_price, view.last_quantity) == (book.last_price, book.last_quantity)
            assert (view.until_ns, view.dropped) == (book.until_ns, book.dropped)
            seen = self.engine.indicative(code)
            assert (seen.price, seen.volume, seen.surplus) == self.model.indicative(code)

    @invariant()
    def open_orders_are_the_same(self) -> None:
        for member in MEMBERS:
            got = [
                (o.order_id, o.client_order_id, o.instrument, o.side, o.price, o.quantity, o.open_quantity, o.waiting)
                for o in self.engine.open_orders(member)
            ]
            assert got == [
                (o.number, o.id, o.book.code, o.side, o.price, o.total, o.open, o.waiting)
                for o in self.model.open_orders(member)
            ]

    @invariant()
    def balances_are_the_same(self) -> None:
        for code in ("", CALLS, ZARABA):
            for member in MEMBERS:
                for account in ("", "a"):
                    place = code, member, account
                    got = self.engine.balance(member, account, code)
                    assert (got.total, got.locked) == (self.model.funds.get(place, 0), self.model.locked(*place))

    @invariant()
    def every_quantity_is_open_traded_or_cancelled(self) -> None:
        self.conserved.hold_all(self.engine)

    @invariant()
    def the_engine_finds_nothing_wrong_with_itself(self) -> None:
        self.engine.check()


class PolicyMachine(MarketMachine):
    """The same market where everything is pre-funded and issuers speak as often as members trade."""

    always: ClassVar[dict[str, int | str]] = {"funding": "both"}

    @rule(code=codes, doings=st.lists(deeds, min_size=1, max_size=3))
    def issuers_speak(self, code: str, doings: list[Deed]) -> None:
        for deed in doings:
            self.send(self.policy(code, deed))


def machine(make_engine: Callable[[], Engine]) -> type[unittest.TestCase]:
    """The machine as a test case, for one way to make an engine."""
    case: type[unittest.TestCase] = type(
        "Machine", (MarketMachine,), {"make_engine": staticmethod(make_engine)}
    ).TestCase
    case.settings = settings(stateful_step_count=40)  # type: ignore[attr-defined]
    return case


TestEngineAndModelAgree = machine(lambda: Engine(book=REFERENCE))
TestEngineWithTheFastBookAndModelAgree = machine(lambda: Engine(book=FAST))
TestEngineAndModelAgreeWhoMayTrade = PolicyMachine.TestCase
TestEngineAndModelAgreeWhoMayTrade.settings = settings(max_examples=40, stateful_step_count=40)


# --- proof that it can fail ------------------------------------------------------------------------------------------


def _last_come_first_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every order goes to the head of its queue."""

    def add(self: ReferenceBook, order: int) -> None:
        honest(self, order)
        level = self._level(self._terms[order] & 1, self._price[order])
        assert level is not None
        if level.head != order:
            before = self._previous[order]
            self._next[before], level.tail = 0, before
            self._previous[order], self._next[order] = 0, level.head
            self._previous[level.head], level.head = order, order

    honest = ReferenceBook.add
    monkeypatch.setattr(ReferenceBook, "add", add)


def _surplus_on_both_sides_is_not_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 5 of the itayose without its first half: the reference chooses in the whole run, as ``bnb`` has it."""
    honest = auction.equilibrium

    def lax(*args: Any) -> Any:
        return honest(*args[:10], "bnb", args[11])

    monkeypatch.setattr(auction, "equilibrium", lax)


def _cancels_pass_in_the_non_cancel_period(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.profiles import START

    monkeypatch.setattr(START.phases[Phase.PRE_OPEN_NCP], "cancel", True)


def _members_never_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """``SIMULTANEOUS_RR`` allocates by price and time."""
    monkeypatch.setattr(auction, "SIMULTANEOUS_RR", "never")


def _fill_or_kill_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_reachable", lambda self, instrument, order, limit, wanted, mode, own: wanted)


def _a_mass_cancel_in_the_non_cancel_period_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_cancel_deferred", lambda self, instrument, events: instrument.deferred.clear())


def _only_the_first_pair_of_an_auction_trades(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = auction.pair
    monkeypatch.setattr(auction, "pair", lambda buys, sells: honest(buys, sells)[:3])


def _a_repeat_is_carried_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def identify(self: Any, participant: str, name: Name, command: Any, events: list[Event]) -> Any:
        member = self._identities.by_name.get(participant)
        if member is not None and name.size and not isinstance(command, OrderTicket):
            at = self._identities._ids._find(member.index, name)
            if at >= 0:
                self._identities._ids._cells[at] = -1
        return honest(self, participant, name, command, events)

    honest = Engine._identify
    monkeypatch.setattr(Engine, "_identify", identify)


def _own_orders_trade_with_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_is_own", lambda self, instrument, order, maker, own: False)


def _a_fresh_peak_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an iceberg shows next goes to the head of the queue."""

    def replenish(self: Engine, instrument: Any, order: int, events: list[Event]) -> None:
        honest(self, instrument, order, events)
        behind = instrument.book.queue(self._orders, self._orders.side(order), self._orders.price[order])
        for other in behind[:-1]:
            instrument.book.remove(other)
            instrument.book.add(other)

    honest = Engine._replenish
    monkeypatch.setattr(Engine, "_replenish", replenish)


def _every_order_passes_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_check_limits", lambda *args: None)


def _no_price_is_outside_the_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_band", lambda self, instrument: (1, PRICE_MAX))


def _a_trade_triggers_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_reached", lambda self, instrument, price: None)


def _what_is_cancelled_stays_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(self: Funding, events: list[Event], by_code: Any) -> None:
        honest(self, [event for event in events if not isinstance(event, Cancelled)], by_code)

    honest = Funding.fold
    monkeypatch.setattr(Funding, "fold", fold)


def _a_market_order_locks_its_reference_price(monkeypatch: pytest.MonkeyPatch) -> None:
    def need(self: Funding, order: int, instrument: Any) -> int:
        upper, instrument.upper = instrument.upper, instrument.reference
        try:
            return honest(self, order, instrument)
        finally:
            instrument.upper = upper

    honest = Funding._need
    monkeypatch.setattr(Funding, "_need", need)


@pytest.mark.once
@pytest.mark.skipif(getattr(engine, "BACKEND", "interpreted") == "compiled", reason="compiled code cannot be patched")
@pytest.mark.parametrize(
    "break_a_rule",
    [
        _last_come_first_served,
        _surplus_on_both_sides_is_not_narrowed,
        _cancels_pass_in_the_non_cancel_period,
        _members_never_take_turns,
        _fill_or_kill_takes_what_there_is,
        _a_mass_cancel_in_the_non_cancel_period_is_lost,
        _only_the_first_pair_of_an_auction_trades,
        _a_repeat_is_carried_out_again,
        _own_orders_trade_with_one_another,
        _a_fresh_peak_keeps_its_place,
        _a_trade_triggers_no_stop,
        _every_order_passes_the_limits,
        _no_price_is_outside_the_band,
        _what_is_cancelled_stays_locked,
        _a_market_order_locks_its_reference_price,
    ],
)
def test_machine_notices_a_broken_rule(
    break_a_rule: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_a_rule(monkeypatch)
    quick = settings(
        max_examples=1_000,
        stateful_step_count=40,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[HypothesisPhase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    funded = (
        {"funding": "both"}
        if break_a_rule
        in (
            _what_is_cancelled_stays_locked,
            _a_market_order_locks_its_reference_price,
        )
        else {}
    )
    classic = type("Machine", (MarketMachine,), {"pairs": [("START", "CONTINUOUS")], "always": funded})
    with pytest.raises((AssertionError, engine.faults.InvariantBroken)):
        run_state_machine_as_test(classic, settings=quick)
