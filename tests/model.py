"""A market written to be believed: lists, sorting, and one rule after the other as market-rules has them.

It is the oracle of ``tests/engine/test_machine.py``. It shares the words with the engine (commands, events, types) and
not one line of its logic: no linked queues, no ladders, no walk over stretches of prices. Where the engine is quick,
the model looks at everything again. Refusals carry no text here; what a text says is the engine's own business.

Covered: the profiles START, N_CALLS, TSE_HYBRID (``model_quotes.py``) and CONTINUOUS with all their orders; everything
else is refused as not offered.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec

from engine.commands import (
    AmendOrder,
    BustTrade,
    CancelOrder,
    Command,
    Deposit,
    Disconnected,
    Kill,
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
    Withdraw,
)
from engine.events import (
    Accepted,
    Activated,
    Amended,
    AuctionUncrossed,
    BalanceChanged,
    CancelFrozen,
    Cancelled,
    ConnectionLost,
    DayStarted,
    DisplayChanged,
    EligibilitySet,
    Event,
    HolderSet,
    InstrumentListed,
    KillSwitched,
    LargeOrderAlerted,
    MassCancelled,
    MemberPermitted,
    PhaseChanged,
    PhaseTimed,
    ReferenceDataSet,
    ReferencePriceSet,
    Rejected,
    RiskLimitsSet,
    SelfTradePrevented,
    TokenStatusSet,
    TradeBusted,
    Traded,
    TradingStateChanged,
    VolatilityInterrupted,
    WindowBegan,
    WindowSet,
)
from engine.types import (
    PRICE_MAX,
    QUANTITY_MAX,
    VALUE_MAX,
    Approval,
    CancelReason,
    OrderType,
    Phase,
    Reason,
    SelfTrade,
    Side,
    TimeInForce,
)
from tests.model_quotes import Quote, Quotes

BUY, SELL = Side.BUY, Side.SELL
DAY, IOC, FOK, GTC = TimeInForce.DAY, TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTC
GTD = TimeInForce.GTD
LIMIT, MARKET, MARKET_TO_LIMIT = OrderType.LIMIT, OrderType.MARKET, OrderType.MARKET_TO_LIMIT
STOP, STOP_LIMIT = OrderType.STOP, OrderType.STOP_LIMIT
ON_OPEN, ON_CLOSE, FUNARI = TimeInForce.ON_OPEN, TimeInForce.ON_CLOSE, TimeInForce.FUNARI
IMBALANCE_ONLY = OrderType.IMBALANCE_ONLY


class Rule(NamedTuple):
    """What a phase allows (market-rules 1)."""

    following: tuple[Phase, ...]
    new: tuple[TimeInForce, ...] = ()
    amend: bool = False
    cancel: bool = False
    indicative: bool = False


COLLECTING = {"amend": True, "cancel": True, "indicative": True}

PHASES = {
    "START": {
        Phase.CLOSED: Rule((Phase.PRE_OPEN,)),
        Phase.PRE_OPEN: Rule((Phase.PRE_OPEN_NCP,), (DAY, ON_OPEN, ON_CLOSE), **COLLECTING),
        Phase.PRE_OPEN_NCP: Rule((Phase.OPENING_AUCTION,), (DAY, ON_OPEN, ON_CLOSE), indicative=True),
        Phase.OPENING_AUCTION: Rule((Phase.BREAK, Phase.CALL)),
        Phase.BREAK: Rule((Phase.PRE_CLOSE, Phase.CALL), cancel=True),
        Phase.CALL: Rule((Phase.CALL_AUCTION,), (DAY,), **COLLECTING),
        Phase.CALL_AUCTION: Rule((Phase.BREAK, Phase.CALL, Phase.CLOSED)),
        Phase.PRE_CLOSE: Rule((Phase.PRE_CLOSE_NCP,), (DAY, ON_CLOSE), **COLLECTING),
        Phase.PRE_CLOSE_NCP: Rule((Phase.CLOSING_AUCTION,), (DAY, ON_CLOSE), indicative=True),
        Phase.CLOSING_AUCTION: Rule((Phase.CLOSED, Phase.CALL)),
    },
    "CONTINUOUS": {
        Phase.CLOSED: Rule((Phase.CONTINUOUS, Phase.CALL)),
        Phase.CONTINUOUS: Rule((Phase.CALL, Phase.CLOSED), (DAY, IOC, FOK, GTC, GTD), amend=True, cancel=True),
        Phase.CALL: Rule((Phase.CALL_AUCTION, Phase.CLOSED), (DAY, GTC, GTD), **COLLECTING),
        Phase.CALL_AUCTION: Rule((Phase.CONTINUOUS, Phase.CALL, Phase.CLOSED)),
    },
    "TSE_HYBRID": {
        Phase.CLOSED: Rule((Phase.PRE_OPEN,)),
        Phase.PRE_OPEN: Rule((Phase.OPENING_AUCTION,), (DAY, ON_OPEN, ON_CLOSE, FUNARI), **COLLECTING),
        Phase.OPENING_AUCTION: Rule((Phase.CONTINUOUS, Phase.CALL)),
        Phase.CONTINUOUS: Rule(
            (Phase.PRE_CLOSE, Phase.CLOSING_AUCTION, Phase.CALL),
            (DAY, IOC, ON_CLOSE, FUNARI),
            amend=True,
            cancel=True,
        ),
        Phase.PRE_CLOSE: Rule((Phase.CLOSING_AUCTION, Phase.CALL), (DAY, ON_CLOSE), **COLLECTING),
        Phase.CLOSING_AUCTION: Rule((Phase.CLOSED, Phase.BREAK, Phase.CALL)),
        Phase.BREAK: Rule((Phase.PRE_OPEN, Phase.CALL), cancel=True),
        Phase.CALL: Rule((Phase.CALL_AUCTION,), (DAY, ON_CLOSE, FUNARI), **COLLECTING),
        Phase.CALL_AUCTION: Rule((Phase.CONTINUOUS, Phase.BREAK, Phase.CALL, Phase.CLOSED)),
    },
    "N_CALLS": {
        Phase.CLOSED: Rule((Phase.CALL,)),
        Phase.CALL: Rule((Phase.CALL_AUCTION,), (DAY,), **COLLECTING),
        Phase.CALL_NCP: Rule((Phase.CALL_AUCTION,), (DAY,), indicative=True),
        Phase.CALL_AUCTION: Rule((Phase.CALL, Phase.BREAK, Phase.CLOSED)),
        Phase.BREAK: Rule((Phase.CALL, Phase.CLOSED), cancel=True),
    },
}
NON_CANCEL = (Phase.PRE_OPEN_NCP, Phase.PRE_CLOSE_NCP, Phase.CALL_NCP)
AUCTIONS = (Phase.OPENING_AUCTION, Phase.CLOSING_AUCTION, Phase.CALL_AUCTION)
#: Before the closing call, an on-close order waits outside the book.
BEFORE_THE_CLOSE = (
    *(Phase.PRE_OPEN, Phase.PRE_OPEN_NCP, Phase.OPENING_AUCTION, Phase.BREAK),
    *(Phase.CONTINUOUS, Phase.CALL),  # of the hybrid
)
#: Whose orders leave after the auction of a phase, or on entering it when it holds none.
EXPIRES = {
    Phase.OPENING_AUCTION: (ON_OPEN,),
    Phase.CALL_AUCTION: (ON_OPEN,),
    Phase.PRE_CLOSE: (ON_OPEN,),
    Phase.CLOSING_AUCTION: (ON_CLOSE, FUNARI),
    Phase.CLOSED: (DAY, IOC, FOK, ON_OPEN, ON_CLOSE, FUNARI),
}
DEFAULTS: dict[str, dict[str, int | str]] = {
    "START": {"invalid_replace": "keep", "self_trade": "none", "cancel_on_disconnect": 1},
    "CONTINUOUS": {"invalid_replace": "cancel_filled", "self_trade": "cancel_newest", "cancel_on_disconnect": 0},
    "N_CALLS": {"invalid_replace": "keep", "self_trade": "none", "cancel_on_disconnect": 1},
    "TSE_HYBRID": {
        "invalid_replace": "keep",
        "self_trade": "cancel_newest",
        "cancel_on_disconnect": 0,
        "allocation": "SIMULTANEOUS_RR",
        "fill_order": "remainder_first",
        "market_orders_must_all_fill": 1,
        "reopen_call_seconds": 300,
        "quote_width_table": "tse",
        "first_price_limits": "at_limit",
        "limit_widening": 4,
    },
}
OFFERED = {
    "START": (LIMIT, MARKET),
    "N_CALLS": (LIMIT, MARKET),
    "TSE_HYBRID": (LIMIT, MARKET),
    "CONTINUOUS": (LIMIT, MARKET, MARKET_TO_LIMIT, STOP, STOP_LIMIT),
}


class Order:
    """An order for as long as the log lives."""

    def __init__(self, number: int, member: str, book: Book, new: NewOrder, waiting: bool) -> None:
        self.number = number
        self.member = member
        self.book = book
        self.id = new.client_order_id
        self.side = new.side
        self.price = new.price
        self.total = new.quantity
        self.open = new.quantity
        self.type = new.order_type
        self.validity = new.time_in_force
        self.account = new.account
        self.display = new.display_quantity
        self.hidden = 0  #: of ``open``, what the book does not show
        self.stop_price = new.stop_price
        self.minimum = new.minimum_quantity
        self.post_only = new.post_only
        self.self_trade = new.self_trade
        self.last_day = new.expire_date
        self.waiting = waiting
        self.gone = False
        self.bound = book.upper  #: what a unit of it can cost at most, where it names no limit
        self.takes_part = False  #: an imbalance-only order whose auction is the next one
        self.turn = 0  #: place in the queue: less is earlier
        self.asked = 0  #: sequence of the command that gave it its terms

    @property
    def alive(self) -> bool:
        return self.open > 0 and not self.gone

    @property
    def mode(self) -> SelfTrade:
        rule = SelfTrade[str(self.book.rules["self_trade"]).upper()]
        return rule if self.self_trade == SelfTrade.DEFAULT else SelfTrade(self.self_trade)

    def group(self) -> tuple[str, ...] | None:
        """Who must not trade with itself."""
        if self.book.rules.get("self_trade_group") != "account":
            return (self.member,)
        return (self.member, self.account) if self.account else None

    def priority(self) -> tuple[bool, int, int]:
        """Sorts one side: without a limit first, then the better price, then the earlier one."""
        return self.price != 0, -self.price if self.side == BUY else self.price, self.turn


class Book:
    """One instrument and its state."""

    def __init__(self, listed: ListInstrument) -> None:
        self.code = listed.instrument
        self.listed = listed
        self.phases = dict(PHASES[listed.profile])
        self.rules = {**DEFAULTS[listed.profile], **listed.rules}
        if self.rules.get("break_new"):
            taken = (DAY, ON_CLOSE) if listed.profile == "START" else (DAY,)
            self.phases[Phase.BREAK] = self.phases[Phase.BREAK]._replace(new=taken)
        if self.rules.get("call_ncp"):
            following = (Phase.CALL_NCP, Phase.CALL_AUCTION)
            self.phases[Phase.CALL] = self.phases[Phase.CALL]._replace(following=following)
        self.phase = Phase.CLOSED
        self.suspended = False
        self.until_ns = 0
        self.dropped = False
        self.day = 0
        self.reference = listed.reference_price
        self.base = self.lower = self.upper = 0
        self.last_price = self.last_quantity = 0
        self.settlement_date = 0
        self.ticks = [(0, 1)]
        self.mass_cancels: list[tuple[str, MassCancel, int]] = []
        self.triggered: list[Order] = []
        self.eligibility = SetEligibility(self.code)
        self.status = SetTokenStatus(self.code)
        self.permitted: dict[str, bool] = {}
        self.holders: dict[tuple[str, str], SetHolder] = {}
        self.windows: dict[tuple[int, int], SetWindow] = {}
        self.began: set[tuple[int, int]] = set()
        self.limits: list[tuple[int, int]] = []
        self.widths: list[tuple[int, int]] = []
        self.quote: Quote | None = None
        #: Stretches of commands in which simultaneous orders came; from when on the present one lasts, None: it trades.
        self.periods: list[tuple[int, int]] = []
        self.collects_since: int | None = 0
        self.joined = 0
        #: By side and price: the period of the orders there, and the members in the order of their turns.
        self.rota: dict[tuple[Side, int], tuple[int, list[str]]] = {}
        self.run_base = self.run_since = 0
        self.stuck = self.pressed = 0
        self.moved = False

    def permits(self, member: str) -> bool:
        return self.permitted.get(member, not self.eligibility.members_listed)

    def registers(self, member: str, account: str) -> bool:
        holder = self.holders.get((member, account))
        return not self.eligibility.whitelist or (holder is not None and holder.registered)

    @property
    def moves(self) -> bool:
        """Whether the token can change hands."""
        return self.status.active and self.status.transferable and not self.status.paused

    @property
    def in_window(self) -> bool:
        return any(self.windows[key].last >= self.day for key in self.began)

    @property
    def trades(self) -> bool:
        return self.phase == Phase.CONTINUOUS and not self.suspended

    @property
    def rule(self) -> Rule:
        return self.phases[self.phase]


class Refused(Exception):
    """A command the market declines; what is said before and behind the refusal."""

    def __init__(self, reason: Reason, before: Iterable[Event] = (), behind: Iterable[Event] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.before = before
        self.behind = behind


def need(condition: object, reason: Reason) -> None:
    if not condition:
        raise Refused(reason)


# --- ticks -----------------------------------------------------------------------------------------------------------


def on_grid(rows: list[tuple[int, int]], price: int) -> bool:
    return price > 0 and price % [tick for start, tick in rows if start <= price][-1] == 0


def next_valid(rows: list[tuple[int, int]], price: int, step: int) -> int:
    """The first valid price from ``price`` on, going by ``step`` of 1 or -1; 0: none."""
    while price > 0 and not on_grid(rows, price):
        price += step
    return max(price, 0)


def nearest(rows: list[tuple[int, int]], price: int) -> int:
    """Half up."""
    if price == 0:
        return 0
    up, down = next_valid(rows, price, 1), next_valid(rows, price, -1)
    return down if down and price - down < up - price else up


class Model(Quotes):
    """The market. ``apply`` answers as ``Engine.apply`` does, with empty texts."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.orders: list[Order] = []
        self.answers: dict[tuple[str, str], tuple[bytes, Event]] = {}
        self.sequence = 0
        self.turns = 0
        self.trades = 0
        self.date = 0
        self.calendar: SetCalendar | None = None
        self.funds: dict[tuple[str, str, str], int] = {}  #: by instrument ("": yen), member, account
        self.references: set[str] = set()
        self.tick_tables: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {"one": [(1, [(0, 1)])]}
        self.quote_tables: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {}
        self.on_grid, self.next_valid, self.need = on_grid, next_valid, need
        self.limit_tables: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {}
        self.time_ns = 0
        self.killed: set[tuple[str, str]] = set()
        self.risk_limits: dict[tuple[str, str], SetRiskLimits] = {}
        self.passed: list[tuple[tuple[str, str], str, int]] = []  #: messages let through: limit, member, interval
        self.tape: list[tuple[Order, Order, Traded]] = []
        self.busted: set[int] = set()

    def apply(self, command: Command, participant: str = "", time_ns: int = 0) -> list[Event]:
        self.sequence += 1
        self.time_ns = time_ns
        if isinstance(command, NewOrder | CancelOrder | AmendOrder | MassCancel):
            events = self.member_command(command, participant)
        else:
            code = getattr(command, "instrument", "")
            try:
                need(not participant, Reason.NOT_PERMITTED)
                events = self.exchange_command(command)
            except Refused as refused:
                events = [Rejected(participant, "", refused.reason, "", code)]
        events = [*events, *self.review(events)]
        self.note_periods(events)
        return events

    # --- members -----------------------------------------------------------------------------------------------------

    def member_command(self, command: Any, member: str) -> list[Event]:
        name = command.client_order_id if isinstance(command, NewOrder) else command.request_id
        if not re.fullmatch("[a-z0-9-]{1,16}", member):
            return [Rejected("", name, Reason.BAD_IDENTITY, "")]
        content = msgspec.msgpack.encode(command)
        if (member, name) in self.answers:
            before, answer = self.answers[member, name]
            if before == content:
                return [msgspec.structs.replace(answer, repeat=True)]
            return [Rejected(member, name, Reason.DUPLICATE_CLIENT_ORDER_ID, "")]
        book = self.book_meant(command, member)
        try:
            if isinstance(command, NewOrder):
                answer, events = self.new(command, member, book)
            elif isinstance(command, CancelOrder):
                answer, events = self.cancel(command, member)
            elif isinstance(command, AmendOrder):
                answer, events = self.amend(command, member)
            else:
                answer, events = self.mass_cancel(command, member, book)
        except Refused as refused:
            answer = Rejected(member, name, refused.reason, "", book.code if book else "")
            events = [*refused.before, answer, *refused.behind]
        self.answers[member, name] = content, answer
        return events

    def book_meant(self, command: Any, member: str) -> Book | None:
        if isinstance(command, NewOrder | MassCancel):
            return self.books.get(command.instrument)
        order = self.find(member, command.client_order_id)
        return order.book if order else None

    def find(self, member: str, name: str) -> Order | None:
        return next((order for order in self.orders if (order.member, order.id) == (member, name)), None)

    def new(self, new: NewOrder, member: str, book: Book | None) -> tuple[Event, list[Event]]:
        need(book, Reason.UNKNOWN_INSTRUMENT)
        assert book
        need(self.date and book.day == self.date, Reason.NO_DAY)
        need(book.rule.new, Reason.WRONG_PHASE)
        need(not book.suspended or book.rules.get("halt_orders") == "queue", Reason.SUSPENDED)
        self.check_open_to(book, member)
        offered = (*OFFERED[book.listed.profile], *([IMBALANCE_ONLY] if book.rules.get("imbalance_only") else []))
        need(new.order_type in offered, Reason.NOT_OFFERED)
        need(new.time_in_force in {v for rule in book.phases.values() for v in rule.new}, Reason.NOT_OFFERED)
        rare = new.display_quantity or new.stop_price or new.minimum_quantity or new.post_only or new.expire_date
        rare = rare or new.self_trade > SelfTrade.NONE
        need(book.listed.profile == "CONTINUOUS" or not rare, Reason.NOT_OFFERED)
        restricted = book.rules.get("restriction_of_market_order")
        need(not (restricted and new.order_type in (MARKET, MARKET_TO_LIMIT, STOP)), Reason.MARKET_ORDERS_RESTRICTED)
        need(new.time_in_force in book.rule.new, Reason.WRONG_PHASE)
        need(not (book.suspended and new.time_in_force in (IOC, FOK)), Reason.WRONG_PHASE)
        self.check_quantity(book, new.quantity)
        at_once = new.order_type == MARKET and book.trades and not book.rules.get("market_rests")
        at_once = at_once and not book.widths
        self.check_price(book, new.order_type in (LIMIT, STOP_LIMIT, IMBALANCE_ONLY), new.price, new.quantity, at_once)
        if new.time_in_force == FUNARI:
            self.check_price(book, False, 0, new.quantity)
            need(new.order_type == LIMIT, Reason.NOT_OFFERED)
        if new.order_type == IMBALANCE_ONLY:
            need(not new.display_quantity and new.time_in_force not in (IOC, FOK), Reason.NOT_OFFERED)
        self.check_options(book, new)
        waiting = new.time_in_force == ON_CLOSE and book.phase in BEFORE_THE_CLOSE
        takes_part = new.order_type == IMBALANCE_ONLY and not waiting
        waiting = waiting or new.order_type == IMBALANCE_ONLY
        if new.stop_price:
            there = book.reference >= new.stop_price if new.side == BUY else book.reference <= new.stop_price
            waiting = not (there and book.reference and book.trades)
        order = Order(len(self.orders) + 1, member, book, new, waiting)
        order.takes_part = takes_part
        if book.trades and not waiting:
            if new.order_type == MARKET_TO_LIMIT and book.rules.get("mtl_needs_limit", 1):
                resting = self.side(book, BUY if new.side == SELL else SELL)
                need(resting and resting[0].price, Reason.NO_OPPOSITE_LIMIT)
            self.check_counterparties(order, order.price, order.open)
        self.check_holder(order, order.open)
        alerts = self.guard(order, order.id, order.total, order.price, order.open, new.confirmed, True)
        order.asked = self.sequence
        self.orders.append(order)
        answer = Accepted(
            member,
            order.id,
            order.number,
            book.code,
            order.side,
            order.total,
            order.price,
            order.type,
            order.validity,
            order.account,
            order.display,
            waiting=waiting,
        )
        return answer, [*alerts, answer, *([] if waiting else self.enter(order))]

    def guard(
        self, order: Order, name: str, quantity: int, price: int, to_open: int, confirmed: bool, new: bool
    ) -> list[Event]:
        """Kill switch, pre-trade limits, funds: market-rules 7, in the order of its table."""
        book, member = order.book, order.member
        pairs = [(member, book.code), (member, ""), ("", book.code), ("", "")]
        need(not self.killed.intersection(pairs), Reason.KILLED)
        limits = [self.risk_limits[pair] for pair in pairs if pair in self.risk_limits]
        if price:
            worst = price if order.side == BUY else max(price, book.reference)
        else:
            worst = book.upper or max(order.stop_price, book.reference)
        units = book.listed.units_outstanding
        need(all(0 < worst * quantity <= one.value_max for one in limits if one.value_max), Reason.VALUE_CAP)
        need(all(quantity <= one.quantity_max for one in limits if one.quantity_max), Reason.QUANTITY_CAP)
        if units:
            share = Fraction(quantity * 10_000, units)
            need(all(share <= one.share_max for one in limits if one.share_max), Reason.SHARE_CAP)
            large = any(share > one.share_alert for one in limits if one.share_alert)
        else:
            large = False
        alert = LargeOrderAlerted(member, name, book.code, quantity, units, confirmed)
        if large and not confirmed:
            raise Refused(Reason.NEEDS_CONFIRMATION, before=[alert])
        for one in limits:
            if one.collar and price and book.reference:
                need(abs(price - book.reference) * 10_000 <= book.reference * one.collar, Reason.PRICE_COLLAR)
        for one in limits:
            if one.open_orders_max and new:
                mine = [other for other in self.open_orders(member) if one.instrument in ("", other.book.code)]
                need(len(mine) < one.open_orders_max, Reason.TOO_MANY_ORDERS)
        passes = [
            ((one.participant, one.instrument), member, self.time_ns // (one.interval_ms * 1_000_000))
            for one in limits
            if one.messages_max
        ]
        for one, message in zip([one for one in limits if one.messages_max], passes, strict=True):
            need(self.passed.count(message) < one.messages_max, Reason.TOO_MANY_MESSAGES)
        self.check_funds(order, price, to_open)
        self.passed += passes
        return [alert] if large else []

    def check_options(self, book: Book, new: NewOrder) -> None:
        is_stop = new.order_type in (STOP, STOP_LIMIT)
        need(bool(new.stop_price) == is_stop, Reason.BAD_PRICE)
        need(not is_stop or new.stop_price <= PRICE_MAX, Reason.BAD_PRICE)
        need(not is_stop or on_grid(book.ticks, new.stop_price), Reason.OFF_TICK)
        need(bool(new.expire_date) == (new.time_in_force == GTD), Reason.DATE_OUTSIDE_CALENDAR)
        need(not new.expire_date or new.expire_date >= self.date, Reason.DATE_OUTSIDE_CALENDAR)
        if new.display_quantity:
            need(new.price, Reason.NOT_OFFERED)
            need(new.display_quantity % book.listed.lot == 0, Reason.OFF_LOT)
            need(new.display_quantity * 1000 >= new.quantity, Reason.BAD_QUANTITY)
        if new.minimum_quantity:
            need(new.time_in_force == IOC, Reason.NOT_OFFERED)
            need(new.minimum_quantity <= new.quantity, Reason.BAD_QUANTITY)
        if new.post_only:
            need(new.order_type == LIMIT and new.time_in_force not in (IOC, FOK), Reason.NOT_OFFERED)

    def check_counterparties(self, order: Order, price: int, quantity: int) -> None:
        """What it may not meet in the book, were it there with this price and quantity."""
        if not order.book.trades or order.book.quote:
            return
        meets = self.counterparties(order, price)
        need(not (order.post_only and meets), Reason.WOULD_TRADE)
        before = 0
        for maker, chunk in meets:
            if before >= quantity or order.mode != SelfTrade.REJECT:
                break
            need(maker.group() is None or maker.group() != order.group(), Reason.SELF_TRADE)
            before += chunk

    def check_quantity(self, book: Book, quantity: int) -> None:
        need(1 <= quantity <= QUANTITY_MAX, Reason.BAD_QUANTITY)
        need(quantity % book.listed.lot == 0, Reason.OFF_LOT)

    def check_price(self, book: Book, limited: bool, price: int, quantity: int, at_once: bool = False) -> None:
        if not limited:
            need(price == 0, Reason.BAD_PRICE)
        else:
            need(1 <= price <= PRICE_MAX, Reason.BAD_PRICE)
            need(on_grid(book.ticks, price), Reason.OFF_TICK)
            need(price >= book.lower, Reason.BELOW_LIMIT)
            need(not book.upper or price <= book.upper, Reason.ABOVE_LIMIT)
        if not (at_once and not book.upper):
            need((max(price, book.upper) or PRICE_MAX) * quantity < VALUE_MAX, Reason.VALUE_TOO_LARGE)

    # --- eligibility -------------------------------------------------------------------------------------------------

    def check_open_to(self, book: Book, member: str) -> None:
        need(not book.status.last_day or self.date <= book.status.last_day, Reason.TERMINATED)
        need(book.moves, Reason.NOT_TRANSFERABLE)
        need(not book.in_window, Reason.IN_WINDOW)
        need(book.eligibility.approval != Approval.REFUSE, Reason.APPROVAL_REQUIRED)
        need(book.permits(member), Reason.NOT_PERMITTED)

    def check_holder(self, order: Order, quantity: int) -> None:
        book, who = order.book, (order.member, order.account)
        need(book.registers(*who), Reason.NOT_REGISTERED)
        holder = book.holders.get(who)
        has = self.funds.get((book.code, *who), 0)
        if order.side == SELL:
            if holder and holder.lock_up and (not holder.lock_up_until or self.date <= holder.lock_up_until):
                locked = self.locked(book.code, *who, order)
                need(quantity <= has - holder.lock_up - locked, Reason.LOCKED_UP)
            return
        if book.eligibility.jurisdictions:
            need(holder and holder.jurisdiction in book.eligibility.jurisdictions, Reason.HOLDER_NOT_ALLOWED)
        cap = (holder.holding_max if holder else 0) or book.eligibility.holding_max
        need(not cap or has + self.buying(book, who, order) + quantity <= cap, Reason.HOLDING_CAP)
        if book.eligibility.holders_max and has <= 0 and not self.buying(book, who):
            accounts = {(place[1], place[2]) for place in self.funds if place[0] == book.code}
            accounts |= {(other.member, other.account) for other in self.alive(book)}
            holders = [one for one in accounts if self.funds.get((book.code, *one), 0) > 0 or self.buying(book, one)]
            need(len(holders) < book.eligibility.holders_max, Reason.TOO_MANY_HOLDERS)

    def buying(self, book: Book, who: tuple[str, str], apart_from: Order | None = None) -> int:
        mine = [order for order in self.alive(book) if order.side == BUY and (order.member, order.account) == who]
        return sum(order.open for order in mine if order is not apart_from)

    def set_policy(self, book: Book, said: Any) -> list[Event]:
        values = [getattr(said, name) for name in said.__struct_fields__]
        counts = book.rules.get("funding") in ("units", "both")
        if isinstance(said, SetEligibility):
            need(counts or not (said.holding_max or said.holders_max), Reason.BAD_REFERENCE_DATA)
            book.eligibility = said
            return [EligibilitySet(*values), *self.sweep(book)]
        if isinstance(said, PermitMember):
            book.permitted[said.participant] = said.permitted
            return [MemberPermitted(said.participant, book.code, said.permitted), *self.sweep(book)]
        if isinstance(said, SetTokenStatus):
            need(not said.last_day or said.last_day >= self.date, Reason.BAD_REFERENCE_DATA)
            book.status = said
            return [TokenStatusSet(*values)]
        if isinstance(said, SetHolder):
            need(counts or not (said.holding_max or said.lock_up), Reason.BAD_REFERENCE_DATA)
            book.holders[said.participant, said.account] = said
            return [HolderSet(*values)]
        key = (said.kind, said.first)
        need(not said.last or said.last >= max(said.first, self.date), Reason.BAD_REFERENCE_DATA)
        need(said.last or key in book.windows, Reason.BAD_REFERENCE_DATA)
        for old in [old for old in book.windows if book.windows[old].last < self.date and old != key]:
            del book.windows[old]
            book.began.discard(old)
        before = book.windows.pop(key, None)
        if said.last:
            book.windows[key] = said
        if not said.last or (said.purge and before and not before.purge):
            book.began.discard(key)
        return [WindowSet(*values), *(self.begin_windows(book) if book.day == self.date else [])]

    def sweep(self, book: Book) -> list[Event]:
        if book.phase != Phase.CONTINUOUS:
            return []
        barred = [order for order in self.alive(book) if not book.permits(order.member)]
        return [event for order in barred for event in self.leave(order, CancelReason.INELIGIBLE)]

    def begin_day(self, book: Book) -> list[Event]:
        events: list[Event] = []
        over = book.status.last_day and self.date > book.status.last_day
        for order in self.alive(book):
            if over or not book.permits(order.member) or not book.registers(order.member, order.account):
                events += self.leave(order, CancelReason.INELIGIBLE)
        return events + self.begin_windows(book)

    def begin_windows(self, book: Book) -> list[Event]:
        events: list[Event] = []
        for key, window in book.windows.items():
            if key not in book.began and window.first <= self.date <= window.last:
                book.began.add(key)
                events.append(WindowBegan(book.code, window.kind, window.last, window.purge))
                for order in self.alive(book) if window.purge else ():
                    events += self.leave(order, CancelReason.WINDOW)
        return events

    # --- funding -----------------------------------------------------------------------------------------------------

    def check_funds(self, order: Order, price: int, quantity: int) -> None:
        """Whether the account can have this order open: with what it has, less what its other orders have locked."""
        funding = order.book.rules.get("funding", "off")
        code = order.book.code if order.side == SELL else ""
        if funding == "off" or funding == ("cash" if order.side == SELL else "units"):
            return
        price = 0 if order.validity == FUNARI else price
        need(order.side == SELL or price or order.bound, Reason.NO_PRICE_BOUND)
        wanted = quantity if order.side == SELL else quantity * (price or order.bound)
        free = self.funds.get((code, order.member, order.account), 0)
        free -= self.locked(code, order.member, order.account, order)
        need(wanted <= free, Reason.INSUFFICIENT_UNITS if code else Reason.INSUFFICIENT_CASH)

    def locked(self, code: str, member: str, account: str, apart_from: Order | None = None) -> int:
        """Yen or units that the open orders of an account have locked."""
        total = 0
        for order in self.orders:
            if not order.alive or order is apart_from or (order.member, order.account) != (member, account):
                continue
            funding = order.book.rules.get("funding", "off")
            if order.side == BUY and code == "" and funding in ("cash", "both"):
                limit = 0 if order.validity == FUNARI else order.price  # it will give it up
                total += order.open * (limit or order.bound)
            if order.side == SELL and code == order.book.code and funding in ("units", "both"):
                total += order.open
        return total

    def book_funds(self, command: Deposit | Withdraw) -> list[Event]:
        need(command.reference not in self.references, Reason.ALREADY_BOOKED)
        if command.instrument:
            need(command.instrument in self.books, Reason.UNKNOWN_INSTRUMENT)
            need(self.books[command.instrument].rules.get("funding") in ("units", "both"), Reason.NOT_OFFERED)
        need(command.quantity, Reason.BAD_QUANTITY)
        place = command.instrument, command.participant, command.account
        before, locked = self.funds.get(place, 0), self.locked(*place)
        quantity = command.quantity
        if isinstance(command, Withdraw):
            short = Reason.INSUFFICIENT_UNITS if command.instrument else Reason.INSUFFICIENT_CASH
            need(quantity <= before - locked, short)
            quantity = -quantity
        self.references.add(command.reference)
        self.funds[place] = before + quantity
        name = command.participant, command.account, command.instrument
        return [BalanceChanged(*name, quantity, before + quantity, locked, command.reference)]

    def cancel(self, cancel: CancelOrder, member: str) -> tuple[Event, list[Event]]:
        order = self.open_order(member, cancel.client_order_id)
        if not order.book.rule.cancel:
            told = self.frozen(order.book, member, cancel.request_id, order.id, order.validity in (GTC, GTD))
            raise Refused(Reason.WRONG_PHASE, behind=told)
        shown = self.show_whole(order)
        answer = self.withdraw(order, CancelReason.MEMBER, cancel.request_id)
        return answer, [*shown, answer]

    def frozen(self, book: Book, member: str, request: str, name: str, overnight: bool) -> list[Event]:
        """Which phase takes a cancel again, told where it is known when the present one ends."""
        if not book.until_ns:
            return []
        ways = [[book.phase]]
        for way in ways:
            for phase in book.phases[way[-1]].following:
                if book.phases[phase].cancel or (phase == Phase.CLOSED and not overnight):
                    return [CancelFrozen(member, request, name, book.code, phase, book.until_ns)]
                if phase not in way:
                    ways.append([*way, phase])
        raise AssertionError(f"no phase of {book.code} takes cancels")

    def open_order(self, member: str, name: str) -> Order:
        order = self.find(member, name)
        need(order, Reason.UNKNOWN_ORDER)
        assert order
        need(order.open, Reason.ORDER_FILLED)
        need(order.alive, Reason.ORDER_GONE)
        return order

    def amend(self, amend: AmendOrder, member: str) -> tuple[Event, list[Event]]:
        order = self.open_order(member, amend.client_order_id)
        book = order.book
        need(book.rule.amend, Reason.WRONG_PHASE)
        need(not book.suspended or book.rules.get("halt_orders") == "queue", Reason.SUSPENDED)
        filled = order.total - order.open
        total = amend.quantity or order.total
        price = amend.price or order.price
        ends = total == filled
        try:
            if not ends:
                self.check_quantity(book, total)
                need(total > filled, Reason.BAD_QUANTITY)
                self.check_price(book, order.price != 0, price, total)
                if order.validity == FUNARI:
                    self.check_price(book, False, 0, total)
                need((total, price) != (order.total, order.price), Reason.NO_CHANGE)
                need(not order.display or total <= order.display * 1000, Reason.BAD_QUANTITY)
                if not order.waiting and (price != order.price or total > order.total):
                    self.check_counterparties(order, price, total - filled)
        except Refused as refused:
            mode = book.rules["invalid_replace"]
            if refused.reason == Reason.NO_CHANGE or mode == "keep" or (mode == "cancel_filled" and total > filled):
                raise
            ends = True
        if not ends and (price != order.price or total > order.total):
            self.check_open_to(book, member)
            self.check_holder(order, total - filled)
        if ends:
            shown = self.show_whole(order)
            answer: Event = self.withdraw(order, CancelReason.REPLACED, amend.request_id)
            return answer, [*shown, answer]
        alerts: list[Event] = []
        if price != order.price or total > order.total:
            alerts = self.guard(order, amend.request_id, total, price, total - filled, amend.confirmed, False)
        keeps = price == order.price and (total < order.total or bool(book.rules.get("qty_up_keeps_priority")))
        visible = order.open - order.hidden
        shown = self.show_whole(order)
        answer = Amended(
            member,
            order.id,
            order.number,
            book.code,
            order.side,
            total,
            price,
            total - filled,
            order.open,
            order.price,
            keeps,
            amend.request_id,
            waiting=order.waiting,
        )
        order.total, order.open, order.price = total, total - filled, price
        if keeps:
            return answer, [*alerts, *shown, answer, *self.show(order, visible)]
        order.asked = self.sequence
        order.turn = 0
        return answer, [*alerts, *shown, answer, *([] if order.waiting else self.enter(order))]

    def mass_cancel(self, mass: MassCancel, member: str, book: Book | None) -> tuple[Event, list[Event]]:
        need(book or not mass.instrument, Reason.UNKNOWN_INSTRUMENT)
        need(not mass.price_to or mass.price_from <= mass.price_to, Reason.BAD_PRICE)
        newest = len(self.orders)
        now: list[Order] = []
        for each in [book] if book else self.books.values():
            if each.rule.cancel:
                now += self.meant(each, member, mass, newest)
            else:
                waiting = [one for one in each.mass_cancels if one[0] == member and one[1].request_id]
                need(len(waiting) < 100, Reason.WRONG_PHASE)
        told: list[Event] = []
        for each in [book] if book else self.books.values():
            if not each.rule.cancel:
                each.mass_cancels.append((member, mass, newest))
                told += self.frozen(each, member, mass.request_id, "", each.listed.profile == "CONTINUOUS")
        now.sort(key=lambda order: order.number)
        events = [event for order in now for event in self.leave(order, CancelReason.MASS_CANCEL, mass.request_id)]
        answer = MassCancelled(member, mass.request_id, len(now))
        return answer, [*events, *told, answer]

    def meant(self, book: Book, member: str, mass: MassCancel, newest: int) -> list[Order]:
        return [
            order
            for order in self.alive(book)
            if order.member == member
            and order.number <= newest
            and (mass.side is None or order.side == mass.side)
            and (not mass.price_from or order.price >= mass.price_from)
            and (not mass.price_to or 0 < order.price <= mass.price_to)
            and (not mass.account or order.account == mass.account)
        ]

    # --- the book ----------------------------------------------------------------------------------------------------

    def alive(self, book: Book) -> list[Order]:
        """Oldest first, waiting ones included."""
        return [order for order in self.orders if order.book is book and order.alive]

    def side(self, book: Book, side: Side) -> list[Order]:
        """One side of the book in matching priority."""
        resting = [order for order in self.alive(book) if order.side == side and not order.waiting and order.turn]
        return sorted(resting, key=Order.priority)

    def enter(self, order: Order) -> list[Event]:
        """Trade if the book trades; rest."""
        events = self.trade_or_rest(order)
        if order.book.trades and order.book.last_price:
            events += self.first_limits(order.book, order.book.last_price)
        while order.book.triggered:
            stop = order.book.triggered.pop(0)
            stop.waiting = False
            stop.asked = self.sequence
            name = stop.member, stop.id, stop.number
            events.append(Activated(*name, stop.book.code, stop.side, stop.price, stop.open))
            events += self.trade_or_rest(stop)
        return events

    def trade_or_rest(self, order: Order) -> list[Event]:
        events: list[Event] = []
        book = order.book
        wanted = order.open
        if not book.trades and order.validity in (IOC, FOK):  # a stop, triggered before a call opened
            return [self.withdraw(order, CancelReason.REMAINDER)]
        if book.trades and self.waits_for_price(book):
            return self.trade_quoted(order)
        if book.trades:
            band = self.band(book)
            around = book.reference
            needed = order.open if order.validity == FOK else order.minimum
            of_day = 0 if order.price else (book.upper if order.side == BUY else book.lower)
            if needed and self.obtainable(order, self.bound(order, order.price or of_day, band)) < needed:
                return [self.withdraw(order, CancelReason.REMAINDER)]
            to_limit = order.type == MARKET_TO_LIMIT and not order.price
            resting = self.side(book, BUY if order.side == SELL else SELL)
            best = next((maker.price for maker in resting if maker.price), 0) if to_limit else 0
            limit = order.price or of_day
            if to_limit:
                limit = (min(best, of_day or best) if order.side == BUY else max(best, of_day)) if best else 0
            bound = self.bound(order, limit, band)
            price = 0
            outside = self.outside(order, limit, band)
            while order.alive and not outside:
                meets = self.counterparties(order, bound)
                if not meets:
                    break
                maker, chunk = meets[0]
                at = self.price_with(order, maker, bound)
                if order.mode > SelfTrade.NONE and maker.group() and maker.group() == order.group():
                    events += self.prevent(order, maker, at)
                    continue
                price = at
                if book.rules.get("allocation") == "SIMULTANEOUS_RR":
                    events += self.fill_in_turn(order, maker, price)
                else:
                    events += self.fill(order, maker, price, min(order.open, chunk))
            while price and book.rules.get("market_rests"):
                markets = [[maker for maker in self.side(book, side) if not maker.price] for side in (BUY, SELL)]
                if not markets[0] or not markets[1]:
                    break
                maker, newer = sorted((markets[0][0], markets[1][0]), key=lambda one: one.number)
                at = book.reference
                if newer.mode > SelfTrade.NONE and maker.group() and maker.group() == newer.group():
                    events += self.prevent(newer, maker, at)
                else:
                    events += self.fill(newer, maker, at, min(newer.open, maker.open))
            if not order.alive:
                return events
            outside = outside or self.outside(order, limit, band)
            if outside:
                events.append(VolatilityInterrupted(book.code, outside, around, *band))
                events += self.open_call(book, int(book.rules.get("volatility_call_seconds", 300)))
            if order.validity in (IOC, FOK):
                return [*events, self.withdraw(order, CancelReason.REMAINDER)]
            if to_limit and (price or best):
                order.price = price or best
                events.append(self.changed(order, order.open, 0))
            if not order.price and not book.rules.get("market_rests") and book.trades:
                return [*events, self.withdraw(order, CancelReason.REMAINDER)]
        self.turns += 1
        order.turn = self.turns
        peak = order.display
        if peak and book.rules.get("iceberg_entry") == "rest_of_peak":
            peak -= (wanted - order.open) % peak
        return events + self.show(order, peak)

    def band(self, book: Book) -> tuple[int, int]:
        """The prices at which an order may trade: all of them where nobody has asked for a band."""
        width = int(book.rules.get("volatility_band", 0)) * book.reference
        if not width:
            return 0, 0
        prices = [p for p in range(2 * book.reference + 1) if abs(p - book.reference) * 10_000 <= width]
        return prices[0], prices[-1]

    def bound(self, order: Order, limit: int, band: tuple[int, int]) -> int:
        low, high = band
        if not high:
            return limit
        return min(limit or high, high) if order.side == BUY else max(limit, low, 1)

    def outside(self, order: Order, limit: int, band: tuple[int, int]) -> int:
        """The price of the next trade, if it lies outside the band; otherwise 0."""
        meets = self.counterparties(order, limit)
        if not meets or not band[1]:
            return 0
        price = self.price_with(order, meets[0][0], limit)
        return 0 if band[0] <= price <= band[1] else price

    def open_call(self, book: Book, seconds: int) -> list[Event]:
        before, book.phase = book.phase, Phase.CALL
        book.until_ns = self.time_ns + seconds * 10**9
        return [PhaseChanged(book.code, Phase.CALL, before), PhaseTimed(book.code, Phase.CALL, book.until_ns)]

    def counterparties(self, order: Order, limit: int) -> list[tuple[Order, int]]:
        """Whom an incoming order would meet, one after the other, and with how much each time: peak by peak."""
        other = BUY if order.side == SELL else SELL
        makers = self.side(order.book, other)
        makers = [
            maker
            for maker in makers
            if not (limit and maker.price) or (maker.price <= limit if other == SELL else maker.price >= limit)
        ]
        if makers and not makers[0].price and not self.price_with(order, makers[0], limit):
            return []
        meets: list[tuple[Order, int]] = []
        for price in dict.fromkeys(maker.price for maker in makers):
            level = [maker for maker in makers if maker.price == price]
            queue = [(maker, maker.open - maker.hidden, maker.hidden) for maker in level]
            if order.book.rules.get("allocation") == "SIMULTANEOUS_RR":
                for group in self.groups(order.book, [(maker, visible) for maker, visible, _ in queue]):
                    dealt, _ = self.deal(order.book, group, sum(share for _, share in group))
                    meets += [(group[i][0], share) for i, share in dealt]
                queue = [(maker, min(maker.display, hidden), hidden) for maker, _, hidden in queue if hidden]
                queue = [(maker, peak, hidden - peak) for maker, peak, hidden in queue]
            while queue:
                maker, visible, hidden = queue.pop(0)
                meets.append((maker, visible))
                if hidden:
                    peak = min(maker.display, hidden)
                    queue.append((maker, peak, hidden - peak))
        return meets

    def price_with(self, order: Order, maker: Order, limit: int) -> int:
        if maker.price:
            return maker.price
        limits = [other.price for other in self.side(order.book, maker.side) if other.price]
        prices = [price for price in (order.book.reference, limit, *limits) if price]
        return (min(prices) if order.side == BUY else max(prices)) if prices else 0

    def obtainable(self, order: Order, limit: int) -> int:
        total = 0
        for maker, chunk in self.counterparties(order, limit):
            if order.mode > SelfTrade.NONE and maker.group() and maker.group() == order.group():
                if order.mode == SelfTrade.CANCEL_OLDEST:
                    continue
                break
            total += chunk
        return total

    def fill(self, order: Order, maker: Order, price: int, quantity: int) -> list[Event]:
        book = order.book
        buy, sell = (order, maker) if order.side == BUY else (maker, order)
        events = [self.trade(book, buy, sell, price, quantity, maker.side)]
        book.reference = book.last_price = price
        book.last_quantity = quantity
        if maker.open == maker.hidden and maker.open:
            peak = min(maker.display, maker.hidden)
            maker.hidden -= peak
            self.turns += 1
            maker.turn = self.turns
            maker.asked = self.sequence
            events.append(self.displayed(maker, peak, 0))
        stops = [stop for stop in self.alive(book) if stop.waiting and stop.stop_price and stop not in book.triggered]
        buys = [stop for stop in stops if stop.side == BUY and stop.stop_price <= price]
        sells = [stop for stop in stops if stop.side == SELL and stop.stop_price >= price]
        book.triggered += sorted(buys, key=lambda stop: (stop.stop_price, stop.asked))
        book.triggered += sorted(sells, key=lambda stop: (-stop.stop_price, stop.asked))
        return events

    def prevent(self, order: Order, maker: Order, price: int) -> list[Event]:
        quantity = min(order.open, maker.open)
        events: list[Event] = [
            SelfTradePrevented(
                order.member,
                order.book.code,
                price,
                min(order.open, maker.open - maker.hidden),
                order.id,
                order.number,
                maker.id,
                maker.number,
            )
        ]
        mode = order.mode
        maker_goes = mode in (SelfTrade.CANCEL_OLDEST, SelfTrade.CANCEL_BOTH)
        order_goes = mode in (SelfTrade.CANCEL_NEWEST, SelfTrade.CANCEL_BOTH, SelfTrade.REJECT)
        if mode == SelfTrade.DECREMENT:
            maker_goes, order_goes = maker.open == quantity, order.open == quantity
            for one in (maker, order):
                if one.open > quantity:
                    events += self.reduce(one, quantity)
        if maker_goes:
            events += self.leave(maker, CancelReason.SELF_TRADE)
        if order_goes:
            events += self.leave(order, CancelReason.SELF_TRADE)
        return events

    def reduce(self, order: Order, quantity: int) -> list[Event]:
        visible = order.open - order.hidden if order.hidden else order.open
        events = self.show_whole(order)
        order.total -= quantity
        order.open -= quantity
        return [*events, self.changed(order, order.open + quantity, order.price), *self.show(order, visible)]

    def changed(self, order: Order, before: int, price_before: int) -> Event:
        name = order.member, order.id, order.number, order.book.code, order.side
        terms = order.total, order.price, order.open, before, price_before, True, ""
        return Amended(*name, *terms, waiting=order.waiting)

    def displayed(self, order: Order, now: int, before: int) -> Event:
        name = order.member, order.id, order.number, order.book.code, order.side, order.price
        return DisplayChanged(*name, now, before)

    def show_whole(self, order: Order) -> list[Event]:
        hidden, order.hidden = order.hidden, 0
        return [self.displayed(order, order.open, order.open - hidden)] if hidden else []

    def show(self, order: Order, quantity: int) -> list[Event]:
        """Show no more than ``quantity`` of an iceberg."""
        if not order.display or order.waiting or quantity >= order.open:
            return []
        order.hidden = order.open - quantity
        return [self.displayed(order, quantity, order.open)]

    def leave(self, order: Order, reason: CancelReason, request: str = "") -> list[Event]:
        return [*self.show_whole(order), self.withdraw(order, reason, request)]

    def trade(self, book: Book, buy: Order, sell: Order, price: int, quantity: int, maker: int) -> Event:
        self.trades += 1
        buy.open -= quantity
        sell.open -= quantity
        self.move_funds(buy, sell, price, quantity)
        traded = Traded(
            self.trades,
            book.code,
            price,
            quantity,
            buy.member,
            buy.id,
            buy.number,
            buy.open,
            buy.account,
            sell.member,
            sell.id,
            sell.number,
            sell.open,
            sell.account,
            maker,
            self.date,
            book.settlement_date,
            buy.price,
            sell.price,
        )
        self.tape.append((buy, sell, traded))
        return traded

    def move_funds(self, buy: Order, sell: Order, price: int, quantity: int) -> None:
        funding = buy.book.rules.get("funding", "off")
        for order, sign in ((buy, 1), (sell, -1)):
            place = order.member, order.account
            if funding in ("cash", "both"):
                self.funds["", *place] = self.funds.get(("", *place), 0) - sign * price * quantity
            if funding in ("units", "both"):
                code = order.book.code
                self.funds[code, *place] = self.funds.get((code, *place), 0) + sign * quantity

    def withdraw(self, order: Order, reason: CancelReason, request: str = "") -> Cancelled:
        order.gone = True
        return Cancelled(
            order.member,
            order.id,
            order.number,
            order.book.code,
            order.side,
            order.price,
            order.open,
            reason,
            request,
            waiting=order.waiting,
        )

    # --- auctions ----------------------------------------------------------------------------------------------------

    def price(self, book: Book) -> tuple[int, int, int]:
        """(price, volume, surplus) of an auction held now: market-rules 3.2, every candidate tried."""
        buys, sells = self.side(book, BUY), self.side(book, SELL)

        def demand(price: int) -> int:
            return sum(order.open for order in buys if not order.price or order.price >= price)

        def supply(price: int) -> int:
            return sum(order.open for order in sells if not order.price or order.price <= price)

        def volume(price: int) -> int:
            return min(demand(price), supply(price))

        def surplus(price: int) -> int:
            return demand(price) - supply(price)

        if self.waits_for_price(book):
            best, _, _ = self.quoted_price(book)
            return (best, volume(best), surplus(best)) if best else (0, 0, 0)
        if not buys or not sells:
            return 0, 0, 0
        limits = [order.price for order in buys + sells if order.price]
        if not limits:
            best = min(max(book.reference, book.lower), book.upper or book.reference) if book.reference else 0
        else:
            best = self.best_price(book, limits, volume, surplus)
        must_fill = book.rules.get("market_orders_must_all_fill") and not book.widths
        for side in (buys, sells):
            if best and must_fill and volume(best) < sum(order.open for order in side if not order.price):
                best = 0
        return (best, volume(best), surplus(best)) if best else (0, 0, 0)

    def best_price(self, book: Book, limits: list[int], volume: Any, surplus: Any) -> int:
        rows = book.ticks
        first = next_valid(rows, min(limits) - 1, -1)
        last = next_valid(rows, max(limits) + 1, 1)
        tried = {book.reference, book.lower, book.upper}
        for limit in limits:
            tried |= {limit, next_valid(rows, limit - 1, -1), next_valid(rows, limit + 1, 1)}
        kept = [
            p
            for p in sorted(tried)
            if p and first <= p <= last and book.lower <= p <= (book.upper or p) and on_grid(rows, p)
        ]
        most = max([volume(p) for p in kept], default=0)
        if not most:
            return 0
        kept = [p for p in kept if volume(p) == most]
        least = min(abs(surplus(p)) for p in kept)
        kept = [p for p in kept if abs(surplus(p)) == least]
        if all(surplus(p) < 0 for p in kept):
            return kept[0]
        if all(surplus(p) > 0 for p in kept):
            return kept[-1]
        low, high = kept[0], kept[-1]
        if least:
            low, high = max(p for p in kept if surplus(p) > 0), min(p for p in kept if surplus(p) < 0)
        wanted = book.reference or next_valid(rows, (low + high) // 2, -1)
        return min(max(wanted, low), high)

    def shares(
        self, book: Book, side: Side, volume: int, peaks: dict[int, int], for_good: bool = False
    ) -> list[tuple[Order, int]]:
        """Who gets how much of ``volume``, in priority order (market-rules 3.3); an order may have several turns.

        ``peaks``: what icebergs that trade peak by peak show first. ``for_good``: this is the auction, and members
        remember whose turn it is.
        """
        queue = self.side(book, side)
        shares: list[tuple[Order, int]] = []
        found, sharing, _ = self.quoted_price(book) if volume and self.waits_for_price(book) else (0, "", None)
        groups = [
            [(order, order.open) for order in queue if order.price == price]
            for price in dict.fromkeys(order.price for order in queue)
        ]
        if sharing:  # at the edge of the closing range all who can trade are one group, by time of entry
            can = [o for o in queue if not o.price or (o.price >= found if side == BUY else o.price <= found)]
            groups = [[(order, order.open) for order in sorted(can, key=lambda order: (order.asked, order.number))]]
        allocation = sharing or book.rules.get("allocation")
        for group in groups:
            price = group[0][0].price
            if peaks:
                group = []
                turns = [(order, peaks.get(order.number, order.open), order.open) for order in queue]
                turns = [turn for turn in turns if turn[0].price == price]
                while turns:
                    order, peak, left = turns.pop(0)
                    group.append((order, min(peak, left)))
                    if left > peak:
                        turns.append((order, order.display, left - peak))
            in_turn = allocation == "SIMULTANEOUS_RR"
            for part in self.groups(book, group) if in_turn and not sharing else [group]:
                got = [0] * len(part)
                if in_turn and 0 < volume < sum(share for _, share in part):
                    dealt, rota = self.deal(book, part, volume, fresh=bool(sharing))
                    for i, share in dealt:
                        got[i] += share
                    volume = 0
                    if for_good and not sharing:
                        self.remember(part[0][0], rota)
                for i, (order, share) in enumerate(part):
                    more = min(volume, share - got[i])
                    got[i] += more
                    volume -= more
                    shares.append((order, got[i]))
        return shares

    def uncross(self, book: Book) -> list[Event]:
        before: list[Event] = []
        for order in self.alive(book):
            if not book.moves or not book.permits(order.member):
                before += self.leave(order, CancelReason.INELIGIBLE)
        visible: dict[int, int] = {}
        for order in self.alive(book):
            if order.hidden and self.price(book)[0]:
                visible[order.number] = order.open - order.hidden
                before += self.show_whole(order)
        peaks = visible if book.rules.get("iceberg_uncross") == "peak" else {}
        before += self.cut_self_trades(book, peaks)
        was = {order.number: order.open for order in self.alive(book)}
        price, volume, surplus = self.price(book)
        sharing = self.quoted_price(book)[1] if self.waits_for_price(book) else ""
        added = self.imbalance(book, price, surplus, ())
        more = sum(share for _, share in added)
        if price:
            self.forget_turns(book)
        buys = self.shares(book, BUY, volume + (more if surplus > 0 else 0), peaks, for_good=True)
        sells = self.shares(book, SELL, volume + (more if surplus < 0 else 0), peaks, for_good=True)
        for order, share in added:
            (sells if surplus > 0 else buys).append((order, share))
            name = order.member, order.id, order.number
            before.append(Activated(*name, book.code, order.side, order.price, share))
        volume += more
        surplus -= more if surplus > 0 else -more
        pairs = self.pairs(buys, sells)
        events: list[Event] = [*before, AuctionUncrossed(book.code, book.phase, price, volume, surplus, len(pairs))]
        for i, j in self.told(book, buys, sells, surplus, list(pairs)):
            events.append(self.trade(book, buys[i][0], sells[j][0], price, pairs[i, j], -1))
        if price:
            book.reference = book.last_price = price
            book.last_quantity = volume
        for number, shown in visible.items():
            order = self.orders[number - 1]
            if not order.alive:
                continue
            traded = was[number] - order.open
            if traded < shown:
                shown -= traded
            elif order.open:
                peak_by_peak = peaks or book.rules.get("iceberg_entry") == "rest_of_peak"
                shown = order.display - ((traded - shown) % order.display if peak_by_peak else 0)
                if peaks:
                    self.turns += 1
                    order.turn = self.turns
            if order.open:
                events += self.show(order, shown)
        for order in self.alive(book):
            if not order.price and not order.waiting:
                if price and order.type == MARKET_TO_LIMIT:
                    order.price = price
                    self.turns += 1
                    order.turn = self.turns
                    events.append(self.changed(order, order.open, 0))
                elif not book.rules.get("market_rests") and not self.waits_for_price(book):
                    events.append(self.withdraw(order, CancelReason.REMAINDER))
        return [*events, *self.after_auction(book, price, sharing)]

    def told(
        self,
        book: Book,
        buys: list[tuple[Order, int]],
        sells: list[tuple[Order, int]],
        surplus: int,
        pairs: list[tuple[int, int]],
    ) -> list[tuple[int, int]]:
        """The pairs in the order in which they are told (market-rules 6)."""
        if book.rules.get("fill_order") != "remainder_first":
            return pairs
        lots = buys if surplus > 0 else sells

        def is_cut(order: Order) -> bool:
            at = [share for one, share in lots if one.price == order.price]
            there = [one.open for one in self.side(book, order.side) if one.price == order.price]
            return sum(at) < sum(there)

        first = [pair for pair in pairs if surplus and is_cut(lots[pair[0 if surplus > 0 else 1]][0])]
        others = [pair for pair in pairs if pair not in first]
        for some in (first, others):
            some.sort(key=lambda pair: sells[pair[1]][0].price or -1, reverse=True)
            some.sort(key=lambda pair: buys[pair[0]][0].price or PRICE_MAX + 1)
        return first + others

    def pairs(self, buys: list[tuple[Order, int]], sells: list[tuple[Order, int]]) -> dict[tuple[int, int], int]:
        """Who trades with whom, one unit after the other, by the places of the two; nobody with its own group."""
        bought = [i for i, (_, share) in enumerate(buys) for _ in range(share)]
        sold = [j for j, (_, share) in enumerate(sells) for _ in range(share)]

        def group(order: Order) -> tuple[str, ...] | None:
            return order.group() if order.mode > SelfTrade.NONE else None

        def apart(i: int, j: int) -> bool:
            return group(buys[i][0]) is None or group(buys[i][0]) != group(sells[j][0])

        pairs: dict[tuple[int, int], int] = {}
        if all(apart(i, j) for i, j in zip(bought, sold, strict=True)):
            for pair in zip(bought, sold, strict=True):
                pairs[pair] = pairs.get(pair, 0) + 1
            return pairs
        while bought:
            i = bought[0]
            mine = group(buys[i][0])
            everybody = [group(buys[i][0]) for i in bought] + [group(sells[j][0]) for j in sold]
            tight = {one for one in everybody if one and one != mine and everybody.count(one) == len(bought)}
            j = next(j for j in sold if (group(sells[j][0]) in tight if tight else apart(i, j)))
            pairs[i, j] = pairs.get((i, j), 0) + 1
            bought.remove(i)
            sold.remove(j)
        return pairs

    def cut_self_trades(self, book: Book, peaks: dict[int, int]) -> list[Event]:
        """Orders give way until every group's fills on both sides fit into the volume (market-rules 7)."""
        events: list[Event] = []
        while True:
            price, volume, _ = self.price(book)
            fills = [
                (order, share)
                for side in (BUY, SELL)
                for order, share in self.shares(book, side, volume, peaks)
                if share and order.mode > SelfTrade.NONE and order.group()
            ]
            total: dict[Any, int] = {}
            for order, share in fills:
                total[order.group()] = total.get(order.group(), 0) + share
            over = [group for group in total if total[group] > volume]
            if not over:
                return events
            own = sorted(
                (order for order, _ in fills if order.group() == over[0]), key=lambda order: (order.asked, order.number)
            )
            excess = total[over[0]] - volume
            newest = own[-1]
            other = [order for order in own if order.side != newest.side][-1]
            name = newest.member, book.code, price, excess
            events.append(SelfTradePrevented(*name, newest.id, newest.number, other.id, other.number))
            if newest.mode == SelfTrade.DECREMENT:
                cut = min(excess, newest.open, other.open)
                for order in sorted((newest, other), key=lambda order: order.side):
                    events += (
                        self.leave(order, CancelReason.SELF_TRADE) if cut == order.open else self.reduce(order, cut)
                    )
            elif newest.mode == SelfTrade.CANCEL_OLDEST:
                events += self.leave(own[0], CancelReason.SELF_TRADE)
            else:
                events += self.leave(newest, CancelReason.SELF_TRADE)
                if newest.mode == SelfTrade.CANCEL_BOTH:
                    events += self.leave(other, CancelReason.SELF_TRADE)

    # --- the exchange ------------------------------------------------------------------------------------------------

    def exchange_command(self, command: Command) -> list[Event]:
        if isinstance(command, ListInstrument):
            return self.list_instrument(command)
        if isinstance(command, StartDay):
            return self.start_day(command.date)
        if isinstance(command, SetCalendar):
            need(command.first <= command.last, Reason.BAD_REFERENCE_DATA)
            self.calendar = command
            return [ReferenceDataSet("calendar", "", command.first)]
        if isinstance(command, SetTickTable):
            rows = [(row.start, row.tick) for row in command.rows]
            self.tick_tables.setdefault(command.table, []).append((command.effective, rows))
            return [ReferenceDataSet("tick_table", command.table, command.effective)]
        if isinstance(command, SetQuoteTable):
            rows = [(row.below, row.width) for row in command.rows]
            self.quote_tables.setdefault(command.table, []).append((command.effective, rows))
            return [ReferenceDataSet("quote_table", command.table, command.effective)]
        if isinstance(command, RenewQuote):
            need(command.instrument in self.books, Reason.UNKNOWN_INSTRUMENT)
            return self.renew_quote(self.books[command.instrument])
        if isinstance(command, SetLimitTable):
            rows = [(row.below, row.width) for row in command.rows]
            self.limit_tables.setdefault(command.table, []).append((command.effective, rows))
            return [ReferenceDataSet("limit_table", command.table, command.effective)]
        if isinstance(command, Deposit | Withdraw):
            return self.book_funds(command)
        if isinstance(command, SetEligibility | PermitMember | SetTokenStatus | SetHolder | SetWindow):
            need(command.instrument in self.books, Reason.UNKNOWN_INSTRUMENT)
            return self.set_policy(self.books[command.instrument], command)
        if isinstance(command, Kill | Restore | SetRiskLimits | Disconnected):
            return self.protect(command)
        if isinstance(command, BustTrade):
            return self.bust(command.trade_id)
        assert isinstance(command, SetPhase | SetReferencePrice | SuspendInstrument | ResumeInstrument)
        need(command.instrument in self.books, Reason.UNKNOWN_INSTRUMENT)
        book = self.books[command.instrument]
        if isinstance(command, SetPhase):
            return self.set_phase(book, command.phase, command.until_ns)
        if isinstance(command, SetReferencePrice):
            need(1 <= command.price <= PRICE_MAX, Reason.BAD_PRICE)
            need(not book.day or on_grid(book.ticks, command.price), Reason.OFF_TICK)
            book.reference = command.price
            return [ReferencePriceSet(book.code, command.price)]
        suspend = isinstance(command, SuspendInstrument)
        need(book.suspended != suspend, Reason.BAD_TRANSITION)
        return self.suspend(book) if suspend else self.resume(book)

    def suspend(self, book: Book) -> list[Event]:
        book.suspended = True
        if book.phase in NON_CANCEL:
            book.dropped = True
        events: list[Event] = [TradingStateChanged(book.code, True), *self.drop_quote(book, True)]
        for order in self.alive(book) if book.rules.get("halt_resting") == "purge" else ():
            events += self.leave(order, CancelReason.HALT)
        return events

    def resume(self, book: Book) -> list[Event]:
        seconds = int(book.rules.get("reopen_call_seconds", 0))
        calls = seconds and (book.phase in (Phase.CONTINUOUS, Phase.CALL) or book.dropped)
        need(calls or book.phase != Phase.CONTINUOUS or not self.crossed(book), Reason.BAD_TRANSITION)
        book.suspended = False
        events: list[Event] = [TradingStateChanged(book.code, False)]
        if calls and book.phase == Phase.CALL:
            book.until_ns = max(self.time_ns + seconds * 10**9, book.until_ns)
            return [*events, PhaseTimed(book.code, Phase.CALL, book.until_ns)]
        if calls:
            return [*events, *self.open_call(book, seconds), *self.entered(book)]
        return [*events, *self.wake_stops(book)]

    # --- protection --------------------------------------------------------------------------------------------------

    def protect(self, command: Kill | Restore | SetRiskLimits | Disconnected) -> list[Event]:
        member = command.participant
        need(member or not isinstance(command, Disconnected), Reason.BAD_IDENTITY)
        need(not member or re.fullmatch("[a-z0-9-]{1,16}", member), Reason.BAD_IDENTITY)
        if isinstance(command, Disconnected):
            return self.disconnected(member)
        need(not command.instrument or command.instrument in self.books, Reason.UNKNOWN_INSTRUMENT)
        pair = (member, command.instrument)
        if isinstance(command, SetRiskLimits):
            values = [getattr(command, name) for name in command.__struct_fields__]
            self.risk_limits[pair] = command
            self.passed = [message for message in self.passed if message[0] != pair]
            return [RiskLimitsSet(*values)]
        need((pair in self.killed) == isinstance(command, Restore), Reason.BAD_TRANSITION)
        if isinstance(command, Restore):
            self.killed.remove(pair)
            return [KillSwitched(*pair, False, 0)]
        self.killed.add(pair)
        meant = [o for o in self.orders if o.alive and member in ("", o.member) and pair[1] in ("", o.book.code)]
        events: list[Event] = [KillSwitched(*pair, True, len(meant))]
        for order in meant:
            events += self.leave(order, CancelReason.KILL)
        return events

    def disconnected(self, member: str) -> list[Event]:
        now: list[Order] = []
        books: list[Book] = []
        for order in self.open_orders(member):
            book = order.book
            said = [
                limits.cancel_on_disconnect
                for pair in ((member, book.code), (member, ""), ("", book.code), ("", ""))
                if (limits := self.risk_limits.get(pair)) and limits.cancel_on_disconnect is not None
            ]
            goes = said[0] if said else book.rules["cancel_on_disconnect"]
            if not goes or book.phase == Phase.CLOSED:
                continue
            if book.rule.cancel:
                now.append(order)
            elif book not in books:
                books.append(book)
        events: list[Event] = [ConnectionLost(member, len(now), len(books))]
        for order in now:
            events += self.leave(order, CancelReason.DISCONNECT)
        for book in books:
            book.mass_cancels = [one for one in book.mass_cancels if one[0] != member or one[1].request_id]
            book.mass_cancels.append((member, MassCancel(""), len(self.orders)))
        return events

    def bust(self, number: int) -> list[Event]:
        need(1 <= number <= self.trades, Reason.UNKNOWN_TRADE)
        need(number not in self.busted, Reason.TRADE_BUSTED)
        self.busted.add(number)
        buy, sell, traded = self.tape[number - 1]
        self.move_funds(buy, sell, traded.price, -traded.quantity)
        terms = number, buy.book.code, traded.price, traded.quantity
        bought = buy.member, buy.id, buy.number, buy.account
        sold = sell.member, sell.id, sell.number, sell.account
        return [TradeBusted(*terms, *bought, *sold, traded.trade_date, buy.book.listed.units_outstanding)]

    def wake_stops(self, book: Book) -> list[Event]:
        """Trading begins or goes on: stops that the last price has reached enter."""
        if not book.trades or not book.reference or not book.moves or book.in_window:
            return []
        there = [
            stop
            for stop in self.alive(book)
            if stop.waiting
            and stop.stop_price
            and (stop.stop_price <= book.reference if stop.side == BUY else stop.stop_price >= book.reference)
        ]
        there.sort(key=lambda stop: (stop.side, stop.stop_price if stop.side == BUY else -stop.stop_price, stop.asked))
        book.triggered += there
        events: list[Event] = []
        while book.triggered:
            stop = book.triggered.pop(0)
            stop.waiting = False
            stop.asked = self.sequence
            name = stop.member, stop.id, stop.number
            events.append(Activated(*name, book.code, stop.side, stop.price, stop.open))
            events += self.trade_or_rest(stop)
        return events

    def list_instrument(self, listed: ListInstrument) -> list[Event]:
        need(listed.instrument not in self.books, Reason.ALREADY_LISTED)
        need(listed.profile in PHASES and listed.tick_table in self.tick_tables, Reason.BAD_REFERENCE_DATA)
        need(listed.limit_table in (*self.limit_tables, "none"), Reason.BAD_REFERENCE_DATA)
        self.books[listed.instrument] = Book(listed)
        return [
            InstrumentListed(
                listed.instrument,
                listed.profile,
                listed.lot,
                listed.price_decimals,
                listed.reference_price,
                listed.settlement_days,
                listed.ledger,
            )
        ]

    def start_day(self, date: int) -> list[Event]:
        need(date > self.date, Reason.BAD_TRANSITION)
        need(all(book.phase == Phase.CLOSED for book in self.books.values()), Reason.BAD_TRANSITION)
        need(self.is_business_day(date), Reason.DATE_OUTSIDE_CALENDAR)
        for tables in (self.tick_tables, self.limit_tables, self.quote_tables):
            for name, versions in tables.items():  # what had no date has one now
                tables[name] = [(effective or date, rows) for effective, rows in versions]
        self.date = date
        events: list[Event] = [DayStarted(date)]
        for book in self.books.values():
            book.day = date
            book.settlement_date = self.settlement_date(date, book.listed.settlement_days)
            book.ticks = self.table(self.tick_tables[book.listed.tick_table])
            book.reference = nearest(book.ticks, book.reference)
            limit_table, quote_table = book.listed.limit_table, str(book.rules.get("quote_width_table", "none"))
            book.limits = self.table(self.limit_tables[limit_table]) if limit_table != "none" else []
            book.widths = self.table(self.quote_tables[quote_table]) if quote_table != "none" else []
            book.run_base = book.pressed = 0
            book.moved = False
            events += self.set_limits(book, book.reference)
            for order in self.alive(book):
                beyond = order.price < book.lower or (book.upper and order.price > book.upper)
                off = order.price and (beyond or not on_grid(book.ticks, order.price))
                if order.last_day and order.last_day < date:
                    events += self.leave(order, CancelReason.EXPIRED)
                elif off or (order.waiting and order.stop_price and not on_grid(book.ticks, order.stop_price)):
                    events += self.leave(order, CancelReason.LIMITS)
            unbounded = [order for order in self.alive(book) if order.side == BUY and not order.price]
            for order in unbounded:
                order.bound = 0
            for order in unbounded:
                order.bound = book.upper
                try:
                    self.check_funds(order, 0, order.open)
                except Refused:
                    events += self.leave(order, CancelReason.UNFUNDED)
            events += self.begin_day(book)
        return events

    def table(self, versions: list[tuple[int, list[tuple[int, int]]]]) -> list[tuple[int, int]]:
        """The latest version that holds today; of equal dates the one that came last."""
        holding = [(effective, i) for i, (effective, _) in enumerate(versions) if effective <= self.date]
        return versions[max(holding)[1]][1]

    def is_business_day(self, date: int) -> bool:
        day = as_day(date)
        if self.calendar is None:
            return True
        year_end = (day.month, day.day) in ((12, 31), (1, 1), (1, 2), (1, 3))
        covered = self.calendar.first <= date <= self.calendar.last
        return covered and day.weekday() < 5 and not year_end and date not in self.calendar.holidays

    def settlement_date(self, date: int, days: int) -> int:
        if self.calendar is None:
            return 0
        following = (as_day(date) + datetime.timedelta(n) for n in range(366))
        business = (day for day in following if self.is_business_day(as_number(day)))
        return as_number([next(business) for _ in range(days + 1)][-1])

    def set_phase(self, book: Book, phase: Phase, until_ns: int) -> list[Event]:
        need(self.date and book.day == self.date, Reason.NO_DAY)
        need(phase in book.rule.following, Reason.BAD_TRANSITION)
        need(phase != Phase.CONTINUOUS or book.quote or not self.crossed(book), Reason.BAD_TRANSITION)
        events: list[Event] = self.drop_quote(book, True) if phase != Phase.CONTINUOUS else []
        events.append(PhaseChanged(book.code, phase, book.phase))
        book.phase = phase
        book.until_ns = until_ns
        if until_ns:
            events.append(PhaseTimed(book.code, phase, until_ns))
        return [*events, *self.entered(book)]

    def entered(self, book: Book) -> list[Event]:
        phase = book.phase
        events: list[Event] = []
        if phase in AUCTIONS:
            book.dropped = book.dropped or book.suspended
        else:
            book.dropped = book.suspended and phase in NON_CANCEL
        held = phase in AUCTIONS and not book.dropped and not book.in_window
        hybrid = book.listed.profile == "TSE_HYBRID"
        leaving = () if hybrid and phase == Phase.PRE_CLOSE else EXPIRES.get(phase, ())
        if held:
            if hybrid and phase == Phase.CLOSING_AUCTION:
                events += self.join(book)
            events += self.uncross(book)
        if phase == Phase.CLOSED:
            self.close_day(book)
        if book.quote:
            if phase in AUCTIONS:
                book.quote.expires = leaving
        elif held or phase not in AUCTIONS:
            for order in self.alive(book):
                ends = phase == Phase.CLOSED and (
                    (not order.price and not order.waiting) or (order.last_day and order.last_day <= self.date)
                )
                if order.validity in leaving or ends:
                    events += self.leave(order, CancelReason.EXPIRED)
        if phase == Phase.PRE_CLOSE:
            events += self.join(book)
        events += self.sweep(book)
        events += self.wake_stops(book)
        if book.rule.cancel:
            for member, mass, newest in book.mass_cancels:
                for order in self.meant(book, member, mass, newest):
                    reason = CancelReason.MASS_CANCEL if mass.request_id else CancelReason.DISCONNECT
                    events += self.leave(order, reason, mass.request_id)
            book.mass_cancels = []
        return events

    def join(self, book: Book) -> list[Event]:
        """On-close orders come into the book; funari orders give up their limits."""
        events: list[Event] = []
        book.joined = self.sequence
        for order in sorted(self.alive(book), key=lambda order: (order.asked, order.number)):
            if order.type == IMBALANCE_ONLY:
                order.takes_part = order.takes_part or order.validity == ON_CLOSE
            elif order.validity == ON_CLOSE and order.waiting:
                order.waiting = False
                self.turns += 1
                order.turn = self.turns
                name = order.member, order.id, order.number
                events.append(Activated(*name, book.code, order.side, order.price, order.open))
            elif order.validity == FUNARI and order.price:
                before, order.price = order.price, 0
                self.turns += 1
                order.turn = self.turns
                events.append(self.changed(order, order.open, before))
        return events

    def crossed(self, book: Book) -> bool:
        """Whether orders rest that could trade with one another, or that only a call can hold."""
        buys, sells = self.side(book, BUY), self.side(book, SELL)
        markets = [order for order in buys + sells if not order.price]
        if markets and not book.rules.get("market_rests"):
            return True
        limited = [order.price for order in buys if order.price], [order.price for order in sells if order.price]
        if limited[0] and limited[1] and limited[0][0] >= limited[1][0]:
            return True
        # One that has no limit meets whoever names a price, or its like at the last price.
        return any(
            limited[1 if order.side == BUY else 0]
            or (book.reference and any(other.side != order.side for other in markets))
            for order in markets
        )

    # --- what it shows -----------------------------------------------------------------------------------------------

    def depth(self, code: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        return self.ladder(code, BUY), self.ladder(code, SELL)

    def ladder(self, code: str, side: Side) -> list[tuple[int, int]]:
        levels: dict[int, int] = {}
        for order in self.side(self.books[code], side):
            levels[order.price] = levels.get(order.price, 0) + order.open - order.hidden
        return list(levels.items())

    def queue(self, code: str, side: Side) -> list[int]:
        return [order.number for order in self.side(self.books[code], side)]

    def indicative(self, code: str) -> tuple[int, int, int]:
        book = self.books[code]
        if not book.rule.indicative:
            return 0, 0, 0
        price, volume, surplus = self.price(book)
        more = sum(share for _, share in self.imbalance(book, price, surplus, ()))
        return price, volume + more, surplus - more if surplus > 0 else surplus + more

    def open_orders(self, member: str) -> Iterable[Order]:
        return [order for order in self.orders if order.member == member and order.alive]


def as_day(date: int) -> datetime.date:
    return datetime.date(date // 10000, date // 100 % 100, date % 100)


def as_number(day: datetime.date) -> int:
    return int(day.strftime("%Y%m%d"))
